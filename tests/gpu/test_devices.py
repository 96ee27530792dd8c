"""More than one device: a GPU and the host, and several GPUs."""

import chainer
from chainer.backends import cuda
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.test_functions import make_arrays, reference

SIZES = (4, 3, 2, 5)


def compute(x, W, gy):
    x, W = chainer.Variable(x), chainer.Variable(W)
    with chainer.using_config('common_num', 3):
        y = F.linear(x, W)
    y.grad = gy
    y.backward()
    return y.array, x.grad, W.grad


@pytest.fixture
def second_device():
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs a second GPU')
    return chainer.get_device('@cupy:1')


def check(random, device):
    x, W, _ = make_arrays(random, *SIZES, nobias=True)
    gy = random.randn(4, 5)
    results = compute(*device.send((x, W, gy)))
    for result, expected in zip(results, reference(x, W, None, gy, 3)):
        assert chainer.backend.get_device_from_array(result) == device
        numpy.testing.assert_allclose(to_cpu(result), expected)


def test_device_that_is_not_the_current_one(random, device, second_device):
    device.use()
    check(random, second_device)
    check(random, device)


def test_link_that_moves(random, device):
    x = random.randn(4, 6).astype('f')
    link = L.Linear(2, 5, initialW=random.randn(5, 2).astype('f'))
    results = []
    with chainer.using_config('common_num', 3):
        for where in ('@numpy', device, '@numpy'):
            where = chainer.get_device(where)
            link.to_device(where)
            results.append(to_cpu(link(where.send(x)).array))
    numpy.testing.assert_array_equal(results[0], results[2])
    numpy.testing.assert_allclose(results[1], results[0], atol=1e-5)


def test_copy_between_the_devices_of_a_graph(random, device):
    x, W, _ = make_arrays(random, *SIZES, nobias=True)
    gy = random.randn(4, 5)
    on_host = chainer.Variable(x), chainer.Variable(W)
    with chainer.using_config('common_num', 3):
        y = F.linear(*(F.copy(v, device) for v in on_host))
    y = F.copy(y, '@numpy')
    y.grad = gy
    y.backward()
    results = [y.array, on_host[0].grad, on_host[1].grad]
    for result, expected in zip(results, reference(x, W, None, gy, 3)):
        assert isinstance(result, numpy.ndarray)
        numpy.testing.assert_allclose(result, expected)


def test_parallel_updater(random, device, second_device):
    x = random.randn(8, 6).astype('f')
    t = random.randint(0, 5, 8).astype('i')
    weights = []
    for devices in ({'main': device}, {'main': device, '1': second_device}):
        model = L.Classifier(L.Linear(2, 5, initialW=0.1))
        model.to_device(device)
        optimizer = chainer.optimizers.SGD(0.1).setup(model)
        iterator = chainer.iterators.SerialIterator(
            chainer.datasets.TupleDataset(x, t), 8, shuffle=False
        )
        updater = chainer.training.ParallelUpdater(
            iterator, optimizer, devices=devices
        )
        with chainer.using_config('common_num', 3):
            updater.update()
        # Each of two devices takes the mean over its half.
        step = to_cpu(model.predictor.W.array) - 0.1
        weights.append(step / len(devices))
    numpy.testing.assert_allclose(*weights, rtol=1e-3, atol=1e-6)
