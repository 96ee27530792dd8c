import chainer_shared_patch
from chainer_shared_patch import config
import chainer
from hypothesis import settings
import numpy
import pytest

# The same examples every time, however slow the machine.
settings.register_profile('tests', deadline=None, derandomize=True)
settings.load_profile('tests')


def pytest_configure(config):
    config.addinivalue_line(
        'markers',
        'arithmetic: depends on how the BLAS adds, which OPENBLAS_CORETYPE '
        'can change',
    )


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
