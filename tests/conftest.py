import chainer_shared_patch
from chainer_shared_patch import config
import chainer
import numpy
import pytest


@pytest.fixture(autouse=True)
def fresh_state():
    """Every test starts with the patch installed and the defaults set."""
    chainer_shared_patch.install()
    yield
    chainer_shared_patch.install()
    chainer.global_config.common_num = 1
    chainer.global_config.shared_algorithm = 'sum'


@pytest.fixture(params=config.ALGORITHMS)
def algorithm(request):
    with chainer.using_config('shared_algorithm', request.param):
        yield request.param


@pytest.fixture
def random():
    return numpy.random.RandomState(0)
