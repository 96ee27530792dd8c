"""MNIST by its name, or from a directory."""

import os

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.datasets import read_directory
import chainer
from chainer.datasets._mnist_helper import preprocess_mnist
import numpy

SAMPLE = os.path.join(os.path.dirname(__file__), 'mnist_sample')


def load_dataset(name):
    """Returns the training set, the test set and a description of them."""
    if name == 'fashion':
        return (*chainer.datasets.get_fashion_mnist(), 'Fashion-MNIST')
    directory, description = os.path.expanduser(name), f'the files in {name}'
    if name == 'sample':
        directory, description = SAMPLE, 'the bundled sample of MNIST'
    elif name in ('auto', 'mnist'):
        try:
            return (*chainer.datasets.get_mnist(), 'MNIST')
        except OSError:
            if name == 'mnist':
                raise
        directory = SAMPLE
        description = (
            'the bundled sample, because MNIST cannot be downloaded '
            '(--dataset mnist says why; with make, DATASET=mnist)'
        )
    train, test = (
        preprocess_mnist(
            read_directory(directory, kind),
            withlabel=True,
            ndim=1,
            scale=1.0,
            image_dtype=chainer.get_dtype(),
            label_dtype=numpy.int32,
            rgb_format=False,
        )
        for kind in ('train', 't10k')
    )
    return train, test, description
