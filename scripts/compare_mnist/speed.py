"""How fast the networks train, and run in onnxruntime."""

import functools
import statistics
import time

import chainer
from networks import Network
import numpy
from training import BATCH_SIZE, train

ONNX_BATCH_SIZES = (1, 32)


def take_turns(calls, rounds, repeats):
    """Returns each call's median time in each round, by name.

    A noisy machine slows all of them alike, so that their ratios stand.
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


def measure_training(runs, data, rounds):
    """Returns the seconds per epoch of each run in each round."""
    images, labels = data

    def make_call(run):
        optimizer = chainer.optimizers.Adam()
        optimizer.setup(Network(run))
        batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
        return functools.partial(train, optimizer, *batch)

    calls = {run: make_call(run) for run in runs}
    steps = -(-len(images) // BATCH_SIZE)
    return {
        run: [steps * each for each in seconds]
        for run, seconds in take_turns(calls, rounds, 30).items()
    }


def measure_onnx(runs, rounds):
    """Returns the bytes of each run's ONNX file, and its times by batch.

    Neither depends on what a network has been trained to.
    """
    import onnx  # noqa: F401
    import onnx_chainer
    import onnxruntime

    sizes, times = {}, {}
    for batch_size in ONNX_BATCH_SIZES:
        x = numpy.random.rand(batch_size, 784).astype('f')
        calls = {}
        for run in runs:
            with chainer.using_config('train', False):
                model = onnx_chainer.export(Network(run), x)
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(
                content, providers=['CPUExecutionProvider']
            )
            inputs = {session.get_inputs()[0].name: x}
            sizes[run] = len(content)
            calls[run] = functools.partial(session.run, None, inputs)
        times[batch_size] = take_turns(calls, rounds, 100)
    return sizes, times


def measure_speed(runs, data, rounds):
    """Returns what of each run has to do with speed, by column."""
    training = measure_training(runs, data, rounds)
    columns = [
        {
            's/epoch': statistics.median(training[run]),
            'it / dense': statistics.median(
                numpy.divide(training[run], training[runs[0]])
            ),
        }
        for run in runs
    ]
    try:
        sizes, times = measure_onnx(runs, rounds)
    except ImportError as error:
        print('nothing of ONNX was measured: {}'.format(error))
        return columns
    for run, line in zip(runs, columns):
        line['ONNX bytes'] = sizes[run]
        for batch_size, seconds in times.items():
            name = 'ms, batch of {}'.format(batch_size)
            line[name] = 1e3 * statistics.median(seconds[run])
    return columns
