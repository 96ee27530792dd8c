"""The comparison of accuracy and size."""

import itertools
import json
import operator
import sys
from types import SimpleNamespace

from chainer_shared_patch import SharedLinear
import chainer
import chainer.functions as F
import chainer.links as L
from measure.compare import __main__ as compare
from measure.compare import experiments, networks, svd, text, training
from measure.compare.networks import Network, Run
import numpy
import pytest

SMALL = (784, 40, 30, 10)
ARGS = SimpleNamespace(epoch=8, step=1, quick=False)


def test_smallest_comparison(tmp_path, small, monkeypatch, capsys):
    verses = tmp_path / 'verses.txt'
    verses.write_text('Row, row, row your boat, gently down the stream. ' * 60)
    args = ['--quick', '--dataset', str(small), '--text', str(verses)]
    args += ['--only', 'convert', 'text', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['compare', *args])
    monkeypatch.setattr(experiments, 'ARTICLE', SMALL)
    monkeypatch.setattr(experiments, 'CONVERSIONS', [(28, 10, 1)])
    monkeypatch.setattr(experiments, 'PLANNED', [(28, 10, 1)])
    monkeypatch.setattr(experiments, 'TUNE_STEPS', 2)
    compare.main()
    records = [
        json.loads(path.read_text()) for path in tmp_path.glob('runs/*.json')
    ]
    # Dense and smaller; shared, also by a plan, and tuned; low-rank, also with
    # the best split. For the text, the dense network, a shared one and one of
    # low rank.
    assert len(records) == 2 + 3 + 2 + 3
    _, table, texts = capsys.readouterr().out.split('\n## ')
    for record in records:
        run = record['run']
        part, digits = (table, 2) if 'sizes' in run else (texts, 3)
        assert '{parameters:,}'.format(**record) in part
        assert '{bytes:,}'.format(**record) in part
        for key in ('at once', 'trained') if run['start'] else ('trained',):
            assert f'{record[key]:.{digits}f}\xa0±\xa0' in part
    # The rest is only read.
    compare.main()
    output = capsys.readouterr().out
    assert '7 of 7 runs' in output and '3 of 3 runs' in output


def test_text_needs_a_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['compare', '--only', 'text'])
    with pytest.raises(SystemExit):
        compare.parse_args()
    assert '--only text needs --text FILE' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('sizes', 'kwargs', 'number'),
    [
        ((784, 1000, 900, 10), {}, 785_000 + 900_900 + 9_010),
        ((784, 1000, 900, 10), {'common_num': (4, 10, 1)}, 296_910),
        ((784, 1000, 900, 10), {'rank': (0, 47, 0)}, 785_000 + 90_200 + 9_010),
        ((784, 1000, 10), {'common_num': (8, 40)}, 98_000 + 1_000 + 260),
    ],
)
def test_numbers_of_parameters(sizes, kwargs, number):
    run = Run(sizes, **kwargs)
    network = Network(run)
    assert network.count_params() == number
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
    allowed = 795_010 // 8
    for labels, runs in experiments.list_hashednets(ARGS):
        if 'HashedNets' in labels['network']:
            allowed = int(labels['parameters'].replace(',', ''))
        elif '784-1000-10, dense' not in labels['network']:
            for run in runs.values():
                assert Network(run)  # its common_num fits
                number = run.max_parameters or run.count_parameters()
                assert number <= allowed
    assert allowed == 795_010 // 64


def test_what_a_network_starts_from_decides_what_a_run_gives():
    runs = []
    for epoch in (8, 9):
        args = SimpleNamespace(epoch=epoch, step=1)
        for _, each in experiments.list_hashednets(args):
            runs += [run for run in each.values() if run.start]
    assert len(set(runs)) == len(runs)


def test_order_of_patches():
    order = networks.make_order('2x2', 784, 1, 0).reshape(4, 196)
    # Column 0 of W has the first patch of the image, and the last the last.
    assert set(order[:, 0]) == {0, 1, 28, 29}
    assert set(order[:, -1]) == {754, 755, 782, 783}
    assert numpy.unique(order).size == 784


def test_bytes_of_weights_and_orders():
    run = Run(SMALL, (28, 1, 1), order='random', orders=4)
    floats = 40 * 28 + 40 + 40 * 30 + 30 + 30 * 10 + 10
    # An integer below 784 takes two bytes.
    assert training.count_bytes(Network(run)) == 4 * floats + 2 * 4 * 784


def test_plan_within_its_parameters(random):
    images = random.rand(50, 784).astype('f')
    for start in ('shared', 'SVD'):
        run = Run(SMALL, max_parameters=3_000, start=start)
        model = Network(run)
        networks.convert(model, run, images)
        assert model.count_params() <= 3_000
        layers = [training.describe(layer) for layer in model.layers]
        for key in ('common_num', 'rank'):
            values = tuple(layer[key] for layer in layers)
            run = run._replace(**{key: values})
        assert model.count_params() == run.count_parameters()
        assert any(run.rank) == (start == 'SVD')


@pytest.mark.parametrize(
    'layer',
    [
        L.Linear(6, 4),
        SharedLinear(6, 4, common_num=2, order=numpy.arange(6)[::-1]),
        chainer.Sequential(L.Linear(6, 2), L.Linear(2, 4)),
    ],
)
def test_inputs_without_their_mean(layer, random):
    x = random.rand(3, 6).astype('f')
    mean = x.mean(axis=0)
    expected = layer(x).array
    networks.fold_mean(layer, mean)
    numpy.testing.assert_allclose(layer(x - mean).array, expected, 1e-4, 1e-5)


@pytest.mark.parametrize('nobias', [False, True])
def test_low_rank_is_the_best_approximation_of_what_was_fitted(nobias, random):
    x = random.randn(20, 8).astype('f') + 1
    y = random.randn(20, 5).astype('f') + 2
    fit = svd.Fit(L.Linear(8, 5, nobias), x, y)
    fitted = fit.factorize(5)(x).array.astype('d')
    mean = 0 if nobias else y.mean(axis=0)
    U, s, V = numpy.linalg.svd(fitted - mean, full_matrices=False)
    best = (U[:, :2] * s[:2]) @ V[:2] + mean
    numpy.testing.assert_allclose(fit.factorize(2)(x).array, best, 1e-4, 1e-4)
    # And it was fitted: some of the outputs can be told from the inputs.
    assert numpy.linalg.norm(fitted - y) < numpy.linalg.norm(y - y.mean(0))


def test_low_rank_of_what_has_a_low_rank_changes_nothing(random):
    model = text.LSTM(9)
    texts = random.randint(9, size=(4, 6)).astype('i')
    expected = model(texts).array
    # Only 20 inputs are ever seen: the first character has none.
    svd.convert_to_low_rank(model, {text.LATERAL: 20}, texts)
    numpy.testing.assert_allclose(model(texts).array, expected, 1e-3, 1e-5)
    assert model.lstm.lateral[0].W.shape == (20, 256)


def test_best_split_of_ranks(random):
    dense = Network(Run((8, 7, 6, 3)))
    x = random.randn(30, 8).astype('f')
    log_p = F.log_softmax(dense(x)).array
    budget = 60 + 7 + 6 + 3  # with the biases

    def convert(ranks):
        model = dense.copy()
        chosen = {f'/l{i}': rank for i, rank in enumerate(ranks, 1) if rank}
        svd.convert_to_low_rank(model, chosen, x)
        return model

    def measure_loss(ranks):
        log_q = F.log_softmax(convert(ranks)(x)).array
        return (numpy.exp(log_p) * (log_p - log_q)).sum()

    # Rank 0 is the dense layer, which has the most parameters.
    options = (1, 2, 3, 0), (1, 2, 3, 0), (1, 2, 0)
    within = {}
    for places in itertools.product(*(range(len(each)) for each in options)):
        ranks = tuple(each[i] for each, i in zip(options, places))
        if convert(ranks).count_params() <= budget:
            within[places] = ranks
    # What no other split exceeds in a layer without falling short in one.
    used_up = [
        ranks
        for places, ranks in within.items()
        if not any(
            other != places and all(map(operator.ge, other, places))
            for other in within
        )
    ]
    chosen = svd.choose_ranks(dense.layers, x, 60)
    assert chosen in within.values()
    least = min(map(measure_loss, used_up))
    assert measure_loss(chosen) <= least * (1 + 1e-4)


def test_bits_per_character():
    model = text.LSTM(8)
    model.output.W.array[:] = 0
    characters = numpy.arange(200, dtype='i') % 8
    assert text.evaluate(model, characters) == pytest.approx(3)
