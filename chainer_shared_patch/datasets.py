"""Reads images and labels from IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib

import numpy


def read_idx(path: str) -> numpy.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
        path (str): The path of the file, which may be gzipped.

    Returns:
        numpy.ndarray: Read-only uint8 array of the shape that the file
        states: ``(N, 28, 28)`` for MNIST's images, ``(N,)`` for its labels.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a file or is damaged.

    .. admonition:: Example

        >>> import tempfile
        >>> from chainer_shared_patch.datasets import read_idx
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     file.flush()
        ...     print(read_idx(file.name))
        [7 2 1]

    """
    with open(path, 'rb') as file:
        content = file.read()
    if content[:2] == b'\x1f\x8b':
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f'read_idx(): {path} is not a complete gzip file: {error}'
            ) from error
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:3] != b'\0\0\x08' or len(content) < start:
        raise ValueError(
            f'read_idx(): {path} is not an IDX file of unsigned bytes: it '
            f'begins with {content[:16]!r}'
        )
    shape = numpy.frombuffer(content[4:start], '>u4').tolist()
    array = numpy.frombuffer(content, numpy.uint8, offset=start)
    if array.size != math.prod(shape):
        raise ValueError(
            f'read_idx(): {path} should hold an array of shape '
            f'{tuple(shape)}, but holds {array.size:,} bytes after its header'
        )
    return array.reshape(shape)


def read_directory(directory: str, kind: str) -> dict[str, numpy.ndarray]:
    """Reads the images and labels of digits in a directory of IDX files.

    Args:
        directory (str): Path of a directory with files named as MNIST's,
            ``{kind}-images-idx3-ubyte`` and ``{kind}-labels-idx1-ubyte``,
            with ``.gz`` or without.
        kind (str): ``'train'`` or ``'t10k'``.

    Returns:
        dict: uint8 arrays, ``'x'`` of shape ``(N, 784)`` and ``'y'`` of shape
        ``(N,)``.

    Raises:
        OSError: If a file is missing or cannot be read.
        ValueError: If a file is damaged, or the two are not N images of
            28 x 28 pixels and their N labels from 0 to 9.

    .. admonition:: Example

        >>> from pathlib import Path
        >>> import tempfile
        >>> from chainer_shared_patch.datasets import read_directory
        >>> image = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory, 't10k-images-idx3-ubyte')
        ...     _ = path.write_bytes(image + bytes(28 * 28))
        ...     path = Path(directory, 't10k-labels-idx1-ubyte')
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
        ...     test = read_directory(directory, 't10k')
        >>> test['x'].shape, test['y']
        ((1, 784), array([7], dtype=uint8))

    """
    return read_digits(
        find_idx(directory, f'{kind}-images-idx3-ubyte'),
        find_idx(directory, f'{kind}-labels-idx1-ubyte'),
    )


def read_digits(
    images_path: str, labels_path: str
) -> dict[str, numpy.ndarray]:
    """Does what :func:`read_directory` does, with files of any names."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape != (labels.size, 28, 28) or not labels.size > 0:
        raise ValueError(
            f'read_digits(): {images_path} and {labels_path} should hold N '
            'images of 28 x 28 pixels and their N labels, but their shapes '
            f'are {images.shape} and {labels.shape}'
        )
    if labels.max() > 9:
        raise ValueError(
            f'read_digits(): {labels_path} holds the label {labels.max()}; '
            'only 0 to 9 are allowed'
        )
    return {'x': images.reshape(-1, 784), 'y': labels.reshape(-1)}


def find_idx(directory: str, name: str) -> str:
    """Returns the path of a file of that name, gzipped or not."""
    path = os.path.join(directory, name)
    for found in (path, path + '.gz'):
        if os.path.exists(found):
            return found
    raise FileNotFoundError(
        f'there is no {name} and no {name}.gz in {directory}'
    )
