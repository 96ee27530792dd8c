import tracemalloc

from chainer_shared_patch import functions, patched, uninstall
from chainer_shared_patch.config import ALGORITHMS
import chainer
from chainer.backends import intel64
import chainer.functions as F
from chainer.functions.connection.linear import LinearFunction
import chainer.links as L
from chainer.utils.type_check import InvalidType
import chainerx
import numpy
import pytest

from tests.helpers import (
    DTYPES,
    SIZES,
    K,
    N,
    assert_layer_close,
    integers,
    make_arrays,
    reference,
    run,
    tile,
)

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize('W_dtype', DTYPES)
@pytest.mark.parametrize('x_dtype', DTYPES)
@pytest.mark.parametrize(
    'sizes',
    [
        # batch size, common_num, k, out_size
        (30, 8, 20, 10),
        (1, 3, 2, 4),
        (4, 8, 1, 3),
        (3, 2, 5, 1),
        (0, 3, 2, 4),
        (4, 3, 2, 0),
    ],
)
def test_shared_layer(random, algorithm, sizes, x_dtype, W_dtype):
    x, W, b, gy = make_arrays(random.randn, *sizes)
    x, W, gy = x.astype(x_dtype), W.astype(W_dtype), gy.astype(x_dtype)
    b = b.astype(x_dtype)
    with chainer.using_config('common_num', sizes[1]):
        actual = run(x, W, b, gy)
    assert_layer_close(actual, x, W, b, gy, sizes[1])


@pytest.mark.parametrize('dtypes', ['ff', 'ee', 'fd', 'de'])
def test_first_order_gradients_need_no_graph(
    random, monkeypatch, algorithm, dtypes
):
    x, W, b, gy = make_arrays(random.randn, 30, 8, 20, 10)
    x, b, gy = (array.astype(dtypes[0]) for array in (x, b, gy))
    W = W.astype(dtypes[1])
    applied = []

    def apply(self, inputs):
        applied.append(type(self).__name__)
        return original(self, inputs)

    original = chainer.FunctionNode.apply
    monkeypatch.setattr(chainer.FunctionNode, 'apply', apply)
    with chainer.using_config('common_num', 8):
        arrays = run(x, W, b, gy)
        assert applied == ['LinearFunction']
        with chainer.using_config('debug', True):
            with_graph = run(x, W, b, gy)
    assert len(applied) > 2
    for array, expected in zip(arrays, with_graph):
        assert array.dtype == expected.dtype
        numpy.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize('graph', [False, True])
def test_sum_never_builds_the_wide_weight(random, graph):
    batch_size, n, k, out_size = sizes = 2, 50, 20, 400
    *inputs, gy = make_arrays(random.randn, *sizes)
    inputs = [chainer.Variable(a) for a in inputs]
    with patched(n, 'sum'):
        tracemalloc.start()
        y = F.linear(*inputs)
        y.grad = gy
        y.backward(enable_double_backprop=graph)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * out_size * n * k / 2


@pytest.mark.parametrize('requires_grad', [(True, False), (False, True)])
def test_gradient_of_one_input(random, algorithm, requires_grad):
    x, W, _, gy = make_arrays(integers(random), *SIZES)
    variables = [
        chainer.Variable(a, requires_grad=r)
        for a, r in zip((x, W), requires_grad)
    ]
    with chainer.using_config('common_num', N):
        y = F.linear(*variables)
    y.grad = gy
    y.backward()
    expected = reference(x, W, None, gy, N)[1:3]
    for variable, required, e in zip(variables, requires_grad, expected):
        if required:
            numpy.testing.assert_array_equal(variable.grad, e)
        else:
            assert variable.grad is None


def test_x_of_more_axes(random, algorithm):
    x, W = (integers(random)(*shape) for shape in ((2, 3, 4, 5), (7, 10)))
    for n, n_batch_axes, shape in ((2, 2, (2, 3, 20)), (6, 1, (2, 60))):
        with chainer.using_config('common_num', n):
            y = F.linear(x, W, n_batch_axes=n_batch_axes)
        expected = x.reshape(shape) @ numpy.tile(W, (1, n)).T
        numpy.testing.assert_array_equal(y.array, expected)


def test_order_that_is_no_permutation(algorithm):
    x, W = numpy.ones((2, N * K)), numpy.ones((5, K))
    message = (
        r'shared_linear\(\): order must be None or .* below in_size, 6, .*'
    )
    for order, mistake in (
        (numpy.arange(N * K - 1), r'its shape is \(5,\)'),
        (numpy.zeros(N * K, int), '1 is missing'),
        ('interleaved', "'interleaved'"),
    ):
        with pytest.raises(ValueError, match=message + 'but .*' + mistake):
            functions.shared_linear(x, W, None, N, order)


def test_wrong_arguments_of_shared_linear(algorithm):
    x, W = numpy.ones((2, N * K)), numpy.ones((5, K))
    message = r'shared_linear\(\): common_num .* 3.0'
    with pytest.raises(ValueError, match=message):
        functions.shared_linear(x, W, None, float(N))
    with pytest.raises(InvalidType):
        functions.shared_linear(x[0], W, None, N, numpy.arange(N * K))
    with pytest.raises(InvalidType):
        functions.shared_linear(x, W[:, :1], None, N, numpy.arange(N * K))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('nobias', [False, True])
def test_ordinary_layer_is_bit_identical(random, dtype, nobias):
    x, W, b, gy = (
        a.astype(dtype) for a in make_arrays(random.randn, 20, 1, 30, 10)
    )
    b = None if nobias else b
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
                f'{columns} != 10 * 100',
                f'x.shape is (32, {columns})',
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
            'Actual: 1000 != 100 '
            '(x is 10 times as wide as W; common_num is 1)',
            common_num=1,
        )
        self.check(x[:, :999], W, None, 'Actual: 999 != 100', common_num=1)

    def test_another_number_is_said_to_fit(self):
        x = numpy.zeros((32, 800), 'f')
        W = numpy.zeros((900, 100), 'f')
        self.check(x, W, None, '; x is 8 times as wide as W)')

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

    def test_what_is_no_matrix_is_chainers_own_to_refuse(self):
        x = numpy.zeros((2, 20), 'f')
        W = numpy.zeros((3, 2), 'f')
        place = 'in: LinearFunction (Forward)'
        self.check(x, W[None], None, 'W.ndim == 2', place)

    def test_number_of_inputs(self):
        x = numpy.zeros((2, 20), 'f')
        W = numpy.zeros((3, 2), 'f')
        b = numpy.zeros(3, 'f')
        with chainer.using_config('common_num', 10):
            with pytest.raises(InvalidType, match='size|4 <= 3'):
                LinearFunction().apply((x, W, b, b))


class TestWhatWasForwardStaysBackward:
    @pytest.fixture
    def arrays(self, random):
        return make_arrays(integers(random), *SIZES)

    @pytest.fixture
    def variables(self, arrays):
        return [chainer.Variable(a) for a in arrays[:3]]

    def check(self, y, arrays, variables):
        *_, gy = arrays
        y.grad = gy
        y.backward(enable_double_backprop=True)
        for variable, e in zip(variables, reference(*arrays, N)[1:]):
            numpy.testing.assert_array_equal(variable.grad, e)
        # And once more through the gradients.
        x, W = variables[:2]
        (actual,) = chainer.grad([F.sum(x.grad_var**2)], [W])
        W = chainer.Variable(arrays[1])
        (expected,) = chainer.grad([F.sum(F.matmul(gy, tile(W)) ** 2)], [W])
        numpy.testing.assert_array_equal(actual.array, expected.array)

    @pytest.mark.parametrize('later', [1, 2, N * K])
    def test_configuration(self, algorithm, arrays, variables, later):
        with chainer.using_config('common_num', N):
            y = F.linear(*variables)
        other = 'tile' if algorithm == 'sum' else 'sum'
        with patched(common_num=later, shared_algorithm=other):
            self.check(y, arrays, variables)

    @pytest.mark.parametrize('later', ALGORITHMS)
    def test_algorithm(self, algorithm, later):
        # Only 'tile' has blocks of gW, which do not fit into float16.
        x = numpy.array([[60000, -60000]], 'e')
        W = chainer.Parameter(numpy.ones((1, 1), 'e'))
        with patched(2, algorithm):
            y = F.linear(x, W)
        y.grad = numpy.full((1, 1), 2, 'e')
        with patched(2, later), numpy.errstate(all='ignore'):
            y.backward()
        assert (W.grad == 0).all() == (algorithm == 'sum')

    def test_patch(self, algorithm, arrays, variables):
        with chainer.using_config('common_num', N):
            y = F.linear(*variables)
        uninstall()
        self.check(y, arrays, variables)

    def test_ordinary_node(self, random):
        arrays = make_arrays(integers(random), 4, 1, N * K, 5)
        variables = [chainer.Variable(a) for a in arrays[:3]]
        y = F.linear(*variables)
        y.grad = arrays[3]
        with chainer.using_config('common_num', N * K):
            y.backward()
        for variable, e in zip(variables, reference(*arrays, 1)[1:]):
            numpy.testing.assert_array_equal(variable.grad, e)


class TestChainerX:
    """Without ChainerX: what its method decides, on NumPy arrays."""

    def test_shared_layer_falls_back(self, random, monkeypatch):
        monkeypatch.setattr(chainerx, 'linear', None, raising=False)
        *inputs, gy = make_arrays(integers(random), *SIZES)
        node = LinearFunction()
        with chainer.using_config('common_num', N):
            assert node.forward_chainerx(inputs) is chainer.Fallback
        # Chainer gives the node another class for the time of forward.
        assert type(node) is functions.SharedLinearFunction
        node.__class__ = type('Lent', (type(node),), {})
        (y,) = node.forward(tuple(inputs))
        expected, *_ = reference(*inputs, gy, N)
        numpy.testing.assert_array_equal(y, expected)

    def test_ordinary_layer_is_left_to_chainerx(self, random, monkeypatch):
        monkeypatch.setattr(
            chainerx, 'linear', lambda *args: args, raising=False
        )
        x, W, b, _ = make_arrays(random.randn, 4, 1, K, 3)
        with chainer.using_config('common_num', N):
            ((x2, W2, b2),) = LinearFunction().forward_chainerx((x, W, b))
        assert x2 is x and W2 is W and b2 is b


def test_ideep_gets_the_summed_x(random, monkeypatch):
    x, W, b, _ = make_arrays(integers(random), *SIZES)
    given = []

    def forward_ideep(self, inputs):
        given.extend(inputs)
        self.retain_inputs((0, 1))
        x, W, b = inputs
        return (x @ W.T + b,)

    monkeypatch.setattr(intel64, 'should_use_ideep', lambda level: True)
    monkeypatch.setattr(intel64, 'inputs_all_ready', lambda inputs: True)
    monkeypatch.setattr(LinearFunction, '_forward_ideep', forward_ideep)
    with chainer.using_config('common_num', N):
        F.linear(x, W, b)
    summed = x.reshape(len(x), N, K).sum(axis=1)
    for a, e in zip(given, (summed, W, b)):
        numpy.testing.assert_array_equal(a, e)


def test_initial_scale_is_the_articles():
    # What W is drawn from is the link's affair, which the patch leaves alone.
    with patched(common_num=10):
        numpy.random.seed(0)
        W = L.Linear(1000 // 10, 900).W.array
    uninstall()
    numpy.random.seed(0)
    numpy.testing.assert_array_equal(W, L.Linear(100, 900).W.array)
