"""Layers that are trained to give the outputs that the model gave."""

from chainer_shared_patch import share
import chainer
from chainer import optimizer_hooks, optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import IN, MLP, state_of, train
from tests.helpers import assert_same, fill, widen

pytestmark = pytest.mark.arithmetic


def adam(params, compute_grads, steps):
    """Adam as at the end of section 2 of Kingma and Ba (2015).

    The step size falls to zero.
    """
    m, v = ([numpy.zeros_like(p) for p in params] for _ in range(2))
    for t in range(1, steps + 1):
        alpha = 0.001 * (1 - (t - 1) / steps)
        alpha *= (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        for i, g in enumerate(compute_grads(t - 1, params)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            params[i] = params[i] - alpha * m[i] / (v[i] ** 0.5 + 1e-8)
    return params


@pytest.mark.parametrize('orders', [1, 3])
@pytest.mark.parametrize('rows', [250, 7])
def test_steps_of_adam(random, orders, rows):
    x = random.randn(rows, IN)
    dense = chainer.Sequential(L.Linear(IN, 5), F.tanh, L.Linear(5, 4))
    fill(dense)
    model, expected = dense.copy('copy'), dense.copy('copy')
    settings = {'common_num': {'/0': 2}, 'inputs': x, 'orders': orders}
    share(expected, **settings)
    report = share(model, **settings, tune_steps=8)
    link = expected[0]
    number = -(-rows // 100)
    V, c = expected[2].W.array, expected[2].b.array

    def compute(x, W, b):
        h = numpy.tanh(x @ widen(W, link.order, 2).T + b)
        return h, h @ V.T + c

    def compute_grads(step, params):
        batch = x[step % number :: number]
        h, y = compute(batch, *params)
        target = dense(batch).array
        gy = (y - target) / (target**2).mean()
        gh = gy @ V * (1 - h**2)
        wide = gh.T @ batch
        orders = numpy.atleast_2d(link.order)
        gW = [
            columns[:, each].reshape(len(columns), 2, -1).sum(axis=1)
            for each, columns in zip(
                orders, numpy.array_split(wide, len(orders))
            )
        ]
        return numpy.concatenate(gW), gh.sum(axis=0)

    def error(*params):
        squares = []
        for first in range(number):
            batch = x[first::number]
            target = dense(batch).array
            difference = compute(batch, *params)[1] - target
            squares.append((difference**2).mean() / (target**2).mean())
        return numpy.mean(squares) ** 0.5

    before = [link.W.array, link.b.array]
    after = adam(before.copy(), compute_grads, 8)
    numpy.testing.assert_array_equal(model[0].order, link.order)
    assert_same([model[0].W.array, model[0].b.array], after)
    assert report.tuned == pytest.approx(
        (error(*before), error(*after)), rel=2**-30
    )
    assert report.tuned[1] < report.tuned[0]


def test_everything_else_stays(random, x):
    model = MLP()
    optimizer = optimizers.Adam().setup(model)
    optimizer.add_hook(optimizer_hooks.WeightDecay(0.1))
    train(model, optimizer, x)
    others = {link: state_of(link) for link in (model.l1, model.l3)}
    t, alpha = optimizer.t, optimizer.alpha
    numpy.random.seed(5)
    share(model, {'/l2': 2}, inputs=x, tune_steps=3)
    assert numpy.random.rand() == numpy.random.RandomState(5).rand()
    assert chainer.config.train
    for link, state in others.items():
        assert state_of(link) == state
    assert (optimizer.t, optimizer.alpha) == (t, alpha)
    for param in (model.l2.W, model.l2.b):
        assert param.update_rule.state is None
        assert param.update_rule.t == 0
        assert param.update_rule.hyperparam.parent is optimizer.hyperparam
        assert numpy.isnan(param.grad).all()  # as Chainer initializes it
    train(model, optimizer, x)


def test_states_and_several_outputs(random):
    """Batches of a recurrent model are points in time, and stay whole."""

    class Recurrent(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.lstm = L.LSTM(IN, 4)
                self.fc = L.Linear(4, 3)
            fill(self)

        def forward(self, x):
            h = self.lstm(x)
            labels = h.array.argmax(axis=1)
            return {'h': h, 'rest': (labels, [1e3 * self.fc(h)], F.sum(h))}

    x = list(random.randn(5, 150, IN))
    dense = Recurrent()
    model = dense.copy('copy')

    def error():
        total = 0
        for each in (model, dense):
            each.lstm.reset_state()
        for batch in x:
            y, target = model(batch), dense(batch)
            for a, b in (
                (y['h'], target['h']),
                (y['rest'][1][0], target['rest'][1][0]),
            ):
                difference = a.array - b.array
                total += (difference**2).mean() / (b.array**2).mean()
        return (total / 10) ** 0.5

    before, after = share(model, 2, inputs=x, tune_steps=40).tuned
    assert model.lstm.c is None
    assert after < before
    assert after == pytest.approx(error(), rel=2**-30)


@pytest.mark.parametrize(('arguments', 'lengths'), [(1, {75}), (2, {150})])
@pytest.mark.parametrize('wrap', [chainer.as_array, chainer.as_variable])
def test_only_single_arrays_are_cut(random, arguments, lengths, wrap):
    seen = set()

    class Adding(MLP):
        def forward(self, *xs):
            seen.update(map(len, xs))
            return super().forward(sum(xs))

    xs = random.randn(arguments, 150, IN)
    share(Adding(), 2, inputs=[tuple(map(wrap, xs))], tune_steps=1)
    assert seen == lengths


@pytest.mark.parametrize('dtype', ['float16', chainer.mixed16])
def test_float16(random, dtype):
    model = MLP(dtype)
    for param in model.params():
        param.array *= 0.1
    x = random.randn(300, IN).astype('e')
    before, after = share(model, 2, inputs=x, tune_steps=30).tuned
    assert after < before


def test_worse_is_not_kept(random, x):
    # The weights are small for Adam's steps.
    model = MLP()
    model.l2.W.array *= 1e-4
    refitted = model.copy('copy')
    share(refitted, {'/l2': 2}, inputs=x)
    before, after = share(model, {'/l2': 2}, inputs=x, tune_steps=2).tuned
    assert before == after > 0
    for param in ('W', 'b'):
        assert_same(*(getattr(m.l2, param).array for m in (model, refitted)))


class Loss(MLP):
    def forward(self, x):
        return F.sum(super().forward(x)), numpy.arange(3)


class Arrays(MLP):
    def forward(self, x):
        return super().forward(x).array


class Infinite(MLP):
    def forward(self, x):
        return super().forward(x) * numpy.inf


@pytest.mark.filterwarnings('ignore:(divide by zero|invalid value) encount')
@pytest.mark.parametrize(
    ('make', 'settings', 'message'),
    [
        (MLP, {'inputs': None}, 'tune_steps has no effect without inputs'),
        *(
            (
                MLP,
                {'tune_steps': steps},
                f'tune_steps must be an integer of at least 0, .* {steps}$',
            )
            for steps in (-1, 2.5, True)
        ),
        (Loss, {}, 'tune_steps has no effect, .* other than scalars'),
        (Arrays, {}, 'tune_steps has no effect, because the model returns no'),
        (Infinite, {}, 'tune_steps makes elements of /l2/W NaN or infinity'),
    ],
)
def test_errors_change_nothing(x, make, settings, message):
    model = make()
    before = state_of(model)
    settings = {'inputs': x, 'tune_steps': 3, **settings}
    with pytest.raises(ValueError, match=r'^share\(\): ' + message):
        share(model, {'/l2': 2}, **settings)
    assert state_of(model) == before


def test_nothing_to_tune(x):
    assert share(MLP(), {}, inputs=x, tune_steps=3).tuned is None


def test_graph_of_the_inputs_stays(random):
    encoder = L.Linear(8, 8)
    h = encoder(random.randn(5, 8))
    model = chainer.Sequential(L.Linear(8, 3))
    share(model, 2, inputs=h, tune_steps=3)
    encoder.cleargrads()
    F.sum(h).backward()
    assert encoder.W.grad is not None
