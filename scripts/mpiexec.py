"""Starts programs on many processes of this machine, for tests and figures."""

import os
import shutil
import sys

# Open MPI's: it wants to be told that this is root, as in containers, and
# that the processes outnumber the cores, which they then leave while waiting.
ENVIRONMENT = {
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
    'OMPI_MCA_mpi_yield_when_idle': '1',
    'OMP_NUM_THREADS': '1',
}


def find():
    """Returns the path of mpiexec, that of this Python first, or None."""
    here = os.path.dirname(sys.executable)
    return shutil.which('mpiexec', path=here + os.pathsep + os.environ['PATH'])
