"""What Chainer says of its environment, with packages made up."""

import chainer_shared_patch  # noqa: F401
import pytest

from tests.helpers import run_python


@pytest.mark.parametrize(
    ('name', 'version'), [('cupy-cuda12x', '14.2.0'), ('ideep4py', '3.1')]
)
def test_no_warning_of_another_version(tmp_path, name, version):
    folder = tmp_path / f'{name}-{version}.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    )
    command = '-c', 'import chainer_shared_patch'
    assert run_python(*command, PYTHONPATH=str(tmp_path)).stderr == ''


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
        result = run_python(*command, PYTHONPATH=str(tmp_path))
        output = result.stdout + result.stderr
        assert 'libcublas.so.12: cannot open shared object file' in output
