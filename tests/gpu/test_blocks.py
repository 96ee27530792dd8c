from chainer_shared_patch import blocks, config, patched
import chainer
from chainer.backends import cuda
import chainer.functions as F
import numpy
import pytest


def gpu_is_there():
    if not cuda.available:
        return False
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount() > 0
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_is_there(), reason='needs CuPy and a GPU'),
]


@pytest.mark.parametrize('dtype', ['e', 'f', 'd'])
@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize(
    ('batch_size', 'n', 'k'), [(5, 4, 3), (0, 4, 3), (4, 6, 1), (3, 65, 9000)]
)
def test_sum_and_tile(random, batch_size, n, k, order, dtype):
    x = numpy.asarray(random.randn(batch_size, n * k), dtype, order)
    y = blocks.sum_blocks(cuda.cupy.asarray(x, order=order), n)
    expected = x.astype('d').reshape(batch_size, n, k).sum(axis=1)
    assert y.dtype == dtype
    bound = numpy.finfo(dtype).eps * abs(
        x.astype('d').reshape(batch_size, n, k)
    ).sum(axis=1)
    assert (abs(cuda.to_cpu(y) - expected) <= bound).all()

    tiled = blocks.tile_blocks(y, n)
    numpy.testing.assert_array_equal(
        cuda.to_cpu(tiled), numpy.tile(cuda.to_cpu(y), (1, n))
    )


@pytest.mark.parametrize('algorithm', config.ALGORITHMS)
def test_shared_layer(random, algorithm):
    x = random.randn(6, 40).astype('f')
    W = random.randn(5, 4).astype('f')
    b = random.randn(5).astype('f')
    results = []
    for device in ('@numpy', '@cupy:0'):
        device = chainer.get_device(device)
        inputs = [chainer.Variable(device.send(a.copy())) for a in (x, W, b)]
        with patched(10, algorithm):
            y = F.linear(*inputs)
        F.sum(y**2).backward()
        results.append(
            [cuda.to_cpu(a) for a in [y.array] + [v.grad for v in inputs]]
        )
    for on_cpu, on_gpu in zip(*results):
        numpy.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)
