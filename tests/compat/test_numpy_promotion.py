"""What NumPy 1 computed in float64, on any NumPy.

Where a function is right in float64 whatever NumPy promotes to, its own
result in float64 is the reference.
"""

import functools
import itertools
import types

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
from chainer.optimizer_hooks import GradientClipping, GradientLARS
from chainer.reporter import Summary
from chainer.training.extensions import MicroAverage
import numpy
import pytest

from tests.helpers import assert_close

# Beyond the largest number of float16, 65,504.
MANY = 70_000


def compute_with_grad(function, *inputs):
    """Returns what a function makes of its inputs, and their gradients."""
    variables = [
        chainer.Variable(x) if x.dtype.kind == 'f' else x for x in inputs
    ]
    y = function(*variables)
    y.grad = numpy.ones_like(y.array)
    y.backward()
    grads = [x.grad for x in variables if isinstance(x, chainer.Variable)]
    return [y.array, *(gx for gx in grads if gx is not None)]


@pytest.mark.parametrize('dtype', 'ef')
@pytest.mark.parametrize('zero_dimensional', [True, False])
def test_summary(random, dtype, zero_dimensional):
    values = (1000 + random.rand(5000)).astype(dtype)
    summary = Summary()
    for value in values:
        summary.add(numpy.array(value) if zero_dimensional else value)
    mean, std = summary.make_statistics()
    values = values.astype('d')
    assert mean.dtype == std.dtype == 'd'
    assert_close(mean, values.mean(), values.mean(), (5001, 'd'))
    # The variance is a difference of two means.
    assert_close(std**2, values.var(), 2 * (values**2).mean(), (10_010, 'd'))


def test_weighted_summary():
    summary = Summary()
    summary.add(numpy.float16(1.5), 60_000)
    summary.add(numpy.array(2, 'e'), weight=60_000)
    assert summary.compute_mean() == 1.75


def test_summary_of_integers():
    summary = Summary()
    for value in (3, numpy.int32(2**31 - 1), numpy.array(2**31 - 1, 'i')):
        summary.add(value)
    assert summary.compute_mean() == (3 + 2 * (2**31 - 1)) / 3


def test_micro_average():
    extension = MicroAverage('correct', 'total', 'accuracy', (3000, 'epoch'))
    updater = types.SimpleNamespace(
        epoch=0, iteration=0, epoch_detail=0, is_new_epoch=False
    )
    trainer = types.SimpleNamespace(
        updater=updater,
        observation={
            'correct': numpy.array(0.9, 'e'),
            'total': numpy.array(1, 'e'),
        },
    )
    reporter = chainer.Reporter()
    with reporter.scope({}):
        for epoch in range(1, 3001):
            updater.epoch = updater.iteration = updater.epoch_detail = epoch
            updater.is_new_epoch = True
            extension(trainer)
        result = chainer.reporter.get_current_reporter().observation
    expected = numpy.array(0.9, 'e').astype('d')
    assert_close(
        numpy.array(result['accuracy']), expected, expected, (6001, 'd')
    )


@pytest.mark.parametrize('dtype', 'fd')
@pytest.mark.parametrize('divisor', ['e', 'f', 'd', 'i', 'l'])
def test_division_by_a_numpy_scalar(dtype, divisor):
    x = numpy.arange(1, 7, dtype=dtype)
    y = chainer.Variable(x) / numpy.dtype(divisor).type(7)
    assert y.dtype == dtype
    exact = x.astype('d') / 7
    assert_close(y.array, exact, exact, (2, dtype))


@pytest.mark.parametrize('zero', [numpy.float32(0), numpy.int64(0)])
def test_division_by_a_numpy_zero(zero):
    with numpy.errstate(divide='ignore'):
        y = chainer.Variable(numpy.array([1, -1], 'f')) / zero
    assert y.dtype == 'f'
    assert y.array.tolist() == [numpy.inf, -numpy.inf]


@pytest.mark.parametrize('name', ['AdaGrad', 'SMORMS3'])
def test_parameter_that_is_a_float16(name):
    link = chainer.Link()
    with link.init_scope():
        link.p = chainer.Parameter(numpy.array(0.5, 'e'))
    optimizer = getattr(chainer.optimizers, name)().setup(link)
    eps = optimizer.hyperparam.eps
    link.p.grad = numpy.array(0, 'e')
    optimizer.update()
    assert link.p.dtype == 'e'
    assert link.p.array == 0.5
    assert optimizer.hyperparam.eps == eps
    assert 'eps' not in vars(link.p.update_rule.hyperparam)


class TestOptimizerHooks:
    @pytest.fixture
    def optimizer(self):
        link = chainer.Chain()
        with link.init_scope():
            link.a = chainer.Parameter(numpy.full(10, 2, 'e'))
            link.b = chainer.Parameter(numpy.full(10, 2, 'e'))
        return chainer.optimizers.SGD().setup(link)

    def test_gradient_clipping(self, optimizer):
        link = optimizer.target
        # Each square norm is a float16, their sum is not.
        link.a.grad = numpy.full(10, 64, 'e')
        link.b.grad = numpy.full(10, 64, 'e')
        GradientClipping(1)(optimizer)
        expected = numpy.full(10, 20**-0.5)
        for grad in (link.a.grad, link.b.grad):
            assert grad.dtype == 'e'
            assert_close(grad, expected, expected, (3, 'e'))

    def test_gradient_lars(self, optimizer):
        param = optimizer.target.a
        param.grad = numpy.zeros(10, 'e')
        GradientLARS()(param.update_rule, param)
        assert param.grad.tolist() == [0] * 10


@pytest.mark.parametrize(
    'function, dtype',
    [
        (functools.partial(F.roi_average_align_2d, sampling_ratio=2), 'f'),
        (functools.partial(F.roi_max_align_2d, sampling_ratio=2), 'f'),
        *itertools.product(
            (
                F.roi_average_pooling_2d,
                F.roi_max_pooling_2d,
                F.roi_pooling_2d,
            ),
            'ef',
        ),
    ],
)
def test_regions_of_interest(random, function, dtype):
    # The last of their columns has the maximum.
    x = numpy.broadcast_to(numpy.arange(400), (1, 2, 4, 400)).astype(dtype)
    # 867 * 0.35 is 303.45, and 303.5 in float16.
    low, high = [0, 0, 7, 600], [6, 500, 12, 1142]
    regions = random.randint(low, high, (20, 4)).astype(dtype)
    if function is F.roi_pooling_2d:
        # Each begins with its index, and has its columns before its rows.
        regions = numpy.insert(regions[:, [1, 0, 3, 2]], 0, 0, axis=1)

        def pool(x, regions):
            return function(x, regions, 2, 2, 0.35)

    else:
        indices = numpy.zeros(20, 'i')

        def pool(x, regions):
            return function(x, regions, indices, (2, 2), 0.35)

    actual = compute_with_grad(pool, x, regions)
    # Some take nothing but float32.
    with chainer.using_config('type_check', False):
        exact = compute_with_grad(pool, x.astype('d'), regions.astype('d'))
    for array, reference in zip(actual, exact):
        assert array.dtype == dtype
        scale = numpy.full(reference.shape, abs(reference).max())
        # The gradients of 20 regions are added in the dtype of x.
        assert_close(array, reference, scale, (24, dtype))


@pytest.mark.parametrize('kind', [numpy.float32, numpy.float64, float])
def test_scale_of_regions_has_its_own_precision(kind):
    # 5 * 0.7 is 3.5 in float32 and in float64, but 0.7 in float32 is less.
    x = numpy.arange(144, dtype='f').reshape(1, 1, 12, 12)
    region = numpy.array([[0, 0, 0, 5, 5]], 'f')
    y = F.roi_pooling_2d(x, region, 2, 2, kind(0.7))
    assert y.array.ravel().tolist() == [26, 28, 50, 52]


class TestCountsBeyondFloat16:
    def check(self, function, *inputs):
        wide = [x.astype('d') if x.dtype == 'e' else x for x in inputs]
        actual = compute_with_grad(function, *inputs)
        exact = compute_with_grad(function, *wide)
        for array, reference in zip(actual, exact):
            assert array.dtype == 'e'
            scale = numpy.full(reference.shape, abs(reference).max())
            # NumPy sums in pairs of blocks of 128.
            assert_close(array, reference, scale, (32, 'e'))

    def test_mean_squared_error(self, random):
        x = random.choice([0.5, 0.25], (7, MANY // 7)).astype('e')
        self.check(F.mean_squared_error, x, numpy.zeros_like(x))

    def test_connectionist_temporal_classification(self, random):
        xs = [random.randn(MANY, 3).astype('e') for _ in range(2)]
        t = numpy.ones((MANY, 1), 'i')

        def get_grads(xs):
            xs = [chainer.Variable(x) for x in xs]
            F.connectionist_temporal_classification(xs, t, 0).backward()
            return [x.grad for x in xs]

        exact = get_grads([x.astype('d') for x in xs])
        for gx, reference in zip(get_grads(xs), exact):
            assert gx.dtype == 'e'
            # Of a float16 as small as these, half a step is 2 ** -25.
            numpy.testing.assert_allclose(gx, reference, rtol=0, atol=2**-23)
            assert gx.any()

    @pytest.mark.parametrize('norm', ['L1', 'L2'])
    def test_hinge(self, norm):
        # Losses of 2 ** -10, the sum of which is no float16 by chance.
        x = numpy.full((MANY, 2), -1, 'e')
        x[:, 0] = 1 - 2**-10
        t = numpy.zeros(MANY, 'i')
        self.check(lambda x: F.hinge(x, t, norm), x)

    def test_triplet(self):
        x = numpy.zeros((MANY, 1), 'e')
        self.check(
            lambda *xs: F.triplet(*xs, margin=2**-4), x, x + 0.125, x + 0.25
        )

    def test_average_pooling(self, random):
        x = random.rand(1, 1, 280, 280).astype('e')
        self.check(lambda x: F.average_pooling_2d(x, 280), x)
        self.check(lambda x: F.average_pooling_nd(x, 280, pad_value=0), x)

    # The gradients divide by a float16, as they always have.
    @pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning')
    @pytest.mark.parametrize('function', [F.decov, F.cross_covariance])
    def test_covariance(self, function):
        sign = (-1) ** numpy.arange(MANY)
        x = numpy.stack([sign, sign], axis=1).astype('e') / 8
        if function is F.decov:
            self.check(function, x)
        else:
            self.check(function, x, x.copy())


@pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning')
@pytest.mark.parametrize('function', [F.softplus, F.elu, F.leaky_relu])
def test_hyperparameter_beyond_float16(function):
    x = numpy.array([-(2**-4), 0.25, 0.5], 'e')
    actual = compute_with_grad(lambda x: function(x, 1e5), x)
    exact = compute_with_grad(lambda x: function(x, 1e5), x.astype('d'))
    # The gradient of ELU has always overflowed.
    for array, reference in zip(actual[: 1 + (function is F.softplus)], exact):
        assert array.dtype == 'e'
        assert_close(array, reference, abs(reference), (8, 'e'))


@pytest.mark.parametrize(
    'kind', [numpy.float32, numpy.float64, numpy.array], ids=str
)
@pytest.mark.parametrize('dtype', 'ef')
def test_hyperparameters_that_are_numpy_scalars(random, dtype, kind):
    x = random.rand(4, 3).astype(dtype)
    gamma = numpy.ones(3, dtype)
    mean = chainer.Variable(numpy.zeros(3, dtype))
    var = chainer.Variable(numpy.ones(3, dtype))

    def normalize_layer(number):
        return lambda x: F.layer_normalization(
            x, gamma, gamma, eps=number(2**-10)
        )

    def normalize_response(number):
        return lambda x: F.local_response_normalization(
            x, k=number(2), alpha=number(2**-10), beta=number(0.75)
        )

    def normalize_batch(number):
        return lambda x: F.fixed_batch_normalization(
            x, gamma, gamma, mean, var, eps=number(2**-10)
        )

    def renormalize_batch(number):
        return lambda x: F.batch_renormalization(
            x,
            gamma,
            gamma,
            number(3),
            number(5),
            eps=number(2**-10),
            running_mean=mean.array.copy(),
            running_var=var.array.copy(),
        )

    for make in (
        normalize_layer,
        normalize_response,
        normalize_batch,
        renormalize_batch,
    ):
        actual = compute_with_grad(make(kind), x)
        for array, expected in zip(actual, compute_with_grad(make(float), x)):
            assert array.dtype == expected.dtype == dtype
            numpy.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize('kind', [numpy.float16, numpy.float32])
def test_reciprocals_of_numpy_scalars(random, kind):
    x = random.rand(4, 3)
    W = random.rand(2, 3)
    number = kind(0.3)
    mask = numpy.ones((4, 2, 3), bool)
    for function in (
        lambda number: F.dropout(x, number, mask=mask[:, 0]),
        lambda number: F.simplified_dropconnect(x, W, None, number, mask=mask),
        lambda number: F.softplus(x, number),
    ):
        expected = function(float(number)).array
        numpy.testing.assert_array_equal(function(number).array, expected)
