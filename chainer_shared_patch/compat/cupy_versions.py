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


FIXES = (
    Fix(
        module='chainer._version',
        broken='warns of any CuPy but 7 and knows no cupy-cuda12x',
        since='CuPy 8',
        is_needed=lambda: True,
        mend=_welcome_today_s_cupy,
    ),
)
