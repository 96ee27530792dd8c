import io
import itertools
import os
import subprocess
import sys
import threading

from chainer_shared_patch import functions, patched, uninstall
import chainer
from chainer import computational_graph, gradient_check, link_hooks
from chainer.function_hooks import PrintHook, TimerHook
import chainer.functions as F
from chainer.functions.connection.linear import LinearFunction
import chainer.links as L
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests import test_functions
from tests.test_functions import iterate, make_arrays, reference, to_cpu

N = 3
K = 2
SIZES = (4, N, K, 5)
N_STEPS = 4


def tiled_linear(n):
    """Chainer's own layer on a weight that is tiled by hand."""

    def linear(x, W, b=None):
        return F.linear(x, F.concat([W] * n, axis=1), b)

    return linear


class TiledLinear(L.Linear):
    """A layer of a narrow weight that it tiles by hand."""

    n = N

    def forward(self, x):
        return tiled_linear(self.n)(x, self.W, self.b)


class Chain(chainer.Chain):
    """The first layer is shared, or else tiled by hand; l2 is ordinary."""

    def __init__(self, linear=L.Linear, seed=0):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', 'd'):
            self.l1 = linear(K, 5)
            self.l2 = L.Linear(5, 3)
        fill(self, seed)

    def forward(self, x):
        return self.l2(F.tanh(self.l1(x)))


def fill(link, seed=0):
    """Gives the parameters values that depend on the seed alone."""
    random = numpy.random.RandomState(seed)
    for _, param in sorted(link.namedparams()):
        param.array[...] = random.randn(*param.shape)


def make_batches(random, steps=N_STEPS, columns=N * K, out_size=3):
    # Every step has other inputs, and some another batch size.
    sizes = [4 + step % 2 for step in range(steps)]
    batches = [random.randn(size, columns) for size in sizes]
    return batches, [random.randn(size, out_size) for size in sizes]


def assert_same_steps(actual, expected):
    assert len(actual) == len(expected)
    for step, (actual_step, expected_step) in enumerate(zip(actual, expected)):
        assert len(actual_step) == len(expected_step)
        for a, e in zip(actual_step, expected_step):
            numpy.testing.assert_allclose(
                a, e, rtol=1e-9, atol=1e-9, err_msg='step {}'.format(step)
            )


def params_of(link):
    return [p.array.copy() for _, p in sorted(link.namedparams())]


class TestHigherOrders:
    @pytest.mark.parametrize('nobias', [False, True])
    def test_double_backward(self, random, algorithm, nobias):
        arrays = make_arrays(random, *SIZES, nobias=nobias)
        arrays = tuple(a for a in arrays if a is not None)
        gg = tuple(random.randn(*a.shape) for a in arrays)
        send = test_functions.DEVICE.send
        with chainer.using_config('common_num', N):
            gradient_check.check_double_backward(
                lambda *args: F.tanh(F.linear(*args)),
                send(arrays),
                send(random.randn(4, 5)),
                send(gg),
                dtype='d',
            )

    def derivatives(self, linear, arrays, weights, common_num):
        """The gradients of all inputs, of the first order to the third."""
        send = test_functions.DEVICE.send
        inputs = [chainer.Variable(a) for a in send(arrays)]
        with chainer.using_config('common_num', common_num):
            value = F.sum(F.sigmoid(linear(*inputs)))
        orders = []
        for weights_of_order in weights:
            grads = chainer.grad([value], inputs, enable_double_backprop=True)
            orders.append([to_cpu(g.array) for g in grads])
            value = sum(
                F.sum(g**2 * w) for g, w in zip(grads, send(weights_of_order))
            )
        return orders

    def test_third_order(self, random, algorithm):
        arrays = make_arrays(random, *SIZES)
        weights = [[random.randn(*a.shape) for a in arrays] for _ in range(3)]
        actual = self.derivatives(F.linear, arrays, weights, N)
        uninstall()
        expected = self.derivatives(tiled_linear(N), arrays, weights, 1)
        assert_same_steps(actual, expected)

    def train_critic(self, chain, batches):
        chain.to_device(test_functions.DEVICE)
        optimizer = chainer.optimizers.Adam(0.05).setup(chain)
        steps = []
        for real, fake in test_functions.DEVICE.send(batches):
            between = chainer.Variable((real + fake) / 2)
            (slope,) = chainer.grad(
                [chain(between)], [between], enable_double_backprop=True
            )
            norm = F.sqrt(F.batch_l2_norm_squared(slope))
            loss = F.mean(chain(fake)) - F.mean(chain(real))
            loss += 10 * F.mean((norm - 1) ** 2)
            chain.cleargrads()
            loss.backward()
            optimizer.update()
            arrays = loss.array, slope.array, *params_of(chain)
            steps.append([to_cpu(a) for a in arrays])
        return steps

    def test_gradient_penalty(self, random, algorithm):
        batches = random.randn(N_STEPS, 2, 4, N * K)
        with chainer.using_config('common_num', N):
            actual = self.train_critic(Chain(), batches)
        uninstall()
        expected = self.train_critic(Chain(TiledLinear), batches)
        assert_same_steps(actual, expected)


class TestDtypes:
    sizes = (30, 8, 20, 10)

    def compute(self, linear, arrays, gy, gg):
        """y, the gradients, and those of the gradients."""
        x, W, b = (chainer.Variable(a) for a in arrays)
        y = linear(x, W, b)
        first = chainer.grad([y], [x, W, b], [gy], enable_double_backprop=True)
        second = chainer.grad(
            first[:2], [x, W], [chainer.Variable(g) for g in gg]
        )
        return [v.array for v in [y, *first, *second]]

    def test_float16_sums_of_gradients_may_exceed_its_range(self, algorithm):
        x = chainer.Variable(numpy.ones((1, 20), 'e'))
        W = chainer.Variable(numpy.full((3, 2), 1e-3, 'f'))
        gy = chainer.Variable(numpy.full((1, 3), 1e-3, 'e'))
        ggx = chainer.Variable(numpy.full((1, 20), 10000, 'e'))
        with chainer.using_config('common_num', 10):
            y = F.linear(x, W)
        (gx,) = chainer.grad([y], [x], [gy], enable_double_backprop=True)
        (gW,) = chainer.grad([gx], [W], [ggx])
        numpy.testing.assert_allclose(gW.array, 100, rtol=1e-2)

    @pytest.mark.parametrize('W_dtype', ['e', 'f', 'd'])
    @pytest.mark.parametrize('x_dtype', ['e', 'f', 'd'])
    def test_backward_through_gradients(
        self, random, algorithm, x_dtype, W_dtype
    ):
        # Unlike chainer.grad, backward checks the dtype of every gradient.
        x, W, _ = make_arrays(random, *SIZES, nobias=True)

        def compute(linear, *arrays):
            x, W = (chainer.Variable(a) for a in arrays)
            (gx,) = chainer.grad(
                [F.sum(linear(x, W) ** 2)], [x], enable_double_backprop=True
            )
            F.sum(gx**2).backward()
            return x.grad, W.grad

        with chainer.using_config('common_num', N):
            actual = compute(F.linear, x.astype(x_dtype), W.astype(W_dtype))
        expected = compute(tiled_linear(N), x, W)
        coarse = 'e' if 'e' in x_dtype + W_dtype else 'f'
        for a, e, dtype in zip(actual, expected, (x_dtype, W_dtype)):
            assert a.dtype == dtype
            atol = 50 * numpy.finfo(coarse).eps * abs(e).max()
            numpy.testing.assert_allclose(a, e, rtol=0, atol=atol)

    @pytest.mark.parametrize('W_dtype', ['e', 'f', 'd'])
    @pytest.mark.parametrize('x_dtype', ['e', 'f', 'd'])
    def test_as_good_as_the_dense_layer(
        self, random, algorithm, x_dtype, W_dtype
    ):
        batch_size, n, k, out_size = self.sizes
        x, W, b = make_arrays(random, *self.sizes)
        arrays = x.astype(x_dtype), W.astype(W_dtype), b.astype(x_dtype)
        gy = random.randn(batch_size, out_size).astype(x_dtype)
        gg = [random.randn(*a.shape).astype(a.dtype) for a in arrays[:2]]
        with chainer.using_config('common_num', n):
            shared = self.compute(F.linear, arrays, gy, gg)
        uninstall()
        linear = tiled_linear(n)
        dense = self.compute(linear, arrays, gy, gg)
        exact = self.compute(
            linear,
            [a.astype('d') for a in arrays],
            gy.astype('d'),
            [g.astype('d') for g in gg],
        )
        # The sums of the blocks are rounded to float32 at the coarsest, and
        # of terms in another order; so are those of gW by 'tile'.
        for s, d, e in zip(shared, dense, exact):
            assert s.dtype == d.dtype
            assert s.shape == d.shape
            error, dense_error = (
                numpy.sqrt(numpy.mean((a.astype('d') - e) ** 2))
                for a in (s, d)
            )
            floor = 1e-14 * abs(e).max()
            assert error <= 1.25 * dense_error + floor

    def test_fp32_update_of_a_mixed16_model(self, random, algorithm):
        x = random.randn(6, N * K).astype('e')

        def train(link):
            fill(link)
            optimizer = chainer.optimizers.SGD(1e-4).setup(link)
            optimizer.use_fp32_update()
            for _ in range(20):
                link.cleargrads()
                F.sum(link(x)).backward()
                optimizer.update()
            return [p.update_rule._fp32_param.array for p in link.params()]

        with chainer.using_config('dtype', chainer.mixed16):
            with chainer.using_config('common_num', N):
                actual = train(L.Linear(K, 5))
            expected = train(TiledLinear(K, 5))
        start = TiledLinear(K, 5)
        fill(start)
        for a, e, param in zip(actual, expected, start.params()):
            moved = abs(e - param.array).max()
            assert a.dtype == numpy.float32
            assert moved > 0
            numpy.testing.assert_allclose(a, e, rtol=0, atol=0.05 * moved)


def test_mixed16(random, algorithm):
    with chainer.using_config('dtype', chainer.mixed16):
        shared = L.Linear(K, 5)
        tiled = TiledLinear(K, 5)
    for link in (shared, tiled):
        fill(link)
        assert link.W.dtype == link.b.dtype == numpy.float16
    batches, weights = make_batches(random, out_size=5)
    batches = [batch.astype('e') for batch in batches]
    weights = [weight.astype('e') for weight in weights]
    with chainer.using_config('dtype', chainer.mixed16):
        with chainer.using_config('common_num', N):
            actual = iterate(shared, batches, weights)
        expected = iterate(tiled, batches, weights)
    for actual_step, expected_step in zip(actual, expected):
        for a, e in zip(actual_step, expected_step):
            assert a.dtype == e.dtype == numpy.float16
            # Two roundings of values up to max(abs(e)), and SGD's.
            atol = 8 * numpy.finfo('e').eps * abs(e).max()
            numpy.testing.assert_allclose(a, e, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('debug', True),
        ('type_check', False),
        ('keep_graph_on_report', True),
        ('train', False),
        ('lazy_grad_sum', True),
    ],
)
def test_training_under_settings_of_chainer(random, algorithm, name, value):
    batches, weights = make_batches(random)
    with chainer.using_config(name, value):
        with chainer.using_config('common_num', N):
            actual = iterate(Chain(), batches, weights)
        uninstall()
        expected = iterate(Chain(TiledLinear), batches, weights)
    assert_same_steps(actual, expected)


class TestDebug:
    @pytest.fixture(autouse=True)
    def debug(self):
        with chainer.using_config('debug', True):
            yield

    def test_nan_in_forward_names_the_layer(self, random, algorithm):
        chain = Chain()
        x = random.randn(4, N * K)
        with chainer.using_config('common_num', N):
            chain(x)
            x[1, -1] = numpy.nan
            with pytest.raises(RuntimeError) as info:
                chain(x)
        assert 'NaN is detected on forward computation of ' in str(info.value)
        assert 'SharedLinearFunction (common_num={})'.format(N) in str(
            info.value
        )

    def test_nan_of_infinities_that_only_the_sum_sees(self, algorithm):
        # Of both signs in different blocks: no block alone has a NaN.
        x = numpy.zeros((1, N * K))
        x[0, 0], x[0, K] = numpy.inf, -numpy.inf
        with chainer.using_config('common_num', N):
            with pytest.raises(RuntimeError, match='SharedLinearFunction'):
                with numpy.errstate(invalid='ignore'):
                    F.linear(x, numpy.ones((5, K)))

    def test_nan_in_backward_shows_where_the_layer_was_called(
        self, random, algorithm
    ):
        chain = Chain()
        x = chainer.Variable(random.randn(4, N * K))
        with chainer.using_config('common_num', N):
            y = chain.l1(x)
        y.grad = numpy.full(y.shape, numpy.nan)
        with pytest.raises(RuntimeError, match='NaN is detected') as info:
            y.backward()
        # Chainer appends the stack of the layer's forward pass.
        assert 'y = chain.l1(x)' in str(info.value)


class TestGraph:
    def test_no_backprop_mode(self, random, algorithm):
        chain = Chain()
        x = random.randn(4, N * K)
        with chainer.using_config('common_num', N):
            with chainer.no_backprop_mode():
                y = chain(x)
                with chainer.force_backprop_mode():
                    within = chain(x)
            outside = chain(x)
        assert y.creator_node is None
        uninstall()
        expected = Chain(TiledLinear)(x).array
        for actual in (y, within, outside):
            numpy.testing.assert_allclose(actual.array, expected)
        chain.cleargrads()
        F.sum(y).backward()
        assert chain.l1.W.grad is None
        F.sum(within).backward()
        assert chain.l1.W.grad.shape == (5, K)

    def forgetful(self, chain):
        return lambda x: chain.l2(F.forget(lambda h: F.tanh(chain.l1(h)), x))

    def run_forgetful(self, chain, batches, weights):
        forward = self.forgetful(chain)
        optimizer = chainer.optimizers.MomentumSGD(0.01).setup(chain)
        steps = []
        for batch, weight in zip(batches, weights):
            x = chainer.Variable(batch)
            y = forward(x)
            chain.cleargrads()
            F.sum(y * weight).backward()
            optimizer.update()
            steps.append([y.array, x.grad, *params_of(chain)])
        return steps

    def test_forget(self, random, algorithm):
        batches, weights = make_batches(random)
        with chainer.using_config('common_num', N):
            actual = self.run_forgetful(Chain(), batches, weights)
        uninstall()
        expected = self.run_forgetful(Chain(TiledLinear), batches, weights)
        assert_same_steps(actual, expected)

    def test_forget_of_a_function_with_its_own_number(self, random, algorithm):
        # What is forgotten is computed anew, with the settings of that time.
        x = chainer.Variable(random.randn(4, N * K))
        chain, expected = Chain(), Chain(TiledLinear)

        def forward(h):
            with chainer.using_config('common_num', N):
                return chain.l1(h)

        F.sum(F.forget(forward, x) ** 2).backward()
        gx = x.grad
        x.cleargrad()
        uninstall()
        F.sum(expected.l1(x) ** 2).backward()
        numpy.testing.assert_allclose(gx, x.grad)
        numpy.testing.assert_allclose(chain.l1.W.grad, expected.l1.W.grad)

    def test_keep_graph_on_report(self, random, algorithm):
        x = random.randn(4, N * K)
        chain, expected = Chain(), Chain(TiledLinear)
        for keep in (True, False):
            reporter = chainer.Reporter()
            observation = {}
            with chainer.using_config('common_num', N):
                with chainer.using_config('keep_graph_on_report', keep):
                    with reporter.scope(observation):
                        chainer.report({'loss': F.sum(chain(x) ** 2)})
            assert (observation['loss'].creator_node is not None) == keep
            if keep:
                chain.cleargrads()
                observation['loss'].backward()
        uninstall()
        expected.cleargrads()
        F.sum(expected(x) ** 2).backward()
        numpy.testing.assert_allclose(chain.l1.W.grad, expected.l1.W.grad)

    def truncated(self, linear, xs):
        """Backpropagation through time, of two steps at most."""
        link = linear(K, N * K - 2)
        fill(link)
        h = numpy.zeros((4, N * K - 2))
        gW = []
        loss = 0
        for step, x in enumerate(xs):
            h = F.tanh(link(F.concat([x, h])))
            loss += F.sum(h**2)
            if step % 2:
                link.cleargrads()
                loss.backward()
                loss.unchain_backward()
                gW.append(link.W.grad.copy())
        return h, [gW]

    def test_unchain_backward(self, random, algorithm):
        xs = [random.randn(4, 2) for _ in range(6)]
        with chainer.using_config('dtype', 'd'):
            with chainer.using_config('common_num', N):
                h, actual = self.truncated(L.Linear, xs)
            uninstall()
            _, expected = self.truncated(TiledLinear, xs)
        assert_same_steps(actual, expected)
        # loss.unchain_backward() reached the last shared layer.
        assert h.creator_node is None

    def test_unchained_variable_keeps_what_is_below(self, random, algorithm):
        x, W, b = (chainer.Variable(a) for a in make_arrays(random, *SIZES))
        with chainer.using_config('common_num', N):
            y = F.linear(x, W, b)
        h = y * 2
        y.unchain()
        F.sum(h).backward()
        assert x.grad is None and W.grad is None
        numpy.testing.assert_array_equal(y.grad, 2)

    def test_retain_grad(self, random, algorithm):
        grads = []
        for linear, common_num in ((L.Linear, N), (TiledLinear, 1)):
            chain = Chain(linear)
            x = chainer.Variable(numpy.ones((4, N * K)))
            with chainer.using_config('common_num', common_num):
                scaled = x * 2
                h = chain.l1(scaled)
                z = F.tanh(h)
            F.sum(z**2).backward(retain_grad=True)
            grads.append([v.grad for v in (x, scaled, h, z)])
            with chainer.using_config('common_num', common_num):
                scaled = x * 2
                F.sum(chain.l1(scaled)).backward()
            assert scaled.grad is None
        assert_same_steps(grads[:1], grads[1:])

    def test_graph_shows_the_label(self, random, algorithm):
        with chainer.using_config('common_num', N):
            y = Chain()(random.randn(4, N * K))
        graph = computational_graph.build_computational_graph([y])
        label = 'SharedLinearFunction (common_num={})'.format(N)
        dump = graph.dump()
        assert dump.count('label="{}"'.format(label)) == 1
        assert dump.count('label="LinearFunction"') == 1
        assert '({}, {}), float64'.format(4, N * K) in dump


class TestFunctionHooks:
    def test_timer(self, random, algorithm):
        chain = Chain()
        hook = TimerHook()
        x = chainer.Variable(random.randn(4, N * K))
        with chainer.using_config('common_num', N):
            with hook:
                for _ in range(N_STEPS):
                    F.sum(chain(x)).backward()
        # Forward and backward of one layer of each kind.
        for name in ('SharedLinearFunction', 'LinearFunction'):
            assert hook.summary()[name]['occurrence'] == 2 * N_STEPS
        report = io.StringIO()
        hook.print_report(file=report)
        assert 'SharedLinearFunction' in report.getvalue()

    def test_print(self, random, algorithm):
        chain = Chain()
        x = chainer.Variable(random.randn(4, N * K))
        with chainer.using_config('common_num', N):
            output = io.StringIO()
            with PrintHook(file=output):
                F.sum(chain(x)).backward()
        lines = output.getvalue().splitlines()
        label = 'SharedLinearFunction (common_num={})'.format(N)
        # Once in forward, and once in backward.
        assert lines.count('function\t' + label) == 2
        assert lines.count('function\tLinearFunction') == 2

    def test_hook_of_one_node_and_deleted_hook(self, random, algorithm):
        class Count(chainer.FunctionHook):
            name = 'Count'
            shapes = ()

            def backward_preprocess(self, function, in_data, out_grad):
                self.shapes += (
                    [a.shape for a in in_data if a is not None],
                    [g.shape for g in out_grad],
                )

        x, W, _ = (
            None if a is None else chainer.Variable(a)
            for a in make_arrays(random, *SIZES, nobias=True)
        )
        hook = Count()
        with chainer.using_config('common_num', N):
            y = F.linear(x, W)
            y.creator_node.add_hook(hook)
            other = F.linear(x, W)
            F.sum(y + other).backward()
            # The arrays that the user has given, and not the summed ones.
            expected = ([(4, N * K), (5, K)], [(4, 5)])
            assert hook.shapes == expected
            y.creator_node.delete_hook('Count')
            y.grad = other.array
            y.backward()
        assert hook.shapes == expected


class TestLinkHooks:
    def train(self, linear, make_hook, batches, weights):
        numpy.random.seed(0)
        chain = Chain(linear)
        chain.l1.add_hook(make_hook())
        return iterate(chain, batches, weights)

    @pytest.mark.parametrize(
        'make_hook',
        [
            link_hooks.SpectralNormalization,
            lambda: link_hooks.SpectralNormalization(2, use_gamma=True),
            lambda: link_hooks.SpectralNormalization(factor=0.5),
            link_hooks.WeightStandardization,
        ],
        ids=['SN', 'SN with gamma', 'SN with factor', 'WS'],
    )
    def test_hook(self, random, algorithm, make_hook):
        batches, weights = make_batches(random)
        with chainer.using_config('common_num', N):
            actual = self.train(L.Linear, make_hook, batches, weights)
        uninstall()
        expected = self.train(TiledLinear, make_hook, batches, weights)
        assert_same_steps(actual, expected)
        unhooked = iterate(Chain(TiledLinear), batches, weights)
        assert not numpy.allclose(actual[0][0], unhooked[0][0])

    def test_timer(self, random, algorithm):
        hook = link_hooks.TimerHook()
        with chainer.using_config('common_num', N), hook:
            Chain()(random.randn(4, N * K))
        assert hook.summary()['Linear']['occurrence'] == 2


class TwoNumbers(chainer.Chain):
    """Two shared layers of different numbers of blocks."""

    def __init__(self):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', 'd'):
            self.l1 = L.Linear(2, 8)
            self.l2 = L.Linear(2, 3)
        fill(self)

    def forward(self, x):
        with chainer.using_config('common_num', 6):
            h = F.tanh(self.l1(x))
        with patched(common_num=4):
            return self.l2(h)


class TwoTiled(TwoNumbers):
    def forward(self, x):
        h = F.tanh(tiled_linear(6)(x, self.l1.W, self.l1.b))
        return tiled_linear(4)(h, self.l2.W, self.l2.b)


def test_two_numbers_in_one_model(random, algorithm):
    batches, weights = make_batches(random, columns=12)
    actual = iterate(TwoNumbers(), batches, weights)
    uninstall()
    assert_same_steps(actual, iterate(TwoTiled(), batches, weights))


def test_one_weight_in_two_layers(random, algorithm):
    # One is shared, the other one has the weight's own width.
    arrays = make_arrays(random, *SIZES)
    gW = []
    for linear, common_num in ((F.linear, N), (tiled_linear(N), 1)):
        x, W, b = (chainer.Variable(a) for a in arrays)
        with chainer.using_config('common_num', common_num):
            y = linear(x, W, b) * F.linear(x[:, :K], W)
        F.sum(y**2).backward()
        gW.append([y.array, x.grad, W.grad, b.grad])
    assert_same_steps(gW[:1], gW[1:])


class Classifier(chainer.Chain):
    def __init__(self, linear=L.Linear):
        super().__init__()
        with self.init_scope():
            self.predictor = Chain(linear)

    def forward(self, x, t):
        return F.mean_squared_error(self.predictor(x), t)


class Features:
    """Passes an example through a shared layer, in whichever process."""

    def __init__(self, algorithm, W, b):
        self.algorithm = algorithm
        self.params = W, b

    def __call__(self, x):
        with patched(common_num=N, shared_algorithm=self.algorithm):
            return F.linear(x[None], *self.params).array[0]


class TestUpdaters:
    def train(self, linear, make_iterator, make_updater):
        random = numpy.random.RandomState(0)
        dataset = chainer.datasets.TupleDataset(
            random.randn(12, N * K), random.randn(12, 3)
        )
        model = Classifier(linear)
        optimizer = chainer.optimizers.MomentumSGD(0.05).setup(model)
        with make_iterator(dataset) as iterator:
            updater = make_updater(iterator, optimizer)
            for _ in range(6):
                updater.update()
        return params_of(model)

    def serial(self, dataset):
        return chainer.iterators.SerialIterator(dataset, 4, shuffle=False)

    def multiprocess(self, dataset):
        return chainer.iterators.MultiprocessIterator(
            dataset, 4, shuffle=False, n_processes=2
        )

    def multithread(self, dataset):
        return chainer.iterators.MultithreadIterator(
            dataset, 4, shuffle=False, n_threads=2
        )

    def expected(self):
        uninstall()
        return self.train(
            TiledLinear, self.serial, chainer.training.StandardUpdater
        )

    @pytest.mark.filterwarnings(
        'ignore:.*multi-threaded:DeprecationWarning',
        'ignore:setDaemon:DeprecationWarning',
    )
    @pytest.mark.parametrize('kind', ['serial', 'multiprocess', 'multithread'])
    def test_iterators(self, algorithm, kind):
        with chainer.using_config('common_num', N):
            actual = self.train(
                L.Linear, getattr(self, kind), chainer.training.StandardUpdater
            )
        assert_same_steps([actual], [self.expected()])

    @pytest.mark.filterwarnings(
        'ignore:.*multi-threaded:DeprecationWarning',
        'ignore:setDaemon:DeprecationWarning',
    )
    def test_shared_layer_in_the_workers_of_an_iterator(
        self, random, algorithm
    ):
        arrays = make_arrays(random, 8, *SIZES[1:])
        dataset = chainer.datasets.TransformDataset(
            arrays[0], Features(algorithm, *arrays[1:])
        )
        with self.multiprocess(dataset) as iterator:
            actual = numpy.concatenate([iterator.next(), iterator.next()])
        uninstall()
        expected = tiled_linear(N)(*arrays).array
        numpy.testing.assert_allclose(actual, expected)

    def test_parallel_updater(self, algorithm):
        def make_updater(iterator, optimizer):
            updater = chainer.training.ParallelUpdater(
                iterator,
                optimizer,
                devices={'main': '@numpy', 'second': '@numpy'},
            )
            models = list(updater._models.values())
            assert len(models) == 2 and models[0] is not models[1]
            return updater

        def halved(iterator, optimizer):
            return chainer.training.StandardUpdater(
                iterator,
                optimizer,
                loss_func=lambda x, t: 2 * optimizer.target(x, t),
            )

        with chainer.using_config('common_num', N):
            actual = self.train(L.Linear, self.serial, make_updater)
        uninstall()
        # Two halves' means add up to twice the mean of the whole.
        expected = self.train(TiledLinear, self.serial, halved)
        assert_same_steps([actual], [expected])


CHILDREN = """
import multiprocessing
import chainer_shared_patch
import chainer, chainer.functions as F, numpy

def shape():
    config = chainer.config.common_num, chainer.config.shared_algorithm
    y = F.linear(numpy.ones((2, 14), 'f'), numpy.ones((3, 2), 'f'))
    return (*config, y.shape, y.array.sum())

def send(connection):
    connection.send(shape())

if __name__ == '__main__':
    print(shape())
    for method in ('fork', 'spawn'):
        if method in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context(method)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=send, args=(sender,))
            process.start()
            assert receiver.poll(60)
            print(receiver.recv())
            process.join(60)
"""


def test_children_inherit_the_environment(tmp_path, algorithm):
    script = tmp_path / 'script.py'
    script.write_text(CHILDREN)
    environment = {
        'CHAINER_COMMON_NUM': '7',
        'CHAINER_SHARED_ALGORITHM': algorithm,
    }
    lines = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    parent, *children = lines
    assert parent.startswith("(7, '{}', (2, 3), ".format(algorithm))
    assert children
    assert set(children) == {parent}


def test_threads_with_their_own_numbers(random):
    numbers = [2, 3, 5, 6]
    results = {}
    barrier = threading.Barrier(len(numbers))
    data = make_batches(random, steps=20, columns=60)

    def make_chain(n, linear=L.Linear):
        with chainer.using_config('dtype', 'd'):
            link = linear(60 // n, 3)
        fill(link, n)
        return link

    def train(n, algorithm):
        barrier.wait(60)
        with chainer.using_config('shared_algorithm', algorithm):
            with chainer.using_config('common_num', n):
                results[n] = iterate(make_chain(n), *data)

    threads = [
        threading.Thread(target=train, args=args)
        for args in zip(numbers, itertools.cycle(['sum', 'tile']))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert chainer.config.common_num == 1
    uninstall()
    for n in numbers:
        tiled = make_chain(n, type('Tiled', (TiledLinear,), {'n': n}))
        assert_same_steps(results[n], iterate(tiled, *data))


def test_setting_of_a_thread_is_not_that_of_a_new_one(random):
    x, W, b = make_arrays(random, *SIZES)
    nodes = []

    def compute():
        for common_num in (None, N):
            try:
                with patched(common_num=common_num):
                    nodes.append(F.linear(chainer.Variable(x), W, b).creator)
            except InvalidType as error:
                nodes.append(error)

    with chainer.using_config('common_num', N):
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join(60)
    assert isinstance(nodes[0], InvalidType)
    assert isinstance(nodes[1], functions.SharedLinearFunction)


def test_evaluation_is_bit_identical_to_training(random, algorithm):
    x = random.randn(4, N * K)
    chain = Chain()
    results = []
    with chainer.using_config('common_num', N):
        for train, backprop in itertools.product([True, False], repeat=2):
            with chainer.using_config('train', train):
                with chainer.using_config('enable_backprop', backprop):
                    results.append(chain(x).array)
    for result in results[1:]:
        numpy.testing.assert_array_equal(result, results[0])


def test_reference_agrees_with_float64(random):
    # What the tests of this file compare with is itself compared.
    x, W, b = make_arrays(random, *SIZES)
    gy = random.randn(4, 5)
    uninstall()
    inputs = [chainer.Variable(a) for a in (x, W, b)]
    y = tiled_linear(N)(*inputs)
    assert type(y.creator_node) is LinearFunction
    y.grad = gy
    y.backward()
    for a, e in zip(
        [y.array] + [v.grad for v in inputs], reference(x, W, b, gy, N)
    ):
        numpy.testing.assert_allclose(a, e, rtol=1e-12)
