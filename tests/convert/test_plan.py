"""The choice of common_num for each layer, within a size or a loss."""

import io
import itertools
import re
import sys

from chainer_shared_patch import Plan, PlannedLayer, plan, share
from chainer_shared_patch.convert.choose import Layer
from chainer_shared_patch.convert.plan import _Curve
import chainer
import chainer.functions as F
from chainer.link_hooks import TimerHook
import chainer.links as L
import matplotlib.pyplot
import numpy
import pytest

from tests.convert.helpers import IN, MLP, state_of
from tests.helpers import fill


class Small(chainer.Chain):
    """Its layers have so few numbers of blocks that all are measured."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(IN, 8)
            self.l2 = L.Linear(8, 16, nobias=True)
            self.l3 = L.Linear(16, 3)
        fill(self)

    def forward(self, x):
        return self.l3(F.relu(self.l2(F.relu(self.l1(x)))))


def divisors(size):
    return [n for n in range(1, size + 1) if size % n == 0]


def share_copy(model, *args, **kwargs):
    shared = model.copy('copy')
    share(shared, *args, **kwargs)
    return shared


def relative_error(shared, model, x):
    y, expected = shared(x).array, model(x).array
    return ((y - expected) ** 2).sum() / (expected**2).sum()


def size_of(model):
    return sum(param.size for param in model.params())


@pytest.fixture(scope='module')
def every_plan():
    """The model, inputs, and the size and summed loss of all combinations."""
    x = numpy.random.RandomState(1).randn(20, IN)
    with chainer.using_config('dtype', 'd'):
        model = Small()
        options = []
        for path in ('/l1', '/l2', '/l3'):
            options.append([(path, 1, 0, 0.0)])
            for n in divisors(dict(model.namedlinks())[path].W.shape[1])[1:]:
                shared = share_copy(model, {path: n}, inputs=x, orders=2)
                saved = size_of(model) - size_of(shared)
                loss = relative_error(shared, model, x)
                options[-1].append((path, n, saved, loss))
    plans = []
    for choice in itertools.product(*options):
        paths, numbers, saved, losses = zip(*choice)
        numbers = {p: n for p, n in zip(paths, numbers) if n > 1}
        plans.append((size_of(model) - sum(saved), sum(losses), numbers))
    return model, x, plans


@pytest.mark.arithmetic
def test_best_of_all_within_a_size(every_plan):
    model, x, plans = every_plan
    smallest = min(size for size, _, _ in plans)
    for limit in range(smallest, size_of(model) + 1, 23):
        _, loss, numbers = min(
            (each for each in plans if each[0] <= limit),
            key=lambda each: each[1],
        )
        result = plan(model, x, max_parameters=limit, orders=2)
        assert result.common_num == numbers
        assert result.expected_loss == pytest.approx(loss, rel=1e-9)


def find_front(plans):
    """The sizes and losses of the plans that lose less than all smaller."""
    front = []
    for size, loss, _ in sorted(plans, key=lambda each: each[:2]):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


@pytest.mark.arithmetic
def test_front(every_plan):
    model, x, plans = every_plan
    result = plan(model, x, max_parameters=size_of(model), orders=2)
    expected = find_front(plans)
    assert [size for size, _ in result.front] == [size for size, _ in expected]
    numpy.testing.assert_allclose(result.front, expected, rtol=1e-9)
    assert result.common_num == {}
    assert result.loss == result.expected_loss == 0
    assert result.parameters == result.dense_parameters == size_of(model)


@pytest.mark.arithmetic
def test_smallest_that_scores_enough(every_plan):
    model, x, plans = every_plan
    front = [size for size, _ in find_front(plans)]
    for fall in (0, 30, 100, 1000):
        result = plan(model, x, max_loss=fall, orders=2, evaluate=size_of)
        least = size_of(model) - fall
        assert result.parameters == min(
            size for size in front if size >= least
        )
        assert result.score == result.parameters
        assert result.dense_score == size_of(model)


@pytest.mark.arithmetic
@pytest.mark.parametrize('max_loss', [0, 1e-3, 0.05, 0.3, 5])
def test_loss_is_measured(every_plan, max_loss):
    model, x, _ = every_plan
    result = plan(model, x, max_loss=max_loss, orders=2)
    assert result.loss <= max_loss
    shared = share_copy(
        model, result.common_num, inputs=x, orders=result.orders
    )
    assert result.parameters == size_of(shared)
    assert result.loss == pytest.approx(relative_error(shared, model, x))
    smaller = [each for each in result.front if each[0] < result.parameters]
    assert bool(smaller) == (max_loss < 5)


@pytest.mark.parametrize('seed', range(4))
def test_loss_that_only_small_numbers_meet(seed):
    numpy.random.seed(seed)
    model = chainer.Sequential(L.Linear(24, 36), F.relu, L.Linear(36, 10))
    x = numpy.random.rand(60, 24)
    losses = {}
    for path, n in (('/0', 2), ('/1', 2)):
        shared = share_copy(model, {path: n}, inputs=x, orders=1)
        losses[path] = relative_error(shared, model, x)
    max_loss = 1.01 * min(losses.values())
    result = plan(model, x, max_loss=max_loss, orders=1)
    assert 0 < result.loss <= max_loss


@pytest.mark.arithmetic
def test_more_numbers_than_are_measured(random):
    # 60 has 11 divisors besides 1.
    model = chainer.Sequential(L.Linear(60, 40), F.relu, L.Linear(40, 3))
    fill(model)
    x = random.randn(50, 60)
    for limit in (300, 500, 1000, 2000):
        result = plan(model, x, max_parameters=limit)
        assert result.parameters <= limit
        for path, n, orders, size, loss in result.layers:
            shared = share_copy(model, {path: n}, inputs=x, orders=orders)
            assert size == size_of(dict(shared.namedlinks())[path])
            error = relative_error(shared, model, x)
            assert loss == pytest.approx(error, rel=1e-9)
        shared = share_copy(
            model, result.common_num, inputs=x, orders=result.orders
        )
        assert result.parameters == size_of(shared)


def test_estimates_are_powers_between_and_beyond_what_is_measured():
    curve = _Curve(Layer('/l', L.Linear(64, 1), 64, 'grouped', None))
    for n in (4, 16):
        curve.losses[n] = 1e-3 * n**1.5
    curve.losses[32] = curve.losses[16] * 2**3
    expected = [1e-3 * n**1.5 for n in (2, 4, 8, 16)]
    expected += [expected[-1] * n**3 for n in (2, 4)]
    numpy.testing.assert_allclose(curve.estimate(), [0, *expected])


class Recurrent(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.lstm = L.LSTM(8, 16)
            self.out = L.Linear(16, 3)
        fill(self)
        # Next to nothing comes back, which can be shared for nothing.
        self.lstm.lateral.W.array *= 1e-3

    def forward(self, xs):
        self.lstm.reset_state()
        for x in F.separate(xs, axis=1):
            y = self.out(self.lstm(x))
        return y


def test_weights_of_a_recurrent_link_are_planned_apart(random):
    model = Recurrent()
    x = random.randn(10, 4, 8)
    result = plan(model, x, max_parameters=700)
    numbers = result.common_num
    assert numbers['/lstm/lateral'] > numbers.get('/lstm/upward', 1)
    shared = share_copy(model, numbers, inputs=x, orders=result.orders)
    assert size_of(shared) == result.parameters <= 700


class Mixed(chainer.Chain):
    """Layers that can be shared, and such that cannot."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(1, 4, 3, pad=1)
            self.fc = L.Linear(36, 8)
            self.hooked = L.Linear(8, 8)
            self.decoder = L.Linear(8, 8)
            self.tied = L.Linear(8, 8)
            self.own = Own(8, 8)
            self.unused = L.Linear(8, 1)
        fill(self)
        self.hooked.add_hook(TimerHook())
        self.tied.W = self.decoder.W

    def forward(self, x):
        h = F.relu(self.fc(F.relu(self.conv(x))))
        return self.own(self.tied(self.decoder(self.hooked(h))))


class Own(L.Linear):
    pass


def test_what_cannot_be_shared(random):
    model = Mixed()
    x = random.randn(10, 1, 3, 3)
    result = plan(model, x, max_parameters=500)
    assert list(result.common_num) == ['/fc']
    assert result.passed_over == (
        '/decoder',
        '/hooked',
        '/own',
        '/tied',
        '/unused',
    )
    # What is tied counts once.
    assert result.dense_parameters == 40 + 36 * 8 + 8 + 3 * 64 + 4 * 8 + 9
    assert result.parameters <= 500
    share(model, result.common_num, inputs=x, orders=result.orders)


def test_nothing_to_share(random):
    model = Mixed()
    del model.fc
    del model.unused
    model.forward = lambda x: model.own(model.hooked(x))
    result = plan(model, random.randn(10, 8), max_loss=1)
    assert result.common_num == {}
    assert str(result).startswith('layer')


def test_model_stays(x):
    model = MLP()
    optimizer = chainer.optimizers.Adam().setup(model)
    before = state_of(model)
    random_state = numpy.random.get_state()[1].copy()
    assert plan(model, x, max_parameters=200).common_num

    def fail(model):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        plan(model, x, max_loss=1, evaluate=fail)
    assert state_of(model) == before
    assert optimizer.target is model
    numpy.testing.assert_array_equal(numpy.random.get_state()[1], random_state)


@pytest.mark.parametrize(
    'wrap', [int, lambda y: chainer.Variable(numpy.array(y, 'f'))]
)
def test_evaluate_in_test_mode_from_a_fresh_state(random, wrap):
    model = Recurrent()
    model.lstm(random.randn(2, 8))
    seen = []

    def evaluate(model):
        seen.append((model.lstm.h, chainer.config.train))
        return wrap(1)

    result = plan(
        model, random.randn(5, 2, 8), max_parameters=600, evaluate=evaluate
    )
    assert seen == [(None, False)] * 2
    assert result.score == result.dense_score == 1


def test_orders(x):
    model = MLP()
    for orders in ({'/l1': 2}, {model.l1: 2}):
        result = plan(model, x, max_parameters=100, orders=orders)
        assert result.orders['/l1'] == 2
        assert result.orders['/l2'] == 4


@pytest.mark.parametrize('dtype', ['e', 'f'])
def test_dtypes(random, dtype):
    model = MLP(dtype)
    x = random.randn(20, IN).astype(dtype)
    result = plan(model, [x[:9], (x[9:],)], max_parameters=200)
    assert result.parameters <= 200


X = numpy.ones((3, IN))


class Unfinished(MLP):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(None, 1, 1)


class Infinite(MLP):
    def forward(self, x):
        return super().forward(x) * -numpy.inf


@pytest.mark.parametrize(
    ('model', 'inputs', 'limits', 'error', 'message'),
    [
        (MLP, X, {}, ValueError, 'either max_parameters or max_loss'),
        (
            MLP,
            X,
            {'max_parameters': 99, 'max_loss': 0.1},
            ValueError,
            'either max_parameters or max_loss: both',
        ),
        (
            MLP,
            X,
            {'max_parameters': '9k'},
            TypeError,
            "max_parameters must be a number, but is '9k'",
        ),
        (
            MLP,
            X,
            {'max_parameters': 55},
            ValueError,
            'max_parameters is 55, but the smallest plan has 56 parameters',
        ),
        (MLP, X, {'max_parameters': numpy.nan}, ValueError, 'is nan'),
        (MLP, X, {'max_loss': -1}, ValueError, 'at least 0, .* but is -1'),
        (MLP, X, {'max_loss': numpy.nan}, ValueError, 'at least 0'),
        (MLP, None, {'max_loss': 1}, TypeError, 'inputs .* are None'),
        (
            lambda: chainer.Sequential(L.Linear(None, 4)),
            X,
            {'max_loss': 1},
            ValueError,
            '/0 has no weight yet',
        ),
        (
            Unfinished,
            X,
            {'max_loss': 1},
            ValueError,
            '/conv/W has no value yet',
        ),
        (
            lambda: L.Classifier(MLP()),
            X,
            {'max_loss': 1},
            ValueError,
            'pass its predictor',
        ),
        (
            lambda: L.Classifier(MLP()),
            [(X, numpy.zeros(3, 'i'))],
            {'max_loss': 1},
            ValueError,
            'must return arrays of floats, but .* pass its predictor',
        ),
        (Infinite, X, {'max_parameters': 99}, ValueError, 'is not finite'),
        (
            MLP,
            X,
            {'max_loss': 1, 'evaluate': lambda model: numpy.nan},
            ValueError,
            'evaluate must return a finite number, but returned nan',
        ),
        (lambda: None, X, {'max_loss': 1}, TypeError, 'model must be'),
    ],
)
def test_errors(model, inputs, limits, error, message):
    with pytest.raises(error, match=r'plan\(\): .*' + message):
        plan(model(), inputs, **limits)


PLAN = Plan(
    (
        PlannedLayer('/l1', 28, 4, 29000, 0.0438),
        PlannedLayer('/l2', 1, 1, 900900, 0.0),
    ),
    929_900,
    1_685_900,
    0.031,
    0.97,
    0.98,
    ((900, 0.9), (929_900, 0.0438), (1_685_900, 0.0)),
    ('/a', '/b'),
)


def test_table():
    *rows, model, score, passed_over = repr(PLAN).splitlines()
    assert [row.split() for row in rows] == [
        ['layer', 'common_num', 'orders', 'parameters', 'expected', 'loss'],
        ['-' * n for n in (7, 12, 8, 12, 15)],
        ['/l1', '28', '4', '29,000', '0.044'],
        ['/l2', '1', '1', '900,900', '0'],
    ]
    for text in ('929,900', '1,685,900', '0.031', '0.044'):
        assert text in re.split('[ ;]|[.,]( |$)', model)
    assert '0.97' in score and '0.98' in score
    assert passed_over.endswith('/a, /b.')
    html = PLAN._repr_html_()
    for cell in ('common_num', '/l1', '29,000', model, score, passed_over):
        assert f'>{cell}<' in re.sub(r'\s*([<>])\s*', r'\1', html)
    assert PLAN.common_num == {'/l1': 28}
    assert PLAN.orders == {'/l1': 4}


def test_plot(monkeypatch):
    matplotlib.use('Agg')
    axes = PLAN.plot()
    line, point = axes.get_lines()
    assert line.get_xydata().tolist() == [[900, 0.9], [929_900, 0.0438]]
    assert point.get_xydata().tolist() == [[929_900, 0.031]]
    assert axes.get_xscale() == axes.get_yscale() == 'log'
    assert axes.get_xlabel() and axes.get_ylabel()
    assert PLAN.plot(axes) is axes
    matplotlib.pyplot.close(axes.figure)


def test_progress_on_a_terminal(monkeypatch, x):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stderr', stream)
        plan(MLP(), x, max_parameters=200)
        for text in ('plan', '/l2: 4'):
            assert (text in stream.getvalue()) == shown
