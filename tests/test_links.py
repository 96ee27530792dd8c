"""The link SharedLinear."""

import copy
import os
import pickle
import re
import subprocess
import sys
import threading

from chainer_shared_patch import SharedLinear, install, uninstall
from chainer_shared_patch.config import check_divides
from chainer_shared_patch.functions import shared_linear
import chainer
from chainer import (
    computational_graph,
    gradient_check,
    initializers,
    link_hooks,
)
import chainer.functions as F
import chainer.links as L
from chainer.serializers import load_npz, save_npz
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests import helpers
from tests.functions.test_double_backward import derivatives
from tests.helpers import (
    DTYPES,
    LAYOUTS,
    SIZES,
    K,
    N,
    assert_layer_close,
    assert_same,
    assert_same_steps,
    fill,
    forward_backward,
    integers,
    iterate,
    make_arrays,
    make_batches,
    params_of,
    reference,
    to_cpu,
)

pytestmark = pytest.mark.arithmetic

OUT = 5
BATCH = 4
PERMUTATION = numpy.array([4, 0, 3, 5, 1, 2])
# By hand: with 3 blocks of 2 columns, 0, 1 and 2 are neighbours.
ORDERS = {
    'contiguous': (None, numpy.arange(N * K)),
    'interleaved': ('interleaved', numpy.array([0, 3, 1, 4, 2, 5])),
    'permutation': (PERMUTATION, PERMUTATION),
}


@pytest.fixture(params=ORDERS)
def orders(request):
    """An order as SharedLinear takes it, and as it is."""
    return ORDERS[request.param]


# None: the patch is not installed. 2 is a number that x does not fit, and
# N * K the one that takes the first column of W for all.
@pytest.fixture(params=[None, 1, N, 2, N * K])
def patch(request):
    if request.param is None:
        uninstall()
        yield
    else:
        with chainer.using_config('common_num', request.param):
            yield


@pytest.fixture
def double():
    with chainer.using_config('dtype', 'd'):
        yield


def make_link(order=None, nobias=False, seed=0, in_size=N * K, common_num=N):
    with chainer.using_config('dtype', 'd'):
        link = SharedLinear(
            in_size, OUT, nobias, common_num=common_num, order=order
        )
    fill(link, seed)
    return link


def widen(W, order, n=N):
    """The weight of the dense layer, in the order of its inputs."""
    wide = numpy.empty((len(W), len(order)), W.dtype)
    wide[:, order] = numpy.tile(W, (1, n))
    return wide


class TestArithmetic:
    @pytest.mark.parametrize('nobias', [False, True])
    @pytest.mark.parametrize('layout', LAYOUTS)
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('batch_size', [0, 1, 30])
    def test_steps_against_float64(
        self, random, algorithm, batch_size, dtype, layout, nobias
    ):
        n, k, out_size = 8, 20, 10
        x, W, b, gy = make_arrays(random.randn, batch_size, n, k, out_size)
        x, W, b, gy = (a.astype(dtype) for a in (x, W, b, gy))
        order = random.permutation(n * k)
        link = SharedLinear.from_params(
            W, b, nobias, common_num=n, order=order
        ).to_device(helpers.DEVICE)
        link.cleargrads()
        v = chainer.Variable(LAYOUTS[layout](helpers.DEVICE.send(x)))
        y = link(v)
        y.grad = LAYOUTS[layout](helpers.DEVICE.send(gy))
        y.backward()
        gx = to_cpu(v.grad)[:, order]
        actual = [to_cpu(y.array), gx, to_cpu(link.W.grad)]
        if not nobias:
            actual.append(to_cpu(link.b.grad))
        x = x[:, order]
        assert_layer_close(actual, x, W, None if nobias else b, gy, n)

    @pytest.mark.parametrize('nobias', [False, True])
    def test_training_is_that_of_a_dense_layer(
        self, random, algorithm, patch, orders, nobias
    ):
        given, order = orders
        link = make_link(given, nobias)

        class Dense(L.Linear):
            def forward(self, x):
                wide = F.matmul(F.concat([self.W] * N), in_order)
                return F.linear(x, wide, self.b)

        in_order = helpers.DEVICE.send(numpy.eye(N * K)[order])

        with chainer.using_config('dtype', 'd'):
            dense = Dense(K, OUT, nobias)
        fill(dense)
        data = make_batches(random, out_size=OUT)
        assert_same_steps(iterate(link, *data), iterate(dense, *data))

    def test_output_is_that_of_a_dense_link(
        self, random, algorithm, patch, orders
    ):
        given, order = orders
        draw = integers(random)
        x, W, b = (a.astype('f') for a in make_arrays(draw, *SIZES)[:3])
        link = SharedLinear.from_params(W, b, common_num=N, order=given)
        dense = L.Linear(N * K, OUT, initialW=widen(W, order), initial_bias=b)
        for v in (x, x.reshape(BATCH, N, K)):
            numpy.testing.assert_array_equal(link(v).array, dense(v).array)
        v = draw(2, 3, N, K).astype('f')
        y = link(v, n_batch_axes=2)
        assert y.shape == (2, 3, OUT)
        numpy.testing.assert_array_equal(
            y.array, dense(v, n_batch_axes=2).array
        )
        y = link(numpy.zeros((0, N, K), 'f'))
        assert y.shape == (0, OUT)

    @pytest.mark.parametrize('nobias', [False, True])
    def test_double_backward(self, random, algorithm, patch, orders, nobias):
        x, W, b, gy = make_arrays(random.randn, *SIZES)
        link = make_link(orders[0], nobias).to_device(helpers.DEVICE)

        def forward(x, W, *b):
            link.W, (link.b,) = W, b or (None,)
            return F.tanh(link(x))

        arrays = (x, W) if nobias else (x, W, b)
        gg = tuple(random.randn(*a.shape) for a in arrays)
        arrays, gy, gg = (helpers.DEVICE.send(a) for a in (arrays, gy, gg))
        gradient_check.check_backward(forward, arrays, gy, dtype='d')
        gradient_check.check_double_backward(
            forward, arrays, gy, gg, dtype='d'
        )

    def test_three_orders_of_derivatives(self, random, algorithm, orders):
        given, order = orders
        order = helpers.DEVICE.send(order)
        in_order = helpers.DEVICE.send(numpy.eye(N * K)[orders[1]])
        *arrays, _ = make_arrays(random.randn, *SIZES)
        weights = [[random.randn(*a.shape) for a in arrays] for _ in range(3)]

        def shared(x, W, b):
            return shared_linear(x, W, b, N, None if given is None else order)

        def dense(x, W, b):
            return F.linear(x, F.matmul(F.concat([W] * N), in_order), b)

        assert_same_steps(
            derivatives(shared, arrays, weights, 1),
            derivatives(dense, arrays, weights, 1),
        )

    def test_mixed16(self, random, algorithm):
        draw = integers(random)
        x, W, b, gy = make_arrays(draw, *SIZES)
        with chainer.using_config('dtype', chainer.mixed16):
            link = SharedLinear(
                N * K, OUT, common_num=N, order=PERMUTATION
            ).to_device(helpers.DEVICE)
        assert link.W.dtype == link.b.dtype == numpy.float16
        for param, array in ((link.W, W), (link.b, b)):
            param.array[...] = helpers.DEVICE.send(array)
        link.cleargrads()
        v = chainer.Variable(helpers.DEVICE.send(x.astype('e')))
        y = link(v)
        y.grad = helpers.DEVICE.send(gy.astype('e'))
        y.backward()
        expected = reference(x[:, PERMUTATION], W, b, gy, N)
        arrays = [y.array, v.grad, link.W.grad, link.b.grad]
        actual = to_cpu(arrays)
        actual[1] = actual[1][:, PERMUTATION]
        for a, e in zip(actual, expected):
            assert a.dtype == numpy.float16
            numpy.testing.assert_array_equal(a, e)

    def test_link_of_one_block_is_an_ordinary_layer(self, random, algorithm):
        x, W, b, _ = make_arrays(integers(random), 4, 1, N * K, OUT)
        link = SharedLinear.from_params(W, b, common_num=1)
        numpy.testing.assert_array_equal(link(x).array, x @ W.T + b)


def test_without_the_patch_from_the_start(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text("""
import chainer_shared_patch
import numpy
assert not chainer_shared_patch.is_installed()
link = chainer_shared_patch.SharedLinear.from_params(
    numpy.array([[1, 2]], 'f'), common_num=2, order='interleaved')
print(link(numpy.array([[1, 10, 100, 1000]], 'f')).array)
""")
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, 'CHAINER_SHARED_PATCH': '0'},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == '[[2211.]]\n'


class TestWrongInput:
    @pytest.mark.parametrize('type_check', [True, False])
    @pytest.mark.parametrize('columns', [0, K, 2 * K, N * K + 1, 2 * N * K])
    def test_wrong_width(self, orders, patch, type_check, columns):
        # 2 * K is what a common_num of 2 would take.
        x = numpy.zeros((BATCH, columns))
        message = re.escape(f'{columns} != {N} * {K}')
        with chainer.using_config('type_check', type_check):
            with pytest.raises(InvalidType, match=message):
                make_link(orders[0])(x)

    @pytest.mark.parametrize('type_check', [True, False])
    def test_wrong_kinds(self, patch, type_check):
        with chainer.using_config('type_check', type_check):
            for x, message in (
                (numpy.zeros((BATCH, N * K), 'i'), 'x.dtype.kind == f'),
                (numpy.zeros(N * K), 'x.ndim == 2'),
                (numpy.array(1.0), 'x.ndim == 2'),
                (numpy.zeros((BATCH, N * K), 'f'), 'b.dtype == x.dtype'),
            ):
                with pytest.raises(InvalidType, match=message):
                    make_link()(x)

    def test_vector_for_a_link_of_one_column(self):
        link = make_link(in_size=1, common_num=1)
        with pytest.raises(InvalidType, match='x.ndim == 2'):
            link(numpy.zeros(3))
        assert link(numpy.zeros((3, 4)), n_batch_axes=2).shape == (3, 4, OUT)

    def test_n_batch_axes(self):
        with pytest.raises(ValueError, match='n_batch_axes .* but is 0'):
            make_link()(numpy.zeros((BATCH, N * K)), n_batch_axes=0)


class TestArguments:
    @pytest.mark.parametrize(
        'common_num', [0, -1, 2.5, True, '10', None, numpy.nan]
    )
    def test_common_num(self, common_num):
        message = f'common_num of SharedLinear .* {common_num!r}$'
        with pytest.raises(ValueError, match=message):
            SharedLinear(10, OUT, common_num=common_num)
        with pytest.raises(ValueError, match=message):
            SharedLinear.from_params(numpy.ones((2, 2)), common_num=common_num)

    @pytest.mark.parametrize(
        ('in_size', 'common_num', 'nearby'),
        [
            (1000, 7, '5 or 8'),
            (7, 2, '1 or 7'),
            (6, 7, '6'),
        ],
    )
    def test_common_num_that_does_not_divide(
        self, in_size, common_num, nearby
    ):
        message = (
            f'in_size is {in_size} and common_num is {common_num}; try '
            f'{nearby}$'
        )
        with pytest.raises(ValueError, match=message):
            SharedLinear(in_size, OUT, common_num=common_num)
        with pytest.raises(ValueError, match=message):
            check_divides(common_num, in_size)
        lazy = SharedLinear(None, OUT, common_num=common_num)
        with pytest.raises(ValueError, match=message):
            lazy(numpy.zeros((BATCH, in_size), 'f'))
        # It is as good as new.
        y = lazy(numpy.zeros((BATCH, 2 * common_num), 'f'))
        assert y.shape == (BATCH, OUT)

    @pytest.mark.parametrize('in_size', [0, -2])
    @pytest.mark.parametrize('order', [None, [0, 1]])
    def test_no_width(self, in_size, order):
        message = f'in_size must be at least 1, but is {in_size}$'
        with pytest.raises(ValueError, match=message):
            SharedLinear(in_size, OUT, common_num=2, order=order)

    def test_no_width_of_the_first_input(self):
        with pytest.raises(ValueError, match='in_size must be at least 1'):
            SharedLinear(OUT, common_num=2)(numpy.zeros((BATCH, 0), 'f'))

    @pytest.mark.parametrize('in_size', [N * K, None])
    @pytest.mark.parametrize(
        ('order', 'mistake'),
        [
            ('contiguous', "it is 'contiguous'"),
            (5, 'it is 5'),
            ([0.0, 1, 2, 3, 4, 5], 'its dtype is float64'),
            ([True, False] * 3, 'its dtype is bool'),
            ([[0, 1, 2], [3, 4, 5]], r'its shape is \(2, 3\)'),
            ([0, 1, 2, 4, 4, 5], '3 is missing'),
            ([0, 1, 1, 1, 4, 4], '2 is missing'),
            ([1, 2, 3, 4, 5, 6], '0 is missing'),
            ([0, 1, 2, 3, 4, -1], '5 is missing'),
        ],
    )
    def test_order(self, in_size, order, mistake):
        with pytest.raises(ValueError, match='order must be .*' + mistake):
            SharedLinear(in_size, OUT, common_num=N, order=order)

    def test_order_of_another_length(self):
        with pytest.raises(ValueError, match=r'6, but its shape is \(3,\)'):
            SharedLinear(N * K, OUT, common_num=N, order=[0, 1, 2])

    @pytest.mark.parametrize(
        'order', [range(6), tuple(range(6)), numpy.arange(6, dtype='u1')]
    )
    def test_orders_of_many_types(self, order):
        link = SharedLinear(6, OUT, common_num=N, order=order)
        numpy.testing.assert_array_equal(link.order, numpy.arange(6))

    def test_order_is_a_copy(self):
        order = PERMUTATION.copy()
        link = make_link(order)
        order[:] = 0
        numpy.testing.assert_array_equal(link.order, PERMUTATION)

    def test_bias_of_another_size(self):
        with pytest.raises(
            ValueError, match='2 elements, one for each row of W, but has 3'
        ):
            SharedLinear.from_params(
                numpy.ones((2, 2)), numpy.ones(3), common_num=2
            )

    @pytest.mark.parametrize(
        ('W', 'message'),
        [
            (chainer.Parameter(), 'W must be initialized'),
            (numpy.ones(2), r'its shape is \(2,\)'),
            (numpy.ones((2, 2, 2)), r'its shape is \(2, 2, 2\)'),
            (numpy.ones((2, 2), 'i'), 'dtype is int32'),
        ],
        ids=['uninitialized', '1', '3', 'int'],
    )
    def test_from_params_of_another_W(self, W, message):
        with pytest.raises(ValueError, match=message):
            SharedLinear.from_params(W, common_num=2)

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_from_params_keeps_the_dtype(self, random, dtype):
        W, b = random.randn(OUT, K).astype(dtype), numpy.zeros(OUT, dtype)
        for bias in (b, None):
            link = SharedLinear.from_params(W, bias, common_num=N)
            assert link.W.dtype == link.b.dtype == dtype
            numpy.testing.assert_array_equal(link.W.array, W)

    def test_from_params_copies(self):
        W = chainer.Parameter(numpy.ones((OUT, K), 'f'))
        link = SharedLinear.from_params(W, common_num=N)
        W.array[...] = 0
        assert (link.W.array == 1).all()
        assert link.b.shape == (OUT,)
        link = SharedLinear.from_params(W, numpy.ones(OUT), True, common_num=N)
        assert link.b is None

    def test_str(self):
        assert str(SharedLinear(6, OUT, common_num=N)) == (
            'SharedLinear(in_size=6, out_size=5, nobias=False, common_num=3)'
        )
        link = SharedLinear(6, OUT, True, common_num=N, order=PERMUTATION)
        assert str(link) == (
            'SharedLinear(in_size=6, out_size=5, nobias=True, common_num=3, '
            'order=[4 0 3 5 1 2])'
        )
        link = SharedLinear(8, OUT, common_num=2, order=range(8))
        assert 'order=[0 1 2 3 4 5 6 7]' in str(link)
        link = SharedLinear(9, OUT, common_num=3, order=range(9))
        assert 'order=[0 1 2 ... 6 7 8]' in str(link)
        link = SharedLinear(OUT, common_num=10, order='interleaved')
        assert repr(link) == str(link)
        assert 'in_size=None' in str(link)
        assert 'order=interleaved' in str(link)
        link(numpy.zeros((1, 1000), 'f'))
        assert 'in_size=1000' in str(link)
        assert 'order=[  0  10  20 ... 979 989 999]' in str(link)


class TestLazyInitialization:
    @pytest.mark.parametrize('args', [(None, OUT), (OUT,)])
    def test_first_input_decides(self, random, args, orders):
        given, order = orders
        link = SharedLinear(*args, common_num=N, order=given)
        x = integers(random)(BATCH, N, K).astype('f')
        link(x)
        assert link.in_size == N * K
        assert link.W.shape == (OUT, K)
        fill(link)
        link.W.array[...] = W = integers(random)(OUT, K)
        link.b.array[...] = 0
        expected = x.reshape(BATCH, -1) @ widen(W, order).T
        numpy.testing.assert_array_equal(link(x).array, expected)

    def test_array_decides(self):
        link = SharedLinear(OUT, common_num=N, order=PERMUTATION)
        assert link.in_size == N * K
        with pytest.raises(InvalidType):
            link(numpy.zeros((BATCH, N * K + N), 'f'))

    def test_n_batch_axes(self):
        link = SharedLinear(None, OUT, common_num=N)
        y = link(numpy.zeros((2, 7, N, K), 'f'), n_batch_axes=2)
        assert y.shape == (2, 7, OUT)
        assert link.W.shape == (OUT, K)

    def test_failed_initialization_changes_nothing(self):
        link = SharedLinear(
            None,
            OUT,
            initialW=numpy.ones((OUT, K)),
            common_num=N,
            order='interleaved',
        )
        with pytest.raises(ValueError):
            link(numpy.zeros((BATCH, 3 * N), 'f'))
        y = link(numpy.ones((BATCH, N * K), 'f'))
        assert (y.array == N * K).all()

    def test_links_that_share_W(self, random):
        # The first that sees an input gives W its shape, for all.
        link = SharedLinear(None, OUT, common_num=N, order='interleaved')
        link, twin = link.repeat(2, 'share')
        x = random.randn(BATCH, N * K).astype('f')
        y = link(x)
        with pytest.raises(InvalidType):
            twin(x[:, :-N])
        numpy.testing.assert_array_equal(twin(x).array, y.array)

    @pytest.mark.parametrize('how', ['npz', 'copyparams'])
    def test_links_that_share_W_are_copied(self, random, tmp_path, how):
        link = SharedLinear(None, OUT, common_num=N, order='interleaved')
        link, twin = link.repeat(2, 'share')
        x = random.randn(BATCH, N * K).astype('f')
        y = link(x)
        target = SharedLinear(N * K, OUT, common_num=N)
        if how == 'npz':
            save_npz(str(tmp_path / 'link.npz'), twin)
            load_npz(str(tmp_path / 'link.npz'), target)
        else:
            target.copyparams(twin)
        numpy.testing.assert_array_equal(target(x).array, y.array)

    def test_optimizer_made_before_the_first_input(self, random):
        link = SharedLinear(None, OUT, common_num=N, order='interleaved')
        optimizer = chainer.optimizers.SGD(1).setup(link)
        x = random.randn(BATCH, N * K).astype('f')
        optimizer.update(lambda: F.sum(link(x)))
        numpy.testing.assert_array_equal(link.b.array, -BATCH)


class TestInitialW:
    @pytest.mark.parametrize(
        'make',
        [
            lambda rng: None,
            lambda rng: initializers.LeCunNormal(rng=rng),
            lambda rng: initializers.HeNormal(rng=rng),
            lambda rng: initializers.GlorotUniform(rng=rng),
            lambda rng: initializers.LeCunUniform(rng=rng),
            lambda rng: initializers.Normal(0.1, rng=rng),
        ],
        ids=['None', 'LeCun', 'He', 'Glorot', 'LeCunUniform', 'Normal'],
    )
    def test_output_varies_as_a_dense_layers(self, random, make):
        n, k, out_size, batch_size = 10, 100, 400, 400

        def mean_square(cls, seed, **kwargs):
            numpy.random.seed(seed)
            initialW = make(numpy.random.RandomState(seed))
            link = cls(n * k, out_size, initialW=initialW, **kwargs)
            x = random.randn(batch_size, n * k).astype('f')
            return (link(x).array ** 2).mean()

        ratio = mean_square(SharedLinear, 1, common_num=n) / mean_square(
            L.Linear, 2
        )
        # The mean square is a trace, that of the product of the sample
        # covariances of the summed inputs and of the rows of W. Of normal
        # elements, it has this relative variance, and of uniform ones, or of
        # more columns, less. Six standard deviations of a quotient of two:
        variance = (
            2 / (batch_size * k)
            + 2 / (out_size * k)
            + (1 + 3 / k) / (batch_size * out_size)
        )
        assert abs(numpy.log(ratio)) < 6 * (2 * variance) ** 0.5

    def test_W_is_drawn_as_the_dense_layers(self):
        numpy.random.seed(0)
        dense = L.Linear(N * K, OUT)
        numpy.random.seed(0)
        shared = SharedLinear(N * K, OUT, common_num=N)
        numpy.testing.assert_array_equal(shared.W.array, dense.W.array[:, :K])
        # So that the layers to come are the same, too.
        state = numpy.random.get_state()[1]
        numpy.random.seed(0)
        L.Linear(N * K, OUT)
        numpy.testing.assert_array_equal(state, numpy.random.get_state()[1])

    def test_function(self):
        def count(array):
            array[...] = numpy.arange(array.size).reshape(array.shape)

        link = SharedLinear(4, 2, initialW=count, common_num=2)
        numpy.testing.assert_array_equal(link.W.array, [[0, 1], [4, 5]])

    @pytest.mark.parametrize('wrap', [numpy.array, initializers.Constant])
    def test_array_is_taken_as_it_is(self, random, wrap):
        W = random.randn(OUT, K).astype('f')
        for in_size in (N * K, None):
            link = SharedLinear(in_size, OUT, initialW=wrap(W), common_num=N)
            link(numpy.zeros((1, N * K), 'f'))
            numpy.testing.assert_array_equal(link.W.array, W)

    def test_scalars(self):
        link = SharedLinear(N * K, OUT, False, 0.5, 2, common_num=N)
        assert (link.W.array == 0.5).all()
        assert (link.b.array == 2).all()

    def test_dtype_of_the_initializer(self):
        link = SharedLinear(
            N * K, OUT, initialW=initializers.HeNormal(dtype='d'), common_num=N
        )
        assert link.W.dtype == numpy.float64


def reload_npz(link, tmp_path):
    twin = make_link(seed=1)
    save_npz(str(tmp_path / 'link.npz'), link)
    load_npz(str(tmp_path / 'link.npz'), twin)
    return twin


def copyparams(link, tmp_path):
    twin = make_link('interleaved', seed=1)
    twin.copyparams(link)
    return twin


COPIES = {
    'deepcopy': lambda link, tmp_path: copy.deepcopy(link),
    'copy': lambda link, tmp_path: link.copy('copy'),
    'share': lambda link, tmp_path: link.copy('share'),
    'pickle': lambda link, tmp_path: pickle.loads(pickle.dumps(link)),
    'npz': reload_npz,
    'copyparams': copyparams,
    'to_device': lambda link, tmp_path: copy.copy(link).to_device('@numpy'),
}


class TestCopies:
    @pytest.mark.parametrize('make_copy', COPIES.values(), ids=COPIES)
    def test_copy_computes_the_same(
        self, random, tmp_path, patch, orders, make_copy
    ):
        link = make_link(orders[0])
        twin = make_copy(link, tmp_path)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(twin(x).array, link(x).array)
        assert str(twin) == str(link)

    def test_init_mode_draws_anew_and_as_wide(self):
        numpy.random.seed(0)
        link = SharedLinear(N * K, OUT, common_num=N, order='interleaved')
        numpy.random.seed(1)
        first, second = link.repeat(2, 'init')
        numpy.random.seed(1)
        for twin in (first, second):
            expected = L.Linear(N * K, OUT).W.array[:, :K]
            numpy.testing.assert_array_equal(twin.W.array, expected)
            numpy.testing.assert_array_equal(twin.order, link.order)

    def test_order_of_a_graph_survives_copyparams(self, random):
        link, other = make_link(PERMUTATION), make_link('interleaved', seed=1)
        x = chainer.Variable(random.randn(BATCH, N * K))
        y = link(x)
        W = link.W.array.copy()
        link.copyparams(other)
        link.W.array[...] = W
        F.sum(y).backward()
        expected = numpy.tile(widen(W, PERMUTATION).sum(axis=0), (BATCH, 1))
        numpy.testing.assert_allclose(x.grad, expected)

    def test_copyparams_into_a_link_of_no_width_yet(self, random, double):
        source = make_link(PERMUTATION)
        target = SharedLinear(None, OUT, common_num=N, order='interleaved')
        target.copyparams(source)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, source(x).array)
        assert str(target) == str(source)

    def test_copyparams_copies_what_a_subclass_has(self):
        class Counting(SharedLinear):
            def __init__(self, calls):
                super().__init__(N * K, OUT, common_num=N)
                self.add_persistent('calls', numpy.array(calls))

        target = Counting(0)
        target.copyparams(Counting(1), copy_persistent=False)
        assert target.calls == 0
        target.copyparams(Counting(2))
        assert target.calls == 2

    @pytest.mark.parametrize(
        'make',
        [
            lambda: SharedLinear(2 * K, OUT, common_num=2),
            lambda: L.Linear(K, OUT),
        ],
        ids=['another common_num', 'Linear'],
    )
    def test_copyparams_of_another_kind_is_refused(self, make):
        source = make()
        target = make_link()
        before = params_of(target)
        with pytest.raises(ValueError) as info:
            target.copyparams(source)
        assert str(source) in str(info.value)
        assert str(target) in str(info.value)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)

    @pytest.mark.parametrize(
        ('make', 'message'),
        [
            (
                lambda: SharedLinear(N, OUT, common_num=N),
                r'W .*1\) there.*2\)',
            ),
            (
                lambda: SharedLinear(None, 1, common_num=N),
                r'W .*\(1, None\) there, but \(5, 2\) here',
            ),
            (
                lambda: SharedLinear(N * K, OUT, True, common_num=N),
                r'b .* None there, but \(5,\) here',
            ),
        ],
        ids=['narrower', 'out_size', 'nobias'],
    )
    def test_copyparams_of_other_shapes_is_refused(self, make, message):
        target, other = make_link(), make()
        before = params_of(target)
        with pytest.raises(ValueError, match=message):
            target.copyparams(other)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)
        with pytest.raises(ValueError, match='cannot copy'):
            other.copyparams(target)

    def test_within_a_sequential(self, random, orders):
        numpy.random.seed(0)
        model = chainer.Sequential(
            SharedLinear(None, 6, common_num=N, order=orders[0]),
            F.relu,
            SharedLinear(4, common_num=2, order='interleaved'),
        )
        x = random.randn(BATCH, N * K).astype('f')
        y = model(x).array
        other = copy.deepcopy(model)
        fill(other)
        other.copyparams(model)
        numpy.testing.assert_array_equal(other(x).array, y)
        assert 'common_num=3' in str(model)

    def test_order_moves_with_the_link(self):
        class Doubling(chainer.device_resident.DeviceResidentsVisitor):
            def visit_device_resident(self, device_resident):
                pass

            def visit_variable(self, param):
                pass

            def visit_array(self, array):
                return 2 * array

        link = make_link(PERMUTATION)
        link.device_resident_accept(Doubling())
        numpy.testing.assert_array_equal(link.order, 2 * PERMUTATION)
        for order in (None, 'interleaved'):
            link = SharedLinear(None, OUT, common_num=N, order=order)
            link.device_resident_accept(Doubling())
            assert link.order == order

    def test_nothing_is_persistent(self):
        # ChainerMN's AllreducePersistent takes the mean of what is.
        assert not make_link(PERMUTATION)._persistent


class TestSerialization:
    @pytest.fixture
    def path(self, tmp_path):
        return str(tmp_path / 'link.npz')

    def check_refused(self, path, target, *words, **kwargs):
        before = copy.deepcopy(target)
        with pytest.raises(ValueError) as info:
            load_npz(path, target, **kwargs)
        for word in words:
            assert word in str(info.value)
        assert str(target) == str(before)
        for a, e in zip(target.params(), before.params()):
            numpy.testing.assert_array_equal(a.array, e.array)

    def save(self, path, **changes):
        """Saves a link some of whose arrays are others."""
        save_npz(path, make_link(PERMUTATION))
        with numpy.load(path) as file:
            arrays = {**file, **changes}
        numpy.savez(path, **{k: a for k, a in arrays.items() if a is not None})

    @pytest.mark.parametrize('strict', [True, False])
    def test_bias_that_the_link_lacks(self, path, strict):
        save_npz(path, make_link())
        target = make_link(nobias=True)
        self.check_refused(path, target, 'with a bias', strict=strict)

    def test_file_holds_no_pickles(self, path, orders):
        link = make_link(orders[0])
        save_npz(path, link)
        with numpy.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        assert sorted(arrays) == ['W', 'b', 'common_num', 'order']
        assert arrays['common_num'] == N
        expected = [] if link.order is None else link.order
        numpy.testing.assert_array_equal(arrays['order'], expected)

    @pytest.mark.parametrize('installed', [True, False])
    @pytest.mark.parametrize('other', ORDERS)
    def test_order_is_that_of_the_file(
        self, random, path, orders, other, installed
    ):
        if not installed:
            uninstall()
        source = make_link(orders[0])
        save_npz(path, source)
        target = make_link(ORDERS[other][0], seed=1)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, source(x).array)

    @pytest.mark.parametrize('other', [None, 'interleaved'])
    def test_into_a_link_of_no_width_yet(
        self, random, path, orders, double, other
    ):
        source = make_link(orders[0])
        save_npz(path, source)
        target = SharedLinear(None, OUT, common_num=N, order=other)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, source(x).array)
        assert str(target) == str(source)
        with pytest.raises(InvalidType):
            target(numpy.zeros((BATCH, N * K + N)))

    def test_file_of_a_link_of_no_width_yet(self, random, path):
        lazy = SharedLinear(None, OUT, common_num=N, order='interleaved')
        save_npz(path, lazy)
        with numpy.load(path, allow_pickle=False) as file:
            assert file['order'].dtype == numpy.int64
        for target in (
            SharedLinear(None, OUT, common_num=N, order='interleaved'),
            SharedLinear(N * K, OUT, common_num=N, order='interleaved'),
        ):
            load_npz(path, target)
            target(numpy.zeros((BATCH, N * K), 'f'))
            numpy.testing.assert_array_equal(
                target.order, ORDERS['interleaved'][1]
            )

    @pytest.mark.parametrize('in_size', [N * K, None])
    @pytest.mark.parametrize('strict', [True, False])
    def test_another_common_num(self, path, in_size, strict):
        save_npz(path, make_link(in_size=2 * K, common_num=2))
        target = SharedLinear(in_size, OUT, common_num=N)
        words = 'with common_num 2 into one with common_num 3'
        self.check_refused(path, target, words, strict=strict)

    @pytest.mark.parametrize('order', ORDERS)
    @pytest.mark.parametrize('in_size', [N * K, None])
    @pytest.mark.parametrize('strict', [True, False])
    @pytest.mark.parametrize('columns', [K, N * K])
    def test_file_of_a_linear(self, path, order, in_size, strict, columns):
        save_npz(path, L.Linear(columns, OUT))
        target = SharedLinear(
            in_size, OUT, common_num=N, order=ORDERS[order][0]
        )
        words = (
            'cannot load a Linear',
            f'{(OUT, columns)}',
            'chainer_shared_patch.share',
            'SharedLinear.from_params',
        )
        self.check_refused(path, target, *words, strict=strict)

    @pytest.mark.parametrize(
        'changes',
        [
            {'order': numpy.array([0, 1, 2, 3, 4, numpy.nan])},
            {'order': numpy.array([0, 1, 2, 3, 4, 4])},
            {'order': numpy.arange(4)},
            {'order': numpy.arange(9)},
            {'order': None},
            {'common_num': None},
            {'common_num': numpy.array(numpy.nan)},
            {'common_num': numpy.array([N, N])},
            {'W': numpy.ones((OUT, 1))},
            {'W': numpy.ones((1, K))},
            {'W': numpy.ones(K)},
            {'W': numpy.ones((OUT, 2 * K))},
            {'b': numpy.ones(1)},
            {'order': numpy.array([None, 1], object)},
            {'b': numpy.array([None, 1], object)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize('strict', [True, False])
    def test_broken_file(self, path, changes, strict):
        self.save(path, **changes)
        target = make_link('interleaved', seed=1)
        self.check_refused(path, target, strict=strict)

    @pytest.mark.parametrize(
        'W', [numpy.ones((1, K)), numpy.ones(K), numpy.ones((OUT, 2 * K))]
    )
    def test_broken_file_into_a_link_of_no_width_yet(self, path, W):
        self.save(path, W=W)
        target = SharedLinear(None, OUT, common_num=N, order='interleaved')
        self.check_refused(path, target)
        assert target.W.array is None

    @pytest.mark.parametrize('missing', ['W', 'b'])
    def test_missing_parameter(self, path, missing):
        self.save(path, **{missing: None})
        target = make_link('interleaved', seed=1)
        before = params_of(target)
        with pytest.raises(KeyError, match=missing):
            load_npz(path, target)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)
        load_npz(path, target, strict=False)
        # An order without its W would be of no use.
        expected = ORDERS['interleaved'][1] if missing == 'W' else PERMUTATION
        numpy.testing.assert_array_equal(target.order, expected)

    @pytest.mark.parametrize('name', ['W', 'b', 'order', 'common_num'])
    def test_objects_are_not_unpickled(self, path, tmp_path, name):
        ran = tmp_path / 'ran'

        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(ran),)

        self.save(path, **{name: numpy.array([Trap()], object)})
        uninstall()
        with pytest.raises(ValueError, match=name + ' is an array of objects'):
            load_npz(path, make_link())
        assert not ran.exists()

    def test_path(self, random, path):
        model = chainer.Sequential(make_link(PERMUTATION), F.relu)
        save_npz(path, model)
        target = make_link(seed=1)
        load_npz(path, target, path='0/')
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, model[0](x).array)
        untouched = make_link('interleaved', seed=1)
        with pytest.raises(KeyError):
            load_npz(path, untouched, path='1/')
        load_npz(path, untouched, path='1/', strict=False)
        expected = make_link('interleaved', seed=1)
        numpy.testing.assert_array_equal(untouched(x).array, expected(x).array)

    def test_ignore_names(self, path):
        save_npz(path, make_link(PERMUTATION))
        target = make_link('interleaved', seed=1)
        load_npz(path, target, ignore_names=['W'])
        numpy.testing.assert_array_equal(
            target.order, ORDERS['interleaved'][1]
        )

    @pytest.mark.parametrize('in_size', [K, None])
    @pytest.mark.parametrize('strict', [True, False])
    def test_linear_refuses_an_order(self, path, in_size, strict):
        save_npz(path, make_link(PERMUTATION))
        target = L.Linear(in_size, OUT)
        words = 'with common_num 3 and an order', 'SharedLinear'
        self.check_refused(path, target, *words, strict=strict)

    def test_linear_that_the_patch_shares_takes_contiguous_blocks(
        self, random, path, double
    ):
        source = make_link()
        save_npz(path, source)
        target = L.Linear(K, OUT)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        with chainer.using_config('common_num', N):
            numpy.testing.assert_array_equal(target(x).array, source(x).array)
        with pytest.raises(InvalidType):
            target(x)
        self.check_refused(path, L.Linear(N * K, OUT), f'shared by {N} blocks')

    def test_linear_with_an_order_of_its_own(self, path):
        class Ordered(L.Linear):
            def __init__(self):
                super().__init__(K, OUT)
                self.add_persistent('order', numpy.arange(3))

        source, target = Ordered(), Ordered()
        source.order = numpy.array([2, 1, 0])
        save_npz(path, source)
        load_npz(path, target)
        numpy.testing.assert_array_equal(target.order, [2, 1, 0])

    def test_other_links_of_a_subclass_are_serialized(self, path):
        class Extra(chainer.Link):
            extra = 0

            def serialize(self, serializer):
                super().serialize(serializer)
                self.extra = serializer('extra', self.extra)

        class Both(SharedLinear, Extra):
            pass

        source, target = (Both(N * K, OUT, common_num=N) for _ in range(2))
        source.extra = 7
        save_npz(path, source)
        load_npz(path, target)
        assert target.extra == 7

    def test_hdf5(self, random, tmp_path, orders, double):
        pytest.importorskip('h5py')
        path = str(tmp_path / 'link.h5')
        source = make_link(orders[0])
        chainer.serializers.save_hdf5(path, source)
        x = random.randn(BATCH, N * K)
        lazy = SharedLinear(None, OUT, common_num=N)
        for target in (make_link('interleaved', seed=1), lazy):
            chainer.serializers.load_hdf5(path, target)
            numpy.testing.assert_array_equal(target(x).array, source(x).array)
        with pytest.raises(ValueError, match='common_num 3 into .* 2$'):
            chainer.serializers.load_hdf5(
                path, make_link(in_size=2 * K, common_num=2)
            )
        if orders[0] is not None:
            with pytest.raises(ValueError, match='an order of its inputs'):
                chainer.serializers.load_hdf5(path, L.Linear(K, OUT))
        chainer.serializers.save_hdf5(path, L.Linear(K, OUT))
        with pytest.raises(ValueError, match='cannot load a Linear'):
            chainer.serializers.load_hdf5(path, make_link(orders[0]))


class StaticChain(chainer.Chain):
    def __init__(self, order, dtype):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.l1 = SharedLinear(N * K, 6, common_num=N, order=order)
            self.l2 = SharedLinear(6, 3, common_num=2, order='interleaved')

    @chainer.static_graph
    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


@pytest.mark.parametrize('dtype', DTYPES)
def test_static_graph(random, algorithm, patch, orders, dtype):
    # As in test_graph: the integers are so small that all results are exact.
    draw = integers(random, 1)
    static = StaticChain(orders[0], dtype).to_device(helpers.DEVICE)
    expected_chain = StaticChain(orders[0], 'd')
    for step, size in enumerate([6, 6, 4, 6, 4, 4]):
        x, weight = (draw(size, n).astype(dtype) for n in (N * K, 3))
        for _, param in sorted(static.namedparams()):
            param.array[...] = helpers.DEVICE.send(draw(*param.shape))
        actual = forward_backward(static, x, weight)
        expected_chain.copyparams(static)
        W1, b1, W2, b2 = (
            a.astype('d')
            for link in (expected_chain.l1, expected_chain.l2)
            for a in (link.W.array, link.b.array)
        )
        wide1 = widen(W1, orders[1])
        order2 = numpy.array([0, 2, 4, 1, 3, 5])
        wide2 = widen(W2, order2, 2)
        h = x.astype('d') @ wide1.T + b1
        gh = (weight.astype('d') @ wide2) * (h > 0)
        gW1 = (gh.T @ x)[:, orders[1]].reshape(6, N, K).sum(axis=1)
        r = numpy.maximum(h, 0)
        gW2 = (weight.astype('d').T @ r)[:, order2]
        expected = (
            r @ wide2.T + b2,
            gh @ wide1,
            gW1,
            gh.sum(axis=0),
            gW2.reshape(3, 2, 3).sum(axis=1),
            weight.sum(axis=0),
        )
        for a, e in zip(actual, expected):
            assert a.dtype == dtype
            numpy.testing.assert_array_equal(a, e, f'step {step}')


def test_label(random):
    y = make_link(PERMUTATION)(random.randn(BATCH, N * K))
    dump = computational_graph.build_computational_graph([y]).dump()
    assert 'label="SharedLinearFunction (common_num=3)"' in dump


@pytest.mark.parametrize(
    'make_hook',
    [
        link_hooks.SpectralNormalization,
        link_hooks.WeightStandardization,
    ],
)
@pytest.mark.parametrize('in_size', [N * K, None])
def test_link_hooks(random, algorithm, double, make_hook, in_size):
    x = random.randn(BATCH, N * K)
    initialW = random.randn(OUT, K)
    link = SharedLinear(
        in_size, OUT, initialW=initialW, common_num=N, order=PERMUTATION
    )
    narrow = L.Linear(K, OUT, initialW=initialW)
    ys = []
    for each, v in ((link, x), (narrow, x[:, PERMUTATION])):
        numpy.random.seed(0)
        each.add_hook(make_hook())
        with chainer.using_config('common_num', N):
            ys.append([each(v).array])
    assert_same(*ys)
    without_hook = v @ numpy.tile(initialW, (1, N)).T
    assert not numpy.allclose(ys[0], without_hook)


def test_forward_changes_nothing_on_the_link(random, algorithm):
    link = make_link(PERMUTATION)
    before = dict(vars(link))
    barrier = threading.Barrier(4)
    x = integers(random)(BATCH, N * K)
    link.W.array[...] = W = integers(random)(OUT, K)
    link.b.array[...] = 0
    expected = x @ widen(W, PERMUTATION).T
    results = []

    def compute():
        barrier.wait(60)
        results.extend(link(x).array for _ in range(20))

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 80
    for y in results:
        numpy.testing.assert_array_equal(y, expected)
    assert vars(link).keys() == before.keys()
    assert all(vars(link)[name] is value for name, value in before.items())


def test_graph_survives_the_patch(random, algorithm):
    x, W, b, gy = make_arrays(integers(random), *SIZES)
    link = SharedLinear.from_params(W, b, common_num=N, order=PERMUTATION)
    for before, after in ((install, uninstall), (uninstall, install)):
        before()
        link.cleargrads()
        v = chainer.Variable(x)
        y = link(v)
        after()
        y.grad = gy
        y.backward()
        expected = reference(x[:, PERMUTATION], W, b, gy, N)
        numpy.testing.assert_array_equal(v.grad[:, PERMUTATION], expected[1])
        numpy.testing.assert_array_equal(link.W.grad, expected[2])
