"""What Chainer says of its environment, with packages made up."""

import os
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest


def run(folder, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, 'PYTHONPATH': str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ('name', 'version'), [('cupy-cuda12x', '14.2.0'), ('ideep4py', '3.1')]
)
def test_no_warning_of_another_version(tmp_path, name, version):
    folder = tmp_path / f'{name}-{version}.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    )
    assert run(tmp_path, '-c', 'import chainer_shared_patch').stderr == ''


def test_cupy_that_misses_a_piece_still_says_so(tmp_path):
    (tmp_path / 'cupy.py').write_text(
        'raise ImportError("libcublas.so.12: cannot open shared object file")'
    )
    code = (
        'import chainer_shared_patch\n'
        'from chainer.backends import cuda\n'
        'cuda.check_cuda_available()'
    )
    for command in (('-c', code), ('-m', 'chainer_shared_patch', '--info')):
        result = run(tmp_path, *command)
        output = result.stdout + result.stderr
        assert 'libcublas.so.12: cannot open shared object file' in output
