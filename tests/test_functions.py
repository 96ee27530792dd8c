from chainer_shared_patch import blocks, functions, patched, uninstall
import chainer
from chainer import gradient_check
from chainer.backends import intel64
from chainer.backends.cuda import to_cpu
import chainer.functions as F
from chainer.functions.connection.linear import LinearFunction
import chainer.links as L
from chainer.utils.type_check import InvalidType
import chainerx
import numpy
import pytest

# Where run and iterate compute. The tests of the folder gpu call them too.
DEVICE = chainer.get_device('@numpy')
DTYPES = (numpy.float16, numpy.float32, numpy.float64)
LAYOUTS = {
    'C': numpy.ascontiguousarray,
    'Fortran': numpy.asfortranarray,
    'strided': lambda x: x.repeat(2, 0).repeat(2, 1)[::2, ::2],
}
SIZES = [
    # batch size, common_num, k, out_size
    (6, 10, 4, 5),
    (1, 3, 2, 4),
    (4, 8, 1, 3),
    (3, 2, 5, 1),
    (0, 3, 2, 4),
    (4, 3, 2, 0),
]


def make_arrays(random, batch_size, n, k, out_size, dtype='d', nobias=False):
    x = random.randn(batch_size, n * k).astype(dtype)
    W = random.randn(out_size, k).astype(dtype)
    b = None if nobias else random.randn(out_size).astype(dtype)
    return x, W, b


def reference(x, W, b, gy, n):
    """The definition, in float64: y, gx, gW and gb."""
    x, W, gy = (a.astype('d') for a in (x, W, gy))
    tiled = numpy.concatenate([W] * n, axis=1)
    y = x @ tiled.T + (0 if b is None else b.astype('d'))
    gW = (gy.T @ x).reshape(len(W), n, W.shape[1]).sum(axis=1)
    return y, gy @ tiled, gW, gy.sum(axis=0)


def run(x, W, b, gy, linear=F.linear):
    """Forward and backward: the arrays y, gx, gW and perhaps gb."""
    arrays = [a for a in (x, W, b) if a is not None]
    inputs = [chainer.Variable(a) for a in DEVICE.send(arrays)]
    y = linear(*inputs)
    y.grad = DEVICE.send(gy)
    y.backward()
    return to_cpu([y.array] + [v.grad for v in inputs])


def assert_close(actual, expected, dtype, terms):
    for a, e in zip(actual, expected):
        assert a.dtype == dtype
        assert a.shape == e.shape
        scale = max(1, abs(e).max(initial=0)) * numpy.sqrt(terms)
        numpy.testing.assert_allclose(
            a.astype('d'), e, rtol=0, atol=4 * scale * numpy.finfo(dtype).eps
        )


@pytest.mark.parametrize('nobias', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('sizes', SIZES)
def test_shared_layer(random, algorithm, sizes, dtype, layout, nobias):
    batch_size, n, k, out_size = sizes
    x, W, b = make_arrays(random, *sizes, dtype, nobias)
    gy = random.randn(batch_size, out_size).astype(dtype)
    x, W, gy = (LAYOUTS[layout](a) for a in (x, W, gy))
    with chainer.using_config('common_num', n):
        actual = run(x, W, b, gy)
    assert_close(actual, reference(x, W, b, gy, n), dtype, n * k)


@pytest.mark.parametrize('W_dtype', [numpy.float16, numpy.float32])
def test_float16_is_as_good_as_the_dense_layer(random, W_dtype):
    # As after a ReLU, with sums of blocks that are large for their products:
    # rounded to float16, they would give several times the dense error.
    n = 10
    x = abs(random.randn(50, n * 100)).astype(numpy.float16)
    W = random.randn(90, 100)
    W = (W - W.mean(axis=1, keepdims=True)).astype(W_dtype)
    gy = random.randn(50, 90)
    gy = (gy - gy.mean(axis=0)).astype(numpy.float16)
    exact = reference(x, W, None, gy, n)
    with chainer.using_config('common_num', n):
        shared = run(x, W, None, gy)
    dense = run(x, blocks.tile_blocks(W, n), None, gy)
    for index in (0, 1):
        error = abs(shared[index] - exact[index]).max()
        assert error <= abs(dense[index] - exact[index]).max()
    # gW of the dense layer has yet to be summed.
    dense_gW = dense[2].astype('d').reshape(90, n, 100).sum(axis=1)
    error = abs(shared[2] - exact[2]).max()
    assert error <= max(
        abs(dense_gW - exact[2]).max(),
        abs(exact[2]).max() * numpy.finfo(W_dtype).eps,
    )


def test_float16_sums_may_exceed_its_range(algorithm):
    x = numpy.full((1, 20), 10000, numpy.float16)
    W = numpy.full((3, 2), 1e-3, numpy.float16)
    gy = numpy.full((1, 3), 1e-3, numpy.float16)
    with chainer.using_config('common_num', 10):
        y, _, gW = run(x, W, None, gy)
    assert y.dtype == gW.dtype == numpy.float16
    numpy.testing.assert_allclose(y, 200, rtol=1e-2)
    numpy.testing.assert_allclose(gW, 100, rtol=1e-2)


def test_mixed_dtypes(random, algorithm):
    n = 4
    x, W, _ = make_arrays(random, 5, n, 3, 2, numpy.float32, nobias=True)
    x = x.astype(numpy.float16)
    gy = random.randn(5, 2).astype(numpy.float16)
    with chainer.using_config('common_num', n):
        y, gx, gW = run(x, W, None, gy)
    expected = reference(x, W, None, gy, n)
    assert (y.dtype, gx.dtype, gW.dtype) == ('e', 'e', 'f')
    for a, e in zip((y, gx, gW), expected):
        numpy.testing.assert_allclose(a, e, rtol=0, atol=2e-2)


@pytest.mark.parametrize('nobias', [False, True])
def test_gradients(random, algorithm, nobias):
    n = 3
    arrays = make_arrays(random, 4, n, 2, 5, nobias=nobias)
    arrays = tuple(a for a in arrays if a is not None)
    gy = random.randn(4, 5)
    gg = tuple(random.randn(*a.shape) for a in arrays)
    with chainer.using_config('common_num', n):
        gradient_check.check_backward(F.linear, arrays, gy, dtype='d')
        gradient_check.check_double_backward(
            lambda *args: F.linear(*args) ** 2, arrays, gy, gg, dtype='d'
        )


@pytest.mark.parametrize('requires_grad', [(True, False), (False, True)])
def test_gradient_of_one_input(random, algorithm, requires_grad):
    n = 3
    x, W, _ = make_arrays(random, 4, n, 2, 5, nobias=True)
    gy = random.randn(4, 5)
    variables = [
        chainer.Variable(a, requires_grad=r)
        for a, r in zip((x, W), requires_grad)
    ]
    with chainer.using_config('common_num', n):
        y = F.linear(*variables)
    y.grad = gy
    y.backward()
    expected = reference(x, W, None, gy, n)[1:3]
    for variable, required, e in zip(variables, requires_grad, expected):
        if required:
            numpy.testing.assert_allclose(variable.grad, e)
        else:
            assert variable.grad is None


def test_x_of_more_axes(random, algorithm):
    x = random.randn(2, 3, 4, 5)
    W = random.randn(7, 10)
    wide = numpy.concatenate([W] * 2, axis=1)
    with chainer.using_config('common_num', 2):
        y = F.linear(x, W, n_batch_axes=2)
    assert y.shape == (2, 3, 7)
    numpy.testing.assert_allclose(
        y.array, x.reshape(2, 3, 20) @ wide.T, rtol=1e-12
    )
    with chainer.using_config('common_num', 6):
        y = F.linear(x, W)
    wide = numpy.concatenate([W] * 6, axis=1)
    numpy.testing.assert_allclose(
        y.array, x.reshape(2, 60) @ wide.T, rtol=1e-12
    )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('nobias', [False, True])
def test_ordinary_layer_is_bit_identical(random, dtype, nobias):
    x, W, b = make_arrays(random, 20, 1, 30, 10, dtype, nobias)
    gy = random.randn(20, 10).astype(dtype)
    with chainer.using_config('common_num', 10):
        actual = run(x, W, b, gy)
        node = F.linear(chainer.Variable(x), W, b).creator_node
    assert type(node) is LinearFunction
    uninstall()
    for a, e in zip(actual, run(x, W, b, gy)):
        assert a.dtype == e.dtype
        numpy.testing.assert_array_equal(a, e)


class TestTypeCheck:
    def check(self, x, W, b, *words, common_num=10):
        with chainer.using_config('common_num', common_num):
            with pytest.raises(InvalidType) as info:
                F.linear(x, W, b)
        for word in words:
            assert word in str(info.value)

    @pytest.mark.parametrize('type_check', [True, False])
    @pytest.mark.parametrize('columns', [784, 999, 1010, 500, 101])
    def test_wrong_shape(self, algorithm, type_check, columns):
        x = numpy.zeros((32, columns), 'f')
        W = numpy.zeros((900, 100), 'f')
        with chainer.using_config('type_check', type_check):
            self.check(
                x,
                W,
                None,
                'x.shape[1] == 10 * W.shape[1]',
                '{} != 10 * 100'.format(columns),
                'x.shape is (32, {})'.format(columns),
                'W.shape is (900, 100)',
                'LinearFunction',
            )

    def test_without_sharing_it_is_chainers_own(self):
        x = numpy.zeros((32, 1000), 'f')
        W = numpy.zeros((900, 100), 'f')
        self.check(
            x,
            W,
            None,
            'Expect: x.shape[1] == W.shape[1]',
            'Actual: 1000 != 100',
            common_num=1,
        )

    @pytest.mark.parametrize('type_check', [True, False])
    def test_wrong_bias(self, type_check):
        x = numpy.zeros((2, 20), 'f')
        W = numpy.zeros((3, 2), 'f')
        with chainer.using_config('type_check', type_check):
            self.check(x, W, numpy.zeros(1, 'f'), 'b.shape[0] == W.shape[0]')
            self.check(x, W, numpy.zeros(3, 'd'), 'b.dtype == x.dtype')
            self.check(x, W, numpy.zeros((3, 1), 'f'), 'b.ndim == 1')

    def test_wrong_kinds(self):
        x = numpy.zeros((2, 20), 'f')
        W = numpy.zeros((3, 2), 'f')
        self.check(x.astype('i'), W, None, 'x.dtype.kind == f')
        self.check(x, W.astype('i'), None, 'W.dtype.kind == f')
        self.check(x, W[None], None, 'W.ndim == 2')

    def test_number_of_inputs(self):
        x = numpy.zeros((2, 20), 'f')
        W = numpy.zeros((3, 2), 'f')
        b = numpy.zeros(3, 'f')
        with chainer.using_config('common_num', 10):
            for inputs in ((x,), (x, W, b, b)):
                with pytest.raises(InvalidType, match='size'):
                    LinearFunction().apply(inputs)


class TestWhatWasForwardStaysBackward:
    sizes = (4, 6, 2, 3)

    def check(self, random, y, arrays, variables):
        gy = random.randn(*y.shape)
        y.grad = gy
        y.backward(enable_double_backprop=True)
        expected = reference(*arrays, gy, 6)[1:]
        for variable, e in zip(variables, expected):
            numpy.testing.assert_allclose(variable.grad, e)
        # And once more through the gradients.
        (ggx,) = chainer.grad(
            [F.sum(variables[0].grad_var ** 2)], [variables[1]]
        )
        W = chainer.Variable(arrays[1])
        tiled = F.concat([W] * 6, axis=1)
        (e,) = chainer.grad([F.sum(F.matmul(gy, tiled) ** 2)], [W])
        numpy.testing.assert_allclose(ggx.array, e.array)

    @pytest.fixture
    def arrays(self, random):
        return make_arrays(random, *self.sizes)

    @pytest.fixture
    def variables(self, arrays):
        return [chainer.Variable(a) for a in arrays]

    @pytest.mark.parametrize('later', [1, 3, 12])
    def test_configuration(self, random, algorithm, arrays, variables, later):
        with chainer.using_config('common_num', 6):
            y = F.linear(*variables)
        other = 'tile' if algorithm == 'sum' else 'sum'
        with patched(common_num=later, shared_algorithm=other):
            self.check(random, y, arrays, variables)

    def test_patch(self, random, algorithm, arrays, variables):
        with chainer.using_config('common_num', 6):
            y = F.linear(*variables)
        uninstall()
        self.check(random, y, arrays, variables)

    def test_subclass(self, random, algorithm, arrays, variables):
        class Subclass(LinearFunction):
            common_num = 'its own'

            def forward(self, inputs):
                (y,) = super().forward(inputs)
                return (2 * y,)

            def backward(self, indexes, grad_outputs):
                (gy,) = grad_outputs
                return LinearFunction.backward(self, indexes, (2 * gy,))

        with chainer.using_config('common_num', 6):
            (y,) = Subclass().apply(variables)
        assert isinstance(y.creator_node, Subclass)
        self.check(random, y / 2, arrays, variables)
        (y,) = Subclass().apply([variables[0][:, :2], *variables[1:]])
        y.grad = numpy.ones_like(y.array)
        y.backward()

    def test_subclass_without_the_patch(
        self, random, algorithm, arrays, variables
    ):
        class Subclass(LinearFunction):
            pass

        with chainer.using_config('common_num', 6):
            (y,) = Subclass().apply(variables)
        uninstall()
        self.check(random, y, arrays, variables)


def test_ordinary_node_is_not_shared_by_a_later_configuration(random):
    x, W, b = make_arrays(random, 4, 1, 6, 3)
    gy = random.randn(4, 3)
    variables = [chainer.Variable(a) for a in (x, W, b)]
    y = F.linear(*variables)
    y.grad = gy
    with chainer.using_config('common_num', 6):
        y.backward()
    expected = reference(x, W, b, gy, 1)[1:]
    for variable, e in zip(variables, expected):
        numpy.testing.assert_allclose(variable.grad, e)


class TestRetainedInputs:
    def count_sums(self, monkeypatch):
        shapes = []
        sum_blocks = blocks.sum_blocks

        def counted(x, *args):
            shapes.append(x.shape)
            return sum_blocks(x, *args)

        monkeypatch.setattr(blocks, 'sum_blocks', counted)
        return shapes

    def test_backward_reuses_the_sum(self, random, monkeypatch):
        shapes = self.count_sums(monkeypatch)
        x, W, b = make_arrays(random, 4, 6, 2, 3)
        with chainer.using_config('common_num', 6):
            run(x, W, b, random.randn(4, 3))
        assert shapes == [(4, 12)]

    def test_backward_keeps_the_algorithm(self, random, monkeypatch):
        # Only the algorithm tile sums the blocks of gW.
        shapes = self.count_sums(monkeypatch)
        for algorithm, later, expected in (
            ('sum', 'tile', [(4, 12)]),
            ('tile', 'sum', [(3, 12)]),
        ):
            x, W, _ = make_arrays(random, 4, 6, 2, 3)
            with patched(6, algorithm):
                y = F.linear(x, chainer.Parameter(W))
            with patched(6, later):
                F.sum(y).backward()
            assert shapes == expected
            shapes.clear()

    def test_differentiable_backward_does_not(self, random, monkeypatch):
        shapes = self.count_sums(monkeypatch)
        x, W, _ = make_arrays(random, 4, 6, 2, 3)
        x, W = chainer.Variable(x), chainer.Variable(W)
        with chainer.using_config('common_num', 6):
            y = F.linear(x, W)
        (gW,) = chainer.grad([y], [W], enable_double_backprop=True)
        assert shapes == [(4, 12), (4, 12)]
        # gW depends on x, and its graph knows.
        (gx,) = chainer.grad([F.sum(gW)], [x])
        numpy.testing.assert_array_equal(gx.array, numpy.full((4, 12), 3.0))

    def test_the_graph_holds_the_full_x(self, random):
        x, W, _ = make_arrays(random, 4, 6, 2, 3)
        x = chainer.Variable(x)
        with chainer.using_config('common_num', 6):
            y = F.linear(x, W)
        assert y.creator_node.get_retained_inputs()[0] is x


class StaticChain(chainer.Chain):
    def __init__(self, W1, W2):
        super().__init__()
        with self.init_scope():
            # The biases have the dtype of the configuration.
            with chainer.using_config('dtype', W1.dtype):
                self.l1 = L.Linear(*W1.T.shape, initialW=W1)
                self.l2 = L.Linear(*W2.T.shape, initialW=W2)

    @chainer.static_graph
    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


class TiledChain(StaticChain):
    """Chainer's own functions on a weight that is tiled by hand."""

    def forward(self, x):
        tiled_W = F.concat([self.l1.W] * 6, axis=1)
        return self.l2(F.relu(F.linear(x, tiled_W, self.l1.b)))


def iterate(chain, batches, weights):
    """Trains a chain, and returns all outputs and gradients of each step."""
    chain.to_device(DEVICE)
    optimizer = chainer.optimizers.SGD(0.01).setup(chain)
    results = []
    for batch, weight in zip(batches, weights):
        x = chainer.Variable(DEVICE.send(batch.copy()))
        y = chain(x)
        chain.cleargrads()
        F.sum(y * DEVICE.send(weight)).backward()
        grads = [p.grad for _, p in sorted(chain.namedparams())]
        results.append([to_cpu(a).copy() for a in (y.array, x.grad, *grads)])
        optimizer.update()
    return results


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [('f', 1e-4), ('e', 5e-2), ('d', 1e-10)]
)
def test_static_graph(random, algorithm, dtype, tolerance):
    # Only l1 is shared. Every step has other inputs and other weights, some
    # another batch size.
    W1 = random.randn(8, 2).astype(dtype)
    W2 = random.randn(3, 8).astype(dtype)
    sizes = [6, 6, 4, 6, 4, 4]
    batches = [random.randn(size, 12).astype(dtype) for size in sizes]
    weights = [random.randn(size, 3).astype(dtype) for size in sizes]
    with chainer.using_config('common_num', 6):
        actual = iterate(StaticChain(W1, W2), batches, weights)
    expected = iterate(TiledChain(W1, W2), batches, weights)
    for step, (actual_step, expected_step) in enumerate(zip(actual, expected)):
        for a, e in zip(actual_step, expected_step):
            assert a.dtype == dtype
            atol = tolerance * abs(e).max()
            numpy.testing.assert_allclose(
                a, e, rtol=0, atol=atol, err_msg='step {}'.format(step)
            )


class TestChainerX:
    """Without ChainerX: what its method decides, on NumPy arrays."""

    def test_shared_layer_falls_back(self, random, monkeypatch):
        monkeypatch.setattr(chainerx, 'linear', None, raising=False)
        x, W, b = make_arrays(random, 4, 6, 2, 3)
        node = LinearFunction()
        with chainer.using_config('common_num', 6):
            assert node.forward_chainerx((x, W, b)) is chainer.Fallback
        # Chainer gives the node another class for the time of forward.
        assert type(node) is functions.SharedLinearFunction
        node.__class__ = type('Lent', (type(node),), {})
        with chainer.using_config('common_num', 6):
            (y,) = node.forward((x, W, b))
        node.__class__ = functions.SharedLinearFunction
        numpy.testing.assert_allclose(
            y, reference(x, W, b, numpy.zeros((4, 3)), 6)[0]
        )

    def test_ordinary_layer_is_left_to_chainerx(self, random, monkeypatch):
        monkeypatch.setattr(
            chainerx, 'linear', lambda *args: args, raising=False
        )
        x, W, b = make_arrays(random, 4, 1, 2, 3)
        with chainer.using_config('common_num', 6):
            ((x2, W2, b2),) = LinearFunction().forward_chainerx((x, W, b))
        assert x2 is x and W2 is W and b2 is b


def test_ideep_gets_the_summed_x(random, monkeypatch):
    x, W, b = make_arrays(random, 4, 6, 2, 3)
    shapes = []

    def forward_ideep(self, inputs):
        shapes.append([a.shape for a in inputs])
        self.retain_inputs((0, 1))
        x, W, b = inputs
        return (x @ W.T + b,)

    monkeypatch.setattr(intel64, 'should_use_ideep', lambda level: True)
    monkeypatch.setattr(intel64, 'inputs_all_ready', lambda inputs: True)
    monkeypatch.setattr(LinearFunction, '_forward_ideep', forward_ideep)
    with chainer.using_config('common_num', 6):
        F.linear(x, W, b)
    assert shapes == [[(4, 2), (3, 2), (3,)]]


def test_initial_scale_is_the_articles(random):
    # What W is drawn from is the link's affair, which the patch leaves alone.
    with patched(common_num=10):
        numpy.random.seed(0)
        W = L.Linear(1000 // 10, 900).W.array
    uninstall()
    numpy.random.seed(0)
    numpy.testing.assert_array_equal(W, L.Linear(100, 900).W.array)


def test_label_names_the_sharing(random):
    x, W, b = make_arrays(random, 4, 6, 2, 3)
    with chainer.using_config('common_num', 6):
        node = F.linear(chainer.Variable(x), W, b).creator_node
    assert isinstance(node, functions.SharedLinearFunction)
    assert node.label == 'SharedLinearFunction (common_num=6)'
