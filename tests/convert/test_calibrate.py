"""Layers that are refitted with calibration inputs."""

from chainer_shared_patch import share
from chainer_shared_patch.convert import grouping
import chainer
from chainer import optimizer_hooks, optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    OUT,
    in_order,
    mean_weight,
    relu,
    train,
)
from tests.helpers import assert_same, fill, params_of

pytestmark = pytest.mark.arithmetic


RIDGE = 0.03  # of the mean eigenvalue


def ridge_regression(S, y, W, has_bias):
    """The refitted W and bias, as augmented least squares."""
    rows, columns = S.shape
    centred = S - S.mean(axis=0) if has_bias else S
    ridge = RIDGE * (centred**2).sum() / min(rows, columns) or 1.0
    one = numpy.ones((rows, 1)), numpy.zeros((columns, 1))
    if not has_bias:
        one = numpy.empty((rows, 0)), numpy.empty((columns, 0))
    A = numpy.block([[S, one[0]], [ridge**0.5 * numpy.eye(columns), one[1]]])
    target = numpy.zeros((rows + columns, len(W)))
    target[:rows] = y - S @ W.T
    solution = numpy.linalg.lstsq(A, target, rcond=None)[0]
    return W + solution[:columns].T, solution[columns] if has_bias else None


def weights_of(x):
    squares = (x**2).sum(axis=0)
    return squares / squares.mean() + 0.01


def sum_in_order(x, n, order):
    columns = in_order(order, x.shape[1]).reshape(n, -1)
    return x[:, columns].sum(axis=1)


class OneLayer(chainer.Chain):
    """Calls its only layer as a function says."""

    def __init__(self, call, in_size=IN, nobias=False):
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(in_size, 5, nobias)
        fill(self)
        self.call = call

    def forward(self, *args):
        return self.call(self.fc, *args)


class TestInputs:
    @pytest.mark.parametrize('rows', [40, 3, 1])
    @pytest.mark.parametrize(
        ('nobias', 'add_bias'),
        [(False, False), (True, False), (True, True)],
    )
    @pytest.mark.parametrize('order', ['grouped', 'contiguous'])
    def test_refitted_layer_by_layer(
        self, random, rows, nobias, add_bias, order
    ):
        x = random.randn(rows, IN)
        model = MLP(nobias=nobias)
        dense = model.copy('copy')
        share(model, 2, inputs=x, order=order, add_bias=add_bias)
        has_bias = add_bias or not nobias
        was = now = x
        for name in ('l1', 'l2', 'l3'):
            before, after = getattr(dense, name), getattr(model, name)
            weights = weights_of(was)
            if order == 'grouped':
                expected = grouping.group_columns(before.W.array, 2, weights)
                numpy.testing.assert_array_equal(after.order, expected)
            y = before(was).array
            W, b = ridge_regression(
                sum_in_order(now, 2, after.order),
                y,
                mean_weight(before.W.array, 2, after.order, weights),
                has_bias,
            )
            assert_same([after.W.array], [W])
            assert (after.b is None) == (b is None)
            if b is not None:
                assert_same([after.b.array], [b])
                assert after.b.name == 'b'
            was, now = relu(y), relu(after(now).array)

    def test_errors_of_outputs(self, x):
        model = MLP()
        dense = model.copy('copy')
        report = share(model, {'/l1': 2, '/l2': 3}, inputs=[x[:7], x[7:]])
        expected, actual = [], []
        for m, ys in ((dense, expected), (model, actual)):
            ys.append(m.l1(x).array)
            ys.append(m.l2(F.relu(ys[0])).array)
        errors = [
            numpy.linalg.norm(a - b) / numpy.linalg.norm(b)
            for a, b in zip(actual, expected)
        ]
        assert all(errors)
        for layer, error in zip(report.layers, errors):
            assert layer.output_error == pytest.approx(error, rel=1e-6)

    @pytest.mark.parametrize(
        'form',
        [
            lambda x: [x],
            lambda x: chainer.Variable(x),
            lambda x: [(x,)],
            lambda x: [x[:3], x[3:4], x[4:]],
            lambda x: (x[:3], x[3:]),
            lambda x: [x[:0], x[:3], x[:0], x[3:]],
            lambda x: (x[i : i + 5] for i in range(0, len(x), 5)),
            lambda x: [chainer.Variable(x[:3]), x[3:]],
            lambda x: [x[:9].reshape(9, 2, 3), x[9:]],
            lambda x: [numpy.asfortranarray(x)],
        ],
    )
    def test_forms(self, x, form):
        model, expected = MLP(), MLP()
        share(expected, 2, inputs=x)
        share(model, 2, inputs=form(x))
        assert_same(params_of(model), params_of(expected))

    def test_several_arguments(self, random):
        model = OneLayer(lambda fc, a, b: fc(a + b))
        expected = OneLayer(lambda fc, a: fc(a))
        a, b = random.randn(2, 20, IN)
        share(model, 2, inputs=[(a[:5], b[:5]), (a[5:], b[5:])])
        share(expected, 2, inputs=a + b)
        assert_same(params_of(model), params_of(expected))

    @pytest.mark.parametrize(
        ('call', 'shape'),
        [
            (lambda fc, x: fc(x, n_batch_axes=2), (4, 5, IN)),
            (lambda fc, x: fc(x, 2), (4, 5, IN)),
            (lambda fc, x: fc(x=x), (20, IN)),
            (lambda fc, x: fc(x), (20, 3, 1, 2)),
            (lambda fc, x: (fc(x[:9]), fc(x[9:])), (20, IN)),
        ],
    )
    def test_ways_to_call_a_layer(self, x, call, shape):
        model = OneLayer(call)
        expected = OneLayer(lambda fc, x: fc(x))
        share(model, 3, inputs=x.reshape(shape))
        share(expected, 3, inputs=x)
        assert_same(params_of(model), params_of(expected))

    def test_recurrent(self, random):
        model = OneLayer(
            lambda fc, x: fc(F.pad(fc(x), ((0, 0), (0, 1)), 'constant'))
        )
        dense = model.copy('copy')
        x = random.randn(20, IN)
        share(model, 2, inputs=x)
        y = dense.fc(x).array
        second = numpy.pad(y, ((0, 0), (0, 1)))
        inputs = numpy.concatenate([x, second])
        expected = OneLayer(lambda fc, x: fc(x))
        share(expected, 2, inputs=inputs)
        assert_same(params_of(model), params_of(expected))

    def test_stateful_links_are_reset_before_and_after(self, random):
        x = random.randn(3, 20, 8)

        class Recurrent(chainer.Chain):
            def __init__(self):
                super().__init__()
                with self.init_scope():
                    self.lstm = L.LSTM(8, 8)

            def forward(self, x):
                return self.lstm(x)

        models = Recurrent(), Recurrent()
        for model in models:
            fill(model)
        models[0](random.randn(20, 8))  # leaves a state
        for model in models:
            share(model, 2, inputs=iter(x))
            assert model.lstm.c is None
            assert model.lstm.h is None
        assert_same(*map(params_of, models))
        # Inputs of the lateral layer are the outputs of the step before.
        layers = share(Recurrent(), {'*lateral': 2}, inputs=list(x)).layers
        assert layers[0].output_error > 0

    def test_statistics_and_dropout(self, random):
        def make():
            model = chainer.Sequential(
                L.Linear(IN, 8),
                L.BatchNormalization(8),
                F.dropout,
                L.Linear(8, 4),
            )
            fill(model)
            return model

        models = make(), make()
        bn = models[0][1]
        bn.avg_mean[...] = random.randn(8)
        models[1][1].avg_mean[...] = bn.avg_mean
        before = bn.avg_mean.copy(), bn.avg_var.copy(), bn.N
        x = random.randn(20, IN)
        for model in models:
            share(model, 2, inputs=x)
        numpy.testing.assert_array_equal(bn.avg_mean, before[0])
        numpy.testing.assert_array_equal(bn.avg_var, before[1])
        assert before[2] == bn.N
        assert_same(*map(params_of, models))
        assert chainer.config.train
        assert chainer.config.enable_backprop

    def test_order_of_execution(self, x):
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

    @pytest.mark.parametrize('seed', range(3))
    def test_held_out_errors_shrink(self, seed):
        """Groups of units that nearly agree, as after training."""
        random = numpy.random.RandomState(seed)
        n, k = 4, 10
        centres = random.randn(8, k)
        W = numpy.tile(centres, (1, n)) + 0.3 * random.randn(8, n * k)
        latent = random.randn(400, 6) @ random.randn(6, n * k)
        x = relu(latent + 0.1 * random.randn(*latent.shape))
        errors = []
        for inputs in (None, x[:200]):
            model = chainer.Sequential(L.Linear(n * k, 8))
            model[0].W.array[...] = W
            y = model(x[200:]).array
            share(model, n, inputs=inputs)
            errors.append(numpy.linalg.norm(model(x[200:]).array - y))
        assert errors[1] < 0.8 * errors[0]

    def test_inputs_that_are_all_zero(self):
        model = MLP()
        with numpy.errstate(divide='raise', over='raise', invalid='raise'):
            report = share(model, 2, inputs=numpy.zeros((5, IN)))
        assert report.layers[0].output_error == pytest.approx(0, abs=1e-12)
        assert all(numpy.isfinite(a).all() for a in params_of(model))

    def test_outputs_that_are_all_zero(self, random):
        """There is nothing that their error could be relative to."""
        model = chainer.Sequential(L.Linear(4, 1, nobias=True))
        model[0].W.array[...] = [[1, -1, 0, 0]]
        x = random.randn(5, 1) * numpy.array([1, 1, 1, 0])
        (layer,) = share(model, 2, inputs=x, order='contiguous').layers
        error = numpy.linalg.norm(model(x).array)
        assert error > 0
        assert layer.output_error == pytest.approx(error, rel=1e-6)

    def test_a_new_bias_has_an_update_rule_of_its_own(self, random, x):
        model = MLP(nobias=True)
        optimizer = optimizers.Adam().setup(model)
        optimizer.use_fp32_update()
        model.l2.W.update_rule.hyperparam.alpha = 0.5
        model.l2.W.update_rule.add_hook(optimizer_hooks.WeightDecay(0.1))
        model.l3.disable_update()
        train(model, optimizer, x)
        report = share(model, 2, inputs=x, add_bias=True)
        assert report.restarted == ('/l1/W', '/l2/W')
        rule = model.l2.b.update_rule
        assert rule.hyperparam.parent is optimizer.hyperparam
        assert rule.hyperparam.alpha == optimizer.alpha
        assert rule._use_fp32_update
        assert not rule._hookable._pre_update_hooks
        rule.hyperparam.alpha = 0.25
        assert model.l2.W.update_rule.hyperparam.alpha == 0.5
        assert not model.l3.b.update_rule.enabled
        b = model.l2.b.array.copy()
        train(model, optimizer, x)
        assert (model.l2.b.array != b).any()
