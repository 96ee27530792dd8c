"""Draws the bundled sample of MNIST from the full set.

.. code-block:: console

    $ python scripts/draw_mnist_sample.py DIRECTORY_OF_IDX_FILES

The sample has equally many images of each digit, in random order. The same
input gives the same arrays; the bytes of the .gz files also depend on zlib.
"""

import argparse
import gzip
import os
import struct

from chainer_shared_patch.compat.mnist import read_directory
import numpy

SAMPLE = os.path.join(os.path.dirname(__file__), 'mnist_sample')
SIZES = {'train': 10000, 't10k': 2000}


def draw(labels, size, random):
    """Returns the indexes of ``size`` images, equally many of each label."""
    digits = numpy.unique(labels)
    chosen = [
        random.choice(
            numpy.flatnonzero(labels == digit),
            size // len(digits),
            replace=False,
        )
        for digit in digits
    ]
    return random.permutation(numpy.concatenate(chosen))


def write_idx(path, array):
    header = struct.pack(
        f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape
    )
    with open(path, 'wb') as file:
        file.write(gzip.compress(header + array.tobytes(), 9, mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'directory', help='directory with the four IDX files of MNIST'
    )
    parser.add_argument(
        '--out',
        '-o',
        default=SAMPLE,
        help='directory to write the four files to (default: '
        'scripts/mnist_sample)',
    )
    args = parser.parse_args()

    random = numpy.random.RandomState(0)
    os.makedirs(args.out, exist_ok=True)
    for kind, size in SIZES.items():
        full = read_directory(args.directory, kind)
        indexes = draw(full['y'], size, random)
        for name, array in (
            ('images-idx3', full['x'][indexes].reshape(-1, 28, 28)),
            ('labels-idx1', full['y'][indexes]),
        ):
            path = os.path.join(args.out, f'{kind}-{name}-ubyte.gz')
            write_idx(path, array)


if __name__ == '__main__':
    main()
