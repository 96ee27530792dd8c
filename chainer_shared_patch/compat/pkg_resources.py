"""What Chainer's tests use of ``pkg_resources``, gone since setuptools 82."""

from __future__ import annotations

from importlib import metadata
import sys

from chainer_shared_patch.compat.importing import (
    Fix,
    is_at_least,
    is_missing,
    lent,
)


class ResolutionError(Exception):
    """A requirement is not met."""


class WorkingSet:
    """The installed distributions."""

    def require(self, *requirements: str) -> None:
        """Checks that requirements are met.

        Args:
            *requirements (str): Requirements such as ``'cupy>=13'``.

        Raises:
            ResolutionError: If one is not met.

        """
        # Only Chainer's tests need this, and it is slow to import.
        from packaging.requirements import Requirement

        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate():
                continue
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError as error:
                raise ResolutionError(str(requirement)) from error
            if not requirement.specifier.contains(version, prereleases=True):
                raise ResolutionError(
                    f'{requirement.name} {version} is not {requirement}'
                )


def _is_needed() -> bool:
    return is_missing('pkg_resources') or is_at_least('setuptools', '80.9')


FIXES = tuple(
    Fix(
        module=module,
        broken='pkg_resources warns of its removal, and is gone since 82',
        since='setuptools 80.9',
        is_needed=_is_needed,
        lend=lambda: lent(sys.modules, 'pkg_resources', sys.modules[__name__]),
    )
    for module in ('chainer.testing.helper', 'chainer.testing.doctest_helper')
)
