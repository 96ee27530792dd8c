"""Times contenders in rounds, each library in a process of its own.

The threads of two BLAS in one process would slow each other down. In each
round every contender has its turn, so a busy machine slows all of them alike.
"""

from concurrent.futures import ProcessPoolExecutor
import contextlib
import importlib
import multiprocessing
import time
from typing import Any, Callable, NamedTuple

import numpy

SECONDS_PER_TURN = 0.03
# A BLAS's threads keep spinning for a while after their work is done.
SECONDS_BETWEEN_LIBRARIES = 0.05


class Contender(NamedTuple):
    """Forward and backward of a layer; backward gets forward's result."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any] = lambda _: None
    reset: Callable[[], Any] = lambda: None
    context: Callable[[], Any] = contextlib.nullcontext


def make_array(shape, dtype):
    random = numpy.random.default_rng(0)
    return (random.random(shape, 'f') - 0.5).astype(dtype)


def make_activations(layer):
    """Returns arrays of the shapes of x and y."""
    sizes = (layer.in_size, layer.out_size)
    return [make_array((layer.batch_size, n), layer.dtype) for n in sizes]


def make_operands(layer):
    """Returns x, W and gy of each of the matrix products of a layer."""
    B, K, N = layer.batch_size, layer.k, layer.out_size
    sizes = [(B, K, N)]
    if layer.link == 'StatelessLSTM':
        sizes = [(B, K, 4 * N), (B, N, 4 * N)]
    return [
        [make_array(shape, layer.dtype) for shape in ((B, K), (N, K), (B, N))]
        for B, K, N in sizes
    ]


def make_product(dot, operands, results):
    """Makes the contender of matrix products into existing memory."""

    def forward():
        for (x, W, _), (_, _, y) in zip(operands, results):
            dot(x, W.T, out=y)

    def backward(_):
        for (x, W, gy), (gx, gW, _) in zip(operands, results):
            dot(gy, W, out=gx)
            dot(gy.T, x, out=gW)

    return Contender(forward, backward)


# ------------------------------------------- in the process of a library

_library: Any = None
_contenders: dict = {}


def start(library, device):
    """Makes this the process of a library."""
    global _library
    module = importlib.import_module(f'measure.benchmark.{library}_layers')
    _library = module.Library(device)


def prepare(names, layer):
    """Makes the contenders of a layer, in place of the previous layer's.

    Returns two dicts by name: the seconds that a call takes, and for what does
    not work on this machine, the reason.
    """
    _contenders.clear()
    seconds, absent = {}, {}
    for name in names:
        try:
            _contenders[name] = _library.make(name, layer)
            seconds[name] = time_calls(name, 1)[-1]
        except Exception as error:
            absent[name] = str(error).strip().split('\n')[0]
    return seconds, absent


def time_calls(name, number):
    """Returns the median seconds of forward, of backward and of both."""
    contender = _contenders[name]
    times = []
    with contender.context():
        # A few calls restore what the previous contender displaced in the
        # caches and the allocator.
        for _ in range(min(number, 3) + number):
            contender.reset()
            _library.synchronize()
            start = time.perf_counter()
            result = contender.forward()
            _library.synchronize()
            middle = time.perf_counter()
            contender.backward(result)
            _library.synchronize()
            end = time.perf_counter()
            times.append((middle - start, end - middle, end - start))
            del result
    return numpy.median(times[-number:], axis=0).tolist()


def measure_memory(name):
    """Returns the bytes that a call allocates.

    They are forward's peak, what forward keeps for backward in addition to
    its result, and backward's peak.
    """
    contender = _contenders[name]
    with contender.context():
        contender.reset()
        y, left, forward = _library.measure_memory(contender.forward)
        _, _, backward = _library.measure_memory(lambda: contender.backward(y))
        return forward, left - y.array.nbytes, backward


def call(method, *args):
    """Calls a method of the library."""
    return getattr(_library, method)(*args)


# ---------------------------------------------------- in the main process


class Processes:
    """One process for each library, started by its first call."""

    def __init__(self, device):
        self._device = device
        self._pools = {}

    def run(self, library, function, *args):
        """Calls a function in the process of a library."""
        if library not in self._pools:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
            started = pool.submit(start, library, self._device)
            self._pools[library] = pool, started
        pool, started = self._pools[library]
        started.result()  # which raises an ImportError if it is missing
        return pool.submit(function, *args).result()


def measure_layer(processes, layer, contenders, rounds):
    """Measures contenders, a dict by name of their libraries and descriptions.

    Returns a dict by name: the seconds of forward, backward and both in each
    round, and perhaps bytes of memory; or why the contender is absent.
    """
    results, turns = {}, []
    for library in dict.fromkeys(
        library for library, _ in contenders.values()
    ):
        names = [n for n, (other, _) in contenders.items() if other == library]
        try:
            seconds, absent = processes.run(library, prepare, names, layer)
        except ImportError as error:
            seconds, absent = {}, dict.fromkeys(names, str(error))
        results.update({name: {'absent': absent[name]} for name in absent})
        results.update({name: {'seconds': []} for name in seconds})
        if seconds:
            turns.append((library, seconds))
    for number in range(rounds):
        turns.reverse()
        for library, seconds in turns:
            time.sleep(SECONDS_BETWEEN_LIBRARIES)
            names = list(seconds)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                calls = int(SECONDS_PER_TURN / seconds[name])
                calls = min(max(calls, 1), 100)
                times = processes.run(library, time_calls, name, calls)
                results[name]['seconds'].append(times)
    for name in 'sum', 'tile', 'dense', 'dense-patched', 'narrow':
        if 'seconds' in results.get(name, ()) and not layer.inference:
            nbytes = processes.run('chainer', measure_memory, name)
            results[name]['bytes'] = nbytes
    return {name: results[name] for name in contenders}


def measure_training(processes, trainings, dataset, rounds, epochs):
    """Returns the median seconds per epoch in each round, by name."""
    results = {name: {'seconds': []} for name in trainings}
    for _ in range(rounds):
        for name, (library, _) in trainings.items():
            args = 'train', name, dataset, epochs
            if 'absent' not in results[name]:
                try:
                    seconds = processes.run(library, call, *args)
                except Exception as error:
                    results[name] = {'absent': str(error)}
                else:
                    median = float(numpy.median(seconds))
                    results[name]['seconds'].append(median)
    return results
