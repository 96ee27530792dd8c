from chainer_shared_patch import blocks
from chainer import gradient_check
from chainer.backends.cuda import to_cpu
import numpy
import pytest

from tests.test_blocks import LAYOUTS, SHAPES

LARGE = [
    (1, 16384, 4),
    (1, 3, 100000),
    (1000, 64, 64),
    (257, 7, 1001),
    (100, 10, 100),
]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', ['e', 'f', 'd'])
@pytest.mark.parametrize(('batch_size', 'n', 'k'), SHAPES + LARGE)
def test_sum_and_tile(random, device, batch_size, n, k, dtype, layout):
    x = random.randn(batch_size, n * k).astype(dtype)
    y = blocks.sum_blocks(LAYOUTS[layout](device.send(x)), n)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    terms = x.astype('d').reshape(batch_size, n, k)
    exact = terms.sum(axis=1)
    eps = numpy.finfo(numpy.promote_types(dtype, 'f')).eps
    bound = n * eps * abs(terms).sum(axis=1)
    bound += numpy.finfo(dtype).eps / 2 * abs(exact)
    assert (abs(to_cpu(y) - exact) <= bound).all()

    tiled = blocks.tile_blocks(y, n)
    assert tiled.dtype == dtype
    expected = numpy.tile(to_cpu(y), (1, n))
    numpy.testing.assert_array_equal(to_cpu(tiled), expected)


@pytest.mark.parametrize('offset', range(9))
def test_memory_that_is_not_aligned(random, device, offset):
    memory = random.randint(-9, 10, 3 * 40 + offset).astype('e')
    x = device.send(memory)[offset:].reshape(3, 40)
    expected = memory[offset:].reshape(3, 5, 8).sum(axis=1)
    y = blocks.sum_blocks(x, 5)
    numpy.testing.assert_array_equal(to_cpu(y), expected)
    narrow = device.send(memory)[offset:].reshape(3, 40)
    tiled = blocks.tile_blocks(narrow, 2)
    expected = numpy.tile(to_cpu(narrow), (1, 2))
    numpy.testing.assert_array_equal(to_cpu(tiled), expected)


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


@pytest.mark.parametrize('make', [blocks.SumBlocks, blocks.TileBlocks])
def test_gradients(random, device, make):
    x = random.randn(3, 12)
    y_columns = {blocks.SumBlocks: 3, blocks.TileBlocks: 48}[make]
    gy, ggx = random.randn(3, y_columns), random.randn(3, 12)

    def function(x):
        return make(4).apply((x,))[0]

    x, gy, ggx = device.send((x, gy, ggx))
    gradient_check.check_backward(function, x, gy, dtype='d')
    gradient_check.check_double_backward(
        lambda x: function(x) ** 2, x, gy, ggx, dtype='d'
    )
