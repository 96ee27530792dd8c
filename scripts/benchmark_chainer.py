"""The contenders that are computed by Chainer, NumPy and CuPy."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc

import chainer_shared_patch
from chainer_shared_patch import blocks, patched
from benchmark_contenders import Contender, make_array
import chainer
import chainer.links as L
import numpy
import train_mnist


class Library:
    """Makes the contenders, measures their memory, trains."""

    def __init__(self, device):
        chainer_shared_patch.uninstall()
        self.device = chainer.get_device(device)
        self.device.use()
        self.xp = self.device.xp

    def make(self, name, row):
        special = {
            'blocks': self._make_blocks,
            'copy': self._make_copy,
            'product': self._make_product,
        }
        if name in special:
            return special[name](row)
        contexts = {
            'sum': functools.partial(patched, row.common_num, 'sum'),
            'tile': functools.partial(patched, row.common_num, 'tile'),
            'dense': contextlib.nullcontext,
            'dense-patched': functools.partial(patched, 1),
            'narrow': contextlib.nullcontext,
        }
        if name == 'narrow':
            row = row._replace(in_size=row.k)
        columns = row.k if name in ('sum', 'tile') else row.in_size
        return self._make_link(row, columns, contexts[name])

    def _make_link(self, row, columns, context):
        # Constants, as it would take a while to draw the largest W.
        with chainer.using_config('dtype', numpy.dtype(row.dtype)):
            if row.link == 'Linear':
                link = L.Linear(
                    columns, row.out_size, nobias=True, initialW=0.01
                )
            else:
                link = L.StatelessLSTM(
                    columns, row.out_size, lateral_init=0.01, upward_init=0.01
                )
        link.to_device(self.device)
        x, y = self._make_activations(row)
        inputs = [chainer.Variable(x)]
        if row.link == 'StatelessLSTM':
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

        return Contender(forward, backward, reset, context)

    def _make_activations(self, row):
        x = make_array(row.batch_size, row.in_size, dtype=row.dtype)
        y = make_array(row.batch_size, row.out_size, dtype=row.dtype)
        return self.device.send((x, y))

    def _make_blocks(self, row):
        x, _ = self._make_activations(row)
        summed_x = blocks.sum_blocks(x, row.common_num).astype(row.dtype)
        return Contender(
            lambda: blocks.sum_blocks(x, row.common_num),
            lambda _: blocks.tile_blocks(summed_x, row.common_num),
        )

    def _make_copy(self, row):
        x, _ = self._make_activations(row)
        return Contender(x.copy, lambda _: self.xp.full_like(x, 1))

    def _make_product(self, row):
        operands = [
            [
                self.device.send(make_array(*shape, dtype=row.dtype))
                for shape in ((B, K), (N, K), (B, N))
            ]
            for B, K, N in row.products
        ]
        results = [[self.xp.empty_like(a) for a in each] for each in operands]

        def forward():
            for (x, W, _), (_, _, y) in zip(operands, results):
                self.xp.dot(x, W.T, out=y)

        def backward(_):
            for (x, W, gy), (gx, gW, _) in zip(operands, results):
                self.xp.dot(gy, W, out=gx)
                self.xp.dot(gy.T, x, out=gW)

        return Contender(forward, backward)

    def synchronize(self):
        if self.xp is not numpy:
            self.xp.cuda.Stream.null.synchronize()

    def measure_memory(self, function):
        """Calls a function; also returns the bytes it left and its peak."""
        if self.xp is numpy:
            tracemalloc.start()
            result = function()
            _, peak = tracemalloc.get_traced_memory()
            snapshot = tracemalloc.take_snapshot()
            tracemalloc.stop()
            arrays = tracemalloc.DomainFilter(
                True, numpy.lib.tracemalloc_domain
            )
            left = sum(
                trace.size for trace in snapshot.filter_traces([arrays]).traces
            )
            return result, left, peak
        pool = self.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        result = function()
        return result, pool.used_bytes() - before, pool.total_bytes() - before

    def train(self, name, dataset, epochs):
        """Runs train_mnist.py; returns the seconds of each epoch."""
        patch = '0' if name == 'dense' else '1'
        with tempfile.TemporaryDirectory() as out:
            subprocess.run(
                [
                    *(sys.executable, train_mnist.__file__),
                    *('--epoch', str(epochs), '--dataset', dataset),
                    *('--device', self.device.name, '--common-num', '10'),
                    *('--out', out),
                ],
                env={
                    **os.environ,
                    'CHAINER_DTYPE': 'float32',
                    'CHAINER_SHARED_ALGORITHM': 'sum',
                    'CHAINER_SHARED_PATCH': patch,
                },
                check=True,
                stdout=subprocess.DEVNULL,
            )
            with open(os.path.join(out, 'log')) as file:
                times = [entry['elapsed_time'] for entry in json.load(file)]
        return numpy.diff([0, *times]).tolist()
