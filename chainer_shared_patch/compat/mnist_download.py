"""MNIST from hosts that answer."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

from chainer_shared_patch.compat.importing import Fix
from chainer_shared_patch.datasets import find_idx, read_digits
import numpy

MIRRORS = (
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
)
SHA256 = {
    'train-images-idx3-ubyte.gz': (
        '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'
    ),
    'train-labels-idx1-ubyte.gz': (
        '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'
    ),
    't10k-images-idx3-ubyte.gz': (
        '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'
    ),
    't10k-labels-idx1-ubyte.gz': (
        'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'
    ),
}
# Seconds to wait for a host's next bytes.
TIMEOUT = 10


def retrieve(name: str, urls: list[str]) -> Any:
    """Returns the arrays of Chainer's ``_retrieve_mnist``, whose host is dead.

    In Chainer's dataset directory, a file that Chainer has made comes first;
    then IDX files, whether put there by hand or downloaded before; and then
    those that Chainer has downloaded.
    """
    from chainer.dataset import download

    root = download.get_dataset_root()
    directory = os.path.join(root, 'pfnet', 'chainer', 'mnist')
    path = os.path.join(directory, name)
    if os.path.exists(path):
        return numpy.load(path)
    cache = os.path.join(root, '_dl_cache')
    return read_digits(*(_find(url, directory, cache) for url in urls))


def _find(url: str, directory: str, cache: str) -> str:
    file = url.split('/')[-1]
    with contextlib.suppress(FileNotFoundError):
        return find_idx(directory, file[: -len('.gz')])
    name = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    # Chainer moves a complete file there, so reading needs no lock.
    path = os.path.join(cache, name)
    return path if os.path.exists(path) else _download(file, directory)


def _download(file: str, root: str) -> str:
    import pooch

    downloader = pooch.HTTPDownloader(timeout=TIMEOUT)
    failures = []
    for mirror in MIRRORS:
        try:
            path: str = pooch.retrieve(
                mirror + file, SHA256[file], file, root, downloader=downloader
            )
            return path
        except (OSError, ValueError) as error:  # of HTTP, or of the hash
            failures.append(f'{mirror}{file}: {error}')
    raise OSError(
        'no source has {}. Tried:\n  {}\nTo provide the data by hand, put '
        '{} into {}, each as it is or uncompressed.'.format(
            file, '\n  '.join(failures), ', '.join(SHA256), root
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
