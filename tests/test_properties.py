"""What holds for all shapes, blocks, dtypes and layouts."""

from chainer_shared_patch import blocks, config, install, patched, uninstall
import chainer
import chainer.functions as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
import numpy

from tests.test_functions import reference

DTYPES = st.sampled_from(['e', 'f', 'd'])
ALGORITHMS = st.sampled_from(config.ALGORITHMS)
SIZES = st.integers(0, 5)
BLOCKS = st.integers(1, 6)


@st.composite
def matrices(draw, rows, columns, dtype):
    """A matrix of moderate numbers, in any layout."""
    numbers = st.integers(-1000, 1000).map(lambda number: number / 64)
    x = draw(st_numpy.arrays(dtype, (rows, columns), elements=numbers))
    layout = draw(st.sampled_from(['C', 'F', 'reversed', 'strided']))
    if layout == 'F':
        return numpy.asfortranarray(x)
    if layout == 'reversed':
        return x[::-1, ::-1].copy()[::-1, ::-1]
    if layout == 'strided':
        return x.repeat(2, axis=1)[:, ::2]
    return x


@st.composite
def layers(draw, dtype=None, n=BLOCKS):
    """x, W, gy and common_num of a layer."""
    batch_size, k, out_size = draw(SIZES), draw(SIZES), draw(SIZES)
    n = draw(n)
    dtype = dtype or draw(DTYPES)
    return (
        draw(matrices(batch_size, n * k, dtype)),
        draw(matrices(out_size, k, dtype)),
        draw(matrices(batch_size, out_size, dtype)),
        n,
    )


def run(x, W, gy, n=1, algorithm=None):
    """The arrays y, gx and gW."""
    x, W = chainer.Variable(x), chainer.Variable(W)
    with chainer.using_config('common_num', n):
        with chainer.using_config('shared_algorithm', algorithm):
            y = F.linear(x, W)
    y.grad = gy
    y.backward()
    return y.array, x.grad, W.grad


def assert_close(actual, expected, dtype, scale):
    eps = numpy.finfo(dtype).eps
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    numpy.testing.assert_allclose(
        actual.astype('d'), expected, rtol=2 * eps, atol=100 * eps * scale
    )


@given(layers())
def test_sum_is_tile_is_the_reference(layer):
    x, W, gy, n = layer
    expected = reference(x, W, None, gy, n)
    # The sum of the absolute values is what rounding errors scale with.
    scales = reference(abs(x), abs(W), None, abs(gy), n)
    for algorithm in config.ALGORITHMS:
        for actual, e, scale in zip(run(*layer, algorithm), expected, scales):
            assert_close(actual, e, x.dtype, scale.max(initial=0))


@given(st.data(), SIZES, BLOCKS, SIZES, DTYPES)
def test_sum_blocks_and_tile_blocks_are_adjoint(data, rows, n, k, dtype):
    x = data.draw(matrices(rows, n * k, dtype))
    y = data.draw(matrices(rows, k, dtype))
    left = blocks.sum_blocks(x, n).astype('d') * y
    right = x.astype('d') * blocks.tile_blocks(y, n)
    numpy.testing.assert_allclose(
        left.sum(), right.sum(), rtol=0, atol=1e-6 * abs(right).sum()
    )


@given(st.data(), layers('d'), ALGORITHMS)
def test_linear_in_x_and_in_W(data, layer, algorithm):
    x, W, _, n = layer
    x2 = data.draw(matrices(*x.shape, 'd'))
    W2 = data.draw(matrices(*W.shape, 'd'))
    with patched(n, algorithm):
        y = F.linear(x, W).array
        for combined, other in (
            (F.linear(2 * x - 3 * x2, W), F.linear(x2, W)),
            (F.linear(x, 2 * W - 3 * W2), F.linear(x, W2)),
        ):
            numpy.testing.assert_allclose(
                combined.array, 2 * y - 3 * other.array, rtol=0, atol=1e-8
            )


@given(layers(n=st.just(1)), ALGORITHMS, BLOCKS)
def test_one_block_is_the_identity_of_the_patch(layer, algorithm, common_num):
    x, W, gy, _ = layer
    with_patch = run(x, W, gy, common_num, algorithm)
    uninstall()
    try:
        expected = run(x, W, gy)
    finally:
        install()
    for a, e in zip(with_patch, expected):
        numpy.testing.assert_array_equal(a, e)
