"""The versions and package names of CuPy that Chainer knows."""

from __future__ import annotations

from typing import Any

from chainer_shared_patch.compat.importing import Fix


def _welcome_today_s_cupy(version: Any) -> None:
    for dependency in version._optional_dependencies:
        if dependency['name'] == 'CuPy':
            dependency['specifier'] = ''
            dependency['packages'] = [
                'cupy-cuda13x',
                'cupy-cuda12x',
                'cupy-cuda11x',
                *dependency['packages'],
            ]


def _expect_no_cudnn(cuda: Any) -> None:
    if cuda._cupy_major >= 14:
        cuda.check_cuda_available._already_warned = True


FIXES = (
    Fix(
        module='chainer._version',
        broken='warns of any CuPy but 7 and knows no cupy-cuda12x',
        since='CuPy 8',
        is_needed=lambda: True,
        mend=_welcome_today_s_cupy,
    ),
    Fix(
        module='chainer.backends.cuda',
        broken='advises to install cuDNN, which CuPy no longer uses',
        since='CuPy 14',
        is_needed=lambda: True,
        mend=_expect_no_cudnn,
    ),
)
