"""What Chainer checks in its environment, and what it advises."""

from __future__ import annotations

from typing import Any

from chainer_shared_patch.compat.importing import Fix


def _check_nothing(run: Any, environment_check: Any) -> None:
    environment_check.check = lambda: None


def _expect_no_cudnn(cuda: Any) -> None:
    cuda.check_cuda_available._already_warned = True


FIXES = (
    # All that remains of the check today is a warning about two installations
    # of CuPy, which CuPy itself gives.
    Fix(
        module='chainer._environment_check',
        broken='imports numpy.distutils, gone since Python 3.12, and '
        'pkg_resources, gone since setuptools 82, and wants CuPy 7',
        when=None,
        execute=_check_nothing,
    ),
    Fix(
        module='chainer.backends.cuda',
        broken='advises installing cuDNN, which CuPy no longer uses',
        when='cupy >= 14',
        apply=_expect_no_cudnn,
    ),
)
