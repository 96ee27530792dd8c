"""float16, float32 and float64, and mixtures of them."""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests import helpers
from tests.helpers import (
    DTYPES,
    SIZES,
    K,
    N,
    integers,
    make_arrays,
    reference,
    run,
    tiled_linear,
    to_cpu,
)

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize('dtypes', ['ee', 'ef', 'ed', 'fe', 'ff', 'fd'])
def test_only_the_result_is_rounded(random, dtypes):
    # The integers of x and their products are exact in float32, or in float64
    # for a W of float64; the sums of the blocks are not in the dtype of x.
    # The dense layer is as good as this, the algorithm 'tile' is not.
    x_dtype, W_dtype = dtypes
    n, k = 10, 100
    x, W, _, gy = make_arrays(integers(random), 50, n, k, 90)
    digits = 2**24 if dtypes == 'fd' else 2**11
    # As after a ReLU: the sums are large for their products with W.
    x = random.randint(0, digits, x.shape).astype(x_dtype)
    W = (W / 2**7).astype(W_dtype)
    gy = (gy / 2**6).astype(x_dtype)
    with chainer.using_config('common_num', n):
        actual = run(x, W, None, gy)
    expected = reference(x, W, None, gy, n)
    for a, e, dtype in zip(actual, expected, (x_dtype, x_dtype, W_dtype)):
        assert a.dtype == dtype
        numpy.testing.assert_array_equal(a, e.astype(dtype))


def test_sums_may_exceed_the_range_of_float16(algorithm):
    large, small = 2.0**13, 2.0**-10
    x = chainer.Variable(numpy.full((1, 20), large, 'e'))
    W = chainer.Variable(numpy.full((3, 2), small, 'e'))
    gy = chainer.Variable(numpy.full((1, 3), small, 'e'))
    with chainer.using_config('common_num', 10):
        y = F.linear(x, W)
    grads = chainer.grad([y], [x, W], [gy], enable_double_backprop=True)
    (second,) = chainer.grad(grads[:1], [W], [x])
    for v, value in ((y, 20), (grads[1], 10), (second, 10)):
        assert v.dtype == numpy.float16
        assert (v.array == value * large * small).all()


@pytest.mark.parametrize('W_dtype', DTYPES)
@pytest.mark.parametrize('x_dtype', DTYPES)
def test_backward_through_gradients(algorithm, x_dtype, W_dtype):
    # Unlike chainer.grad, backward checks the dtype of every gradient. All
    # are integers of at most 2**11, as those of x and W are at most 1.
    n = 2
    x = numpy.array([[1.0, 1, 0, 1], [0, -1, -1, 1]])
    W = numpy.array([[1.0, 1], [0, -1]])

    def compute(linear, *arrays):
        x, W = (chainer.Variable(a) for a in helpers.DEVICE.send(arrays))
        (gx,) = chainer.grad(
            [F.sum(linear(x, W) ** 2)], [x], enable_double_backprop=True
        )
        F.sum(gx**2).backward()
        return to_cpu([x.grad, W.grad])

    with chainer.using_config('common_num', n):
        actual = compute(F.linear, x.astype(x_dtype), W.astype(W_dtype))
    expected = compute(tiled_linear(n), x, W)
    for a, e, dtype in zip(actual, expected, (x_dtype, W_dtype)):
        assert a.dtype == dtype
        numpy.testing.assert_array_equal(a, e)


def test_mixed16_with_fp32_update(random, algorithm):
    x, W, b, gy = make_arrays(integers(random), *SIZES)
    rate, steps = 2.0**-12, 20  # each step too small for float16
    with chainer.using_config('dtype', chainer.mixed16):
        link = L.Linear(K, 5, initialW=W, initial_bias=b)
        link.to_device(helpers.DEVICE)
        optimizer = chainer.optimizers.SGD(rate).setup(link)
        optimizer.use_fp32_update()
        for step in range(steps):
            with chainer.using_config('common_num', N):
                y = link(helpers.DEVICE.send(x.astype('e')))
            assert y.dtype == numpy.float16
            link.cleargrads()
            y.grad = helpers.DEVICE.send(gy.astype('e'))
            y.backward()
            if step == 0:
                first = to_cpu(y.array)
            optimizer.update()
    expected, _, gW, gb = reference(x, W, b, gy, N)
    numpy.testing.assert_array_equal(first, expected)
    for param, start, g in ((link.W, W, gW), (link.b, b, gb)):
        assert param.dtype == numpy.float16
        master = to_cpu(param.update_rule._fp32_param.array)
        assert master.dtype == numpy.float32
        expected = start - steps * rate * g
        numpy.testing.assert_array_equal(master, expected)
        numpy.testing.assert_array_equal(
            to_cpu(param.array), expected.astype('e')
        )
