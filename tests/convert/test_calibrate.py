"""Layers that are refitted with calibration inputs."""

import itertools
import random as random_module

from chainer_shared_patch import SharedLinear, share
from chainer_shared_patch.convert.grouping import group_columns
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    OUT,
    average,
    state_of,
)
from tests.helpers import K, N, assert_same, cut, fill, params_of

pytestmark = pytest.mark.arithmetic

X = numpy.ones((3, IN))
# The first two inputs are the same.
PAIRED = numpy.random.RandomState(0).randn(5, IN)
PAIRED[:, 1] = PAIRED[:, 0]


def ridge_regression(S, y, W, has_bias):
    """The refitted W and bias, as augmented least squares."""
    rows, columns = S.shape
    centred = S - S.mean(axis=0) if has_bias else S
    # 3 % of the mean eigenvalue.
    ridge = 0.03 * (centred**2).sum() / min(rows, columns) or 1.0
    A = numpy.zeros((rows + columns, columns + has_bias))
    A[:rows, :columns] = S
    A[rows:, :columns] = ridge**0.5 * numpy.eye(columns)
    A[:rows, columns:] = 1
    target = numpy.zeros((rows + columns, len(W)))
    target[:rows] = y - S @ W.T
    solution = numpy.linalg.lstsq(A, target, rcond=None)[0]
    return W + solution[:columns].T, solution[columns] if has_bias else None


@pytest.mark.parametrize('rows', [40, 3, 1])
@pytest.mark.parametrize(
    ('nobias', 'add_bias'), [(False, False), (True, False), (True, True)]
)
@pytest.mark.parametrize('orders', [1, 3, None])
def test_layers_are_refitted_one_by_one(
    random, rows, nobias, add_bias, orders
):
    x = random.randn(rows, IN)
    model = MLP(nobias=nobias)
    dense = model.copy('copy')
    order = 'grouped' if orders else 'contiguous'
    report = share(
        model, 2, inputs=x, order=order, orders=orders, add_bias=add_bias
    )
    was = now = x
    for name, layer in zip(('l1', 'l2', 'l3'), report.layers):
        before, after = getattr(dense, name), getattr(model, name)
        squares = (was**2).sum(axis=0)
        weights = squares / squares.mean() + 0.01
        if orders:
            expected = [
                group_columns(each, 2, weights)
                for each in numpy.array_split(before.W.array, orders)
            ]
            numpy.testing.assert_array_equal(
                numpy.atleast_2d(after.order), expected
            )
        else:
            assert after.order is None
        y = before(was).array
        means = average(before.W.array, 2, after.order, weights)
        for each, units in cut(means, after.order, 2):
            W, b = ridge_regression(
                now[:, each].reshape(rows, 2, -1).sum(axis=1),
                y[:, units],
                means[units],
                add_bias or not nobias,
            )
            assert_same([after.W.array[units]], [W])
            assert (after.b is None) == (b is None)
            if b is not None:
                assert_same([after.b.array[units]], [b])
        outputs = after(now).array
        error = numpy.linalg.norm(outputs - y) / numpy.linalg.norm(y)
        # Relative to the outputs, the roundings of both are below 2**-30.
        assert layer.output_error == pytest.approx(error, abs=2**-30)
        was, now = numpy.maximum(y, 0), numpy.maximum(outputs, 0)


@pytest.mark.parametrize(
    'form',
    [
        lambda x: [x],
        lambda x: chainer.Variable(x),
        lambda x: [(x,)],
        lambda x: (x[:3], x[3:]),
        lambda x: [x[:0], x[:3], x[:0], x[3:]],
        lambda x: (x[i : i + 5] for i in range(0, len(x), 5)),
        lambda x: [chainer.Variable(x[:3]), x[3:]],
        lambda x: [x[:9].reshape(9, 2, 3), x[9:]],
    ],
)
def test_forms_of_inputs(x, form):
    model, expected = MLP(), MLP()
    share(expected, 2, inputs=x)
    share(model, 2, inputs=form(x))
    assert_same(params_of(model), params_of(expected))


class OneLayer(chainer.Chain):
    """Calls its only layer as a function says."""

    def __init__(self, call):
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(IN, 5)
        fill(self)
        self.call = call

    def forward(self, *args):
        return self.call(self.fc, *args)


@pytest.mark.parametrize(
    ('call', 'shape'),
    [
        (lambda fc, x: fc(x, 2), (4, 5, IN)),
        (lambda fc, x: fc(x=x), (20, IN)),
        (lambda fc, x: fc(x), (20, 3, 1, 2)),
        (lambda fc, x: (fc(x[:9]), fc(x[9:])), (20, IN)),
    ],
)
def test_ways_to_call_a_layer(x, call, shape):
    model, expected = OneLayer(call), OneLayer(lambda fc, x: fc(x))
    share(model, 3, inputs=x.reshape(shape))
    share(expected, 3, inputs=x)
    assert_same(params_of(model), params_of(expected))


def test_several_arguments(random):
    model = OneLayer(lambda fc, a, b: fc(a + b))
    expected = OneLayer(lambda fc, a: fc(a))
    a, b = random.randn(2, 20, IN)
    share(model, 2, inputs=[(a[:5], b[:5]), (a[5:], b[5:])])
    share(expected, 2, inputs=a + b)
    assert_same(params_of(model), params_of(expected))


def test_stateful_links_are_reset_before_and_after(random):
    x = random.randn(3, 20, 8)
    models = [chainer.Sequential(L.LSTM(8, 8)) for _ in range(2)]
    for model in models:
        fill(model)
    models[0](random.randn(20, 8))  # leaves a state
    for model in models:
        report = share(model, 2, inputs=iter(x))
        assert model[0].c is None
        assert model[0].h is None
        # The lateral layer is called from the second batch on.
        assert [each.path for each in report.layers] == [
            '/0/upward',
            '/0/lateral',
        ]
    assert_same(*map(params_of, models))


def test_statistics_and_dropout(random):
    def make(function):
        model = chainer.Sequential(
            L.Linear(IN, 8), L.BatchNormalization(8), function, L.Linear(8, 4)
        )
        fill(model)
        return model

    models = make(F.dropout), make(F.identity)
    x = random.randn(20, IN)
    for model in models:
        share(model, 2, inputs=x, tune_steps=3)
        bn = model[1]
        assert (bn.avg_mean == 0).all() and (bn.avg_var == 1).all()
        assert bn.N == 0
    assert_same(*map(params_of, models))
    assert chainer.config.train
    assert chainer.config.enable_backprop


class Noisy(MLP):
    """Adds noise to its hidden layers, in test mode too."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        h = self.l1(x)
        h = F.relu(self.l2(h + self.draw(self, h.shape)))
        return self.l3(h + self.draw(self, h.shape))


def draw_from_python(model, shape):
    gauss = [random_module.gauss(0, 1) for _ in range(numpy.prod(shape))]
    return numpy.reshape(gauss, shape)


@pytest.mark.parametrize(
    'draw',
    [
        lambda model, shape: F.gaussian(*numpy.zeros((2, *shape))),
        lambda model, shape: numpy.random.randn(*shape),
        lambda model, shape: model.random_state.randn(*shape),
        draw_from_python,
    ],
)
def test_every_run_draws_the_same_random_numbers(x, draw):
    def seed():
        numpy.random.seed(0)
        random_module.seed(0)
        model.random_state = numpy.random.RandomState(0)

    model = Noisy(draw)
    seed()
    noise = [chainer.as_array(draw(model, (20, HIDDEN))) for _ in range(2)]
    expected = Noisy(lambda model, shape: next(model.noise))
    expected.noise = itertools.cycle(noise)
    seed()
    first = chainer.as_array(draw(model, (1, 1)))
    seed()
    share(expected, 2, inputs=x, tune_steps=3)
    share(model, 2, inputs=x, tune_steps=3)
    assert_same(params_of(model), params_of(expected))
    # The states are as they were.
    second = chainer.as_array(draw(model, (1, 1)))
    numpy.testing.assert_array_equal(second, first)


def test_random_states_that_cannot_be_seen_are_refused(x):
    hidden = numpy.random.RandomState(0)
    model = Noisy(lambda model, shape: hidden.randn(*shape))
    before = state_of(model)
    message = r'^share\(\): when the model runs twice, /l2 gives two outputs'
    with pytest.raises(ValueError, match=message):
        share(model, 2, inputs=x)
    assert state_of(model) == before


class Training(MLP):
    """Runs itself in train mode, and has a layer of no width yet."""

    def __init__(self, reject=False):
        super().__init__()
        with self.init_scope():
            self.bn = L.BatchNormalization(HIDDEN)
            self.lazy = L.Linear(None, OUT)
        self.reject = reject

    def forward(self, x):
        with chainer.using_config('train', True):
            h = self.bn(self.l1(x))
        h = self.lazy(self.l2(h))
        if self.reject and isinstance(self.l2, SharedLinear):
            raise RuntimeError('no')
        return h


@pytest.mark.parametrize('reject', [False, True])
def test_statistics_and_lazy_layers_stay(x, reject):
    model = Training(reject)
    before = state_of(model)
    if reject:
        with pytest.raises(ValueError, match='once /l2 is shared, the model'):
            share(model, {'/l1': 2, '/l2': 2}, inputs=x)
        assert state_of(model) == before
    else:
        share(model, {'/l1': 2, '/l2': 2}, inputs=x)
        assert state_of(model)[3] == before[3]
        assert model.lazy.W.array is None


def test_arrays_that_the_model_writes_to_stay(x):
    class Writing(MLP):
        def forward(self, x):
            self.l3.W.array[...] *= 0.5
            return super().forward(x)

    model = Writing()
    W = model.l3.W.array.copy()
    share(model, {'/l1': 2}, inputs=x)
    numpy.testing.assert_array_equal(model.l3.W.array, W)


class Tied(chainer.Chain):
    """An autoencoder that decodes with the weights that it encodes with."""

    def __init__(self, decode):
        super().__init__()
        with self.init_scope():
            self.a = L.Linear(IN, HIDDEN)
            self.b = L.Linear(HIDDEN, HIDDEN)
        fill(self)
        self.decode = decode

    def forward(self, x):
        h = F.sigmoid(self.b(F.sigmoid(self.a(x))))
        return {'h': h, 'x': self.decode(self, h)}


@pytest.mark.parametrize(
    ('decode', 'message'),
    [
        (
            lambda model, h: F.linear(h, F.transpose(model.a.W)),
            r'returns .* \[\(20, 12\), \(20, 3\)\] instead of .* 6\)\]',
        ),
        (
            lambda model, h: F.linear(
                h, F.transpose(model.a.W), numpy.zeros(IN)
            ),
            'raises InvalidType',
        ),
    ],
)
@pytest.mark.parametrize('common_num', [{'/a': 2}, {'/a': 2, '/b': 3}])
def test_weights_that_the_model_uses_elsewhere(x, decode, message, common_num):
    model = Tied(decode)
    before = state_of(model)
    message = r'(?s)^share\(\): once /a is shared, the model ' + message
    with pytest.raises(ValueError, match=message):
        share(model, common_num, inputs=x)
    assert state_of(model) == before
    share(model, {'/b': 3}, inputs=x)


def test_the_order_is_that_of_execution(x):
    class Backwards(MLP):
        def forward(self, x):
            return self.l1(F.relu(self.l2(F.relu(self.l3(x)))))

    model = Backwards()
    with model.init_scope():
        del model.l1, model.l3
        model.l1 = L.Linear(HIDDEN, OUT)
        model.l3 = L.Linear(IN, HIDDEN)
    fill(model)
    report = share(model, 2, inputs=x)
    assert [layer.path for layer in report.layers] == ['/l3', '/l2', '/l1']


def test_inputs_that_are_all_zero():
    model = MLP()
    with numpy.errstate(divide='raise', over='raise', invalid='raise'):
        report = share(model, 2, inputs=0 * X)
    # The bias is the mean of three equal outputs, up to a few roundings.
    assert report.layers[0].output_error == pytest.approx(0, abs=1e-12)
    assert all(numpy.isfinite(array).all() for array in params_of(model))


def test_outputs_that_are_all_zero(random):
    """There is nothing that their error could be relative to."""
    model = chainer.Sequential(L.Linear(4, 1, nobias=True))
    model[0].W.array[...] = [[1, -1, 0, 0]]
    x = random.randn(5, 1) * numpy.array([1, 1, 1, 0])
    (layer,) = share(model, 2, inputs=x, order='contiguous').layers
    error = numpy.linalg.norm(model(x).array)
    assert error > 0
    assert layer.output_error == pytest.approx(error, rel=1e-6)


class Part(MLP):
    def forward(self, x):
        return self.l3(self.l1(x))


class Repeating(MLP):
    """Calls its second layer twice as soon as the first one is shared."""

    def forward(self, x):
        h = self.l1(x)
        for _ in range(1 + isinstance(self.l1, SharedLinear)):
            y = self.l2(h)
        return y


class Stopping(MLP):
    """Does not call its second layer once the first one is shared."""

    def forward(self, x):
        h = self.l1(x)
        return h if isinstance(self.l1, SharedLinear) else self.l2(h)


class Overflowing(MLP):
    """Two columns cancel, until they share with others."""

    def __init__(self):
        super().__init__(nobias=True)
        self.l1.W.array[...] = [1, -1, 0, 0, 0, 0]

    def forward(self, x):
        return self.l2(F.exp(1e9 * self.l1(x)))


class Large(MLP):
    def __init__(self):
        super().__init__()
        self.l1.W.array[...] = 1e308


@pytest.mark.filterwarnings('ignore:(overflow|invalid value) encountered')
@pytest.mark.parametrize(
    ('make', 'inputs', 'message'),
    [
        (MLP, [], 'inputs must hold at least one batch'),
        (
            MLP,
            chainer.iterators.SerialIterator(X, 2),
            'inputs must be .*, not a SerialIterator: ',
        ),
        (
            MLP,
            [(X[0], 1), (X[0],)],
            'with batches of ndarray, int, it raises TypeError: ',
        ),
        (MLP, X[:0], 'the inputs never reach /l1'),
        (Part, X, 'the inputs never reach /l2'),
        (MLP, X * numpy.nan, 'an input or output of /l1 is .* not finite'),
        (MLP, X * 1e200, 'an input or output of /l1 is too large'),
        (Large, X, 'an input or output of /l1 is too large'),
        (
            Repeating,
            X,
            'once the layers before /l2 .* no longer calls it as often',
        ),
        (
            Stopping,
            X,
            'once the layers before /l2 .* no longer calls it as often',
        ),
        (
            Overflowing,
            PAIRED,
            'once the layers before /l2 .* its inputs are not finite',
        ),
    ],
)
def test_errors_change_nothing(make, inputs, message):
    model = make()
    before = state_of(model)
    common_num = {'/l1': 2, '/l2': 2}
    with pytest.raises(ValueError, match=r'^share\(\): .*' + message):
        share(model, common_num, inputs=inputs)
    assert state_of(model) == before


def test_inputs_that_are_no_iterable():
    with pytest.raises(TypeError, match=r'^share\(\): inputs .* but are 3$'):
        share(MLP(), 2, inputs=3)


def test_a_bias_without_inputs():
    with pytest.raises(ValueError, match='add_bias has no effect without'):
        share(MLP(), 2, add_bias=True)


def test_layers_that_the_patch_shares(x):
    message = r'/l1 is already .* \(12, 6\) is used for 12 columns of input'
    with chainer.using_config('common_num', 2):
        with pytest.raises(ValueError, match=message):
            share(MLP(), {'/l1': 2}, inputs=numpy.tile(x, 2))


def test_weights_that_float16_cannot_hold():
    with chainer.using_config('dtype', 'float16'):
        model = chainer.Sequential(L.Linear(2, 1, nobias=True))
    model[0].W.array[...] = [[6e4, 2e4]]
    before = state_of(model)
    # y is 5e4 x_0 and the sum x_0 / 2, so that W is to be near 1e5.
    x = numpy.array([[0.5, -0.25], [0.25, -0.125]], 'e')
    with pytest.raises(ValueError, match='refitted /0 .* range of float16'):
        share(model, 2, inputs=x)
    assert state_of(model) == before


@pytest.mark.parametrize(('rows', 'warnings'), [(K, 1), (K + 1, 0)])
def test_too_few_calibration_inputs(random, recwarn, rows, warnings):
    model = chainer.Sequential(L.Linear(IN, OUT))
    share(model, N, inputs=random.randn(rows, IN))
    assert len(recwarn) == warnings
    for each in recwarn:
        assert f'reach /0, {rows} for' in str(each.message)
        assert each.filename == __file__
