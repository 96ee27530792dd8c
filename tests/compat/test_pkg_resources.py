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
    ],
)
def test_met(requirement):
    pkg_resources.WorkingSet().require('numpy', requirement)


@pytest.mark.parametrize('requirement', ['no-such-distribution', 'numpy<1.0'])
def test_not_met(requirement):
    with pytest.raises(pkg_resources.ResolutionError, match=requirement):
        pkg_resources.WorkingSet().require('numpy', requirement)
