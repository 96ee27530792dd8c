"""A recurrent network that predicts the next character of a text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
from measure.compare.svd import convert_to_low_rank
import numpy

LENGTH = 50  # of the examples, in characters
BATCH_SIZE = 50
TEST_SIZE = 50_000
UNITS = 256
LATERAL = '/lstm/lateral'


class TextRun(NamedTuple):
    """Everything that determines a run's result, apart from the text."""

    start: str | None = None  # how a trained dense network is converted
    common_num: int = 1  # of the lateral weight
    orders: int = 1
    rank: int = 0
    dense_iterations: int | None = None
    iterations: int = 1000
    seed: int = 0

    decimals = 3  # of the bits per character

    @property
    def dense(self):
        """The run of the dense network that this one starts from."""
        return TextRun(iterations=self.dense_iterations, seed=self.seed)

    def __str__(self):
        words = ['LSTM', self.start or 'dense']
        if self.common_num > 1:
            words.append(f'n = {self.common_num}, {self.orders} orders')
        if self.rank:
            words.append(f'rank {self.rank}')
        return ', '.join([*words, f'{self.iterations} iterations'])


def make_low_rank(run):
    """Makes the run with a low-rank weight as large as the shared one."""
    rank = 4 * UNITS * UNITS // run.common_num // (5 * UNITS)
    return run._replace(start='SVD', common_num=1, orders=1, rank=rank)


class LSTM(chainer.Chain):
    def __init__(self, n_characters):
        super().__init__()
        with self.init_scope():
            self.embed = L.EmbedID(n_characters, UNITS)
            self.lstm = L.LSTM(UNITS, UNITS)
            self.output = L.Linear(UNITS, n_characters)

    @property
    def layers(self):
        return [self.lstm.lateral]

    def forward(self, x):
        """Returns the outputs after each character of a batch of texts."""
        self.lstm.reset_state()
        hs = [self.lstm(self.embed(each)) for each in x.T]
        return self.output(F.concat(hs, axis=0))


@functools.lru_cache(maxsize=1)
def read(path):
    """Returns training and test text as integers, and a description."""
    text = Path(path).read_text(encoding='utf-8')
    characters, text = numpy.unique(list(text), return_inverse=True)
    text = text.astype('i')
    description = f'{len(text):,} characters, {len(characters)} different'
    size = min(TEST_SIZE, len(text) // 10)
    return text[:-size], text[-size:], description


def evaluate(model, text):
    """Returns the bits that each character of a text takes."""
    texts = text[: len(text) // 50 * 50].reshape(50, -1)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        y = model(texts[:, :-1])
        loss = F.softmax_cross_entropy(y, texts[:, 1:].T.ravel())
    return float(loss.array / numpy.log(2))


def draw(text):
    """Returns a batch of examples."""
    starts = numpy.random.randint(len(text) - LENGTH, size=BATCH_SIZE)
    return text[starts[:, None] + numpy.arange(LENGTH + 1)]


def update(optimizer, batch):
    optimizer.update(
        lambda: F.softmax_cross_entropy(
            optimizer.target(batch[:, :-1]), batch[:, 1:].T.ravel()
        )
    )


def train(run, path, dense):
    """Returns a trained network and its record, as networks.train does."""
    text, test, _ = read(path)
    model = LSTM(max(text.max(), test.max()) + 1)
    record = {}
    if run.start:
        chainer.serializers.load_npz(dense, model)
        inputs = draw(text)[:, :-1]
        if run.start == 'SVD':
            convert_to_low_rank(model, {LATERAL: run.rank}, inputs)
        else:
            chainer_shared_patch.share(
                model,
                {LATERAL: run.common_num},
                inputs=inputs,
                orders=run.orders,
            )
        record['at once'] = evaluate(model, test)
    optimizer = chainer.optimizers.Adam().setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(5))
    for i in range(run.iterations):
        optimizer.alpha = 1e-3 * (1 - i / run.iterations)
        update(optimizer, draw(text))
    record['trained'] = evaluate(model, test)
    return model, record
