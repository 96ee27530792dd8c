import os
from pathlib import Path
import re
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import numpy
import onnx
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, 'export_onnx.py', '--repeats', '1', *map(str, args)],
        cwd=str(SCRIPTS),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def save(out, random, common_num=10, dtype='f', **changes):
    """Writes what train_mnist.py writes, of a small network."""
    arrays = {
        'l1/W': random.randn(40, 784) / 28,
        'l1/b': random.randn(40),
        'l2/W': random.randn(30, 40 // common_num),
        'l3/W': random.randn(10, 30),
        'l3/b': random.randn(10),
        **changes,
    }
    numpy.savez(
        out / 'model.npz', **{k: arrays[k].astype(dtype) for k in arrays}
    )


def assert_fails(result, *words):
    assert result.returncode == 1, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith('export_onnx.py: error: ')
    for word in words:
        assert str(word) in result.stderr


@pytest.mark.parametrize(
    ('options', 'dtype', 'bias', 'environment'),
    [
        ((), 'f', True, {}),
        (('--opset', 7), 'e', False, {}),
        ((), 'f', False, {'CHAINER_SHARED_PATCH': '0'}),
    ],
)
def test_export(tmp_path, random, options, dtype, bias, environment):
    save(
        tmp_path,
        random,
        dtype=dtype,
        **({'l2/b': random.randn(30)} if bias else {}),
    )
    result = run('--out', tmp_path, *options, **environment)
    assert result.returncode == 0, result.stderr
    for name, columns in (('model.onnx', 4), ('dense.onnx', 40)):
        path = tmp_path / name
        model = onnx.load(str(path))
        shapes = [tuple(each.dims) for each in model.graph.initializer]
        assert (30, columns) in shapes
        size = f'{path.stat().st_size:,}'
        assert re.search(name + ' +' + size, result.stdout)
    assert re.findall('^ +(1|32) ', result.stdout, re.M) == ['1', '32']


def test_wrong_opset(tmp_path):
    result = run('--out', tmp_path, '--opset', 12)
    assert result.returncode == 2
    assert 'at least 7 and at most 11' in result.stderr


def test_no_model(tmp_path):
    assert_fails(run('--out', tmp_path), tmp_path / 'model.npz', 'there is no')


def test_no_npz_file(tmp_path):
    (tmp_path / 'model.npz').write_text('nothing')
    assert_fails(run('--out', tmp_path), tmp_path / 'model.npz', 'not a model')


def test_file_of_another_model(tmp_path):
    numpy.savez(tmp_path / 'model.npz', W=numpy.ones(3))
    assert_fails(run('--out', tmp_path), 'it lacks', 'l1/W')


def test_wrong_shape(tmp_path, random):
    save(tmp_path, random, **{'l3/b': random.randn(1)})
    assert_fails(run('--out', tmp_path), 'l3/b', '(1,)', '(10,)')


def test_without_onnxruntime(tmp_path, random):
    save(tmp_path, random)
    hidden = tmp_path / 'hidden'
    hidden.mkdir()
    (hidden / 'onnxruntime.py').write_text('raise ImportError("no runtime")')
    result = run('--out', tmp_path, PYTHONPATH=str(hidden))
    assert_fails(result, 'no runtime', 'pip install')
