"""How fast the networks train and run in onnxruntime."""

import contextlib
import functools
import importlib.metadata
import platform
import statistics
import time

import chainer
from machine import describe_machine
from networks import Network
import numpy
from training import BATCH_SIZE, train

ONNX_BATCH_SIZES = (1, 32)


def describe_stack():
    """Returns the machine and the versions, in words."""
    versions = ['Python ' + platform.python_version()]
    for name in ('chainer', 'numpy', 'onnxruntime'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(name + ' ' + importlib.metadata.version(name))
    return ', '.join([describe_machine(), *versions])


def take_turns(calls, rounds, repeats):
    """Returns each call's median time in each round, by name.

    A busy machine slows all of them alike, so their ratios still hold.
    """
    seconds = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            if i:  # the first round warms up
                seconds[name].append(statistics.median(times))
    return seconds


def measure_training(runs, images, labels, rounds, repeats):
    """Returns the seconds per epoch of each run in each round."""
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    calls = {}
    for run in runs:
        optimizer = chainer.optimizers.Adam()
        optimizer.setup(Network(run))
        calls[run] = functools.partial(train, optimizer, *batch)
    steps = -(-len(images) // BATCH_SIZE)
    seconds = take_turns(calls, rounds, repeats)
    return {run: steps * numpy.array(seconds[run]) for run in runs}


def measure_onnx(runs, rounds, repeats):
    """Returns the bytes of each run's ONNX file, and its times by batch size.

    Neither depends on the trained weights.
    """
    import onnx  # noqa: F401
    import onnx_chainer
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One session's threads must not spin while another's work.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    sizes, times = {}, {}
    for batch_size in ONNX_BATCH_SIZES:
        x = numpy.random.rand(batch_size, 784).astype('f')
        calls = {}
        for run in runs:
            with chainer.using_config('train', False):
                model = onnx_chainer.export(Network(run), x)
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(
                content, options, providers=['CPUExecutionProvider']
            )
            inputs = {session.get_inputs()[0].name: x}
            sizes[run] = len(content)
            calls[run] = functools.partial(session.run, None, inputs)
        times[batch_size] = take_turns(calls, rounds, repeats)
    return sizes, times


def measure_speed(runs, images, labels, rounds, repeats):
    """Returns the figures of each run's speed and size, by column."""
    training = measure_training(runs, images, labels, rounds, repeats)
    columns = [
        {
            's/epoch': numpy.median(training[run]),
            'it / dense': numpy.median(training[run] / training[runs[0]]),
        }
        for run in runs
    ]
    try:
        sizes, times = measure_onnx(runs, rounds, repeats)
    except ImportError as error:
        print(f'ONNX was not measured: {error}')
        return columns
    for run, line in zip(runs, columns):
        line['ONNX bytes'] = sizes[run]
        for batch_size, seconds in times.items():
            name = f'ms, batch of {batch_size}'
            line[name] = 1e3 * numpy.median(seconds[run])
    return columns
