"""The contenders that Chainer, NumPy and CuPy compute."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc

import chainer_shared_patch
from chainer_shared_patch import blocks, patched
import chainer
import chainer.links as L
from contenders import (
    Contender,
    make_activations,
    make_array,
    make_operands,
)
import numpy
import train_mnist


@contextlib.contextmanager
def inferring(context):
    with context(), chainer.no_backprop_mode():
        with chainer.using_config('train', False):
            yield


class Library:
    """Makes contenders, measures their memory, and trains."""

    def __init__(self, device):
        chainer_shared_patch.uninstall()
        self.device = chainer.get_device(device)
        self.device.use()
        self.xp = self.device.xp

    def make(self, name, row):
        if name == 'product':
            return self._make_product(row)
        if name == 'narrow':
            row = row._replace(in_size=row.k)
        x, y = self.device.send(make_activations(row))
        if name == 'copy':
            return Contender(x.copy, lambda _: self.xp.full_like(x, 1))
        if name == 'blocks':
            summed_x = blocks.sum_blocks(x, row.common_num).astype(row.dtype)
            return Contender(
                lambda: blocks.sum_blocks(x, row.common_num),
                lambda _: blocks.tile_blocks(summed_x, row.common_num),
            )
        columns, context = row.in_size, contextlib.nullcontext
        if name in ('sum', 'tile'):
            columns = row.k
            context = functools.partial(patched, row.common_num, name)
        elif name == 'dense-patched':
            context = functools.partial(patched, 1)
        # Constants, because drawing the largest W is slow.
        if row.link == 'Linear':
            make, options = L.Linear, {'nobias': True, 'initialW': 0.01}
        else:
            make = L.StatelessLSTM
            options = {'lateral_init': 0.01, 'upward_init': 0.01}
        if name == 'SharedLinear':
            make = chainer_shared_patch.SharedLinear
            options['common_num'] = row.common_num
        with chainer.using_config('dtype', numpy.dtype(row.dtype)):
            link = make(columns, row.out_size, **options)
        link.to_device(self.device)
        return self._make_contender(row, link, x, y, context)

    def _make_contender(self, row, link, x, y, context):
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

        if row.inference:
            context = functools.partial(inferring, context)
            return Contender(forward, context=context)
        return Contender(forward, backward, reset, context)

    def _make_product(self, row):
        operands = [self.device.send(each) for each in make_operands(row)]
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
            left = sum(
                trace.size for trace in snapshot.filter_traces([arrays]).traces
            )
            return result, left, peak
        pool = self.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        result = function()
        return result, pool.used_bytes() - before, pool.total_bytes() - before

    def share(self, row, examples):
        """Converts an ordinary layer with a random weight.

        Returns:
            tuple: The seconds and the peak of the bytes that this takes.

        """
        W = make_array((row.out_size, row.in_size), row.dtype)
        link = L.Linear(row.in_size, row.out_size, True, W)
        model = chainer.Sequential(link)
        model.to_device(self.device)
        inputs = None
        if examples:
            x = make_array((examples, row.in_size), row.dtype)
            inputs = self.device.send(x)
        del W, link
        begin = time.perf_counter()
        _, _, peak = self.measure_memory(
            lambda: chainer_shared_patch.share(
                model, row.common_num, inputs=inputs
            )
        )
        return time.perf_counter() - begin, peak

    def train(self, name, dataset, epochs):
        """Runs train_mnist.py; returns the seconds of each epoch.

        If it fails, raises an error with the last line that it printed.
        """
        environment = {
            **os.environ,
            'CHAINER_DTYPE': 'float32',
            'CHAINER_SHARED_ALGORITHM': 'sum',
            'CHAINER_SHARED_PATCH': '0' if name == 'dense' else '1',
        }
        command = [sys.executable, train_mnist.__file__, '--common-num', '10']
        command += ['--epoch', str(epochs), '--dataset', dataset]
        command += ['--device', self.device.name]
        if name == 'sum-blockwise':
            command.append('--blockwise-adam')
        with tempfile.TemporaryDirectory() as out:
            process = subprocess.run(
                [*command, '--out', out],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if process.returncode:
                raise RuntimeError(process.stderr.strip().split('\n')[-1])
            with open(os.path.join(out, 'log')) as file:
                times = [entry['elapsed_time'] for entry in json.load(file)]
        return numpy.diff([0, *times]).tolist()
