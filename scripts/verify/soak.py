#!/usr/bin/env python
"""Runs shared layers for long; checks that results are right, nothing grows.

A cycle is 50 forward and backward passes of layers with changing shapes,
dtypes, ``common_num`` and algorithms, most of them in four threads at once.
In between, the patch is uninstalled and installed again, and a model is
shared, saved, loaded and expanded. Every result is compared with the
definition, computed in NumPy. At 20 points of the run, the memory, objects and
open files of the process are counted. The script exits with status 1 if a
result is wrong or a count grows.

.. code-block:: console

    $ python scripts/verify/soak.py
    $ python scripts/verify/soak.py --steps 200000

Needs the ``/proc`` of Linux.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import contextlib
import copy
import ctypes
import gc
import os
import sys
import tempfile

import chainer_shared_patch
from chainer_shared_patch import SharedLinear, config, patched
import chainer
import chainer.functions as F
from chainer.functions.connection.linear import LinearFunction
import chainer.links as L
from chainer.utils.type_check import InvalidType
import numpy

PATCHED = LinearFunction, L.Linear
THREADS = 4
STEPS_IN_THREAD = 12
STEPS_IN_CYCLE = THREADS * STEPS_IN_THREAD + 2
SAMPLES = 20
# Cycles until all caches are full, such as those of the functions' classes
# and of regular expressions.
WARM_UP = 12
# With integers up to 2 and sizes up to these, no sum of products exceeds
# 16 * 8 * 2 * 2 = 512. Below 2**11, not even float16 rounds an integer, so
# every result is exact, in whatever order it is summed.
LIMIT = 2
LARGEST_SIZE = 16
COMMON_NUMS = range(1, 9)
# Memory comes in larger pieces than are asked for. Python's allocator takes
# 1 MiB at a time, and malloc keeps this much for each thread and for the main
# one.
KIB_IN_MALLOC = 128
KIB_TO_SPARE = 1024 + KIB_IN_MALLOC * (THREADS + 1)


class Wrong(Exception):
    """A result is not as defined."""


def draw(random, dtype, *shape):
    return random.randint(-LIMIT, LIMIT + 1, shape).astype(dtype)


def check(what, actual, expected):
    """Raises an error unless all arrays are exactly equal."""
    for number, (a, e) in enumerate(zip(actual, expected), 1):
        if not numpy.array_equal(chainer.as_array(a), e):
            raise Wrong(f'array {number} of {what} is wrong')


def widen(W, n, order):
    """Returns the wide weight in float64, for inputs in this order."""
    wide = numpy.empty((len(W), n * W.shape[1]))
    wide[:, order] = numpy.concatenate([W] * n, axis=1)
    return wide


def reference(x, W, b, gy, n, order):
    """Returns y, gx, gW and gb by the definition, in float64."""
    x, W, b, gy = (array.astype('d') for array in (x, W, b, gy))
    wide = widen(W, n, order)
    gwide = gy.T.dot(x)[:, order]
    gW = gwide.reshape(len(W), n, W.shape[1]).sum(axis=1)
    return x.dot(wide.T) + b, gy.dot(wide), gW, gy.sum(axis=0)


def draw_layer(random, n):
    """Returns x, W, b and gy."""
    dtype = random.choice(['e', 'f', 'd'])
    batch_size, k, out_size = random.randint(1, LARGEST_SIZE + 1, 3)
    shapes = (batch_size, n * k), (out_size, k), (out_size,)
    shapes += ((batch_size, out_size),)
    return [draw(random, dtype, *shape) for shape in shapes]


def step(random):
    """Runs one layer forward and backward, in one of three ways."""
    n = int(random.choice(COMMON_NUMS))
    algorithm = str(random.choice(config.ALGORITHMS))
    x, W, b, gy = draw_layer(random, n)
    order = numpy.arange(x.shape[1])
    kind = random.choice(['function', 'link', 'double backward'])
    what = f'a {kind} of {x.dtype} {W.shape} by {n} blocks, {algorithm}'
    if kind == 'link':
        random.shuffle(order)
        link = SharedLinear.from_params(W, b, common_num=n, order=order)
        link.cleargrads()
        x, W, b = chainer.Variable(x), link.W, link.b
        with chainer.using_config('shared_algorithm', algorithm):
            y = link(x)
    else:
        x, W, b = map(chainer.Variable, (x, W, b))
        with patched(n, algorithm):
            y = F.linear(x, W, b)
    arrays = x.array, W.array, b.array, gy, n, order
    expected = reference(*arrays)
    if kind == 'double backward':
        gy = chainer.Variable(gy)
        results = chainer.grad([y], [x, W], [gy], enable_double_backprop=True)
        check(what, [y, *results], expected)
        # gx is linear in gy and in W.
        u = draw(random, x.dtype, *x.shape)
        ggy, gW = chainer.grad([F.sum(results[0] * u)], [gy, W])
        expected = reference(u, W.array, 0 * b.array, gy.array, n, order)
        check(what, [ggy, gW], expected[::2])
    else:
        y.grad = gy
        y.backward()
        check(what, [y, x.grad, W.grad, b.grad], expected)


def run_steps(seed):
    random = numpy.random.RandomState(seed)
    for _ in range(STEPS_IN_THREAD):
        step(random)


def toggle(random, originals):
    """Uninstalls the patch under a graph, and installs it again."""
    n = int(random.choice(COMMON_NUMS[1:]))
    x, W, b, gy = draw_layer(random, n)
    inputs = [chainer.Variable(array) for array in (x, W, b)]
    with chainer.using_config('common_num', n):
        y = F.linear(*inputs)
        chainer_shared_patch.uninstall()
        with contextlib.suppress(InvalidType):
            F.linear(*inputs)
            raise Wrong('a narrow weight is accepted without the patch')
    if [dict(vars(each)) for each in PATCHED] != originals:
        raise Wrong("Chainer's own methods are not back")
    y.grad = gy
    y.backward()
    results = [y, *(variable.grad for variable in inputs)]
    expected = reference(x, W, b, gy, n, numpy.arange(x.shape[1]))
    check('a layer', results, expected)
    step(random)
    chainer_shared_patch.install()


def check_model(what, model, wide, x):
    """Checks a model's outputs against its wide weights and its biases."""
    h = x.dot(wide[0].T) + model[0].b.array
    y = numpy.maximum(h, 0).dot(wide[1].T) + model[2].b.array
    check(what, [model(x)], [y])


def convert(random, directory):
    """Shares, saves, loads and expands a model."""
    model = chainer.Sequential(L.Linear(24, 16), F.relu, L.Linear(16, 3))
    for _, parameter in sorted(model.namedparams()):
        parameter.array = draw(random, 'f', *parameter.shape)
    before = [model[i].W.array for i in (0, 2)]
    x = draw(random, 'f', 5, 24)
    check_model('the model', model, before, x)

    # A mean of 2 or 4 is no more rounded than a sum.
    numbers = {'/0': int(random.choice([2, 4])), '/1': 2}
    order = str(random.choice(['grouped', 'contiguous']))
    chainer_shared_patch.share(model, numbers, order=order)
    wide = []
    for i, W in zip((0, 2), before):
        link = model[i]
        n, width = link.common_num, W.shape[1]
        order = numpy.arange(width) if link.order is None else link.order
        orders = numpy.atleast_2d(order)
        slices = []
        for each, rows in zip(orders, numpy.array_split(W, len(orders))):
            blocks = rows[:, each].reshape(len(rows), n, width // n)
            slices.append(widen(blocks.mean(axis=1, dtype='d'), n, each))
        wide.append(numpy.concatenate(slices))
    check_model('the shared model', model, wide, x)

    path = os.path.join(directory, 'model.npz')
    chainer.serializers.save_npz(path, model)
    loaded = copy.deepcopy(model)
    for parameter in loaded.params():
        parameter.array = parameter.array * 0
    chainer.serializers.load_npz(path, loaded)
    check_model('the loaded model', loaded, wide, x)

    chainer_shared_patch.expand(loaded)
    check('the wide weights', [loaded[0].W, loaded[2].W], wide)
    check_model('the expanded model', loaded, wide, x)


def run_cycle(seed, number, directory, originals):
    with ThreadPoolExecutor(THREADS) as pool:
        seeds = [[seed, number, thread] for thread in range(THREADS)]
        list(pool.map(run_steps, seeds))
    random = numpy.random.RandomState([seed, number, THREADS])
    toggle(random, originals)
    convert(random, directory)


def measure():
    """Returns the objects, open files and KiB of memory of the process."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # it is not glibc's malloc
        ctypes.CDLL(None).malloc_trim(0)
    with open('/proc/self/statm') as file:
        kib = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') // 1024
    return len(gc.get_objects()), len(os.listdir('/proc/self/fd')), kib


def limit_spare_memory():
    """Makes malloc keep no more than KIB_TO_SPARE.

    By default, glibc's malloc keeps twice the size of the largest array ever
    freed, once for each thread, from the first time that the threads happen to
    need it at once.
    """
    m_trim_threshold = -1  # of malloc.h
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(m_trim_threshold, KIB_IN_MALLOC * 1024)


def find_growth(samples):
    """Returns what grows, in words, or None.

    After each cycle the state of the process is the same, so there must be as
    many objects and files as after the warm-up. Memory must be the same in
    both halves of the run, except for what the allocators have to spare.
    """
    objects, files, kib = zip(*samples)
    if max(objects) > objects[0]:
        return f'{max(objects) - objects[0]:,} more objects'
    if max(files) > files[0]:
        return f'{max(files) - files[0]:,} more open files'
    half = len(kib) // 2
    growth = numpy.median(kib[half:]) - numpy.median(kib[1 : half + 1])
    if growth > KIB_TO_SPARE:
        return f'{growth:,.0f} KiB more memory in half of the run'
    return None


def soak(steps, seed):
    """Prints a table of the samples, and returns what grows."""
    limit_spare_memory()
    chainer_shared_patch.uninstall()
    originals = [dict(vars(each)) for each in PATCHED]
    chainer_shared_patch.install()
    cycles = -(-steps // (STEPS_IN_CYCLE * SAMPLES))  # between two samples
    samples = []
    print('     steps     objects   files   memory, KiB')
    number = 0
    with tempfile.TemporaryDirectory() as directory:
        for sample in range(SAMPLES + 1):
            for _ in range(cycles if sample else WARM_UP):
                run_cycle(seed, number, directory, originals)
                number += 1
            samples.append(measure())
            done = sample * cycles * STEPS_IN_CYCLE
            row = '{:10,}{:12,}{:8,}{:14,}'.format(done, *samples[-1])
            print(row, flush=True)
    return find_growth(samples)


def main():
    parser = argparse.ArgumentParser(
        description='Runs shared layers for long, and checks that results '
        'are right and neither memory, objects nor open files grow.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--steps',
        type=int,
        default=2000,
        help='forward and backward passes after the warm-up, rounded up to '
        f'a multiple of {STEPS_IN_CYCLE * SAMPLES:,}',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed for what each step computes'
    )
    args = parser.parse_args()
    failure = soak(args.steps, args.seed)
    if failure:
        sys.exit(f'soak.py: error: {failure}')
    print('every result is right, and nothing grows')


if __name__ == '__main__':
    main()
