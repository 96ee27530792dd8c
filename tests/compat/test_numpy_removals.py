import chainer_shared_patch  # noqa: F401
import chainer
from chainer.dataset import concat_examples
import chainer.functions as F
import numpy
import pytest

from tests.helpers import assert_same


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
