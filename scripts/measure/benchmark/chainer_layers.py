"""The layers that Chainer, NumPy and CuPy compute."""

import contextlib
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
import tracemalloc

import chainer_shared_patch
from chainer_shared_patch import blocks, patched
import chainer
import chainer.links as L
from measure.benchmark.timing import (
    Contender,
    make_activations,
    make_array,
    make_operands,
    make_product,
)
import numpy

TRAIN_MNIST = Path(__file__).resolve().parents[2] / 'train_mnist.py'
# With larger blocks than any parameter, Adam is Chainer's own.
WITHOUT_BLOCKS = f"""
import runpy, sys
from chainer_shared_patch.compat import adam
adam.BLOCK_SIZE = sys.maxsize
sys.path.insert(0, {str(TRAIN_MNIST.parent)!r})
runpy.run_path({str(TRAIN_MNIST)!r}, run_name='__main__')
"""


@contextlib.contextmanager
def inferring(context):
    with context(), chainer.no_backprop_mode():
        with chainer.using_config('train', False):
            yield


class Library:
    """Makes contenders, measures their memory, converts and trains."""

    def __init__(self, device):
        chainer_shared_patch.uninstall()
        self.device = chainer.get_device(device)
        self.device.use()
        self.xp = self.device.xp

    def make(self, name, layer):
        if name == 'product':
            operands = [
                self.device.send(each) for each in make_operands(layer)
            ]
            results = [
                list(map(self.xp.empty_like, each)) for each in operands
            ]
            return make_product(self.xp.dot, operands, results)
        if name == 'narrow':
            layer = layer._replace(in_size=layer.k)
        x, y = self.device.send(make_activations(layer))
        n = layer.common_num
        if name == 'copy':
            return Contender(x.copy, lambda _: self.xp.full_like(x, 1))
        if name == 'blocks':
            summed_x = blocks.sum_blocks(x, n).astype(layer.dtype)
            return Contender(
                lambda: blocks.sum_blocks(x, n),
                lambda _: blocks.tile_blocks(summed_x, n),
            )
        columns, context = layer.in_size, contextlib.nullcontext
        if name in ('sum', 'tile'):
            columns, context = layer.k, functools.partial(patched, n, name)
        elif name == 'dense-patched':
            context = functools.partial(patched, 1)
        # Constants, because drawing the largest W is slow.
        if layer.link == 'Linear':
            make, options = L.Linear, {'nobias': True, 'initialW': 0.01}
        else:
            make = L.StatelessLSTM
            options = {'lateral_init': 0.01, 'upward_init': 0.01}
        orders = name.partition('orders-')[2]
        if name == 'SharedLinear' or orders:
            make = chainer_shared_patch.SharedLinear
            options['common_num'] = n
        if orders:
            random = numpy.random.default_rng(0)
            options['order'] = [
                random.permutation(columns) for _ in range(int(orders))
            ]
        with chainer.using_config('dtype', numpy.dtype(layer.dtype)):
            link = make(columns, layer.out_size, **options)
        link.to_device(self.device)
        return self._make_contender(layer, link, x, y, context)

    def _make_contender(self, layer, link, x, y, context):
        inputs = [chainer.Variable(x)]
        if layer.link == 'StatelessLSTM':
            inputs = [chainer.Variable(y), chainer.Variable(y), *inputs]

        def forward():
            outputs = link(*inputs)
            return outputs[-1] if isinstance(outputs, tuple) else outputs

        def backward(output):
            output.grad = y
            output.backward()

        def reset():
            link.cleargrads()
            for variable in inputs:
                variable.cleargrad()

        if layer.inference:
            context = functools.partial(inferring, context)
            return Contender(forward, context=context)
        return Contender(forward, backward, reset, context)

    def synchronize(self):
        if self.xp is not numpy:
            self.xp.cuda.Stream.null.synchronize()

    def measure_memory(self, function):
        """Returns the result of a call, the bytes it left and its peak."""
        if self.xp is numpy:
            tracemalloc.start()
            result = function()
            _, peak = tracemalloc.get_traced_memory()
            snapshot = tracemalloc.take_snapshot()
            tracemalloc.stop()
            arrays = tracemalloc.DomainFilter(
                True, numpy.lib.tracemalloc_domain
            )
            traces = snapshot.filter_traces([arrays]).traces
            return result, sum(trace.size for trace in traces), peak
        pool = self.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        result = function()
        return result, pool.used_bytes() - before, pool.total_bytes() - before

    def share(self, layer, examples):
        """Returns the seconds and peak bytes of converting a dense layer."""
        W = make_array((layer.out_size, layer.in_size), layer.dtype)
        model = chainer.Sequential(
            L.Linear(layer.in_size, layer.out_size, True, W)
        ).to_device(self.device)
        inputs = None
        if examples:
            x = make_array((examples, layer.in_size), layer.dtype)
            inputs = self.device.send(x)
        del W
        begin = time.perf_counter()
        _, _, peak = self.measure_memory(
            lambda: chainer_shared_patch.share(
                model, layer.common_num, inputs=inputs
            )
        )
        return time.perf_counter() - begin, peak

    def train(self, name, dataset, epochs):
        """Runs train_mnist.py; returns the seconds of each epoch."""
        patch = '1' if name == 'sum' else '0'
        program = [TRAIN_MNIST]
        if name == 'dense-own-adam':
            program = ['-c', WITHOUT_BLOCKS]
        with tempfile.TemporaryDirectory() as out:
            process = subprocess.run(
                [
                    *(sys.executable, *program, '--epoch', str(epochs)),
                    *('--dataset', dataset, '--device', self.device.name),
                    *('--out', out),
                ],
                env={**os.environ, 'CHAINER_SHARED_PATCH': patch},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if process.returncode:
                raise RuntimeError(process.stderr.strip().split('\n')[-1])
            log = json.loads(Path(out, 'log').read_text())
        times = [entry['elapsed_time'] for entry in log]
        return numpy.diff([0, *times]).tolist()
