#!/usr/bin/env python
"""Checks within seconds that the installed plugin works.

.. code-block:: console

    $ python scripts/verify/smoke.py

The arrays hold small integers, whose sums are never rounded, so on any machine
each result is exactly that of the wide weight.
"""

import os
import subprocess
import sys
import tempfile

import chainer_shared_patch
from chainer_shared_patch import SharedLinear
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
from numpy.testing import assert_array_equal

N = 4
BATCH_SIZE, K, OUT = 3, 2, 5


def integers(*shape):
    """Returns small integers, different for each shape."""
    array = numpy.arange(numpy.prod(shape)) * 5 % 7 - 3
    return array.reshape(shape).astype('f')


x, gy = integers(BATCH_SIZE, N * K), integers(BATCH_SIZE, OUT)
W, b = integers(OUT, K), integers(OUT)
TILED = numpy.tile(W, (1, N))


def check_layer(layer):
    """Checks y and all gradients of a layer that shares W."""
    layer.cleargrads()
    inputs = chainer.Variable(x)
    y = layer(inputs)
    y.grad = gy
    y.backward()
    assert_array_equal(y.array, x @ TILED.T + b)
    assert_array_equal(inputs.grad, gy @ TILED)
    assert_array_equal(layer.W.grad, (gy.T @ x).reshape(OUT, N, K).sum(axis=1))
    assert_array_equal(layer.b.grad, gy.sum(axis=0))


def check_patch():
    layer = L.Linear(K, OUT, initialW=W, initial_bias=b)
    for algorithm in 'sum', 'tile':
        with chainer_shared_patch.patched(common_num=N):
            with chainer.using_config('shared_algorithm', algorithm):
                check_layer(layer)


def check_shared_linear():
    link = SharedLinear(N * K, OUT, initialW=W, initial_bias=b, common_num=N)
    check_layer(link)
    loaded = SharedLinear(N * K, OUT, common_num=N)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, 'model.npz')
        chainer.serializers.save_npz(path, link)
        chainer.serializers.load_npz(path, loaded)
    check_layer(loaded)


def check_conversion():
    model = chainer.Sequential(
        L.Linear(N * K, OUT, initialW=TILED, initial_bias=b), F.relu
    )
    y = model(x).array
    chainer_shared_patch.share(model, {'/0': N})
    assert model[0].W.shape == (OUT, K)
    assert_array_equal(model(x).array, y)
    chainer_shared_patch.expand(model)
    assert_array_equal(model[0].W.array, TILED)


def check_command():
    command = [sys.executable, '-m', 'chainer_shared_patch', '--info']
    subprocess.run(command, check=True)


def main():
    check_patch()
    check_shared_linear()
    check_conversion()
    check_command()
    print(
        f'chainer_shared_patch {chainer_shared_patch.__version__} in '
        f'{os.path.dirname(chainer_shared_patch.__file__)} works'
    )


if __name__ == '__main__':
    main()
