"""More than one device: a GPU and the host, and several GPUs."""

import chainer
from chainer.backends import cuda
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.helpers import (
    SIZES,
    K,
    N,
    assert_same,
    integers,
    make_arrays,
    reference,
)


@pytest.fixture
def second_device():
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs a second GPU')
    return chainer.get_device('@cupy:1')


def check(random, device):
    x, W, b, gy = make_arrays(integers(random), *SIZES)
    inputs = [chainer.Variable(a) for a in device.send((x, W, b))]
    with chainer.using_config('common_num', N):
        y = F.linear(*inputs)
    y.grad = device.send(gy)
    y.backward()
    results = [y.array, *(v.grad for v in inputs)]
    for result, expected in zip(results, reference(x, W, b, gy, N)):
        assert chainer.backend.get_device_from_array(result) == device
        numpy.testing.assert_array_equal(to_cpu(result), expected)


def test_device_that_is_not_the_current_one(random, device, second_device):
    device.use()
    check(random, second_device)
    check(random, device)


def test_link_that_moves(random, device):
    x, W, b, gy = make_arrays(integers(random), *SIZES)
    link = L.Linear(K, 5, initialW=W, initial_bias=b)
    expected, *_ = reference(x, W, b, gy, N)
    with chainer.using_config('common_num', N):
        for where in ('@numpy', device, '@numpy'):
            where = chainer.get_device(where)
            link.to_device(where)
            y = link(where.send(x.astype('f'))).array
            numpy.testing.assert_array_equal(to_cpu(y), expected)


def test_copy_between_the_devices_of_a_graph(random, device):
    *arrays, gy = make_arrays(integers(random), *SIZES)
    inputs = [chainer.Variable(a) for a in arrays]
    with chainer.using_config('common_num', N):
        y = F.linear(*(F.copy(v, device) for v in inputs))
    y = F.copy(y, '@numpy')
    y.grad = gy
    y.backward()
    results = [y.array, *(v.grad for v in inputs)]
    for result, expected in zip(results, reference(*arrays, gy, N)):
        assert isinstance(result, numpy.ndarray)
        numpy.testing.assert_array_equal(result, expected)


def test_parallel_updater(random, device, second_device):
    x = random.randn(8, N * K)
    t = random.randint(0, 5, 8).astype('i')
    weights = []
    for devices in ({'main': device}, {'main': device, '1': second_device}):
        with chainer.using_config('dtype', 'd'):
            model = L.Classifier(L.Linear(K, 5, initialW=0.1))
        model.to_device(device)
        optimizer = chainer.optimizers.SGD(0.1).setup(model)
        iterator = chainer.iterators.SerialIterator(
            chainer.datasets.TupleDataset(x, t), 8, shuffle=False
        )
        updater = chainer.training.ParallelUpdater(
            iterator, optimizer, devices=devices
        )
        with chainer.using_config('common_num', N):
            updater.update()
        # Each of two devices takes the mean over its half.
        step = to_cpu(model.predictor.W.array) - 0.1
        weights.append(step / len(devices))
    assert_same(weights[:1], weights[1:])
