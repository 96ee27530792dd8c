"""Training of shared layers: models, settings, iterators and updaters."""

import itertools

from chainer_shared_patch import patched, uninstall
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.helpers import (
    SIZES,
    Chain,
    K,
    N,
    TiledLinear,
    assert_same,
    assert_same_steps,
    fill,
    integers,
    iterate,
    make_arrays,
    make_batches,
    params_of,
    reference,
    tiled_linear,
)

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('debug', True),
        ('type_check', False),
        ('train', False),
        ('lazy_grad_sum', True),
    ],
)
def test_settings_of_chainer(random, algorithm, name, value):
    batches, weights = make_batches(random)
    with chainer.using_config(name, value):
        with chainer.using_config('common_num', N):
            actual = iterate(Chain(), batches, weights)
        uninstall()
        expected = iterate(Chain(TiledLinear), batches, weights)
    assert_same_steps(actual, expected)


class TwoNumbers(chainer.Chain):
    """Two shared layers of different numbers of blocks."""

    def __init__(self):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', 'd'):
            self.l1 = L.Linear(2, 8)
            self.l2 = L.Linear(2, 3)
        fill(self)

    def forward(self, x):
        with chainer.using_config('common_num', 6):
            h = F.tanh(self.l1(x))
        with patched(common_num=4):
            return self.l2(h)


class TwoTiled(TwoNumbers):
    def forward(self, x):
        h = F.tanh(tiled_linear(6)(x, self.l1.W, self.l1.b))
        return tiled_linear(4)(h, self.l2.W, self.l2.b)


def test_two_numbers_in_one_model(random, algorithm):
    batches, weights = make_batches(random, columns=12)
    actual = iterate(TwoNumbers(), batches, weights)
    uninstall()
    assert_same_steps(actual, iterate(TwoTiled(), batches, weights))


def test_one_weight_in_two_layers(random, algorithm):
    # One is shared, the other one has the weight's own width.
    arrays = make_arrays(integers(random), *SIZES)[:3]
    results = []
    for linear, common_num in ((F.linear, N), (tiled_linear(), 1)):
        x, W, b = (chainer.Variable(a) for a in arrays)
        with chainer.using_config('common_num', common_num):
            y = linear(x, W, b) * F.linear(x[:, :K], W)
        F.sum(y**2).backward()
        results.append([y.array, x.grad, W.grad, b.grad])
    for a, e in zip(*results):
        numpy.testing.assert_array_equal(a, e)


def test_evaluation_is_bit_identical_to_training(random, algorithm):
    x = random.randn(4, N * K)
    chain = Chain()
    results = []
    with chainer.using_config('common_num', N):
        for train, backprop in itertools.product([True, False], repeat=2):
            with chainer.using_config('train', train):
                with chainer.using_config('enable_backprop', backprop):
                    results.append(chain(x).array)
    for result in results[1:]:
        numpy.testing.assert_array_equal(result, results[0])


class Classifier(chainer.Chain):
    def __init__(self, linear=L.Linear):
        super().__init__()
        with self.init_scope():
            self.predictor = Chain(linear)

    def forward(self, x, t):
        return F.mean_squared_error(self.predictor(x), t)


class Features:
    """Passes an example through a shared layer, in whichever process."""

    def __init__(self, algorithm, W, b):
        self.algorithm = algorithm
        self.params = W, b

    def __call__(self, x):
        with patched(common_num=N, shared_algorithm=self.algorithm):
            return F.linear(x[None], *self.params).array[0]


class TestUpdaters:
    def train(self, linear, make_iterator, make_updater):
        random = numpy.random.RandomState(0)
        dataset = chainer.datasets.TupleDataset(
            random.randn(12, N * K), random.randn(12, 3)
        )
        model = Classifier(linear)
        optimizer = chainer.optimizers.MomentumSGD(0.05).setup(model)
        with make_iterator(dataset) as iterator:
            updater = make_updater(iterator, optimizer)
            for _ in range(6):
                updater.update()
        return params_of(model)

    def serial(self, dataset):
        return chainer.iterators.SerialIterator(dataset, 4, shuffle=False)

    def multiprocess(self, dataset):
        return chainer.iterators.MultiprocessIterator(
            dataset, 4, shuffle=False, n_processes=2
        )

    @pytest.mark.filterwarnings(
        'ignore:.*multi-threaded:DeprecationWarning',
        'ignore:setDaemon:DeprecationWarning',
    )
    def test_shared_layer_in_the_workers_of_an_iterator(
        self, random, algorithm
    ):
        x, W, b, gy = make_arrays(integers(random), 8, *SIZES[1:])
        dataset = chainer.datasets.TransformDataset(
            x, Features(algorithm, W, b)
        )
        with self.multiprocess(dataset) as iterator:
            actual = numpy.concatenate([iterator.next(), iterator.next()])
        expected, *_ = reference(x, W, b, gy, N)
        numpy.testing.assert_array_equal(actual, expected)

    def test_parallel_updater(self, algorithm):
        def make_updater(iterator, optimizer):
            updater = chainer.training.ParallelUpdater(
                iterator,
                optimizer,
                devices={'main': '@numpy', 'second': '@numpy'},
            )
            models = list(updater._models.values())
            assert len(models) == 2 and models[0] is not models[1]
            return updater

        def halved(iterator, optimizer):
            return chainer.training.StandardUpdater(
                iterator,
                optimizer,
                loss_func=lambda x, t: 2 * optimizer.target(x, t),
            )

        with chainer.using_config('common_num', N):
            actual = self.train(L.Linear, self.serial, make_updater)
        uninstall()
        # Two halves' means add up to twice the mean of the whole.
        expected = self.train(TiledLinear, self.serial, halved)
        assert_same(actual, expected)
