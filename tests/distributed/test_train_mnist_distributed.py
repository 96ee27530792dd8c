"""Runs the script as mpiexec does."""

import json

import numpy
import pytest

from ..scripts.test_train_mnist import NETWORK, assert_same_bits, load, train

SCRIPT = 'train_mnist_distributed.py'
RANKS, BATCH_SIZE = 3, 60

# Each rank saves the weights that it ends with.
SAVE = """
import os
import train_mnist_distributed
from train_mnist_distributed import chainer, training

def run(self):
    original(self)
    model = self.updater.get_optimizer('main').target.predictor
    rank = os.environ['OMPI_COMM_WORLD_RANK']
    chainer.serializers.save_npz(os.path.join(self.out, 'rank-' + rank), model)

original = training.Trainer.run
training.Trainer.run = run
train_mnist_distributed.main()
"""

# One process on the batches of all ranks.
ONE_PROCESS = f"""
import numpy
import train_mnist

def make_order_sampler(seed):
    sample_local = original(seed)
    parts = numpy.random.RandomState(seed).permutation(600)
    parts = parts.reshape({RANKS}, -1)
    local = numpy.arange(600 // {RANKS})

    def sample(order, position):
        nonlocal local
        local = sample_local(local, position)
        batches = parts[:, local].reshape({RANKS}, -1, {BATCH_SIZE // RANKS})
        return batches.transpose(1, 0, 2).ravel()

    return sample

original = train_mnist.make_order_sampler
train_mnist.make_order_sampler = make_order_sampler
train_mnist.main()
"""


def test_ranks_train_as_one_process(mpiexec, tmp_path, small):
    """On 3 ranks, the 200 test images are in parts of unequal sizes."""
    args = ('--dataset', small, *NETWORK, '-e', 2, '-b', BATCH_SIZE, '--out')
    result = mpiexec(
        *(RANKS, '-c', SAVE, *args, tmp_path / 'ranks'),
        CHAINER_DTYPE='float64',
    )
    assert result.returncode == 0, result.stderr
    one = train(
        *(*args, tmp_path / 'one'),
        script=('-c', ONE_PROCESS),
        CHAINER_DTYPE='float64',
    )
    assert one.returncode == 0, one.stderr

    actual = load(tmp_path / 'ranks' / 'model.npz')
    for rank in range(RANKS):
        of_rank = load(tmp_path / 'ranks' / f'rank-{rank}')
        assert_same_bits(of_rank, actual)
    # A gradient sums up to 785 terms, of fewer than 100 images each, that
    # are at most about 1. Of a gradient near 0, Adam makes a step that is up
    # to alpha / eps = 1e5 times as large; there are 20 steps.
    bound = 20 * 1e5 * 885 * 2**-53
    for name, array in load(tmp_path / 'one' / 'model.npz').items():
        assert actual[name].dtype == numpy.float64
        numpy.testing.assert_allclose(actual[name], array, rtol=0, atol=bound)
    logs = [
        json.loads((tmp_path / out / 'log').read_text())
        for out in ('ranks', 'one')
    ]
    assert len(logs[0]) == len(logs[1]) == 2
    for row, row_of_one in zip(*logs):
        for key in row.keys() - {'elapsed_time'}:
            # A loss depends on each of 20,000 weights by no more than about 1,
            # and no two outputs are so close that an accuracy would differ.
            atol = 20000 * bound if 'loss' in key else 1e-9
            numpy.testing.assert_allclose(
                row[key], row_of_one[key], rtol=0, atol=atol
            )


def test_resuming(mpiexec, tmp_path, small):
    def run(ranks, out, *options):
        args = ('--dataset', small, *NETWORK, '--out', tmp_path / out)
        return mpiexec(ranks, SCRIPT, *args, *options)

    assert run(2, 'whole', '-e', 3).returncode == 0
    expected = load(tmp_path / 'whole' / 'model.npz')
    snapshot = tmp_path / 'whole' / 'snapshot_epoch_2.0'
    assert run(2, 'resumed', '-e', 1).returncode == 0
    for options in ('--autoload',), ('--resume', snapshot):
        assert run(2, 'resumed', '-e', 3, *options).returncode == 0
        actual = load(tmp_path / 'resumed' / 'model.npz')
        assert_same_bits(actual, expected)
    assert run(3, 'other', '-b', 99, '--resume', snapshot).returncode != 0


# A rank comes to an end in the third iteration.
END = """
import os, signal
import train_mnist, train_mnist_distributed

def forward(self, x):
    global calls
    calls += 1
    if calls == 3 and os.environ['OMPI_COMM_WORLD_RANK'] == {rank!r}:
        {end}
    return original(self, x)

calls = 0
original = train_mnist.MLP.forward
train_mnist.MLP.forward = forward
train_mnist_distributed.main()
"""


@pytest.mark.parametrize(
    ('rank', 'end', 'words'),
    [
        ('0', 'raise ArithmeticError("for a test")', 'ArithmeticError: for a'),
        ('1', 'raise ArithmeticError("for a test")', 'ArithmeticError: for a'),
        ('1', 'os.kill(os.getpid(), signal.SIGINT)', 'KeyboardInterrupt'),
        ('1', 'os.kill(os.getpid(), signal.SIGKILL)', 'signal 9'),
    ],
)
def test_end_of_a_rank_ends_all(mpiexec, tmp_path, small, rank, end, words):
    # A job that hangs raises subprocess.TimeoutExpired.
    result = mpiexec(
        *(2, '-c', END.format(rank=rank, end=end), *NETWORK),
        *('--dataset', small, '--out', tmp_path / 'out', '-e', 1000),
    )
    assert result.returncode != 0
    assert words in result.stderr


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('-b', 99), '--batchsize 99 cannot be divided among 2 ranks'),
        (('--dataset', 'nowhere'), 'in nowhere'),
    ],
)
def test_wrong_options(mpiexec, tmp_path, small, options, words):
    result = mpiexec(
        *(2, SCRIPT, *NETWORK, '--dataset', small),
        *('--out', tmp_path / 'out', *options),
    )
    assert result.returncode != 0
    assert words in result.stderr
    assert not (tmp_path / 'out').exists()


# On another machine, an environment variable may be missing.
OTHER_ENVIRONMENT = """
import os
if os.environ['OMPI_COMM_WORLD_RANK'] == '1':
    os.environ[{name!r}] = {value!r}
import train_mnist_distributed
train_mnist_distributed.main()
"""


@pytest.mark.parametrize(
    ('name', 'value'),
    [('CHAINER_SHARED_PATCH', '0'), ('CHAINER_DTYPE', 'float64')],
)
def test_ranks_with_other_settings(mpiexec, tmp_path, small, name, value):
    code = OTHER_ENVIRONMENT.format(name=name, value=value)
    result = mpiexec(
        2, '-c', code, '--dataset', small, '--out', tmp_path / 'out'
    )
    assert result.returncode != 0
    assert 'rank 1 has other settings than rank 0' in result.stderr
    assert not (tmp_path / 'out').exists()
