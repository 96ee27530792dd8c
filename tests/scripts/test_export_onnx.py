from pathlib import Path
import re

import chainer_shared_patch  # noqa: F401
import numpy
import onnx
import pytest

from tests.helpers import run_python

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def run(*args, **environment):
    command = 'export_onnx.py', '--repeats', '1', *args
    return run_python(*command, cwd=SCRIPTS, **environment)


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


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'l3/b': numpy.ones(1)}, 'l3/b'),
        ({'l1/W': numpy.full((40, 784), numpy.nan)}, 'differ by up to nan'),
    ],
)
def test_model_that_cannot_be_exported(tmp_path, random, changes, words):
    save(tmp_path, random, **changes)
    assert_fails(run('--out', tmp_path), words)


def test_no_model(tmp_path):
    path = tmp_path / 'model.npz'
    assert_fails(run('--out', tmp_path), path, 'No such file')
    path.write_text('')
    assert_fails(run('--out', tmp_path), path)
    numpy.savez(path, W=numpy.ones(3))
    assert_fails(run('--out', tmp_path), path, 'l1/W')
