import functools

from chainer_shared_patch import blocks
from chainer import gradient_check
import numpy
import pytest

from tests import helpers
from tests.helpers import DTYPES, LAYOUTS, assert_close, to_cpu

pytestmark = pytest.mark.arithmetic

SHAPES = [
    # batch size, common_num, k
    (5, 4, 3),
    (5, 1, 7),
    (1, 10, 100),
    (4, 6, 1),
    (0, 4, 3),
    (3, 4, 0),
    (3, 2, 9000),
    (3, 20, 500),
    (2, 200, 50),
    (2, 40, 8),
    (2, 4, 200),
]


def sum_dtype(dtype):
    """The dtype of the sum: on the CPU float16 is not rounded to itself."""
    on_cpu = helpers.DEVICE.xp is numpy
    return numpy.promote_types(dtype, 'f' if on_cpu else dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('batch_size', 'n', 'k'), SHAPES)
def test_sum_blocks(random, batch_size, n, k, dtype, layout):
    array = random.randn(batch_size, n * k).astype(dtype)
    x = LAYOUTS[layout](helpers.DEVICE.send(array))
    y = blocks.sum_blocks(x, n)
    assert y.shape == (batch_size, k)
    assert y.dtype == sum_dtype(dtype)
    assert y.flags.c_contiguous
    parts = array.astype('d').reshape(batch_size, n, k)
    exact, scale = parts.sum(axis=1), abs(parts).sum(axis=1)
    accumulator = numpy.promote_types(dtype, 'f')
    assert_close(to_cpu(y), exact, scale, (n - 1, accumulator))
    numpy.testing.assert_array_equal(to_cpu(x), array)


def test_sum_blocks_adds_float16_in_float32():
    # Half precision has no odd numbers above 2048 and none above 65504:
    # adding in it, or through a buffer of 8192 elements in it, would show.
    n, k = 65, 9000
    x = helpers.DEVICE.xp.ones((2, n * k), 'e')
    x[:, :k] = 2048
    expected = numpy.array(2048 + 64).astype(sum_dtype('e'))
    assert (to_cpu(blocks.sum_blocks(x, n)) == expected).all()
    x[:, k:] = 0.5
    assert (to_cpu(blocks.sum_blocks(x, n)) == 2048 + 32).all()


def test_sum_blocks_on_the_cpu_exceeds_the_range_of_float16():
    x = numpy.full((2, 65), 60000, 'e')
    assert (blocks.sum_blocks(x, 65) == 65 * 60000).all()


def test_sum_blocks_in_a_wider_dtype():
    x = numpy.array([[1, 2**-30]], 'f')
    assert blocks.sum_blocks(x, 2, 'd') == 1 + 2**-30
    assert blocks.sum_blocks(x, 2, 'd').dtype == numpy.float64
    assert blocks.sum_blocks(x, 2, 'e').dtype == numpy.float32


def test_sum_blocks_keeps_long_double():
    x = numpy.full((1, 2), 1 + numpy.finfo(numpy.longdouble).eps)
    assert blocks.sum_blocks(x, 2).dtype == numpy.longdouble
    assert blocks.sum_blocks(x, 2)[0, 0] == 2 * x[0, 0]


@pytest.mark.parametrize('common_num', [3, 14, 0, -1])
def test_sum_blocks_refuses_what_it_cannot_split(common_num):
    message = rf'\(2, 7\) and common_num is {common_num}$'
    with pytest.raises(ValueError, match=message):
        blocks.sum_blocks(numpy.zeros((2, 7), 'f'), common_num)


@pytest.mark.parametrize('common_num', [0, -1])
def test_tile_blocks_refuses_what_is_no_number_of_blocks(common_num):
    with pytest.raises(ValueError, match='at least 1, but is'):
        blocks.tile_blocks(numpy.zeros((4, 3)), common_num)


@pytest.mark.parametrize('length', [0, 3, 5, 8])
def test_order_of_another_length(length):
    order = numpy.arange(length)
    message = f'order must have 4 elements, .* has {length}'
    with pytest.raises(ValueError, match=message):
        blocks.sum_blocks(numpy.zeros((3, 4)), 2, order=order)
    with pytest.raises(ValueError, match=message):
        blocks.tile_blocks(numpy.zeros((3, 2)), 2, order)


def test_columns_that_orders_do_not_divide():
    with pytest.raises(ValueError, match=r'each of 2 orders.* \(3, 5\)$'):
        blocks.tile_blocks(numpy.zeros((3, 5)), 2, numpy.zeros((2, 4), int))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('batch_size', 'n', 'k'), SHAPES)
def test_tile_blocks(random, batch_size, n, k, dtype, layout):
    array = random.randn(batch_size, k).astype(dtype)
    y = blocks.tile_blocks(LAYOUTS[layout](helpers.DEVICE.send(array)), n)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    numpy.testing.assert_array_equal(to_cpu(y), numpy.tile(array, (1, n)))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('batch_size', 'n', 'k'),
    [
        *(shape for shape in SHAPES if shape != (3, 2, 9000)),
        *((3, 2, 1500), (300, 4, 5), (130, 1000, 2)),
    ],
)
def test_sum_and_tile_in_orders(random, batch_size, n, k, dtype, layout):
    # As a product with a matrix of zeros and ones.
    g = 3
    order = numpy.array([random.permutation(n * k) for _ in range(g)])
    matrix = numpy.zeros((n * k, g, k))
    for s in range(g):
        matrix[order[s], s, numpy.arange(n * k) % k] = 1
    matrix = matrix.reshape(n * k, g * k)
    accumulator = numpy.promote_types(dtype, 'f')
    send, place = helpers.DEVICE.send, LAYOUTS[layout]
    x = random.randn(batch_size, n * k).astype(dtype)
    y = blocks.sum_blocks(place(send(x)), n, order=send(order))
    assert y.dtype == sum_dtype(dtype)
    exact, scale = (a.astype('d') @ matrix for a in (x, abs(x)))
    assert_close(to_cpu(y), exact, scale, (n - 1, accumulator))
    one = blocks.sum_blocks(place(send(x)), n, order=send(order[1]))
    exact, scale = (a[:, k : 2 * k] for a in (exact, scale))
    assert_close(to_cpu(one), exact, scale, (n - 1, accumulator))

    x = random.randn(batch_size, g * k).astype(dtype)
    y = to_cpu(blocks.tile_blocks(place(send(x)), n, send(order)))
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    exact, scale = (a.astype('d') @ matrix.T for a in (x, abs(x)))
    assert_close(y, exact, scale, (g - 1, accumulator))
    one = blocks.tile_blocks(place(send(x[:, :k])), n, send(order[0]))
    places = numpy.arange(n * k) % k
    numpy.testing.assert_array_equal(to_cpu(one)[:, order[0]], x[:, places])


def test_orders_per_slice(random):
    n, k = 4, 3
    order = numpy.array([random.permutation(n * k) for _ in range(2)])
    order = helpers.DEVICE.send(order)
    for function, columns in (
        (functools.partial(blocks.sum_blocks, order=order), n * k),
        (functools.partial(blocks.tile_blocks, order=order), k),
    ):
        rows = helpers.DEVICE.send(random.randn(5, columns))
        y = function(rows, n, per_slice=True)
        for each, of_slice in zip(order, (slice(3), slice(3, None))):
            expected = function(rows[of_slice], n, order=each)
            numpy.testing.assert_array_equal(
                to_cpu(y[of_slice]), to_cpu(expected)
            )


def test_sum_and_tile_in_an_order_are_adjoint(random):
    # The integers are so small that all results are exact.
    n, k = 4, 3
    order = helpers.DEVICE.send(random.permutation(n * k))
    x, y = (
        helpers.DEVICE.send(random.randint(-9, 10, (5, columns)).astype('d'))
        for columns in (n * k, k)
    )
    summed = blocks.sum_blocks(x, n, order=order)
    tiled = blocks.tile_blocks(y, n, order)
    assert (summed * y).sum() == (x * tiled).sum()


@pytest.mark.parametrize('per_slice', [True, False])
@pytest.mark.parametrize('g', [0, 1, 2])
@pytest.mark.parametrize('function', [blocks.SumBlocks, blocks.TileBlocks])
def test_gradients(random, function, g, per_slice):
    n, k = 4, 3
    order = None
    if g:
        order = [random.permutation(n * k) for _ in range(g)]
        order = helpers.DEVICE.send(numpy.array(order))
    sizes = n * k, k if per_slice else max(g, 1) * k
    if function is blocks.TileBlocks:
        sizes = sizes[::-1]
    x, gy, gradient = helpers.DEVICE.send(
        [random.randn(5, columns) for columns in (*sizes, sizes[0])]
    )

    def apply(x):
        (y,) = function(n, order=order, per_slice=per_slice).apply((x,))
        return y * y

    gradient_check.check_backward(apply, x, gy, dtype='d')
    gradient_check.check_double_backward(apply, x, gy, gradient, dtype='d')
