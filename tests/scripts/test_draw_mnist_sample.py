"""The bundled sample, and how it is drawn."""

from pathlib import Path
import struct
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
SIZES = {'train': 10000, 't10k': 2000}


@pytest.mark.parametrize('kind', SIZES)
def test_bundled_sample(kind):
    sample = mnist.read_directory(str(SCRIPTS / 'mnist_sample'), kind)
    assert sample['x'].shape == (SIZES[kind], 784)
    counts = numpy.bincount(sample['y'])
    assert counts.tolist() == [SIZES[kind] // 10] * 10
    # Drawn without replacement, and not sorted.
    assert len(numpy.unique(sample['x'], axis=0)) == SIZES[kind]
    assert len(numpy.unique(sample['y'][:50])) == 10


def test_drawing(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    random = numpy.random.RandomState(0)
    full = {}
    for kind, n in (('train', 1200), ('t10k', 250)):
        # The number of each digit differs; the smallest class is enough.
        x = random.randint(0, 256, (10 * n, 28, 28)).astype('u1')
        y = random.choice(10, 10 * n, p=[0.1] * 8 + [0.11, 0.09]).astype('u1')
        full[kind] = {
            image.tobytes(): label for image, label in zip(x, y.tolist())
        }
        for name, array in (('images-idx3', x), ('labels-idx1', y)):
            header = struct.pack('>HBB', 0, 8, array.ndim)
            header += struct.pack(f'>{array.ndim}I', *array.shape)
            path = source / f'{kind}-{name}-ubyte'
            path.write_bytes(header + array.tobytes())
    outputs = [tmp_path / 'a', tmp_path / 'b']
    for out in outputs:
        subprocess.run(
            [
                *(sys.executable, str(SCRIPTS / 'draw_mnist_sample.py')),
                *(str(source), '--out', str(out)),
            ],
            check=True,
            timeout=300,
        )
    for kind, size in SIZES.items():
        sample, again = (mnist.read_directory(str(o), kind) for o in outputs)
        assert numpy.bincount(sample['y']).tolist() == [size // 10] * 10
        numpy.testing.assert_array_equal(sample['x'], again['x'])
        for image, label in zip(sample['x'], sample['y']):
            assert full[kind][image.tobytes()] == label
