"""Shared layers on the GPU: the tests of the CPU, computed there."""

import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests.test_functions import (  # noqa: F401
    make_arrays,
    reference,
    run,
    test_mixed_dtypes,
    test_ordinary_layer_is_bit_identical,
    test_shared_layer,
    test_static_graph,
)
from tests.test_links import TestLinksOfFullyConnectedLayers  # noqa: F401
from tests.test_modes import (  # noqa: F401
    TestHigherOrders,
    test_mixed16,
    test_training_under_settings_of_chainer,
    test_two_numbers_in_one_model,
    tiled_linear,
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
