"""What newer versions of CuPy break in Chainer."""

import chainer
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.compat.test_numpy_removals import test_resize_images  # noqa: F401
from tests.helpers import DTYPES, integers

# Where W is 0, all sigmoids are 1/2, and the gradients are exact.


@pytest.mark.parametrize('dtype', DTYPES)
def test_gradient_of_negative_sampling(random, device, dtype):
    x = integers(random)(3, 4)
    t = numpy.array([0, 1, 1], 'i')
    samples = numpy.array([[0, 2], [1, 2], [1, 0]], 'i')
    W = chainer.Parameter(numpy.zeros((3, 4), dtype))
    W.to_device(device)
    F.negative_sampling(
        *device.send((x.astype(dtype), t)),
        W,
        lambda shape: device.send(samples),
        1,
    ).backward()
    expected = numpy.zeros(W.shape)
    numpy.add.at(expected, samples, x[:, None] * [[-0.5], [0.5]])
    numpy.testing.assert_array_equal(to_cpu(W.grad), expected)


@pytest.mark.parametrize('dtype', DTYPES)
def test_gradient_of_hierarchical_softmax(random, device, dtype):
    x = integers(random)(4, 5)
    t = numpy.arange(4, dtype='i')
    with chainer.using_config('dtype', numpy.dtype(dtype)):
        link = L.BinaryHierarchicalSoftmax(5, ((0, 1), (2, 3)))
    link.W.array[...] = 0
    link.to_device(device)
    link.cleargrads()
    link(*device.send((x.astype(dtype), t))).backward()
    # Per inner node, and class: left of it, right of it, or elsewhere.
    codes = numpy.array([[1, 1, -1, -1], [1, -1, 0, 0], [0, 0, 1, -1]])
    numpy.testing.assert_array_equal(to_cpu(link.W.grad), -codes @ x / 2)
