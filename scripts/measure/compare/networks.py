"""The networks that classify images, and conversions of trained ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
from datasets import load_dataset
from measure.compare.svd import choose_ranks, convert_to_low_rank
import numpy

BATCH_SIZE = 100
CALIBRATION_SIZE = 1000
TUNING_SIZE = 5000


class Run(NamedTuple):
    """Everything that determines a run's result, apart from the data."""

    sizes: tuple[int, ...]  # of the input and of the layers' outputs
    common_num: tuple[int, ...] = (1, 1, 1)  # of each layer
    rank: tuple[int, ...] = (0, 0, 0)  # of each layer; 0 has a single weight
    max_parameters: int | None = None  # within which n or ranks are chosen
    order: str = 'contiguous'  # of a layer that is trained from scratch
    orders: int | None = 1  # of each layer; None has as many as share takes
    start: str | None = None  # how a trained dense network is converted
    tune_steps: int = 0  # before there are labels
    dense_epochs: int | None = None  # how long that is trained
    dropout: float = 0  # after the hidden layers
    epochs: int = 8
    learning_rate: float = 1e-3  # at first; it falls linearly to zero
    seed: int = 0

    decimals = 2  # of the accuracy in percent

    @property
    def layers(self):
        """in_size, out_size, common_num and rank of each layer."""
        return list(
            zip(self.sizes, self.sizes[1:], self.common_num, self.rank)
        )

    @property
    def dense(self):
        """The run of the dense network that this one starts from."""
        return Run(self.sizes, epochs=self.dense_epochs, seed=self.seed)

    def count_parameters(self):
        return sum(
            (rank * (in_size + out_size) if rank else out_size * in_size // n)
            + out_size
            for in_size, out_size, n, rank in self.layers
        )

    def __str__(self):
        words = ['-'.join(map(str, self.sizes))]
        if self.start:
            words.append(self.start)
        if self.max_parameters:
            words.append(f'within {self.max_parameters:,} parameters')
        for i, (_, _, n, rank) in enumerate(self.layers, 1):
            if n > 1:
                words.append(f'l{i} shared by {n}')
            if rank:
                words.append(f'l{i} of rank {rank}')
        if self.order != 'contiguous':
            words.append(self.order)
        if self.orders != 1:
            words.append(f'{self.orders or "default"} orders')
        return ', '.join(words)


def make_low_rank(run):
    """Makes the run with low-rank layers as large as the shared ones."""
    rank = [
        max(1, in_size * out_size // n // (in_size + out_size)) * (n > 1)
        for in_size, out_size, n, _ in run.layers
    ]
    return run._replace(
        common_num=(1, 1, 1), rank=tuple(rank), orders=1, start='SVD'
    )


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


def make_order(name, in_size, orders, seed):
    """Returns an order in the form that SharedLinear takes."""
    if name == 'random':
        random = numpy.random.RandomState(seed)
        return numpy.stack(
            [random.permutation(in_size) for _ in range(orders)]
        )
    if name == '2x2':
        pixels = numpy.arange(784).reshape(14, 2, 14, 2)
        return pixels.transpose(1, 3, 0, 2).ravel()
    return {'contiguous': None, 'interleaved': 'interleaved'}[name]


class Network(chainer.Chain):
    def __init__(self, run):
        super().__init__()
        self.depth = len(run.sizes) - 1
        self.dropout = run.dropout
        orders = numpy.broadcast_to(run.orders, self.depth)
        for i, (in_size, out_size, n, rank) in enumerate(run.layers, 1):
            if rank:
                link = chainer.Sequential(
                    L.Linear(in_size, rank, nobias=True),
                    L.Linear(rank, out_size),
                )
            elif n > 1:
                number = min(orders[i - 1], out_size)
                order = make_order(run.order, in_size, number, run.seed)
                link = chainer_shared_patch.SharedLinear(
                    in_size, out_size, common_num=n, order=order
                )
            else:
                link = L.Linear(in_size, out_size)
            self.add_link(f'l{i}', link)

    @property
    def layers(self):
        return [self[f'l{i}'] for i in range(1, self.depth + 1)]

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = F.dropout(F.relu(layer(x)), self.dropout)
        return last(x)


def convert(model, run, images):
    """Shares or factorizes layers of a trained dense network."""
    paths = [f'/l{i}' for i in range(1, len(run.sizes))]
    size = TUNING_SIZE if run.tune_steps else CALIBRATION_SIZE
    inputs = images[:size]
    if run.start == 'SVD':
        ranks = run.rank
        if run.max_parameters:
            budget = run.max_parameters - sum(run.sizes[1:])
            ranks = choose_ranks(model.layers, inputs, budget)
        chosen = {path: rank for path, rank in zip(paths, ranks) if rank}
        convert_to_low_rank(model, chosen, inputs)
        return
    common_num = {path: n for path, n in zip(paths, run.common_num) if n > 1}
    orders = run.orders
    if run.max_parameters:
        plan = chainer_shared_patch.plan(
            model,
            images[:CALIBRATION_SIZE],
            max_parameters=run.max_parameters,
            orders=orders,
        )
        common_num, orders = plan.common_num, plan.orders
    chainer_shared_patch.share(
        model,
        common_num,
        inputs=inputs,
        orders=orders,
        tune_steps=run.tune_steps,
    )


def fold_mean(layer, mean):
    """Changes a layer's bias so that it takes inputs without their mean.

    Positive inputs have sums of much the same sign, which Adam is slow on.
    """
    biased = layer[-1] if isinstance(layer, chainer.Sequential) else layer
    with chainer.no_backprop_mode():
        shift = layer(mean[None]) - layer(numpy.zeros_like(mean)[None])
    biased.b.array += shift.array[0]


def evaluate(model, images, labels):
    """Returns the accuracy in percent."""
    correct = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for i in range(0, len(images), 1000):
            y = model(images[i : i + 1000]).array
            correct += int((y.argmax(1) == labels[i : i + 1000]).sum())
    return 100 * correct / len(images)


def update(optimizer, images, labels):
    optimizer.update(
        lambda: F.softmax_cross_entropy(optimizer.target(images), labels)
    )


@functools.lru_cache(maxsize=1)
def read(name):
    """Returns the training and test data, and a description of them."""
    *parts, description = load_dataset(name)
    parts = [chainer.dataset.concat_examples(part[:]) for part in parts]
    return (*parts, description)


def train(run, dataset, dense):
    """Returns a trained network and its record.

    It starts from the file of a dense network if the run says so.
    """
    (images, labels), (test_images, test_labels), _ = read(dataset)
    record = {}
    if run.start:
        model = Network(run.dense)
        model.dropout = run.dropout
        chainer.serializers.load_npz(dense, model)
        convert(model, run, images)
        record['at once'] = evaluate(model, test_images, test_labels)
        mean = images.mean(axis=0)
        fold_mean(model.l1, mean)
        images, test_images = images - mean, test_images - mean
    else:
        model = Network(run)
    optimizer = chainer.optimizers.Adam(run.learning_rate).setup(model)
    for epoch in range(run.epochs):
        order = numpy.random.permutation(len(images))
        for i in range(0, len(order), BATCH_SIZE):
            done = (epoch + i / len(order)) / run.epochs
            optimizer.alpha = run.learning_rate * (1 - done)
            batch = order[i : i + BATCH_SIZE]
            update(optimizer, images[batch], labels[batch])
    record['trained'] = evaluate(model, test_images, test_labels)
    return model, record
