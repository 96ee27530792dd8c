#!/usr/bin/env python
"""Checks that Chainer computes the same on two stacks of Python and NumPy.

.. code-block:: console

    $ git clone --branch v7.8.1 https://github.com/chainer/chainer
    $ python scripts/upstream/same_results.py record chainer old.gz
    $ python scripts/upstream/same_results.py record chainer new.gz
    $ python scripts/upstream/same_results.py compare old.gz new.gz

Run each ``record`` on a stack of its own. It runs Chainer's tests, with the
same random numbers everywhere, and keeps a digest of what each function takes
and returns, forward and backward, of how each optimizer changes a parameter,
and of what each initializer produces. It needs what run_chainer_tests.py
needs, and takes about ten minutes.

``compare`` lists results that differ in data type or shape, or by more than
rounding, although computed from the same inputs. It exits with status 1 if any
of them is not explained by EXPLAINED.
"""

import argparse
import collections
import functools
import gzip
import json
from pathlib import Path
import random
import re
import sys
import zlib

import chainer_shared_patch  # noqa: F401
import chainer
from chainer import _backprop_utils
import numpy
from run_chainer_tests import run_pytest

# The largest difference allowed, in units of the roundoff of the least precise
# data type in a call, times the mean magnitude of what makes up an output.
ROUNDINGS = 16
# Patterns of tests and calls, and why their results may differ.
EXPLAINED = {
    r'DecorrelatedBatchNormalization': (
        'LAPACK decomposes a nearly singular covariance'
    ),
    r'MSVAGRule': 'a variance is the difference of nearly equal numbers',
    r'TestBernoulliLogProb_param_2_': (
        'NumPy 2 widens float32 beside a 0-dimensional float64'
    ),
}


def identify(nodeid):
    """Returns a test's name without its parameters, whose repr may differ."""
    return re.sub(r'\{.*\}', '', nodeid)


def seed(name):
    number = zlib.crc32(name.encode())
    numpy.random.seed(number)
    random.seed(number)


class SeededRandomState(numpy.random.RandomState):
    """The RandomState of tests that do not give a seed."""

    def __init__(self, seed=0):
        super().__init__(seed)


def digest(array):
    """Returns an array's dtype, shape, non-finite elements and two means.

    The means are those of the magnitudes, and of the elements with random
    signs.
    """
    values = array.astype('d').ravel()
    finite = numpy.isfinite(values)
    values[~finite] = 0
    signs = random_signs(values.size)
    size = max(1, values.size)
    return (
        array.dtype.str,
        array.shape,
        int(values.size - finite.sum()),
        abs(values).sum() / size,
        signs.dot(values) / size,
    )


@functools.lru_cache(None)
def random_signs(size):
    return numpy.random.RandomState(0).choice([-1.0, 1.0], size)


class Recorder:
    """A pytest plugin that writes what tests compute."""

    def __init__(self, file):
        self.file = file
        self.test = 'the collection of tests'

    def pytest_collectstart(self, collector):
        seed(identify(collector.nodeid))

    def pytest_runtest_setup(self, item):
        self.test = identify(item.nodeid)
        seed(self.test)

    def record(self, what, inputs, outputs):
        digests = [
            [
                digest(array)
                for array in (getattr(x, 'array', x) for x in variables)
                if isinstance(array, numpy.ndarray)
                and array.dtype.kind in 'biuf'
            ]
            for variables in (inputs, outputs)
        ]
        self.file.write(json.dumps([self.test, what, *digests]) + '\n')


def observe_chainer(recorder):
    """Makes Chainer tell the recorder what it computes."""
    apply = chainer.FunctionNode.apply
    step = _backprop_utils.backprop_step
    update = chainer.UpdateRule.update
    generate_array = chainer.initializers.generate_array

    def name_of(node):
        # FunctionAdapter stands for an old-style Function.
        return type(getattr(node, 'function', node)).__name__

    @functools.wraps(apply)
    def observed_apply(self, inputs):
        outputs = apply(self, inputs)
        recorder.record(name_of(self) + ', forward', inputs, outputs)
        return outputs

    @functools.wraps(step)
    def observed_step(func, indexes, grad_outputs, grad_inputs, is_debug):
        inputs = [x.data for x in func.inputs]
        step(func, indexes, grad_outputs, grad_inputs, is_debug)
        gxs = [gx for i in indexes for gx in grad_inputs[func.inputs[i]][-1:]]
        recorder.record(
            name_of(func) + ', backward', [*inputs, *grad_outputs], gxs
        )

    @functools.wraps(update)
    def observed_update(self, param):
        def copy_state():
            return [
                getattr(x, 'copy', lambda: None)()
                for x in [param.array, *(self.state or {}).values()]
            ]

        before = [param.grad, *copy_state()]
        update(self, param)
        recorder.record(type(self).__name__, before, copy_state())

    @functools.wraps(generate_array)
    def observed_generate_array(initializer, *args, **kwargs):
        array = generate_array(initializer, *args, **kwargs)
        # Links initialize their parameters in no fixed order.
        inputs = [numpy.array(array.shape)]
        if hasattr(initializer, 'fill_value'):
            inputs.append(numpy.asarray(initializer.fill_value))
        recorder.record(type(initializer).__name__, inputs, [array])
        return array

    chainer.FunctionNode.apply = observed_apply
    _backprop_utils.backprop_step = observed_step
    chainer.UpdateRule.update = observed_update
    chainer.initializers.generate_array = observed_generate_array


def record(path, checkout, pytest_args):
    numpy.random.RandomState = SeededRandomState
    with gzip.open(path.resolve(), 'wt', compresslevel=1) as file:
        recorder = Recorder(file)
        observe_chainer(recorder)
        run_pytest(checkout, pytest_args, recorder)


def read(path):
    """Returns the calls by test and by what was called."""
    calls = collections.defaultdict(list)
    with gzip.open(path, 'rt') as file:
        for line in file:
            test, what, inputs, outputs = json.loads(line)
            calls[test, what].append((inputs, outputs))
    return calls


def find_change(index, old, new):
    """Returns how the arrays of two calls differ, or None."""
    before, after = ([x[index] for x in arrays] for arrays in (old, new))
    if before == after:
        return None
    name = ('data type', 'shape', 'NaN or infinity')[index]
    return f'{name}: {before} and {after}'


def find_difference(inputs, old, new):
    """Returns how results computed from the same inputs differ, or None."""
    for index in range(3):
        change = find_change(index, old, new)
        if change is not None:
            return change
    arrays = [*inputs, *old]
    roundoff = max(
        (numpy.finfo(x[0]).eps for x in arrays if x[0][1] == 'f'), default=0
    )
    for before, after in zip(old, new):
        size = max(1, numpy.prod(before[1]))
        # All inputs may go into one output.
        magnitude = max(
            [before[3], *(x[3] * numpy.prod(x[1]) / size for x in inputs)]
        )
        difference = abs(before[4] - after[4])
        if difference > ROUNDINGS * roundoff * magnitude:
            return (
                f'value: by {difference:.3g}, at a magnitude of '
                f'{magnitude:.3g}'
            )
    return None


def compare(old, new):
    """Prints what differs between two stacks; counts what is unexplained."""
    differences = collections.defaultdict(list)
    same = other = 0
    for test, what in sorted(old.keys() & new.keys()):
        for (inputs, before), (other_inputs, after) in zip(
            old[test, what], new[test, what]
        ):
            if inputs == other_inputs:
                same += 1
                difference = find_difference(inputs, before, after)
            else:
                # An earlier call in the test rounded them differently.
                other += 1
                difference = find_change(0, inputs, other_inputs)
            if difference is not None:
                reasons = [
                    reason
                    for pattern, reason in EXPLAINED.items()
                    if re.search(pattern, f'{test} {what}')
                ]
                reason = reasons[0] if reasons else 'NOT EXPLAINED'
                differences[reason].append(f'{what}, {test}: {difference}')
    kinds = len({what.split(',')[0] for _, what in old})
    print(
        f'{same:,} calls of {kinds} functions, update rules and initializers '
        f'with the same inputs on both stacks, {other:,} with other inputs'
    )
    for reason, calls in sorted(differences.items()):
        print(f'\n{len(calls)} differ: {reason}')
        print(*calls, sep='\n')
    return len(differences['NOT EXPLAINED'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser(
        'record', help="run Chainer's tests and record what they compute"
    )
    command.add_argument('checkout', type=Path, help='a clone of Chainer')
    command.add_argument('path', type=Path, help='the file to write')
    command.add_argument(
        'pytest_args',
        nargs=argparse.REMAINDER,
        help='paths in the clone, and options of pytest (default: '
        'tests/chainer_tests)',
    )
    command = commands.add_parser('compare', help='compare two recordings')
    command.add_argument('old', type=Path, help='recording of one stack')
    command.add_argument('new', type=Path, help='recording of the other stack')
    args = parser.parse_args()
    if args.command == 'record':
        record(args.path, args.checkout, args.pytest_args)
    else:
        sys.exit(1 if compare(read(args.old), read(args.new)) else 0)


if __name__ == '__main__':
    main()
