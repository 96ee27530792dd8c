"""What Chainer checks in its environment, and what it advises."""

from __future__ import annotations

from typing import Any

from chainer_shared_patch.compat.importing import Fix, is_cupy_at_least


def _check_nothing(environment_check: Any) -> None:
    environment_check.check = lambda: None


def _expect_no_cudnn(cuda: Any) -> None:
    cuda.check_cuda_available._already_warned = True


FIXES = (
    # All that remains of the check today is a warning about two installations
    # of CuPy, which CuPy itself gives.
    Fix(
        module='chainer._environment_check',
        broken='imports numpy.distutils and pkg_resources, wants CuPy 7',
        since='CuPy 8, Python 3.12, setuptools 74, 82',
        is_needed=lambda: True,
        execute=_check_nothing,
    ),
    Fix(
        module='chainer.backends.cuda',
        broken='advises installing cuDNN, which CuPy no longer uses',
        since='CuPy 14',
        is_needed=lambda: is_cupy_at_least('14'),
        apply=_expect_no_cudnn,
    ),
)
