"""Shared layers on the GPU: the tests of the CPU, computed there."""

from chainer_shared_patch import uninstall
import chainer
from chainer import gradient_check
import chainer.functions as F
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests.test_functions import (  # noqa: F401
    make_arrays,
    reference,
    run,
    test_mixed_dtypes,
    test_shared_layer,
    test_static_graph,
)
from tests.test_links import (  # noqa: F401
    LINKS,
    N,
    Tiling,
    Unrolled,
    iterate,
    make_batches,
    width,
)
from tests.test_modes import (  # noqa: F401
    assert_same_steps,
    test_mixed16,
    test_training_under_settings_of_chainer,
    tiled_linear,
)


@pytest.mark.parametrize('name', LINKS)
def test_links(random, algorithm, name):
    batches, weights = make_batches(random, width(name))
    with chainer.using_config('common_num', N):
        actual = iterate(Unrolled(*LINKS[name]), batches, weights)
    uninstall()
    with Tiling():
        expected = iterate(Unrolled(*LINKS[name]), batches, weights)
    assert_same_steps(actual, expected)


def test_gradients(random, algorithm, device):
    arrays = make_arrays(random, 4, 3, 2, 5)
    gy = random.randn(4, 5)
    gg = [random.randn(*a.shape) for a in arrays]
    arrays, gg = (tuple(device.send(a)) for a in (list(arrays), gg))
    gy = device.send(gy)
    with chainer.using_config('common_num', 3):
        gradient_check.check_backward(F.linear, arrays, gy, dtype='d')
        gradient_check.check_double_backward(
            lambda *args: F.linear(*args) ** 2, arrays, gy, gg, dtype='d'
        )


@pytest.mark.parametrize('W_dtype', ['e', 'f'])
def test_float16_is_nearly_as_good_as_the_dense_layer(random, W_dtype):
    # The sums are rounded once, which doubles the roundings of the dense
    # layer where nothing cancels.
    x, W, _ = make_arrays(random, 50, 10, 100, 90, 'e', nobias=True)
    W = W.astype(W_dtype)
    gy = random.randn(50, 90).astype('e')
    with chainer.using_config('common_num', 10):
        shared = run(x, W, None, gy)
    dense = run(x, W, None, gy, tiled_linear(10))
    for s, d, e in zip(shared, dense, reference(x, W, None, gy, 10)):
        assert s.dtype == d.dtype
        error, dense_error = (
            numpy.sqrt(numpy.mean((a.astype('d') - e) ** 2)) for a in (s, d)
        )
        assert error <= 2.5 * dense_error


def test_wrong_shape(random, device):
    x, W, _ = device.send(list(make_arrays(random, 4, 3, 2, 5)))
    for type_check in (True, False):
        with chainer.using_config('type_check', type_check):
            with chainer.using_config('common_num', 2):
                with pytest.raises(InvalidType, match='2 [*] W.shape'):
                    F.linear(x, W)
