"""MNIST from hosts that answer, and IDX files from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import gzip
import hashlib
import os
import tempfile
import time
from typing import Any
import zlib

from chainer_shared_patch.compat.importing import Fix
import filelock
import numpy

DIRECTORY = 'pfnet/chainer/mnist'
MIRRORS = (
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
)
# The SHA-256 of each file: gzipped as the mirrors serve it, and uncompressed.
SHA256 = {
    'train-images-idx3-ubyte': (
        '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
        'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    ),
    'train-labels-idx1-ubyte': (
        '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
        '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    ),
    't10k-images-idx3-ubyte': (
        '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
        '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    ),
    't10k-labels-idx1-ubyte': (
        'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
        'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
    ),
}
# Seconds without a byte, and seconds for a whole file.
TIMEOUT = 10
DEADLINE = 300
# A header that claims more is not believed.
MAX_IMAGES = 1_000_000


def read_idx(path: str, sha256: str | None = None) -> numpy.ndarray:
    """Reads MNIST's images or labels from an IDX file.

    Args:
        path (str): The path of the file, which may be gzipped.
        sha256 (str): The SHA-256 that its uncompressed content must have. If
            ``None``, it may have any.

    Returns:
        numpy.ndarray: uint8 array of shape ``(N, 28, 28)`` or ``(N,)``.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a file or is damaged.

    """
    if not os.path.isfile(path):
        raise ValueError(f'{path} is not a regular file')
    with open(path, 'rb') as file:
        is_gzipped = file.read(2) == b'\x1f\x8b'
    try:
        with (gzip.open if is_gzipped else open)(path, 'rb') as file:
            header = file.read(8)
            shape = [int.from_bytes(header[4:], 'big')]
            if header[:4] == b'\0\0\x08\x03':
                header += file.read(8)
                shape += [28, 28]
            if (
                not 0 < shape[0] <= MAX_IMAGES
                or header[:4] not in (b'\0\0\x08\x01', b'\0\0\x08\x03')
                or header[8:] not in (b'', b'\0\0\0\x1c\0\0\0\x1c')
            ):
                raise ValueError(
                    f'{path} is not an IDX file of 1 to {MAX_IMAGES:,} labels '
                    f'or 28 x 28 images: it begins with {header!r}'
                )
            size = shape[0] * 28 ** (len(shape) - 1)
            body = _read_at_most(file, size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{path} is not a complete gzip file: {error}'
        ) from error
    if len(body) != size:
        raise ValueError(
            '{} should hold {:,} bytes after its header, but holds {}'.format(
                path, size, 'more' if len(body) > size else len(body)
            )
        )
    array = numpy.frombuffer(body, numpy.uint8).reshape(shape)
    if array.ndim == 1 and array.max() > 9:
        raise ValueError(
            f'{path} holds the label {array.max()}; only 0 to 9 are allowed'
        )
    actual = hashlib.sha256(header + body).hexdigest()
    if sha256 not in (None, actual):
        raise ValueError(
            f'{path}: its content has the SHA-256 {actual} instead of {sha256}'
        )
    return array


def _read_at_most(file: Any, size: int) -> bytes:
    """Reads in pieces, so that memory is used only for bytes that exist."""
    pieces = []
    while size:
        piece = file.read(min(size, 2**20))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b''.join(pieces)


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
    return _pair(directory, kind, _read)


def retrieve(name: str, urls: Sequence[str] = ()) -> dict[str, numpy.ndarray]:
    """Does what Chainer's ``_retrieve_mnist`` did while its host answered.

    Files in the cache directory take precedence over the mirrors. The result
    is cached, once for all processes, if the directory is writable.

    Args:
        name (str): ``'train.npz'`` or ``'test.npz'``.
        urls (sequence of str): Ignored; Chainer passes its dead host here.

    Returns:
        dict: uint8 arrays, ``'x'`` of shape ``(N, 784)`` and ``'y'`` of shape
        ``(N,)``.

    Raises:
        OSError: If no source has the data. The message says what is wrong
            with each source.

    """
    from chainer.dataset import download

    kind = {'train.npz': 'train', 'test.npz': 't10k'}[name]
    root = download.get_dataset_directory(DIRECTORY, create_directory=False)
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        with contextlib.suppress(OSError):
            os.makedirs(root)
        if not os.access(root, os.W_OK):
            return _pair(root, kind, _obtain)
        # Chainer's cache_or_load_file locks only the final move, so each
        # process would download for itself.
        with filelock.FileLock(path + '.lock'):
            if not os.path.isfile(path):
                with tempfile.TemporaryDirectory(dir=root) as temporary:
                    made = os.path.join(temporary, name)
                    pair = _pair(root, kind, _obtain)
                    numpy.savez_compressed(made, x=pair['x'], y=pair['y'])
                    os.replace(made, path)
    try:
        with numpy.load(path) as cached:
            pair = {'x': cached['x'], 'y': cached['y']}
        if (
            pair['x'].shape != (*pair['y'].shape, 784)
            or not pair['x'].dtype == pair['y'].dtype == numpy.uint8
            or pair['y'].max() > 9
        ):
            raise ValueError('it does not hold images and labels of digits')
    except Exception as error:  # whatever NumPy makes of damaged bytes
        raise OSError(
            f'{path} is damaged ({error}); delete it to have it made again'
        ) from error
    return pair


def _pair(
    directory: str, kind: str, read: Callable[[str, str], numpy.ndarray]
) -> dict[str, numpy.ndarray]:
    images, labels = (
        read(directory, name) for name in SHA256 if name.startswith(kind)
    )
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f'expected N images and N labels of {kind} in {directory}, but '
            f'their shapes are {images.shape} and {labels.shape}'
        )
    return {'x': images.reshape(-1, 784), 'y': labels}


def _paths(directory: str, name: str) -> list[str]:
    path = os.path.join(directory, name)
    return list(filter(os.path.exists, (path, path + '.gz')))


def _read(directory: str, name: str) -> numpy.ndarray:
    for path in _paths(directory, name):
        return read_idx(path)
    raise FileNotFoundError(
        f'there is no {name} and no {name}.gz in {directory}'
    )


def _obtain(root: str, name: str) -> numpy.ndarray:
    gzipped, uncompressed = SHA256[name]
    failures = []
    for path in _paths(root, name):
        try:
            return read_idx(path, uncompressed)
        except (OSError, ValueError) as error:
            failures.append(str(error))
    for mirror in MIRRORS:
        url = f'{mirror}{name}.gz'
        try:
            return _download(url, gzipped)
        except (OSError, ValueError) as error:
            failures.append(f'{url}: {error}')
    raise OSError(
        'no source has {}. Tried:\n  {}\nTo provide the data by hand, put '
        '{} into {}, each uncompressed or as .gz.'.format(
            name, '\n  '.join(failures), ', '.join(SHA256), root
        )
    )


def _download(url: str, sha256: str) -> numpy.ndarray:
    import pooch

    end = time.monotonic() + DEADLINE

    class Deadline:
        """A progress bar, because that is called after every chunk."""

        def update(self, size: int) -> None:
            if time.monotonic() > end:
                raise TimeoutError(f'not complete after {DEADLINE} seconds')

        def reset(self) -> None:
            pass

        close = reset

    # From a host that sends very slowly, only small chunks arrive in time.
    downloader = pooch.HTTPDownloader(
        progressbar=Deadline(), chunk_size=64, timeout=TIMEOUT
    )
    with tempfile.TemporaryDirectory() as directory:
        return read_idx(
            pooch.retrieve(
                url,
                known_hash='sha256:' + sha256,
                fname='idx.gz',
                path=directory,
                downloader=downloader,
            )
        )


def _fix_mnist(module: Any) -> None:
    module._retrieve_mnist = retrieve


FIXES = (
    Fix(
        module='chainer.datasets.mnist',
        broken='the only host of MNIST answers 403 since 2020',
        when=None,
        apply=_fix_mnist,
    ),
)
