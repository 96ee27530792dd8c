"""What Chainer's tests use of ``pkg_resources``, gone since setuptools 82."""

from __future__ import annotations

import sys
from typing import Any

from chainer_shared_patch.compat.importing import Fix, is_met, lent


class ResolutionError(Exception):
    """A requirement is not met."""


class WorkingSet:
    """The installed distributions."""

    def require(self, *requirements: str) -> None:
        """Raises an error if a requirement such as 'cupy>=13' is not met."""
        for requirement in requirements:
            if not is_met(requirement):
                raise ResolutionError(requirement)


def _run_with_pkg_resources(run: Any, module: Any) -> None:
    with lent(sys.modules, 'pkg_resources', sys.modules[__name__]):
        run(module)


FIXES = tuple(
    Fix(
        module=module,
        broken='pkg_resources warns of its removal, and is gone since '
        'setuptools 82',
        when=None,
        execute=_run_with_pkg_resources,
    )
    for module in ('chainer.testing.helper', 'chainer.testing.doctest_helper')
)
