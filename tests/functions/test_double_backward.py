"""Gradients of gradients."""

from chainer_shared_patch import uninstall
import chainer
from chainer import gradient_check
import chainer.functions as F
import pytest

from tests import helpers
from tests.helpers import (
    DTYPES,
    SIZES,
    Chain,
    K,
    N,
    TiledLinear,
    assert_layer_close,
    assert_same_steps,
    make_arrays,
    params_of,
    tiled_linear,
    to_cpu,
)

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize('nobias', [False, True])
def test_double_backward(random, algorithm, nobias):
    x, W, b, gy = make_arrays(random.randn, *SIZES)
    arrays = (x, W) if nobias else (x, W, b)
    gg = tuple(random.randn(*a.shape) for a in arrays)
    send = helpers.DEVICE.send
    with chainer.using_config('common_num', N):
        gradient_check.check_double_backward(
            lambda *args: F.tanh(F.linear(*args)),
            *(send(arrays), send(gy), send(gg)),
            dtype='d',
        )


@pytest.mark.parametrize('W_dtype', DTYPES)
@pytest.mark.parametrize('x_dtype', DTYPES)
def test_double_backward_of_dtypes(random, algorithm, x_dtype, W_dtype):
    n = 8
    sizes = (30, n, 20, 10)
    dtypes = x_dtype, W_dtype, x_dtype, x_dtype
    arrays = [
        [a.astype(dtype) for a, dtype in zip(each, dtypes)]
        for each in (make_arrays(random.randn, *sizes) for _ in range(2))
    ]
    (x, W, b, gy), (ggx, ggW, _, _) = (
        [chainer.Variable(a) for a in helpers.DEVICE.send(each)]
        for each in arrays
    )
    with chainer.using_config('common_num', n):
        y = F.linear(x, W, b)
    first = chainer.grad([y], [x, W], [gy], enable_double_backprop=True)
    second = chainer.grad(first, [x, W], [ggx, ggW])
    # They are the gradients of a layer of ggx and ggW.
    (*_, gy), (ggx, ggW, _, _) = arrays
    actual = [None, *(to_cpu(g.array) for g in second)]
    assert_layer_close(actual, ggx, ggW, None, gy, n)


def derivatives(linear, arrays, weights, common_num):
    """Returns the gradients of all inputs, of the first order to the third."""
    send = helpers.DEVICE.send
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


def test_third_order(random, algorithm):
    *arrays, _ = make_arrays(random.randn, *SIZES)
    weights = [[random.randn(*a.shape) for a in arrays] for _ in range(3)]
    actual = derivatives(F.linear, arrays, weights, N)
    uninstall()
    expected = derivatives(tiled_linear(), arrays, weights, 1)
    assert_same_steps(actual, expected)


def train_critic(chain, batches):
    """Trains with a gradient penalty."""
    chain.to_device(helpers.DEVICE)
    optimizer = chainer.optimizers.Adam(0.05).setup(chain)
    steps = []
    for real, fake in helpers.DEVICE.send(batches):
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


def test_gradient_penalty(random, algorithm):
    batches = random.randn(4, 2, 4, N * K)
    with chainer.using_config('common_num', N):
        actual = train_critic(Chain(), batches)
    uninstall()
    expected = train_critic(Chain(TiledLinear), batches)
    assert_same_steps(actual, expected)
