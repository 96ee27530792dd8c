"""Starts programs on several processes of this machine."""

import os
import shutil
import sys

# For Open MPI, which must be told if this is root, as in containers, and that
# processes may outnumber the cores, which they leave to others while waiting.
ENVIRONMENT = {
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
    'OMPI_MCA_mpi_yield_when_idle': '1',
    'OMP_NUM_THREADS': '1',
}


def find():
    """Returns the path of mpiexec, preferably that of this Python, or None."""
    here = os.path.dirname(sys.executable)
    return shutil.which('mpiexec', path=here + os.pathsep + os.environ['PATH'])
