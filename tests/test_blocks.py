from chainer_shared_patch import blocks
import chainer
from chainer import gradient_check
import numpy
import pytest

DTYPES = (numpy.float16, numpy.float32, numpy.float64)
SHAPES = [
    # batch size, common_num, k
    (5, 4, 3),
    (5, 1, 7),
    (1, 10, 100),
    (4, 6, 1),
    (0, 4, 3),
    (3, 2, 9000),
    (3, 20, 500),
    (2, 200, 50),
    (2, 40, 8),
    (2, 4, 200),
]
LAYOUTS = {
    'C': lambda x: x,
    'Fortran': lambda x: x.T.copy().T,
    'reversed': lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    'every other': lambda x: x.repeat(2, 0).repeat(2, 1)[::2, ::2],
}


def eps(dtype):
    return numpy.finfo(dtype).eps


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('batch_size', 'n', 'k'), SHAPES)
def test_sum_blocks(random, batch_size, n, k, dtype, layout):
    x = LAYOUTS[layout](random.randn(batch_size, n * k).astype(dtype))
    before = x.copy()
    y = blocks.sum_blocks(x, n)
    parts = [x[:, j * k : (j + 1) * k].astype('d') for j in range(n)]
    expected = sum(parts)
    assert y.shape == (batch_size, k)
    assert y.dtype == numpy.promote_types(dtype, numpy.float32)
    assert y.flags.c_contiguous
    bound = n * eps(y.dtype) * sum(abs(part) for part in parts)
    assert (abs(y - expected) <= bound).all()
    numpy.testing.assert_array_equal(x, before)


def test_sum_blocks_does_not_round_float16():
    # Half precision has no odd numbers above 2048 and none above 65504:
    # adding in it, or through a buffer of 8192 elements in it, would show.
    n, k = 65, 9000
    x = numpy.ones((2, n * k), numpy.float16)
    x[:, :k] = 2048
    assert (blocks.sum_blocks(x, n) == 2048 + 64).all()
    x[...] = 60001
    assert (blocks.sum_blocks(x, n) == 65 * 60000).all()


def test_sum_blocks_in_a_wider_dtype():
    x = numpy.array([[1, 2**-30]], 'f')
    assert blocks.sum_blocks(x, 2, 'd') == 1 + 2**-30
    assert blocks.sum_blocks(x, 2, 'd').dtype == numpy.float64
    assert blocks.sum_blocks(x, 2, 'e').dtype == numpy.float32


def test_sum_blocks_keeps_long_double():
    x = numpy.full((1, 2), 1 + numpy.finfo(numpy.longdouble).eps)
    assert blocks.sum_blocks(x, 2).dtype == numpy.longdouble
    assert blocks.sum_blocks(x, 2)[0, 0] == 2 * x[0, 0]


def test_sum_blocks_refuses_what_it_cannot_split():
    with pytest.raises(ValueError, match=r'\(2, 7\) and common_num is 3'):
        blocks.sum_blocks(numpy.zeros((2, 7), 'f'), 3)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('batch_size', 'n', 'k'), SHAPES)
def test_tile_blocks(random, batch_size, n, k, dtype, layout):
    x = LAYOUTS[layout](random.randn(batch_size, k).astype(dtype))
    y = blocks.tile_blocks(x, n)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    numpy.testing.assert_array_equal(y, numpy.tile(x, (1, n)))


def test_sum_and_tile_are_adjoint(random):
    x, y = random.randn(4, 15), random.randn(4, 5)
    numpy.testing.assert_allclose(
        (blocks.sum_blocks(x, 3) * y).sum(),
        (x * blocks.tile_blocks(y, 3)).sum(),
    )


@pytest.mark.parametrize('function', [blocks.SumBlocks, blocks.TileBlocks])
@pytest.mark.parametrize('dtype', DTYPES)
def test_gradients_have_the_dtype_of_their_input(random, function, dtype):
    x = chainer.Variable(random.randn(4, 15).astype(dtype))
    (y,) = function(3).apply((x,))
    (gx,) = chainer.grad([y], [x], enable_double_backprop=True)
    assert gx.dtype == dtype


@pytest.mark.parametrize('function', [blocks.SumBlocks, blocks.TileBlocks])
def test_gradients(random, function):
    n = 3
    x = random.randn(4, 15)
    columns = 5 if function is blocks.SumBlocks else 45
    gy = random.randn(4, columns)
    ggx = random.randn(4, 15)

    def apply(x):
        return function(n).apply((x,))

    gradient_check.check_backward(apply, x, gy, dtype='d')
    gradient_check.check_double_backward(apply, x, gy, ggx, dtype='d')
