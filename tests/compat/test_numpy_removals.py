import chainer_shared_patch  # noqa: F401
import chainer
from chainer.backends.cuda import to_cpu
from chainer.dataset import concat_examples
import chainer.functions as F
import numpy
import pytest

from tests import helpers
from tests.helpers import assert_close, assert_same


def test_pad_sequence_wraps_what_the_dtype_cannot_hold():
    xs = [numpy.array([1, 2], 'u1'), numpy.array([3, 4, 5], 'u1')]
    y = F.pad_sequence(xs, padding=-1)
    assert y.dtype == 'u1'
    assert y.array.tolist() == [[1, 2, 255], [3, 4, 5]]


def test_pad_sequence_of_floats():
    xs = [numpy.array([1.5], 'f'), numpy.array([2, 3], 'f')]
    y = F.pad_sequence(xs, length=3, padding=0.5)
    assert y.dtype == 'f'
    assert y.array.tolist() == [[1.5, 0.5, 0.5], [2, 3, 0.5]]


def interpolate(x, out_size, mode, align_corners):
    """Resizes the last axis, in float64."""
    size = x.shape[-1]
    positions = numpy.arange(out_size) * size / out_size
    if mode == 'nearest':
        return x[..., numpy.floor(positions).astype(int)]
    if align_corners:
        positions = numpy.linspace(0, size - 1, out_size)
    else:
        positions += size / out_size / 2 - 0.5
    return numpy.apply_along_axis(
        lambda row: numpy.interp(positions, numpy.arange(size), row), -1, x
    )


@pytest.mark.parametrize('out_shape', [(5, 7), (2, 3), (4, 9)])
@pytest.mark.parametrize(
    'mode, align_corners',
    [('bilinear', True), ('bilinear', False), ('nearest', False)],
)
def test_resize_images(random, out_shape, mode, align_corners):
    x = random.rand(2, 3, 4, 6).astype('f')
    y = F.resize_images(
        helpers.DEVICE.send(x),
        out_shape,
        mode=mode,
        align_corners=align_corners,
    )
    exact = x.astype('d')
    for out_size in reversed(out_shape):
        exact = interpolate(exact, out_size, mode, align_corners)
        exact = exact.swapaxes(-1, -2)
    # Four products with weights that are differences and products.
    assert_close(to_cpu(y.array), exact, numpy.ones(exact.shape), (16, 'f'))


@pytest.mark.parametrize('padding', [float('nan'), 1e40])
def test_padding_that_is_no_integer(padding):
    xs = [numpy.array([1, 2], 'i'), numpy.array([3], 'i')]
    with pytest.raises((ValueError, OverflowError)):
        F.pad_sequence(xs, padding=padding)


def test_concat_examples_wraps_what_the_dtype_cannot_hold():
    batch = [numpy.array([1], 'u1'), numpy.array([2, 3], 'u1')]
    array = concat_examples(batch, padding=-1)
    assert array.dtype == 'u1'
    assert array.tolist() == [[1, 255], [2, 3]]


def test_concat_examples_of_floats():
    batch = [numpy.array([1.5], 'f'), numpy.array([2, 3], 'f')]
    array = concat_examples(batch, padding=0.5)
    assert array.dtype == 'f'
    assert array.tolist() == [[1.5, 0.5], [2, 3]]


def test_categorical_log_prob(random):
    p = random.dirichlet(numpy.ones(4), size=(2, 3))
    x = random.randint(0, 4, (2, 3))
    distribution = chainer.distributions.Categorical(p=p)
    expected = numpy.log(numpy.take_along_axis(p, x[..., None], -1)[..., 0])
    for value in (x, chainer.Variable(x)):
        actual = distribution.log_prob(value).array
        assert_same([actual], [expected])


def test_debug_print_names_the_cpu():
    x = chainer.Variable(numpy.zeros((2, 3), 'f'))
    lines = x.debug_print().splitlines()
    assert '- device: CPU' in lines
    assert "- backend: <class 'numpy.ndarray'>" in lines
    assert '- shape: (2, 3)' in lines
