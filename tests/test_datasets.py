"""IDX files, whole and damaged."""

import gzip
import struct

from chainer_shared_patch.datasets import read_directory, read_idx
import numpy
import pytest


def make_idx(array):
    header = struct.pack('>HBB', 0, 8, array.ndim)
    shape = struct.pack(f'>{array.ndim}I', *array.shape)
    return header + shape + array.tobytes()


@pytest.fixture
def images(random):
    return random.randint(0, 256, (30, 28, 28)).astype('u1')


@pytest.fixture
def directory(tmp_path, random, images):
    labels = random.randint(0, 10, 30).astype('u1')
    for name, array in (('images-idx3', images), ('labels-idx1', labels)):
        (tmp_path / f'train-{name}-ubyte').write_bytes(make_idx(array))
    return tmp_path


@pytest.mark.parametrize('shape', [(), (7,), (0, 28, 28), (2, 3, 4, 5)])
@pytest.mark.parametrize('encode', [bytes, gzip.compress])
def test_array_comes_back(tmp_path, random, shape, encode):
    array = numpy.asarray(random.randint(0, 256, shape), 'u1')
    path = tmp_path / 'idx'
    path.write_bytes(encode(make_idx(array)))
    read = read_idx(str(path))
    assert read.dtype == numpy.uint8
    numpy.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda content: content[:-1], 'holds 23,519 bytes'),
        (lambda content: content + b'x', 'holds 23,521 bytes'),
        (lambda content: content[:13], 'not an IDX file'),
        (lambda content: b'', 'not an IDX file'),
        (lambda content: b'\0\0\x0d' + content[3:], 'not an IDX file'),
        (lambda content: content[:4] + b'\xff' * 12, r'shape \(4294967295, 4'),
        (lambda content: gzip.compress(content)[:-9], 'complete gzip file'),
        (lambda content: gzip.compress(content)[:40] + b'x', 'complete gzip'),
        (lambda content: gzip.compress(content) + b'x', 'complete gzip file'),
        (lambda content: b'\x1f\x8bx', 'complete gzip file'),
    ],
)
def test_damaged_file(tmp_path, images, damage, words):
    path = tmp_path / 'idx'
    path.write_bytes(damage(make_idx(images)))
    with pytest.raises(ValueError, match=words) as info:
        read_idx(str(path))
    assert str(info.value).startswith(f'read_idx(): {path} ')


def test_directory(directory, images):
    path = directory / 'train-labels-idx1-ubyte'
    labels = numpy.frombuffer(path.read_bytes()[8:], 'u1')
    (directory / (path.name + '.gz')).write_bytes(
        gzip.compress(path.read_bytes())
    )
    path.unlink()
    read = read_directory(str(directory), 'train')
    numpy.testing.assert_array_equal(read['x'], images.reshape(30, 784))
    numpy.testing.assert_array_equal(read['y'], labels)
    with pytest.raises(FileNotFoundError, match='no t10k-images-idx3-ubyte'):
        read_directory(str(directory), 't10k')


@pytest.mark.parametrize(
    ('name', 'array', 'words'),
    [
        ('images-idx3', numpy.zeros((9, 28, 28), 'u1'), r'\(9, 28, 28\)'),
        ('images-idx3', numpy.zeros((30, 8, 8), 'u1'), r'\(30, 8, 8\)'),
        ('images-idx3', numpy.zeros(30, 'u1'), r'\(30,\)'),
        ('labels-idx1', numpy.full(30, 10, 'u1'), 'the label 10'),
    ],
)
def test_files_that_do_not_go_together(directory, name, array, words):
    (directory / f'train-{name}-ubyte').write_bytes(make_idx(array))
    with pytest.raises(ValueError, match=words) as info:
        read_directory(str(directory), 'train')
    assert f'{directory}/train-{name}-ubyte' in str(info.value)
