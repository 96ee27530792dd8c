"""Chainer's own check of CuPy's version, with distributions made up."""

from importlib import metadata
import os
import subprocess
import sys
import warnings

import chainer_shared_patch  # noqa: F401
from chainer import _environment_check
from chainer_shared_patch.compat import pkg_resources
import pytest


def check(monkeypatch, installed):
    """Returns the warnings for {name: version} of the installed packages."""

    class Distribution:
        def __init__(self, name):
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            self.version = installed[name]

    monkeypatch.setattr(metadata, 'distribution', Distribution)
    monkeypatch.setattr(
        _environment_check, 'pkg_resources', pkg_resources._substitute
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        _environment_check.check()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    'installed',
    [
        {},
        {'cupy': '14.2.0'},
        {'cupy-cuda12x': '14.2.0'},
        {'cupy-cuda13x': '14.2.0'},
        {'cupy-cuda12x': '13.6.0'},
        {'cupy': '7.8.0'},
    ],
)
def test_no_warning_of_a_cupy_that_works(monkeypatch, installed):
    assert check(monkeypatch, installed) == []


def test_warning_of_two_cupys(monkeypatch):
    (warning,) = check(
        monkeypatch, {'cupy-cuda12x': '14.2.0', 'cupy': '13.6.0'}
    )
    assert 'Multiple installations of CuPy' in warning


def test_warning_of_another_ideep(monkeypatch):
    (warning,) = check(monkeypatch, {'ideep4py': '1.0.4'})
    assert 'iDeep (ideep4py) version 1.0.4 may not be compatible' in warning


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
        result = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, 'PYTHONPATH': str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        output = result.stdout + result.stderr
        assert 'libcublas.so.12: cannot open shared object file' in output
