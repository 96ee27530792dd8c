from importlib import metadata

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import pkg_resources
import pytest


@pytest.mark.parametrize(
    'requirement',
    [
        'numpy',
        'numpy>=1.23',
        ' numpy >=1.9, <99 ',
        'typing-extensions',
        'no-such-distribution; python_version<"3"',
    ],
)
def test_met(requirement):
    pkg_resources.require(requirement)
    pkg_resources.WorkingSet().require('numpy', requirement)


def test_not_installed():
    with pytest.raises(pkg_resources.DistributionNotFound):
        pkg_resources.require('numpy', 'no-such-distribution>=1')


def test_other_version():
    with pytest.raises(pkg_resources.VersionConflict, match='numpy'):
        pkg_resources.require('numpy<1.0')
    assert issubclass(
        pkg_resources.VersionConflict, pkg_resources.ResolutionError
    )


def test_get_distribution():
    version = pkg_resources.get_distribution('numpy').version
    assert version == metadata.version('numpy')
