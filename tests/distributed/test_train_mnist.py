"""Runs the script as mpiexec does, on 2 and 4 ranks."""

import os
import re

import numpy
import pytest

from ..scripts.test_train_mnist import load, train

NETWORK = '--unit', 20, '--out-units', 5

# Each rank saves what it ends with, and only rank 0 may open a file of the
# data set or of the output.
RANK = """
import os, sys
import train_mnist

rank = os.environ['OMPI_COMM_WORLD_RANK']
paths = [sys.argv[sys.argv.index(name) + 1] for name in ('--dataset', '--out')]


def watch(event, args):
    if event == 'open' and str(args[0]).startswith(tuple(paths)):
        raise RuntimeError('rank {} opens {}'.format(rank, args[0]))


def run(self, **kwargs):
    original(self, **kwargs)
    model = self.updater.get_optimizer('main').target
    path = os.path.join(os.path.dirname(paths[1]), 'of-rank-' + rank)
    train_mnist.save_npz(path, model)


original = train_mnist.training.Trainer.run
train_mnist.training.Trainer.run = run
if rank != '0':
    sys.addaudithook(watch)
train_mnist.main()
"""

# One process on the batches of all ranks.
ONE_PROCESS = """
import numpy
import train_mnist


def make_order_sampler(seed):
    sample_local = original(seed)
    ranks, batch_size = {ranks}, 100
    scattered = numpy.random.RandomState(seed).permutation(600)
    parts = scattered.reshape(ranks, -1)
    local = numpy.arange(600 // ranks)

    def sample(order, position):
        nonlocal local
        local = sample_local(local, position)
        batches = parts[:, local].reshape(ranks, -1, batch_size // ranks)
        return batches.transpose(1, 0, 2).ravel()

    return sample


original = train_mnist.make_order_sampler
train_mnist.make_order_sampler = make_order_sampler
train_mnist.main()
"""


@pytest.mark.parametrize('ranks', [2, 4])
def test_ranks_train_as_one_process(mpiexec, tmp_path, small, ranks):
    args = ('--dataset', small, *NETWORK, '-e', 2, '--out')
    result = mpiexec(
        *(ranks, '-c', RANK, *args, tmp_path / 'ranks', '--distributed'),
        CHAINER_DTYPE='float64',
    )
    assert result.returncode == 0, result.stderr
    assert f'ranks: {ranks}, each on {100 // ranks} images' in (result.stdout)
    assert result.stdout.count('network: ') == 1
    one = train(
        *(*args, tmp_path / 'one'),
        start=('-c', ONE_PROCESS.format(ranks=ranks)),
        CHAINER_DTYPE='float64',
    )
    assert one.returncode == 0, one.stderr
    names = sorted(os.listdir(tmp_path / 'one'))
    assert sorted(os.listdir(tmp_path / 'ranks')) == names

    expected = load(tmp_path / 'one' / 'model.npz')
    # A gradient sums up to 785 terms, of fewer than 100 images each, that
    # are at most about 1. Of a gradient near 0, Adam makes a step that is up
    # to alpha / eps = 1e5 times as large; there are 12 steps.
    bound = 12 * 1e5 * 885 * 2**-53
    for rank in range(ranks):
        actual = load(tmp_path / f'of-rank-{rank}')
        first = load(tmp_path / 'of-rank-0')
        for name, array in expected.items():
            array_of_rank = actual['predictor/' + name]
            assert array_of_rank.dtype == numpy.float64
            numpy.testing.assert_array_equal(
                array_of_rank, first['predictor/' + name]
            )
            numpy.testing.assert_allclose(
                array_of_rank, array, rtol=0, atol=bound
            )
    # The averages are those of all ranks.
    rows, rows_of_one = (
        re.findall('^([12] .*) [0-9.]+ *$', text, re.M)
        for text in (result.stdout, one.stdout)
    )
    assert rows == rows_of_one
    assert len(rows) == 2


def test_resuming(mpiexec, tmp_path, small):
    def run(ranks, out, *options):
        result = mpiexec(
            *(ranks, 'train_mnist.py', '--distributed', '--dataset', small),
            *(*NETWORK, '--out', tmp_path / out, *options),
        )
        if result.returncode:
            errors = [
                line
                for line in result.stderr.splitlines()
                if line.startswith('train_mnist.py: error: ')
            ]
            assert len(errors) == 1, result.stdout + result.stderr
            return errors[0]
        return load(tmp_path / out / 'model.npz')

    expected = run(2, 'whole', '-e', 3)
    snapshot = tmp_path / 'whole' / 'snapshot_epoch_2'
    run(2, 'resumed', '-e', 2)
    # A damaged snapshot is passed over by all ranks.
    newest = tmp_path / 'resumed' / 'snapshot_epoch_9'
    newest.write_bytes(snapshot.read_bytes()[:-9])
    os.utime(newest, (3e9, 3e9))
    resumed = run(2, 'resumed', '-e', 3, '--autoload')
    for name, array in expected.items():
        numpy.testing.assert_array_equal(resumed[name], array)

    error = run(3, 'other', '-b', 99, '--resume', snapshot)
    assert 'from a training on 2 ranks, and this is one on 3' in error
    assert str(snapshot) in error
    result = train(
        *('--dataset', small, *NETWORK, '--out', tmp_path / 'other'),
        *('--resume', snapshot),
    )
    assert result.returncode == 1
    assert 'from a training on 2 ranks, and this is one on 1' in result.stderr


# Rank 1 comes to an end in the third iteration.
END = """
import os, signal, sys
import train_mnist

def forward(self, x):
    global calls
    calls += 1
    if calls == 3 and os.environ['OMPI_COMM_WORLD_RANK'] == {rank!r}:
        {end}
    return original(self, x)

calls = 0
original = train_mnist.MLP.forward
train_mnist.MLP.forward = forward
train_mnist.main()
"""


@pytest.mark.parametrize('rank', ['0', '1'])
@pytest.mark.parametrize(
    ('end', 'words'),
    [
        ('raise ArithmeticError("for a test")', 'ArithmeticError: for a test'),
        ('raise OSError("for a test")', 'for a test'),
        ('os.kill(os.getpid(), signal.SIGINT)', 'nterrupt'),
        ('os.kill(os.getpid(), signal.SIGKILL)', 'signal 9'),
    ],
)
def test_end_of_a_rank_ends_all(mpiexec, tmp_path, small, rank, end, words):
    # A job that hangs raises subprocess.TimeoutExpired.
    result = mpiexec(
        *(2, '-c', END.format(rank=rank, end=end), '--distributed', *NETWORK),
        *('--dataset', small, '--out', tmp_path / 'out', '-e', 1000),
    )
    assert result.returncode != 0
    assert words in result.stderr
    if 'Error' in words:
        assert 'Traceback' in result.stderr
        assert 'Uncaught exception on rank ' + rank in result.stderr


def test_failure_of_rank_0_ends_all(mpiexec, tmp_path, small):
    """The output directory vanishes."""
    code = 'shutil.rmtree({!r})'.format(str(tmp_path / 'out'))
    result = mpiexec(
        *(2, '-c', 'import shutil\n' + END.format(rank='0', end=code)),
        *('--distributed', *NETWORK, '--dataset', small),
        *('--out', tmp_path / 'out', '-e', 1000),
    )
    assert result.returncode == 1
    assert 'train_mnist.py: error: cannot write to' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('-b', 99), '--batchsize 99 cannot be divided among 2 ranks'),
        (('--dataset', 'nowhere'), 'in nowhere'),
        (('--device', '@cupy:0'), 'rank 0: --device @cupy:0 is one GPU'),
        (('--communicator', 'flat'), '--communicator flat is for --device'),
    ],
)
def test_wrong_options(mpiexec, tmp_path, small, options, words):
    result = mpiexec(
        *(2, 'train_mnist.py', '--distributed', *NETWORK),
        *('--dataset', small, '--out', tmp_path / 'out', *options),
    )
    assert result.returncode == 1
    (line,) = [
        line
        for line in result.stderr.splitlines()
        if line.startswith('train_mnist.py: ')
    ]
    assert line.startswith('train_mnist.py: error: ')
    assert words in line
    assert 'Traceback' not in result.stderr


# CuPy of a machine with one GPU.
ONE_GPU = """
import unittest.mock
import train_mnist

cuda = train_mnist.chainer.backends.cuda
cuda.check_cuda_available = lambda: None
cuda.cupy = unittest.mock.MagicMock()
cuda.cupy.cuda.runtime.getDeviceCount = lambda: 1
train_mnist.main()
"""


def test_more_ranks_than_gpus(mpiexec, tmp_path, small):
    result = mpiexec(
        *(2, '-c', ONE_GPU, '--distributed', '--device', '@cupy'),
        *('--dataset', small, '--out', tmp_path / 'out'),
    )
    assert result.returncode == 1
    assert '2 ranks are on a machine with 1 GPU;' in result.stderr
    assert not (tmp_path / 'out').exists()


# On another machine, an environment variable may be missing.
OTHER_ENVIRONMENT = """
import os
if os.environ['OMPI_COMM_WORLD_RANK'] == '1':
    os.environ[{name!r}] = {value!r}
import train_mnist
train_mnist.main()
"""


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('CHAINER_SHARED_PATCH', '0', 'common_num is 10 on rank 0 and 1 on'),
        ('CHAINER_DTYPE', 'float64', "CHAINER_DTYPE is 'float32' on rank 0"),
        ('CHAINER_DEBUG', '1', 'CHAINER_DEBUG is False on rank 0 and True'),
    ],
)
def test_ranks_with_other_settings(mpiexec, tmp_path, name, value, words):
    code = OTHER_ENVIRONMENT.format(name=name, value=value)
    result = mpiexec(
        *(2, '-c', code, '--distributed', '--out', tmp_path / 'out')
    )
    assert result.returncode == 1
    assert 'train_mnist.py: error: ' + words in result.stderr
    assert not (tmp_path / 'out').exists()


def test_mpiexec_without_distributed(mpiexec, tmp_path):
    result = mpiexec(2, 'train_mnist.py', '--out', tmp_path / 'out')
    assert result.returncode == 2
    assert 'mpiexec has started 2 processes' in result.stderr
    assert not (tmp_path / 'out').exists()


def test_distributed_without_mpiexec(mpiexec, tmp_path):
    result = train('--distributed', '--out', tmp_path / 'out')
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert 'mpiexec -n 2 python train_mnist.py --distributed' in line


def test_another_mpi_than_that_of_mpiexec(mpiexec, tmp_path):
    result = train(*('--distributed', '--out', tmp_path / 'out'), PMI_SIZE='2')
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert 'has started 2 processes, but mpi4py sees 1' in line
