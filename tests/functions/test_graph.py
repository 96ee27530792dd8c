"""What Chainer does with the graph of a shared layer."""

from chainer_shared_patch import uninstall
import chainer
import chainer.functions as F
import numpy
import pytest

from tests import helpers
from tests.helpers import (
    DTYPES,
    SIZES,
    Chain,
    K,
    N,
    TiledLinear,
    assert_same,
    assert_same_steps,
    forward_backward,
    integers,
    iterate,
    make_arrays,
    make_batches,
    tiled_linear,
)

pytestmark = pytest.mark.arithmetic
LABEL = f'SharedLinearFunction (common_num={N})'


class ReluChain(Chain):
    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


class StaticChain(ReluChain):
    @chainer.static_graph
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize('dtype', DTYPES)
def test_static_graph(random, algorithm, dtype):
    # Every step has other inputs and weights, some another batch size. The
    # integers are so small that all results are exact.
    draw = integers(random, 1)
    static, tiled = StaticChain(dtype=dtype), ReluChain(TiledLinear, dtype)
    for chain in (static, tiled):
        chain.to_device(helpers.DEVICE)
    for step, size in enumerate([6, 6, 4, 6, 4, 4]):
        x, weight = (draw(size, n).astype(dtype) for n in (N * K, 3))
        for _, param in sorted(static.namedparams()):
            param.array[...] = helpers.DEVICE.send(draw(*param.shape))
        tiled.copyparams(static)
        with chainer.using_config('common_num', N):
            actual = forward_backward(static, x, weight)
        expected = forward_backward(tiled, x, weight)
        for a, e in zip(actual, expected):
            assert a.dtype == dtype
            numpy.testing.assert_array_equal(a, e, f'step {step}')


def test_no_backprop_mode(random, algorithm):
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
    assert_same([v.array for v in (y, within, outside)], [expected] * 3)
    chain.cleargrads()
    F.sum(y).backward()
    assert chain.l1.W.grad is None
    F.sum(within).backward()
    assert chain.l1.W.grad.shape == (5, K)


class ForgetfulChain(Chain):
    def forward(self, x):
        return self.l2(F.forget(lambda h: F.tanh(self.l1(h)), x))


def test_forget(random, algorithm):
    data = make_batches(random)
    with chainer.using_config('common_num', N):
        actual = iterate(ForgetfulChain(), *data)
    uninstall()
    assert_same_steps(actual, iterate(ForgetfulChain(TiledLinear), *data))


def test_forget_of_a_function_with_its_own_number(random, algorithm):
    # What is forgotten is computed anew, with the settings of that time.
    x, W, *_ = (
        chainer.Variable(a) for a in make_arrays(integers(random), *SIZES)
    )

    def forward(x, W):
        with chainer.using_config('common_num', N):
            return F.linear(x, W)

    F.sum(F.forget(forward, x, W) ** 2).backward()
    actual = x.grad, W.grad
    x.cleargrad()
    W.cleargrad()
    uninstall()
    F.sum(tiled_linear()(x, W) ** 2).backward()
    for a, e in zip(actual, (x.grad, W.grad)):
        numpy.testing.assert_array_equal(a, e)


@pytest.fixture
def debug():
    with chainer.using_config('debug', True):
        yield


def test_nan_in_forward_names_the_layer(random, algorithm, debug):
    chain = Chain()
    x = random.randn(4, N * K)
    with chainer.using_config('common_num', N):
        chain(x)
        x[1, -1] = numpy.nan
        with pytest.raises(RuntimeError) as info:
            chain(x)
    message = 'NaN is detected on forward computation of ' + LABEL
    assert message in str(info.value)


def test_nan_of_infinities_that_only_the_sum_sees(algorithm, debug):
    # Of both signs in different blocks: no block alone has a NaN.
    x = numpy.zeros((1, N * K))
    x[0, 0], x[0, K] = numpy.inf, -numpy.inf
    with chainer.using_config('common_num', N):
        with pytest.raises(RuntimeError, match='SharedLinearFunction'):
            with numpy.errstate(invalid='ignore'):
                F.linear(x, numpy.ones((5, K)))


def test_nan_in_backward_shows_where_the_layer_was_called(
    random, algorithm, debug
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
