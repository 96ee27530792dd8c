import chainer
from chainer.backends import cuda
import numpy
import pytest


@pytest.mark.parametrize('transfer_dtype', ['e', 'f', 'd'])
def test_gradients_pass_through_the_buffer(random, transfer_dtype):
    pytest.importorskip('mpi4py.MPI')
    nccl = pytest.importorskip('chainermn.nccl')
    if not nccl._available:
        pytest.skip('needs NCCL')
    from chainermn.communicators import _memory_utility

    # What is exact in each dtype.
    grads = [
        cuda.to_gpu(random.randint(-9, 10, shape).astype(dtype))
        for shape, dtype in (((2, 3), 'f'), ((4,), 'e'), ((), 'd'))
    ]
    params = [chainer.Parameter(cuda.cupy.empty_like(g)) for g in grads]
    for param, grad in zip(params, grads):
        param.grad = grad.copy()
    buffer = _memory_utility.DeviceMemory()
    buffer.assign(11 * numpy.dtype(transfer_dtype).itemsize)
    data = _memory_utility.ParamsData(params, 'grad', zero_fill=False)
    dtype = numpy.dtype(transfer_dtype)
    _memory_utility._batched_pack_params(data, buffer, dtype)
    expected = numpy.concatenate([grad.get().ravel() for grad in grads])
    packed = buffer.array(11, dtype=dtype)
    numpy.testing.assert_array_equal(packed.get(), expected)
    for param in params:
        param.grad[...] = 0
    _memory_utility._batched_unpack_params(data, buffer, dtype)
    for param, grad in zip(params, grads):
        assert param.grad.dtype == grad.dtype
        numpy.testing.assert_array_equal(param.grad.get(), grad.get())
