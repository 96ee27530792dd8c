"""Sums and tiles of blocks on the GPU: the tests of the CPU, and more."""

from chainer_shared_patch import blocks
import pytest

from tests import test_blocks
from tests.helpers import DTYPES
from tests.test_blocks import (  # noqa: F401
    test_gradients,
    test_orders_per_slice,
    test_sum_and_tile_in_an_order_are_adjoint,
    test_sum_and_tile_in_orders,
    test_sum_blocks,
    test_sum_blocks_adds_float16_in_float32,
    test_sum_blocks_refuses_what_it_cannot_split,
    test_tile_blocks,
)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('batch_size', 'n', 'k'),
    [
        (1, 16384, 4),
        (1, 3, 100000),
        (1000, 64, 64),
        (257, 7, 1001),
        (100, 10, 100),
    ],
)
def test_large(random, batch_size, n, k, dtype):
    sizes = random, batch_size, n, k, dtype, 'C'
    test_blocks.test_sum_blocks(*sizes)
    test_blocks.test_tile_blocks(*sizes)


def test_more_elements_than_32_bits_count(device):
    # 4 GiB, and the last row is that of the largest indexes.
    x = device.xp.zeros((2**22 + 1, 512), 'e')
    x[-1] = 1
    y = blocks.sum_blocks(x, 4)
    assert (y[-1] == 4).all()
    assert not y[:-1].any()
    del x
    tiled = blocks.tile_blocks(y, 4)
    assert (tiled[-1] == 4).all()
    assert not tiled[:-1].any()
