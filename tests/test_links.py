"""The link SharedLinear."""

import copy
import pickle
import re
import threading
import tracemalloc

from chainer_shared_patch import SharedLinear, uninstall
from chainer_shared_patch.config import check_divides
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
from tests.helpers import (
    DTYPES,
    ORDERS,
    PERMUTATION,
    SIZES,
    K,
    N,
    assert_layer_close,
    assert_same,
    assert_same_steps,
    cut,
    fill,
    forward_backward,
    integers,
    iterate,
    make_arrays,
    make_batches,
    make_link,
    params_of,
    reference,
    to_cpu,
    widen,
)

pytestmark = pytest.mark.arithmetic

OUT = 5
BATCH = 4


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


class TestArithmetic:
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('batch_size', [0, 30])
    @pytest.mark.parametrize('g', [1, 4, 10])
    def test_steps_against_float64(
        self, random, algorithm, g, batch_size, dtype
    ):
        n, k, out_size = 8, 20, 10
        x, W, b, gy = make_arrays(random.randn, batch_size, n, k, out_size)
        x, W, b, gy = (a.astype(dtype) for a in (x, W, b, gy))
        order = [random.permutation(n * k) for _ in range(g)]
        link = SharedLinear.from_params(
            W, b, common_num=n, order=order
        ).to_device(helpers.DEVICE)
        link.cleargrads()
        v = chainer.Variable(helpers.DEVICE.send(x))
        y = link(v)
        y.grad = helpers.DEVICE.send(gy)
        y.backward()
        arrays = y.array, v.grad, link.W.grad, link.b.grad
        actual = [to_cpu(array) for array in arrays]
        assert_layer_close(actual, x, W, b, gy, n, order)

    @pytest.mark.parametrize('nobias', [False, True])
    def test_training_is_that_of_a_dense_layer(
        self, random, algorithm, orders, nobias
    ):
        given, order = orders
        link = make_link(given, nobias)

        class Dense(L.Linear):
            def forward(self, x):
                wide = [
                    F.matmul(F.concat([self.W[rows]] * N), in_order)
                    for rows, in_order in slices
                ]
                return F.linear(x, F.concat(wide, axis=0), self.b)

        slices = [
            (rows, helpers.DEVICE.send(numpy.eye(N * K)[each]))
            for each, rows in cut(link.W, order, N)
        ]

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

    def test_double_backward(self, random, algorithm, orders):
        *arrays, gy = make_arrays(random.randn, *SIZES)
        link = make_link(orders[0]).to_device(helpers.DEVICE)

        def forward(x, W, b):
            link.W, link.b = W, b
            return F.tanh(link(x))

        gg = tuple(random.randn(*a.shape) for a in arrays)
        arrays, gy, gg = (
            helpers.DEVICE.send(a) for a in (tuple(arrays), gy, gg)
        )
        gradient_check.check_backward(forward, arrays, gy, dtype='d')
        gradient_check.check_double_backward(
            forward, arrays, gy, gg, dtype='d'
        )

    def test_mixed16(self, random, algorithm, orders):
        draw = integers(random)
        x, W, b, gy = make_arrays(draw, *SIZES)
        with chainer.using_config('dtype', chainer.mixed16):
            link = SharedLinear(
                N * K, OUT, common_num=N, order=orders[0]
            ).to_device(helpers.DEVICE)
        assert link.W.dtype == link.b.dtype == numpy.float16
        for param, array in ((link.W, W), (link.b, b)):
            param.array[...] = helpers.DEVICE.send(array)
        link.cleargrads()
        v = chainer.Variable(helpers.DEVICE.send(x.astype('e')))
        y = link(v)
        y.grad = helpers.DEVICE.send(gy.astype('e'))
        y.backward()
        expected = reference(x, W, b, gy, N, orders[1])
        arrays = [y.array, v.grad, link.W.grad, link.b.grad]
        for a, e in zip(to_cpu(arrays), expected):
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
    result = helpers.run_python(script, CHAINER_SHARED_PATCH='0')
    assert result.stdout == '[[2211.]]\n', result.stderr


class TestWrongInput:
    @pytest.mark.parametrize('type_check', [True, False])
    @pytest.mark.parametrize('columns', [0, K, 2 * K, N * K + 1, 2 * N * K])
    def test_wrong_width(self, type_check, columns):
        x = numpy.zeros((BATCH, columns))
        message = re.escape(f'{columns} != {N} * {K}')
        with chainer.using_config('type_check', type_check):
            with chainer.using_config('common_num', 2):
                with pytest.raises(InvalidType, match=message):
                    make_link(PERMUTATION)(x)

    @pytest.mark.parametrize('type_check', [True, False])
    def test_wrong_kinds(self, type_check):
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
    @pytest.mark.parametrize('common_num', [0, 2.5, True, '10', None])
    def test_common_num(self, common_num):
        message = rf'SharedLinear\(\): common_num .* {common_num!r}$'
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
    def test_no_width(self, in_size):
        message = f'in_size must be at least 1, but is {in_size}$'
        with pytest.raises(ValueError, match=message):
            SharedLinear(in_size, OUT, common_num=2)

    def test_no_width_of_the_first_input(self):
        with pytest.raises(ValueError, match='in_size must be at least 1'):
            SharedLinear(OUT, common_num=2)(numpy.zeros((BATCH, 0), 'f'))

    @pytest.mark.parametrize(
        ('order', 'mistake'),
        [
            ('contiguous', "it is 'contiguous'"),
            (5, 'it is 5'),
            ([0.0, 1, 2, 3, 4, 5], 'its dtype is float64'),
            ([True, False] * 3, 'its dtype is bool'),
            ([[0, 1, 2], [3, 4, 5]], '0 is missing in row 1'),
            ([[[0]]], r'its shape is \(1, 1, 1\)'),
            (numpy.empty(0, int), r'its shape is \(0,\)'),
            ([0, 1, 2, 4, 4, 5], '3 is missing'),
            ([0, 1, 1, 1, 4, 4], '2 is missing'),
            ([1, 2, 3, 4, 5, 6], '0 is missing'),
            ([0, 1, 2, 3, 4, -1], '5 is missing'),
        ],
    )
    def test_order(self, order, mistake):
        message = r'SharedLinear\(\): order must be .*' + mistake
        with pytest.raises(ValueError, match=message):
            SharedLinear(None, OUT, common_num=N, order=order)

    def test_order_of_another_length(self):
        with pytest.raises(ValueError, match=r' 6, .* its shape is \(3,\)'):
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
        ('W', 'b', 'message'),
        [
            (chainer.Parameter(), None, 'W must be .* axes, but is'),
            (None, None, 'W must be .* None'),
            ([[1.0]], None, r'W must be .* \[\[1.0\]\]'),
            (numpy.ones(2), None, r'W must be .* 2 axes, .* shape \(2,\)'),
            (numpy.ones((2, 2), 'i'), None, 'W must be .* dtype int32'),
            (numpy.ones((2, 2)), [0.0, 0.0], r'b must be .* \[0.0, 0.0\]'),
            (
                numpy.ones((2, 2)),
                chainer.Parameter(),
                'b must be .* axes, but is',
            ),
        ],
    )
    def test_from_params_of_what_is_no_array_of_floats(self, W, b, message):
        with pytest.raises(ValueError, match=message):
            SharedLinear.from_params(W, b, common_num=2)

    def test_from_params_keeps_no_second_copy(self):
        W, b = numpy.full((OUT, 1000), 7.0), numpy.full(OUT, 7.0)
        link = SharedLinear.from_params(W, b, common_num=N)
        link.cleargrads()
        assert len(pickle.dumps(link)) < 1.5 * W.nbytes
        numpy.random.seed(0)
        twin = link.copy('init')
        numpy.random.seed(0)
        expected = L.Linear(N * 1000, OUT, initialW=initializers.LeCunNormal())
        numpy.testing.assert_allclose(
            twin.W.array, expected.W.array[:, :1000], rtol=2**-20
        )
        assert twin.W.dtype == twin.b.dtype == numpy.float64
        assert (twin.b.array == 0).all()

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
    def test_W_is_drawn_as_the_dense_layers(self, make):
        links = []
        for cls, kwargs in ((L.Linear, {}), (SharedLinear, {'common_num': N})):
            numpy.random.seed(0)
            initialW = make(numpy.random.RandomState(1))
            link = cls(N * K, 150, initialW=initialW, **kwargs)
            # The layers to come are the same, too.
            links.append((link.W.array[:, :K], L.Linear(3, 1).W.array))
        for actual, expected in zip(*links):
            numpy.testing.assert_array_equal(actual, expected)

    def test_drawing_takes_less_memory_than_a_dense_W(self):
        tracemalloc.start()
        try:
            link = SharedLinear(8 * 64, 2048, common_num=8)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The dense W alone takes 8 times as much as W.
        assert peak < 4 * link.W.array.nbytes

    def test_function(self):
        def count(array):
            array[...] = numpy.arange(array.size).reshape(array.shape)

        link = SharedLinear(4, 2, initialW=count, common_num=2)
        numpy.testing.assert_array_equal(link.W.array, [[0, 1], [4, 5]])
        assert SharedLinear(4, 0, initialW=count, common_num=2).W.size == 0

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
    def test_copy_computes_the_same(self, random, tmp_path, orders, make_copy):
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

    def test_order_is_not_shared_by_copyparams(self):
        source, target = make_link('interleaved'), make_link()
        target.copyparams(source)
        target.copyparams(make_link(PERMUTATION))
        numpy.testing.assert_array_equal(
            source.order, ORDERS['interleaved'][1]
        )

    @pytest.mark.parametrize('before', [None, 'interleaved'])
    @pytest.mark.parametrize('after', [None, PERMUTATION])
    def test_copy_that_shares_W_shares_the_order(self, random, before, after):
        link = make_link(before)
        twin = link.copy('share')
        link.copyparams(make_link(after, seed=1))
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(twin(x).array, link(x).array)

    @pytest.mark.parametrize('order', [None, 'interleaved'])
    @pytest.mark.parametrize('in_size', [N * K, None])
    def test_copyparams_of_a_link_of_no_width_yet(
        self, random, double, order, in_size
    ):
        source = SharedLinear(None, OUT, common_num=N, order=order)
        other = 'interleaved' if order is None else None
        target = SharedLinear(in_size, OUT, common_num=N, order=other)
        target.copyparams(source)
        x = random.randn(BATCH, N * K)
        if in_size is not None:
            numpy.testing.assert_array_equal(target(x).array, source(x).array)
        numpy.testing.assert_array_equal(target.order, source.order)

    def test_addgrads_wants_the_same_order(self):
        link, other = make_link(PERMUTATION), make_link('interleaved')
        with pytest.raises(ValueError, match='addgrads.*same order'):
            link.addgrads(other)
        twin = make_link(PERMUTATION)
        for each in (link, twin):
            each.W.grad = numpy.ones_like(each.W.array)
        link.addgrads(twin)
        assert (link.W.grad == 2).all()

    @pytest.mark.parametrize('mode', ['init', 'copy'])
    def test_copy_has_an_order_of_its_own(self, mode):
        link = make_link(PERMUTATION)
        twin = link.copy(mode)
        link.copyparams(make_link('interleaved'))
        numpy.testing.assert_array_equal(twin.order, PERMUTATION)

    def test_narrow_linear_refuses_an_order(self):
        source = chainer.Sequential(make_link(PERMUTATION))
        with chainer.using_config('dtype', 'd'):
            target = chainer.Sequential(L.Linear(K, OUT))
        before = params_of(target)
        with pytest.raises(ValueError, match='has no order: .*SharedLinear'):
            target.copyparams(source)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)
        target.copyparams(chainer.Sequential(make_link()))

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
            lambda: SharedLinear(N, OUT, common_num=N),
            lambda: SharedLinear(None, 1, common_num=N),
            lambda: SharedLinear(N * K, OUT, True, common_num=N),
        ],
        ids=['common_num', 'Linear', 'in_size', 'out_size', 'nobias'],
    )
    def test_copyparams_of_another_kind_is_refused(self, make):
        source, target = make(), make_link()
        before = params_of(target)
        with pytest.raises(ValueError, match='cannot copy') as info:
            target.copyparams(source)
        assert str(source) in str(info.value)
        assert str(target) in str(info.value)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)
        if isinstance(source, SharedLinear):
            with pytest.raises(ValueError, match='cannot copy'):
                source.copyparams(target)

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


class StaticChain(chainer.Chain):
    def __init__(self, order, dtype):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.l1 = SharedLinear(N * K, 6, common_num=N, order=order)
            self.l2 = SharedLinear(6, 3, common_num=2, order='interleaved')

    @chainer.static_graph
    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


def test_static_graph(random, algorithm, orders):
    # The integers are so small that all results are exact.
    dtype = 'f'
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
        gW1 = reference(x, W1, b1, gh, N, orders[1])[2]
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


def test_static_graph_of_another_number_of_orders(random):
    static = StaticChain(ORDERS['several'][0], 'd')
    x, weight = random.randn(4, N * K), random.randn(4, 3)
    for _ in range(2):
        forward_backward(static, x, weight)
    static.l1.copyparams(StaticChain(PERMUTATION, 'd').l1)
    with pytest.raises(ValueError):
        forward_backward(static, x, weight)


@pytest.mark.parametrize('make', [L.LSTM, L.StatefulGRU])
def test_within_recurrent_links(random, make):
    with chainer.using_config('dtype', 'd'):
        shared, dense = make(N * K, N * K), make(N * K, N * K)
    fill(dense)
    for child in list(dense.children()):
        W = random.randn(child.out_size, K)
        order = [random.permutation(N * K) for _ in range(4)]
        child.W.array[...] = widen(W, order)
        link = SharedLinear.from_params(
            W, child.b, child.b is None, common_num=N, order=order
        )
        setattr(shared, child.name, link)
    x = random.randn(BATCH, N * K)
    results = []
    for link in (shared, dense):
        v = chainer.Variable(x)
        y = link(link(link(v)) * v)
        F.sum(y**2).backward()
        results.append((y.array, v.grad))
    assert_same(*results)


def test_label(random):
    y = make_link(PERMUTATION)(random.randn(BATCH, N * K))
    dump = computational_graph.build_computational_graph([y]).dump()
    assert 'label="SharedLinearFunction (common_num=3)"' in dump
    y = make_link(ORDERS['several'][0])(random.randn(BATCH, N * K))
    assert y.creator.label == 'SharedLinearFunction (common_num=3, orders=2)'


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


@pytest.mark.parametrize('how', ['npz', 'copyparams'])
@pytest.mark.parametrize('recorded', [PERMUTATION, None])
@pytest.mark.parametrize('order', ['interleaved', None])
def test_recorded_graph_follows_the_order(
    random, tmp_path, how, recorded, order
):
    static = StaticChain(recorded, 'f')
    other = StaticChain(order, 'f')
    for _, param in sorted(other.namedparams()):
        param.array[...] = integers(random, 1)(*param.shape)
    x, weight = (integers(random, 1)(BATCH, n).astype('f') for n in (N * K, 3))
    forward_backward(static, x, weight)
    if how == 'npz':
        save_npz(str(tmp_path / 'model.npz'), other)
        load_npz(str(tmp_path / 'model.npz'), static)
    else:
        static.copyparams(other)
    actual = forward_backward(static, x, weight)
    with chainer.using_config('use_static_graph', False):
        expected = forward_backward(other, x, weight)
    for a, e in zip(actual, expected):
        numpy.testing.assert_array_equal(a, e)
