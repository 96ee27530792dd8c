"""``pkg_resources``, which setuptools 82 no longer has."""

from __future__ import annotations

from importlib import metadata
import re
import types

from chainer_shared_patch.compat.importing import (
    Fix,
    has,
    is_missing,
)


class ResolutionError(Exception):
    """A requirement is not met."""


class DistributionNotFound(ResolutionError):
    """A requirement is not installed."""


class VersionConflict(ResolutionError):
    """A requirement is installed in another version."""


def get_distribution(name: str) -> metadata.Distribution:
    """Returns an installed distribution."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise DistributionNotFound(name) from error


def require(*requirements: str) -> None:
    """Checks that distributions are installed.

    Args:
        requirements (tuple of str): Requirements such as ``'cupy>=13'``. All
            but mere names take the package ``packaging``, which pytest has.

    Raises:
        DistributionNotFound: If one is not installed.
        VersionConflict: If one is installed in another version.

    """
    for requirement in requirements:
        if re.fullmatch(r'[\w.-]+', requirement):
            get_distribution(requirement)
            continue
        from packaging.requirements import Requirement

        parsed = Requirement(requirement)
        if parsed.marker is None or parsed.marker.evaluate():
            version = get_distribution(parsed.name).version
            if not parsed.specifier.contains(version, prereleases=True):
                raise VersionConflict(
                    '{} {} is not {}'.format(parsed.name, version, requirement)
                )


class WorkingSet:
    """The distributions that are installed."""

    require = staticmethod(require)


_substitute = types.ModuleType('pkg_resources')
vars(_substitute).update(
    DistributionNotFound=DistributionNotFound,
    ResolutionError=ResolutionError,
    VersionConflict=VersionConflict,
    WorkingSet=WorkingSet,
    get_distribution=get_distribution,
    require=require,
)

FIXES = tuple(
    Fix(
        module=module,
        broken='pkg_resources warns of its removal, and is gone since 82',
        since='setuptools 80.9',
        is_needed=lambda: (
            is_missing('pkg_resources') or has('setuptools', (80, 9))
        ),
        imports={'pkg_resources': _substitute},
    )
    for module in (
        'chainer._environment_check',
        'chainer.testing.helper',
        'chainer.testing.doctest_helper',
    )
)
