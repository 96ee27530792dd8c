#!/usr/bin/env python
"""Exports the model saved by train_mnist.py to ONNX, checks and times it.

.. code-block:: console

    $ pip install onnx onnxruntime
    $ python scripts/export_onnx.py --out result

Reads model.npz in the directory and writes model.onnx and, with the second
layer's weight tiled, dense.onnx. Both are compared with Chainer and timed.
"""

import argparse
import functools
import os
import timeit

import chainer_shared_patch
from chainer_shared_patch.datasets import read_directory
import chainer
from datasets import SAMPLE
import numpy
import onnx_chainer
import onnxruntime
from train_mnist import MLP


def load_model(path):
    """Returns the network that a file holds, and its common_num."""
    with numpy.load(path) as file:
        W1, W2, W3 = (file[f'l{i}/W'] for i in (1, 2, 3))
        has_bias = 'l2/b' in file
    if W1.dtype.kind != 'f':
        raise ValueError(f'its weights are {W1.dtype}, not floats')
    common_num = len(W1) // W2.shape[1]
    with chainer.using_config('dtype', W1.dtype):
        model = MLP(len(W1), len(W2), len(W3), common_num, has_bias)
    chainer.serializers.load_npz(path, model)
    return model, common_num


def export(model, path, opset_version):
    """Exports a network for any batch size and returns what runs it."""
    onnx_chainer.export(
        model,
        numpy.zeros((1, 784), model.l1.W.dtype),
        filename=path,
        opset_version=opset_version,
        input_shapes=('batch', 784),
    )
    options = onnxruntime.SessionOptions()
    # The threads of one session are not to wait for work while another runs.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )
    (x,) = session.get_inputs()
    return lambda array: session.run(None, {x.name: array})[0]


def check(run, model, x):
    """Returns the largest difference between onnxruntime and Chainer.

    Raises an error if it is more than roundoff: one unit roundoff of the sum
    of the absolute values, in each of the two, for each rounding on the way.
    These are one for each input of each layer, and four for everything else
    that a layer does.
    """
    absolute = model.copy('copy')
    for param in absolute.params():
        param.array = abs(param.array.astype('d'))
    roundings = 784 + len(model.l1.W) + len(model.l2.W) + 3 * 4
    eps = numpy.finfo(x.dtype).eps
    bound = roundings * eps * absolute(x.astype('d')).array
    difference = abs(run(x).astype('d') - model(x).array)
    if not (difference <= bound).all():
        raise ValueError(
            f'onnxruntime and Chainer differ by up to {difference.max():.2g}, '
            f'of which roundoff explains {bound.max():.2g}'
        )
    return difference.max()


def measure(run, x, repeats):
    """Returns the median time in milliseconds."""
    run(x)
    seconds = timeit.repeat(
        functools.partial(run, x), number=1, repeat=repeats
    )
    return 1e3 * numpy.median(seconds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', '-o', default='result', help='directory with model.npz')
    add('--opset', type=int, choices=range(7, 19), default=11)
    add('--repeats', type=int, default=200, help='timed runs')
    args = parser.parse_args()
    path = os.path.join(args.out, 'model.npz')
    try:
        model, common_num = load_model(path)
    except Exception as error:  # whatever NumPy raises for other files
        parser.exit(1, f'{parser.prog}: error: {path}: {error!r}\n')
    try:
        dense = model.copy('copy')
        dense.l2.W.array = numpy.tile(model.l2.W.array, (1, common_num))
        images = read_directory(SAMPLE, 't10k')['x'][:100]
        x = (images / 255).astype(model.l1.W.dtype)
        runs = []
        print(f'{"":<12}{"bytes":>12}{"differs from Chainer":>28}')
        with chainer_shared_patch.patched(common_num):
            for name, each in (('dense.onnx', dense), ('model.onnx', model)):
                path = os.path.join(args.out, name)
                runs.append(export(each, path, args.opset))
                difference = check(runs[-1], each, x)
                size = os.path.getsize(path)
                print(f'{name:<12}{size:>12,}{difference:>28.1e}')
    except (OSError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: error: {path}: {error}\n')
    print()
    print('batch size     dense, ms    shared, ms  times faster')
    for size in (1, 32):
        dense, shared = (measure(run, x[:size], args.repeats) for run in runs)
        print(
            f'{size:>10}{dense:>14.3f}{shared:>14.3f}{dense / shared:>14.3f}'
        )


if __name__ == '__main__':
    main()
