"""What the benchmark compares, and how a contender is measured.

Each library's contenders live in a process of their own, because the threads
of two BLAS in one process slow each other down. The functions here run in
such a process.
"""

import contextlib
import importlib
import signal
import time
from typing import Any, Callable, NamedTuple

import numpy

# By name: the library in whose process it runs, and what it is.
CONTENDERS = {
    'sum': ('chainer', 'this plugin: sums the blocks of x, then multiplies'),
    'tile': ('chainer', "the article's algorithm: builds the wide weight"),
    'dense': ('chainer', "Chainer's ordinary layer, without the patch"),
    'dense-patched': ('chainer', 'the same layer under the patch'),
    'torch-dense': ('torch', "PyTorch's own layer"),
    'torch-sum': ('torch', 'PyTorch with the sum written by hand, eager'),
    'torch-compile': ('torch', 'the same through `torch.compile`'),
    'narrow': ('chainer', "Chainer's ordinary layer on in_size / n inputs"),
    'blocks': ('chainer', '`sum_blocks`; in backward, `tile_blocks`'),
    'copy': ('chainer', 'a copy of x; in backward, one write of a new gx'),
    'product': ('chainer', "only the layer's matrix products: the floor"),
    'torch-product': ('torch', 'the same products in PyTorch'),
}
FLOOR = ('blocks', 'copy', 'product', 'torch-product')
INFERENCES = {
    'sum': CONTENDERS['sum'],
    'SharedLinear': ('chainer', "this plugin's link, without the patch"),
    'torch-sum': CONTENDERS['torch-sum'],
    'onnxruntime': ('onnxruntime', 'the same link, exported to ONNX'),
}
TRAININGS = {
    'sum': ('chainer', 'Chainer, shared: `scripts/train_mnist.py`'),
    'sum-blockwise': ('chainer', 'Chainer, shared, `--blockwise-adam`'),
    'dense': ('chainer', 'Chainer, dense: `CHAINER_SHARED_PATCH=0`'),
    'torch-sum': ('torch', 'PyTorch, shared, eager'),
    'torch-dense': ('torch', 'PyTorch, dense, eager'),
    'torch-sum-fused': ('torch', 'PyTorch, shared, fused Adam'),
    'torch-dense-fused': ('torch', 'PyTorch, dense, fused Adam'),
}


class Contender(NamedTuple):
    """Forward and backward of a row; backward gets forward's result."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any] = lambda _: None
    reset: Callable[[], Any] = lambda: None
    context: Callable[[], Any] = contextlib.nullcontext


def make_array(shape, dtype):
    random = numpy.random.default_rng(0)
    return (random.random(shape, 'f') - 0.5).astype(dtype)


def make_activations(row):
    """Returns arrays of the shapes of x and y."""
    sizes = (row.in_size, row.out_size)
    return tuple(make_array((row.batch_size, n), row.dtype) for n in sizes)


def make_operands(row):
    """Returns x, W and gy of each of the matrix products of a row."""
    B, K, N = row.batch_size, row.k, row.out_size
    sizes = [(B, K, N)]
    if row.link == 'StatelessLSTM':
        sizes = [(B, K, 4 * N), (B, N, 4 * N)]
    return [
        [make_array(shape, row.dtype) for shape in ((B, K), (N, K), (B, N))]
        for B, K, N in sizes
    ]


_library: Any = None
_contenders: dict = {}


def start(library, device):
    """Makes this the process of a library."""
    global _library
    # The parent process handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module = importlib.import_module(library + '_contenders')
    _library = module.Library(device)


def prepare(names, row):
    """Makes the contenders of a row, in place of the previous row's.

    Returns:
        tuple: Two dicts by name: the seconds that one call takes, and for
        those that do not work here, the reason.

    """
    _contenders.clear()
    seconds, absent = {}, {}
    for name in names:
        _contenders[name] = _library.make(name, row)
        try:
            *_, seconds[name] = time_calls(name, 1)
        except Exception as error:
            if name != 'torch-compile':
                raise
            absent[name] = str(error).strip().split('\n')[0]
    return seconds, absent


def time_calls(name, number):
    """Returns the seconds of forward, of backward and of both.

    They are medians over calls. A few calls before those restore what the
    previous contender displaced in the caches and the allocator.
    """
    contender = _contenders[name]
    synchronize = _library.synchronize
    times = []
    with contender.context():
        for _ in range(min(number, 3) + number):
            contender.reset()
            synchronize()
            start = time.perf_counter()
            result = contender.forward()
            synchronize()
            middle = time.perf_counter()
            contender.backward(result)
            synchronize()
            end = time.perf_counter()
            times.append((middle - start, end - middle, end - start))
            del result
    return numpy.median(times[-number:], axis=0).tolist()


def measure_memory(name):
    """Returns the bytes that a contender allocates in one call.

    They are forward's peak, what forward keeps for backward in addition to
    its result, and backward's peak.
    """
    contender = _contenders[name]
    with contender.context():
        contender.reset()
        y, left, forward = _library.measure_memory(contender.forward)
        _, _, backward = _library.measure_memory(lambda: contender.backward(y))
        nbytes = getattr(y, 'array', y).nbytes
        return forward, left - nbytes, backward


def share(row, examples):
    return _library.share(row, examples)


def train(name, dataset, epochs):
    return _library.train(name, dataset, epochs)
