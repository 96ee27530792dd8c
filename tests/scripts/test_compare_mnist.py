"""The comparison of accuracy and size."""

import json
import sys
from types import SimpleNamespace

import chainer_shared_patch  # noqa: F401
import chainer
from measure.compare_mnist import __main__ as compare_mnist
from measure.compare_mnist import experiments, networks
from measure.compare_mnist.networks import Network, Run
import numpy
import pytest


def test_smallest_comparison(tmp_path, small, monkeypatch, capsys):
    args = ['--quick', '--dataset', str(small), '--out', str(tmp_path)]
    args += ['--only', 'convert']
    monkeypatch.setattr(sys, 'argv', ['compare_mnist', *args])
    monkeypatch.setattr(experiments, 'STARTS', ('calibrated', 'svd'))
    compare_mnist.main()
    records = [
        json.loads(path.read_text()) for path in tmp_path.glob('runs/*.json')
    ]
    # A dense network; itself, trained further; and two starts of two n.
    assert len(records) == 1 + 1 + 2 * 2
    _, table = capsys.readouterr().out.split('## A trained dense network')
    for record in records:
        assert '{parameters:,}'.format(**record) in table
        # Before and after fine-tuning; the dense one only after training.
        accuracies = record['accuracies'][record['run']['start'] is None :]
        for accuracy in accuracies:
            assert f'{100 * accuracy:.2f} ± 0.00' in table
    assert (tmp_path / 'convert.png').exists()
    # The rest is only read.
    compare_mnist.main()
    assert '6 of 6 runs are already done' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('sizes', 'kwargs', 'number'),
    [
        ((784, 1000, 900, 10), {}, 785_000 + 900_000 + 9_010),
        ((784, 1000, 900, 10), {'common_num': (4, 10, 1)}, 296_010),
        ((784, 1000, 900, 10), {'rank': (0, 47, 0)}, 785_000 + 89_300 + 9_010),
        ((784, 1000, 10), {'common_num': (8, 40)}, 98_000 + 1_000 + 260),
    ],
)
def test_numbers_of_parameters(sizes, kwargs, number):
    run = Run(sizes, **kwargs)
    network = Network(run)
    assert sum(each.size for each in network.params()) == number
    assert run.count_parameters() == number
    assert network(numpy.zeros((2, 784), 'f')).shape == (2, 10)


@pytest.mark.parametrize('n', [2, 10, 100])
def test_alternatives_of_the_same_size(n):
    shared = Run((784, 1000, 900, 10), (1, n, 1))
    budget = shared.count_parameters()
    low_rank = networks.make_low_rank(shared).count_parameters()
    # A rank more has 1,000 + 900 more.
    assert 0 <= budget - low_rank < 1900
    smaller = networks.make_smaller(shared, budget)
    _, width, _, _ = smaller.sizes
    wider = (784, width + 1, (width + 1) * 9 // 10, 10)
    assert smaller.count_parameters() <= budget < Run(wider).count_parameters()


def test_budgets_of_hashednets():
    for divisor, (_, *runs) in experiments.HASHEDNETS.items():
        for run in runs:
            assert Network(run)  # its common_num fits
            assert run.count_parameters() <= 795_010 / divisor


def test_what_a_network_starts_from_decides_what_a_run_gives():
    runs = []
    for epoch in (8, 9):
        args = SimpleNamespace(epoch=epoch, step=1)
        for _, each in experiments.list_hashednets(args):
            runs += [run for run in each if run.start]
    assert len(set(runs)) == len(runs)


def test_order_of_patches():
    order = networks.make_order('2x2', 0).reshape(4, 196)
    # Column 0 of W has the first patch of the image, and the last the last.
    assert set(order[:, 0]) == {0, 1, 28, 29}
    assert set(order[:, -1]) == {754, 755, 782, 783}
    assert numpy.unique(order).size == 784


@pytest.mark.parametrize('start', ['contiguous', 'grouped', 'calibrated'])
def test_conversion(random, start):
    # Neighbours have the same weight, up to little noise.
    run = Run((784, 20, 10), (4, 1), start=start, dense_epochs=1)
    model = Network(run.dense)
    W = model.l1.W.array
    W[:] = W[:, ::4].repeat(4, axis=1) + 1e-3 * W
    images = random.rand(50, 784).astype('f')
    expected = model(images).array
    networks.convert(model, run, images)
    assert sum(each.size for each in model.params()) == run.count_parameters()
    error = numpy.abs(model(images).array - expected).max()
    assert (error < 0.1 * numpy.abs(expected).max()) == (start != 'contiguous')


def test_truncated_svd(random):
    link = chainer.links.Linear(8, 5)
    W = link.W.array.astype('d')
    factors = networks.factorize(link, 2)
    # The best approximation leaves the other singular values.
    product = factors[1].W.array.astype('d') @ factors[0].W.array
    left = numpy.linalg.norm(W - product)
    values = numpy.linalg.svd(W, compute_uv=False)
    numpy.testing.assert_allclose(left, numpy.linalg.norm(values[2:]), 1e-4)
    x = random.randn(3, 8).astype('f')
    full = networks.factorize(link, 5)(x).array
    numpy.testing.assert_allclose(full, link(x).array, 1e-4, 1e-5)
