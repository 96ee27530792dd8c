"""MNIST and Fashion-MNIST from hosts that answer, and IDX files from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import gzip
import hashlib
import http.client
import os
import sys
import tempfile
import time
from typing import Any, Optional
import urllib.request
import zlib

from chainer_shared_patch.compat.importing import Fix
import filelock
import numpy

# Seconds without a byte, and seconds for a whole file.
TIMEOUT = 10
DEADLINE = 300


@dataclass(frozen=True)
class DataSet:
    """Where a data set of four IDX files comes from.

    Args:
        directory (str): Its place under Chainer's dataset root.
        mirrors (tuple of str): The URLs of the folders that hold the gzipped
            files, the first to be tried first.
        sha256 (dict): The SHA-256 of each file, uncompressed.

    """

    directory: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]


MNIST = DataSet(
    directory='pfnet/chainer/mnist',
    mirrors=(
        'https://ossci-datasets.s3.amazonaws.com/mnist/',
        'https://storage.googleapis.com/cvdf-datasets/mnist/',
    ),
    sha256={
        'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738'
        'ad16aec93bde7f9b65e87a2fc25776db',
        'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5'
        '333a97f0f4c3dd2ef09a8a9eef7101c5',
        't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77'
        'db3f2f8254e26661ceb7762c4d494ce7',
        't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351'
        '222c34898ecbeaf847f06e48f7ec33f2',
    },
)

FASHION_MNIST = DataSet(
    directory='pfnet/chainer/fashion-mnist',
    mirrors=(
        'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
        'https://github.com/zalandoresearch/fashion-mnist/raw/master/data/'
        'fashion/',
    ),
    sha256={
        'train-images-idx3-ubyte': 'c59f468a2f672dc815687fe0f8378776'
        '8d799fd8a3f3276145d20f83aa44d888',
        'train-labels-idx1-ubyte': 'bad3541b69d912435c50bb6ba87bec29'
        '4ff4f6a2e1246121d8633921760443d9',
        't10k-images-idx3-ubyte': '5b4141f0afbad91edebe8549f8fcffe0'
        '87ea10ca49f1dbef5c9a5cd8815ce37b',
        't10k-labels-idx1-ubyte': '0402a96d92fd2663957122ceb108a494'
        'c5af83dab82d92729df917d7dec38c34',
    },
)


# The files of Chainer's own cache.
_CACHED = {'train': 'train.npz', 't10k': 'test.npz'}


def read_idx(content: bytes, source: str) -> numpy.ndarray:
    """Reads an array of bytes in the IDX format.

    Args:
        content (bytes): The content of the file, gzipped or not.
        source (str): Its path or URL, for error messages.

    Returns:
        numpy.ndarray: Read-only uint8 array.

    Raises:
        ValueError: If this is no IDX file of bytes, or not a whole one.

    """
    content = _uncompressed(content, source)
    ndim = content[3] if content[:3] == b'\0\0\x08' and content[3:] else 0
    header = 4 + 4 * ndim
    if ndim == 0 or len(content) < header:
        raise ValueError(
            '{} is no IDX file of unsigned bytes: it begins with {!r}, not '
            "with b'\\x00\\x00\\x08', the number of axes and their "
            'lengths'.format(source, content[:3])
        )
    shape = numpy.frombuffer(content[4:header], '>u4').tolist()
    body = content[header:]
    if len(body) != numpy.prod(shape, dtype=object):
        raise ValueError(
            '{} should hold {} bytes after its header, but holds {}'.format(
                source, ' * '.join(map(str, shape)), len(body)
            )
        )
    return numpy.frombuffer(body, numpy.uint8).reshape(shape)


def read_directory(directory: str, kind: str) -> dict[str, numpy.ndarray]:
    """Reads the images and labels of a directory of IDX files.

    Args:
        directory (str): Path of a directory with files named as MNIST's,
            ``{kind}-images-idx3-ubyte`` and ``{kind}-labels-idx1-ubyte``,
            with ``.gz`` or without.
        kind (str): ``'train'`` or ``'t10k'``.

    Returns:
        dict: uint8 arrays, ``'x'`` of shape ``(N, 784)`` and ``'y'`` of shape
        ``(N,)``.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged, or the two do not go together.

    """

    def read(name: str) -> numpy.ndarray:
        for path in _paths(directory, name):
            if os.path.exists(path):
                return read_idx(_read(path), path)
        raise FileNotFoundError(
            'there is no {0} and no {0}.gz in {1}'.format(name, directory)
        )

    images = '{}-images-idx3-ubyte'.format(kind)
    labels = '{}-labels-idx1-ubyte'.format(kind)
    return _pair(read(images), read(labels), directory)


def retrieve(data_set: DataSet, kind: str) -> dict[str, numpy.ndarray]:
    """Takes one half of a data set from Chainer's cache or from a mirror.

    Files that lie in the cache's directory are taken before any mirror is
    asked. Whatever is taken is checked against its SHA-256 and then cached,
    once and for all processes, if the directory can be written.

    Args:
        data_set (DataSet): The data set.
        kind (str): ``'train'`` or ``'t10k'``.

    Returns:
        dict: As of :func:`read_directory`.

    Raises:
        OSError: If no source gives the right bytes, or if the cached file is
            damaged.

    """
    from chainer.dataset import download

    root = download.get_dataset_directory(data_set.directory)
    name = _CACHED[kind]
    path = os.path.join(root, name)
    if not os.path.exists(path):
        if not os.access(root, os.W_OK):
            return _fetch(data_set, kind, root)
        with filelock.FileLock(path + '.lock'):
            if not os.path.exists(path):
                pair = _fetch(data_set, kind, root)
                with tempfile.TemporaryDirectory(dir=root) as directory:
                    temporary = os.path.join(directory, name)
                    numpy.savez_compressed(temporary, x=pair['x'], y=pair['y'])
                    os.replace(temporary, path)
    try:
        with numpy.load(path) as cached:
            pair = {'x': cached['x'], 'y': cached['y']}
        if pair['x'].shape != (len(pair['y']), 784):
            raise ValueError('its shapes do not fit')
    except Exception as error:  # whatever NumPy makes of damaged bytes
        raise OSError(
            '{} is damaged ({}); delete it, and it will be made again'.format(
                path, error
            )
        ) from error
    return pair


def _fetch(
    data_set: DataSet, kind: str, root: str
) -> dict[str, numpy.ndarray]:
    images, labels = (
        read_idx(_obtain(data_set, name, root), name)
        for name in data_set.sha256
        if name.startswith(kind)
    )
    return _pair(images, labels, root)


def _pair(
    images: numpy.ndarray, labels: numpy.ndarray, source: str
) -> dict[str, numpy.ndarray]:
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            'expected N images of 28 x 28 and N labels in {}, but the shapes '
            'are {} and {}'.format(source, images.shape, labels.shape)
        )
    return {'x': images.reshape(-1, 784), 'y': labels}


def _paths(directory: str, name: str) -> tuple[str, str]:
    path = os.path.join(directory, name)
    return path, path + '.gz'


def _obtain(data_set: DataSet, name: str, root: str) -> bytes:
    failures = []
    sources: list[tuple[str, Callable[[str], bytes]]] = [
        (path, _read) for path in _paths(root, name) if os.path.exists(path)
    ]
    sources += [
        ('{}{}.gz'.format(mirror, name), _download)
        for mirror in data_set.mirrors
    ]
    for source, read in sources:
        try:
            content = _uncompressed(read(source), source)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append('{}: {}'.format(source, error))
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == data_set.sha256[name]:
            return content
        failures.append(
            '{}: its content has the SHA-256 {} instead of {}'.format(
                source, sha256, data_set.sha256[name]
            )
        )
    raise OSError(
        'no source has given {}. Tried were:\n  {}\nTo provide the data by '
        'hand, put {} into {}, each as it is or as .gz.'.format(
            name,
            '\n  '.join(failures),
            ', '.join(data_set.sha256),
            root,
        )
    )


def _read(path: str) -> bytes:
    with open(path, 'rb') as file:
        return file.read()


def _download(url: str) -> bytes:
    sys.stderr.write('Downloading {}\n'.format(url))
    deadline = time.monotonic() + DEADLINE
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        expected: Optional[str] = response.headers['Content-Length']
        while True:
            part = response.read1(1 << 20)
            if not part:
                break
            content += part
            if time.monotonic() > deadline:
                raise TimeoutError(
                    'only {} bytes in {} seconds'.format(
                        len(content), DEADLINE
                    )
                )
    if expected is not None and len(content) != int(expected):
        raise OSError(
            'only {} of {} bytes came'.format(len(content), expected)
        )
    return bytes(content)


def _uncompressed(content: bytes, source: str) -> bytes:
    if content[:2] != b'\x1f\x8b':
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            '{} is no whole gzip file: {}'.format(source, error)
        ) from error


def _retrieve_with(data_set: DataSet) -> Callable[..., Any]:
    kinds = {name: kind for kind, name in _CACHED.items()}

    def retrieve_by_name(name: str, urls: Any) -> dict[str, numpy.ndarray]:
        return retrieve(data_set, kinds[name])

    return retrieve_by_name


def _mend_mnist(module: Any) -> None:
    module._retrieve_mnist = _retrieve_with(MNIST)


def _mend_fashion_mnist(module: Any) -> None:
    module._retrieve_fashion_mnist = _retrieve_with(FASHION_MNIST)


FIXES = (
    Fix(
        module='chainer.datasets.mnist',
        broken='the only host of MNIST answers 403',
        since='2020',
        is_needed=lambda: True,
        mend=_mend_mnist,
    ),
    Fix(
        module='chainer.datasets.fashion_mnist',
        broken='Fashion-MNIST comes from one host, and unchecked',
        since='always',
        is_needed=lambda: True,
        mend=_mend_fashion_mnist,
    ),
)
