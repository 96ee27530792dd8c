#!/usr/bin/env python
"""Exports the model saved by train_mnist.py to ONNX, checks and times it.

.. code-block:: console

    $ pip install onnx onnxruntime
    $ python scripts/export_onnx.py --out result

Reads model.npz in the directory and writes model.onnx and, with the second
layer's weight tiled, dense.onnx. Both are checked by onnx, compared with
Chainer, and timed in onnxruntime.
"""

import argparse
import os
import sys
import time

import chainer_shared_patch
from chainer_shared_patch.compat.mnist import read_directory
import chainer
import numpy
from train_mnist import MLP, SAMPLE, integer

BATCH_SIZES = (1, 32)


def load_model(path):
    """Returns the network that a file holds, and its common_num."""
    try:
        with numpy.load(path) as file:
            arrays = dict(file)
        W1, W2, W3 = (arrays[f'l{i}/W'] for i in (1, 2, 3))
        common_num = len(W1) // W2.shape[1]
        with chainer.using_config('dtype', W1.dtype):
            model = MLP(
                len(W1), len(W2), len(W3), common_num, 'l2/b' in arrays
            )
        for name, param in model.namedparams():
            array = arrays[name[1:]]
            if array.shape != param.shape or array.dtype != param.dtype:
                raise ValueError(
                    'its {} is {} {}, and should be {} {}'.format(
                        *(name[1:], array.dtype, array.shape),
                        *(param.dtype, param.shape),
                    )
                )
            param.array[...] = array
    except FileNotFoundError:
        raise ValueError(
            f'there is no {path}; train_mnist.py writes it'
        ) from None
    except Exception as error:  # whatever NumPy raises for other files
        reason = 'it lacks ' if isinstance(error, KeyError) else ''
        reason += ' '.join(str(error).split())
        raise ValueError(
            f'{path} is not a model of train_mnist.py: {reason}'
        ) from error
    return model, common_num


def make_dense(model, common_num):
    """Returns the same network with the second layer's weight tiled."""
    dense = model.copy('copy')
    dense.l2.W.array = numpy.tile(model.l2.W.array, (1, common_num))
    return dense


def export(model, path, opset_version):
    """Exports a network for any batch size and returns its session."""
    import onnx
    import onnx_chainer
    import onnxruntime

    x = numpy.zeros((1, 784), model.l1.W.dtype)
    graph = onnx_chainer.export(
        model, x, opset_version=opset_version, input_shapes=('batch', 784)
    )
    onnx.checker.check_model(graph)
    content = graph.SerializeToString()
    with open(path, 'wb') as file:
        file.write(content)
    options = onnxruntime.SessionOptions()
    # The threads of one session are not to wait for work while another runs.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )


def run(session, x):
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return y


def check(session, model, x):
    """Returns the largest difference between a session and Chainer.

    Raises an error if it is more than roundoff. Each of the two is off by at
    most one unit roundoff of the sum of the absolute values for each rounding
    on the way: one for each input of each layer, and four for everything else
    that a layer does.
    """
    expected = model(x).array
    absolute = model.copy('copy')
    for param in absolute.params():
        param.array = abs(param.array.astype('d'))
    roundings = 784 + len(model.l1.W) + len(model.l2.W) + 3 * 4
    scale = absolute(x.astype('d')).array
    bound = roundings * numpy.finfo(x.dtype).eps * scale
    difference = abs(run(session, x).astype('d') - expected)
    if not (difference <= bound).all():
        raise ValueError(
            f'onnxruntime and Chainer differ by up to {difference.max():.2g}, '
            f'of which roundoff explains {bound.max():.2g}'
        )
    return difference.max()


def measure(sessions, x, repeats):
    """Returns the seconds of each repetition, a column for each session."""
    seconds = numpy.empty((repeats, len(sessions)))
    for row in seconds:
        for i, session in enumerate(sessions):
            run(session, x)  # evicts what the other left in the caches
            start = time.perf_counter()
            run(session, x)
            row[i] = time.perf_counter() - start
    return seconds


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', '-o', default='result', help='directory with model.npz')
    add(
        '--opset',
        type=integer(7, 11),
        default=11,
        help='ONNX opset version, 7 to 11',
    )
    add(
        '--repeats',
        type=integer(1),
        default=200,
        help='timed runs per model and batch size; the median is printed',
    )
    return parser.parse_args()


def fail(error):
    sys.exit(f'export_onnx.py: error: {error}')


def main():
    args = parse_args()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        fail(f'{error}: pip install onnx onnxruntime')
    try:
        model, common_num = load_model(os.path.join(args.out, 'model.npz'))
        models = make_dense(model, common_num), model
        images = read_directory(SAMPLE, 't10k')['x'][:100]
        x = (images / 255).astype(model.l1.W.dtype)
        sessions = []
        print('{:<12}{:>12}{:>28}'.format('', 'bytes', 'differs from Chainer'))
        for name, each in zip(('dense.onnx', 'model.onnx'), models):
            path = os.path.join(args.out, name)
            with chainer_shared_patch.patched(common_num):
                sessions.append(export(each, path, args.opset))
                difference = check(sessions[-1], each, x)
            size = os.path.getsize(path)
            print(f'{name:<12}{size:>12,}{difference:>28.1e}')
    except (OSError, ValueError) as error:
        fail(error)
    print()
    row = '{:>10}{:>14}{:>14}{:>14}'.format
    print(row('batch size', 'dense, ms', 'shared, ms', 'times faster'))
    for batch_size in BATCH_SIZES:
        dense, shared = measure(sessions, x[:batch_size], args.repeats).T
        figures = 1e3 * dense, 1e3 * shared, dense / shared
        print(
            row(batch_size, *map('{:.3f}'.format, map(numpy.median, figures)))
        )


if __name__ == '__main__':
    main()
