import chainer
import pytest

from tests.convert.helpers import IN


@pytest.fixture(autouse=True)
def double():
    with chainer.using_config('dtype', 'd'):
        yield


@pytest.fixture
def x(random):
    return random.randn(20, IN)
