"""How fast the networks train and run in onnxruntime."""

import functools
import statistics
import time

import chainer
from measure.compare.networks import BATCH_SIZE, Network, read, update
import numpy

ONNX_BATCH_SIZES = (1, 32)


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
    return {name: numpy.array(times) for name, times in seconds.items()}


def measure_training(networks, images, labels, rounds, repeats):
    """Returns the seconds per iteration of each network in each round."""
    batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
    calls = {}
    for name, network in networks.items():
        optimizer = chainer.optimizers.Adam().setup(network)
        calls[name] = functools.partial(update, optimizer, *batch)
    return take_turns(calls, rounds, repeats)


def measure_onnx(networks, batch_size, rounds, repeats):
    """Returns the bytes of each network's ONNX file, and its times.

    Neither depends on the trained weights.
    """
    import onnx_chainer
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One session's threads must not spin while another's work.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    x = numpy.random.rand(batch_size, 784).astype('f')
    sizes, calls = {}, {}
    for name, network in networks.items():
        with chainer.using_config('train', False):
            model = onnx_chainer.export(network, x)
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider']
        )
        inputs = {session.get_inputs()[0].name: x}
        sizes[name] = len(content)
        calls[name] = functools.partial(session.run, None, inputs)
    return sizes, take_turns(calls, rounds, repeats)


def measure_speed(runs, records, dataset, rounds, repeats):
    """Returns the figures of each run's speed and size, by column.

    Ratios are to the first run.
    """
    networks = {}
    for run in runs:
        sizes = {
            key: [layer[key] for layer in records[run]['layers']]
            for key in ('common_num', 'rank', 'orders')
        }
        # Other orders of the inputs take as long.
        networks[run] = Network(run._replace(**sizes, order='random'))
    (images, labels), _, _ = read(dataset)
    seconds = measure_training(networks, images, labels, rounds, repeats)
    columns = {
        run: {'time / dense': numpy.median(seconds[run] / seconds[runs[0]])}
        for run in runs
    }
    for batch_size in ONNX_BATCH_SIZES:
        sizes, times = measure_onnx(networks, batch_size, rounds, repeats)
        for run, line in columns.items():
            line['ONNX bytes'] = sizes[run]
            milliseconds = 1e3 * numpy.median(times[run])
            line[f'ms, batch of {batch_size}'] = milliseconds
    return columns
