"""The networks that are compared, and conversions of trained ones."""

from __future__ import annotations

from typing import NamedTuple

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
import numpy

CALIBRATION_SIZE = 1000


class Run(NamedTuple):
    """Everything that determines a run's result, apart from the data."""

    sizes: tuple[int, ...]  # of the input and of the layers' outputs
    common_num: tuple[int, ...] = (1, 1, 1)  # of each layer
    rank: tuple[int, ...] = (0, 0, 0)  # of each layer; 0 has a single weight
    order: str = 'contiguous'  # of the first layer
    start: str | None = None  # how a trained dense network is converted
    dense_epochs: int | None = None  # how long that is trained
    dropout: float = 0  # after the hidden layers
    epochs: int = 8
    learning_rate: float = 1e-3  # at first; it falls linearly to zero
    seed: int = 0

    @property
    def layers(self):
        """in_size, out_size, nobias, common_num and rank of each layer."""
        # As in the article.
        nobias = (False, len(self.sizes) == 4, False)
        return list(
            zip(self.sizes, self.sizes[1:], nobias, self.common_num, self.rank)
        )

    @property
    def dense(self):
        """The run of the dense network that this one starts from."""
        return Run(self.sizes, epochs=self.dense_epochs, seed=self.seed)

    def count_parameters(self):
        return sum(
            (rank * (in_size + out_size) if rank else out_size * in_size // n)
            + (0 if nobias else out_size)
            for in_size, out_size, nobias, n, rank in self.layers
        )

    def __str__(self):
        words = ['-'.join(map(str, self.sizes))]
        for i, (_, _, _, n, rank) in enumerate(self.layers, 1):
            if n > 1:
                words.append(f'l{i} shared by {n}')
            if rank:
                words.append(f'l{i} of rank {rank}')
        if self.order != 'contiguous':
            words.append(self.order)
        if self.start:
            words.append(f'from dense ({self.start})')
        if self.dropout:
            words.append(f'dropout {self.dropout}')
        return ', '.join(words)


def make_low_rank(run):
    """Makes the run with low-rank factors as large as the shared weights."""
    rank = [
        max(1, in_size * out_size // n // (in_size + out_size)) * (n > 1)
        for in_size, out_size, _, n, _ in run.layers
    ]
    return run._replace(common_num=(1, 1, 1), rank=tuple(rank))


def make_smaller(run, budget):
    """Makes the run of the largest dense network within the budget."""
    smaller = (
        Run(
            (
                run.sizes[0],
                *(size * width // run.sizes[1] for size in run.sizes[1:-1]),
                run.sizes[-1],
            ),
            epochs=run.epochs,
        )
        for width in range(run.sizes[1], 0, -1)
    )
    return next(run for run in smaller if run.count_parameters() <= budget)


def make_order(name, seed):
    """Returns an order of the 784 pixels, in the form SharedLinear takes."""
    if name == 'random':
        return numpy.random.RandomState(seed).permutation(784)
    if name == '2x2':
        pixels = numpy.arange(784).reshape(14, 2, 14, 2)
        return pixels.transpose(1, 3, 0, 2).ravel()
    return {'contiguous': None, 'interleaved': 'interleaved'}[name]


class Network(chainer.Chain):
    def __init__(self, run):
        super().__init__()
        self.depth = len(run.sizes) - 1
        self.dropout = run.dropout
        for i, (in_size, out_size, nobias, n, rank) in enumerate(
            run.layers, 1
        ):
            if rank:
                link = chainer.Sequential(
                    L.Linear(in_size, rank, nobias=True),
                    L.Linear(rank, out_size, nobias=nobias),
                )
            elif n > 1:
                order = None if i > 1 else make_order(run.order, run.seed)
                link = chainer_shared_patch.SharedLinear(
                    in_size, out_size, nobias, common_num=n, order=order
                )
            else:
                link = L.Linear(in_size, out_size, nobias)
            self.add_link(f'l{i}', link)

    def forward(self, x):
        for i in range(1, self.depth):
            x = F.relu(self[f'l{i}'](x))
            x = F.dropout(x, self.dropout)
        return self[f'l{self.depth}'](x)


def factorize(link, rank):
    """Turns a linear layer into two, by truncated SVD."""
    U, s, V = numpy.linalg.svd(link.W.array, full_matrices=False)
    out_size, in_size = link.W.shape
    W = U[:, :rank] * s[:rank]
    b = chainer.as_array(link.b)
    return chainer.Sequential(
        L.Linear(in_size, rank, nobias=True, initialW=V[:rank]),
        L.Linear(rank, out_size, b is None, W, b),
    )


def convert(model, run, images):
    """Shares or factorizes the layers of a trained dense network."""
    if run.start == 'svd':
        for i, rank in enumerate(run.rank, 1):
            if rank:
                link = factorize(model[f'l{i}'], rank)
                delattr(model, f'l{i}')
                model.add_link(f'l{i}', link)
    elif run.start != 'unchanged':
        calibrated = run.start == 'calibrated'
        chainer_shared_patch.share(
            model,
            {f'/l{i}': n for i, n in enumerate(run.common_num, 1) if n > 1},
            inputs=images[:CALIBRATION_SIZE] if calibrated else None,
            order='contiguous' if run.start == 'contiguous' else 'grouped',
            add_bias=calibrated,
        )
