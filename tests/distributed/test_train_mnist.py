"""Runs the script as mpiexec does, on 2 and 4 ranks."""

import os
import shutil
import subprocess
import sys

import numpy
import pytest

from ..scripts.test_train_mnist import SCRIPTS, load, train

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
    assert 'ranks: {}, each on {} images'.format(ranks, 100 // ranks) in (
        result.stdout
    )
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
        actual = load(tmp_path / 'of-rank-{}'.format(rank))
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
    for line, other in zip(
        *(
            [line.split()[:-1] for line in text.splitlines() if line[:1] in '12']
            for text in (one.stdout, result.stdout)
        )
    ):
        assert line == other
