"""SharedLinear on the GPU: tests of the CPU, computed there, and moves."""

from chainer_shared_patch import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.serializers import load_npz, save_npz
import numpy
import pytest

from tests.helpers import (
    PERMUTATION,
    SIZES,
    K,
    N,
    integers,
    make_arrays,
    reference,
)
from tests.test_links import (  # noqa: F401
    TestArithmetic,
    patch,
    test_static_graph,
)


@pytest.fixture
def arrays(random):
    return [a.astype('f') for a in make_arrays(integers(random), *SIZES)]


def check(link, where, arrays):
    x, W, b, gy = arrays
    link.cleargrads()
    v = chainer.Variable(where.send(x))
    y = link(v)
    y.grad = where.send(gy)
    y.backward()
    assert chainer.backend.get_device_from_array(link.order) == where
    expected = reference(x[:, PERMUTATION], W, b, gy, N)
    actual = y.array, v.grad[:, link.order], link.W.grad, link.b.grad
    for a, e in zip(actual, expected):
        assert chainer.backend.get_device_from_array(a) == where
        numpy.testing.assert_array_equal(to_cpu(a), e)


def test_link_that_moves(arrays, device):
    _, W, b, _ = arrays
    link = SharedLinear.from_params(W, b, common_num=N, order=PERMUTATION)
    for where in ('@numpy', device, '@numpy'):
        where = chainer.get_device(where)
        link.to_device(where)
        check(link, where, arrays)


def test_parameters_and_order_from_the_gpu(arrays, device):
    _, W, b, _ = arrays
    W, b, order = device.send([W, b, PERMUTATION])
    link = SharedLinear.from_params(W, b, common_num=N, order=order)
    check(link.to_device(device), device, arrays)


def test_width_that_is_known_on_the_gpu(device):
    link = SharedLinear(None, 5, common_num=N, order='interleaved')
    link.to_device(device)
    link(device.xp.zeros((4, N * K), 'f'))
    assert chainer.backend.get_device_from_array(link.order) == device
    assert str(link).endswith('order=[0 3 1 4 2 5])')


def test_file_and_copyparams(arrays, device, tmp_path):
    _, W, b, _ = arrays
    host = chainer.get_device('@numpy')
    source = SharedLinear.from_params(W, b, common_num=N, order=PERMUTATION)
    for saved_on, loaded_on in ((host, device), (device, host)):
        source.to_device(saved_on)
        save_npz(str(tmp_path / 'link.npz'), source)
        target = SharedLinear(N * K, 5, common_num=N).to_device(loaded_on)
        load_npz(str(tmp_path / 'link.npz'), target)
        check(target, loaded_on, arrays)
        target = SharedLinear(N * K, 5, common_num=N).to_device(loaded_on)
        target.copyparams(source)
        check(target, loaded_on, arrays)
