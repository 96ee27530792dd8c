"""The networks that are compared, and conversions of trained ones."""

import dataclasses
from typing import Optional

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
import numpy

CALIBRATION_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that determines a run's result, apart from the data."""

    sizes: tuple  # of the input and of the layers' outputs
    common_num: tuple = (1, 1, 1)  # of each layer
    rank: tuple = (0, 0, 0)  # of each layer, or 0 where there is one weight
    order: str = 'contiguous'  # of the first layer
    start: Optional[str] = None  # how a trained dense network is converted
    dense_epochs: Optional[int] = None  # how long that is trained
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

    def count_parameters(self):
        total = 0
        for in_size, out_size, nobias, n, rank in self.layers:
            shared = out_size * in_size // n
            total += rank * (in_size + out_size) if rank else shared
            total += 0 if nobias else out_size
        return total

    @property
    def dense(self):
        """The run of the dense network that this one starts from."""
        return Run(self.sizes, epochs=self.dense_epochs, seed=self.seed)

    @property
    def is_dense(self):
        return self == Run(self.sizes, epochs=self.epochs, seed=self.seed)

    @property
    def key(self):
        return dataclasses.asdict(self)

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
    return dataclasses.replace(run, common_num=(1, 1, 1), rank=tuple(rank))


def make_smaller(run, budget):
    """Makes the run of the largest dense network within the budget."""
    for width in range(run.sizes[1], 0, -1):
        hidden = [size * width // run.sizes[1] for size in run.sizes[1:-1]]
        smaller = Run(
            (run.sizes[0], *hidden, run.sizes[-1]), epochs=run.epochs
        )
        if smaller.count_parameters() <= budget:
            return smaller
    raise ValueError(f'no network has only {budget} parameters')


def make_order(name, n, seed):
    """Returns an order of the 784 pixels, in the form SharedLinear takes."""
    if name == 'contiguous':
        return None
    if name == 'random':
        return numpy.random.RandomState(seed).permutation(784)
    if name == 'interleaved':
        return name
    rows, columns = map(int, name.split('x'))
    assert rows * columns == n
    pixels = numpy.arange(784).reshape(28 // rows, rows, 28 // columns, -1)
    return pixels.transpose(1, 3, 0, 2).ravel()


class Network(chainer.Chain):
    def __init__(self, run):
        super().__init__()
        self.depth = len(run.sizes) - 1
        self.dropout = run.dropout
        for i, layer in enumerate(run.layers, 1):
            in_size, out_size, nobias, n, rank = layer
            if rank:
                link = chainer.Sequential(
                    L.Linear(in_size, rank, nobias=True),
                    L.Linear(rank, out_size, nobias=nobias),
                )
            elif n > 1:
                order = None if i > 1 else make_order(run.order, n, run.seed)
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
    if run.start == 'unchanged':
        return
    if run.start == 'svd':
        for i, rank in enumerate(run.rank, 1):
            name = f'l{i}'
            if rank:
                link = factorize(model[name], rank)
                delattr(model, name)
                model.add_link(name, link)
        return
    order = 'contiguous' if run.start == 'contiguous' else 'grouped'
    if run.order != 'contiguous':
        n = run.common_num[0]
        order = {'/l1': make_order(run.order, n, run.seed)}
    calibrated = run.start == 'calibrated'
    chainer_shared_patch.share(
        model,
        {f'/l{i}': n for i, n in enumerate(run.common_num, 1) if n > 1},
        inputs=images[:CALIBRATION_SIZE] if calibrated else None,
        order=order,
        add_bias=calibrated,
    )
