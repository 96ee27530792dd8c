"""What the benchmark compares, and how it measures that.

Each library's contenders live in a process of their own, as the threads of
two BLAS in one process disturb each other. The functions at the end are what
is called in such a process.
"""

import contextlib
import importlib
import signal
import time
from typing import Any, Callable, NamedTuple

import numpy

# By name: the library whose process it runs in, and what it is.
CONTENDERS = {
    'sum': ('chainer', 'this plugin: sums the blocks of x, multiplies once'),
    'tile': ('chainer', "the article's algorithm: builds the wide weight"),
    'dense': ('chainer', "Chainer's own dense layer, unpatched"),
    'dense-patched': ('chainer', 'that layer under the patch'),
    'torch-dense': ('torch', "PyTorch's dense layer"),
    'torch-sum': ('torch', 'PyTorch with the same sum by hand, eager'),
    'torch-compile': ('torch', 'that through `torch.compile`'),
    'narrow': ('chainer', "Chainer's dense layer on in_size / n inputs"),
    'blocks': ('chainer', '`sum_blocks`, and `tile_blocks` in backward'),
    'copy': ('chainer', 'a copy of x, and in backward a new gx written once'),
    'product': ('chainer', "the layer's matrix products alone: the floor"),
}
FLOOR = ('blocks', 'copy', 'product')
TRAININGS = {
    'sum': ('chainer', 'Chainer, shared: `scripts/train_mnist.py`'),
    'dense': ('chainer', 'Chainer, dense: that with `CHAINER_SHARED_PATCH=0`'),
    'torch-sum': ('torch', 'PyTorch, shared, eager'),
    'torch-dense': ('torch', 'PyTorch, dense, eager'),
    'torch-sum-fused': ('torch', 'PyTorch, shared, fused Adam'),
    'torch-dense-fused': ('torch', 'PyTorch, dense, fused Adam'),
}


class Row(NamedTuple):
    """A layer and the size of its batch."""

    name: str
    batch_size: int
    in_size: int
    out_size: int
    common_num: int
    link: str = 'Linear'
    dtype: str = 'float32'

    @property
    def k(self):
        """Columns of a block."""
        return self.in_size // self.common_num

    @property
    def products(self):
        """Shapes (B, K, N) of the matrix products of its forward pass."""
        if self.link == 'Linear':
            return [(self.batch_size, self.k, self.out_size)]
        units = 4 * self.out_size
        return [
            (self.batch_size, self.k, units),
            (self.batch_size, self.out_size, units),
        ]


class Contender(NamedTuple):
    """Forward and backward of a row; backward is given forward's result."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    reset: Callable[[], Any] = lambda: None
    context: Callable[[], Any] = contextlib.nullcontext


def make_array(*shape, dtype='float32'):
    random = numpy.random.default_rng(0)
    return (random.random(shape, 'f') - 0.5).astype(dtype)


_library: Any = None
_contenders: dict = {}


def start(library, device):
    """Makes this process that of a library."""
    global _library
    # Ctrl-C is for the process that waits for this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _library = importlib.import_module('benchmark_' + library).Library(device)


def prepare(names, row):
    """Makes the contenders of a row in the place of those before.

    Returns:
        dict: By name, the seconds of a call, or why it does not work here.

    """
    _contenders.clear()
    results = {}
    for name in names:
        _contenders[name] = _library.make(name, row)
        try:
            *_, results[name] = time_calls(name, 1)
        except Exception as error:
            if name != 'torch-compile':
                raise
            results[name] = str(error).strip().split('\n')[0]
    return results


def time_calls(name, number):
    """Returns the seconds of forward, of backward and of both.

    They are medians of calls, after some that get what the contender before
    has left out of caches and of the allocator.
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
    """Returns the bytes that a contender takes beyond those it has.

    The peaks of forward and of backward, and what forward keeps for backward
    in addition to its result.
    """
    contender = _contenders[name]
    with contender.context():
        contender.reset()
        y, left, forward = _library.measure_memory(contender.forward)
        _, _, backward = _library.measure_memory(lambda: contender.backward(y))
        nbytes = getattr(y, 'array', y).nbytes
        return forward, left - nbytes, backward


def train(name, dataset, epochs):
    return _library.train(name, dataset, epochs)
