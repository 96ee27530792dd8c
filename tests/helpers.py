"""What several test files share: data, models, trainings and comparisons."""

import os
import subprocess
import sys

from chainer_shared_patch import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy

# Where the tests compute. Those of the folder gpu put a GPU here.
DEVICE = chainer.get_device('@numpy')
DTYPES = ('e', 'f', 'd')
LAYOUTS = {
    'C': lambda x: x,
    'Fortran': lambda x: x.T.copy().T,
    'reversed': lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    'every other': lambda x: x.repeat(2, 0).repeat(2, 1)[::2, ::2],
}
N = 3
K = 2
SIZES = (4, N, K, 5)
PERMUTATION = numpy.array([4, 0, 3, 5, 1, 2])
# For slices of 3 and of 2 outputs.
SEVERAL = numpy.array([PERMUTATION, [2, 3, 5, 0, 4, 1]])
# By hand: with 3 blocks of 2 columns, 0, 1 and 2 are neighbours.
ORDERS = {
    'contiguous': (None, numpy.arange(N * K)),
    'interleaved': ('interleaved', numpy.array([0, 3, 1, 4, 2, 5])),
    'permutation': (PERMUTATION, PERMUTATION),
    'several': (SEVERAL, SEVERAL),
}


def run_python(*args, cwd=None, **environment):
    """Runs an interpreter; returns its output and status."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def integers(random, limit=3):
    """Returns a function like ``random.randn`` that draws integers.

    No sum of products of them is rounded as long as it stays below 2**11 in
    float16, 2**24 in float32 and 2**53 in float64: whatever the order, the
    result is exact.
    """
    return lambda *shape: random.randint(-limit, limit + 1, shape).astype('d')


def make_arrays(draw, batch_size, n, k, out_size):
    """Returns x, W, b and gy of a layer."""
    shapes = (batch_size, n * k), (out_size, k), (out_size,)
    return [draw(*shape) for shape in (*shapes, (batch_size, out_size))]


def cut(W, order, n):
    """Yields each order, and the rows of its slice of the outputs."""
    if order is None:
        order = numpy.arange(n * W.shape[1])
    orders = numpy.atleast_2d(order)
    yield from zip(
        orders, numpy.array_split(numpy.arange(len(W)), len(orders))
    )


def widen(W, order=None, n=N):
    """Returns the weight of the dense layer that computes the same."""
    wide = numpy.empty((len(W), n * W.shape[1]), W.dtype)
    for each, rows in cut(W, order, n):
        wide[numpy.ix_(rows, each)] = numpy.tile(W[rows], (1, n))
    return wide


def reference(x, W, b, gy, n, order=None):
    """Returns y, gx, gW and gb by the definition, in float64."""
    x, W, gy = (a.astype('d') for a in (x, W, gy))
    wide = widen(W, order, n)
    y = x @ wide.T + (0 if b is None else b.astype('d'))
    wide_gW = gy.T @ x
    gW = numpy.empty_like(W)
    for each, rows in cut(W, order, n):
        columns = wide_gW[numpy.ix_(rows, each)]
        gW[rows] = columns.reshape(len(rows), n, W.shape[1]).sum(axis=1)
    return y, gy @ wide, gW, gy.sum(axis=0)


def run(x, W, b, gy, linear=F.linear):
    """Returns what forward and backward compute: y, gx, gW and perhaps gb."""
    arrays = [a for a in (x, W, b) if a is not None]
    inputs = [chainer.Variable(a) for a in DEVICE.send(arrays)]
    y = linear(*inputs)
    y.grad = DEVICE.send(gy)
    y.backward()
    return to_cpu([y.array] + [v.grad for v in inputs])


def assert_close(actual, exact, scale, *roundings):
    """Asserts that sums of products are as exact as their dtype allows.

    If no term passes through more than m roundings of unit roundoff u on its
    way into a sum, the sum is off by at most

        gamma_m * scale,  gamma_m = m * u / (1 - m * u),

    where ``scale`` is the sum of the absolute values. This holds for every
    order of summation, and a fused multiplication and addition only saves
    roundings: N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    2nd ed., section 3.1. A sum of m products in a row has m roundings for
    each term at the most. Roundings of different dtypes multiply as
    (1 + gamma_m) * (1 + gamma'_m'), and to these come those of the float64
    reference, the last one to the dtype of the result, and what underflows:
    half of the smallest number for each product.

    Args:
        actual: The array to check, rounded once to its dtype.
        exact: The reference, computed in float64.
        scale: The reference of the absolute values.
        roundings: Pairs of a number m of roundings and their dtype.

    """
    assert actual.shape == exact.shape
    total = sum(m for m, _ in roundings)
    log = underflow = 0
    for m, dtype in (*roundings, (total, 'd')):
        info = numpy.finfo(dtype)
        mu = m * info.eps.astype('d') / 2
        assert mu < 1
        log += numpy.log1p(mu / (1 - mu))
        underflow += total * info.smallest_subnormal.astype('d')
    error = numpy.expm1(log) * scale
    info = numpy.finfo(actual.dtype)
    bound = error + info.eps.astype('d') / 2 * (abs(exact) + error) + underflow
    bound += info.smallest_subnormal.astype('d')
    difference = abs(actual.astype('d') - exact)
    numpy.testing.assert_array_less(difference, bound)


def assert_layer_close(actual, x, W, b, gy, n, order=None):
    """Asserts that y, gx, gW and gb of a layer are close to the reference.

    What has not been computed may be None, or left out at the end. The bound
    suits both algorithms, on every device: at the coarsest, sums are
    accumulated in float32 or the coarser dtype of x and W, whichever is
    wider, and twice rounded to the latter on the way.
    """
    exact = reference(x, W, b, gy, n, order)
    scales = reference(
        abs(x), abs(W), None if b is None else abs(b), abs(gy), n, order
    )
    coarse = min(x.dtype, W.dtype, key=lambda dtype: dtype.itemsize)
    wide = numpy.promote_types(coarse, 'f')
    orders = 1 if order is None else len(numpy.atleast_2d(order))
    terms = x.shape[1] + 1, len(W) + orders, len(x) + n
    for a, e, scale, m, dtype in zip(
        actual, exact, scales, terms, (x.dtype, x.dtype, W.dtype)
    ):
        if a is not None:
            assert a.dtype == dtype
            # Tensor cores truncate, which is as bad as two roundings.
            assert_close(a, e, scale, (2 * m, wide), (2, coarse))
    if len(actual) == 4:  # gb, which Chainer sums in its own dtype
        assert actual[3].dtype == x.dtype
        assert_close(actual[3], exact[3], scales[3], (len(x), x.dtype))


def assert_same(actual, expected):
    """Asserts that two ways to compute the same in float64 agree.

    The two add in different orders, and drift apart by roundings of 2**-53.
    In the tests that use this, a result has passed through fewer than 2**11
    of them in a row: 8 steps of training, with 4 layers or points in time
    each, of 2**5 terms forward and as many backward. That leaves 2**12 for
    what magnifies them, to stay below 2**-30 of the largest element: sums
    that cancel, and weights that differ from step to step. A wrong term is
    no rounding, and shows in the first few digits.
    """
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype == numpy.float64
        assert a.shape == e.shape
        atol = 2**-30 * max(1, abs(e).max(initial=0))
        numpy.testing.assert_allclose(a, e, rtol=0, atol=atol)


def assert_same_steps(actual, expected):
    assert len(actual) == len(expected)
    for step, pair in enumerate(zip(actual, expected)):
        try:
            assert_same(*pair)
        except AssertionError as error:
            raise AssertionError(f'step {step}') from error


def tile(W, n=N):
    return F.concat([W] * n, axis=1)


def tiled_linear(n=N):
    """Chainer's own layer on a weight that is tiled by hand."""
    return lambda x, W, b=None: F.linear(x, tile(W, n), b)


class TiledLinear(L.Linear):
    """A layer with a narrow weight that it tiles by hand."""

    n = N

    def forward(self, x):
        return tiled_linear(self.n)(x, self.W, self.b)


class Chain(chainer.Chain):
    """The first layer is shared, or else tiled by hand; l2 is ordinary."""

    def __init__(self, linear=L.Linear, dtype='d'):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.l1 = linear(K, 5)
            self.l2 = L.Linear(5, 3)
        fill(self)

    def forward(self, x):
        return self.l2(F.tanh(self.l1(x)))


def fill(link, seed=0):
    """Gives the parameters values that depend on the seed alone."""
    random = numpy.random.RandomState(seed)
    for _, param in sorted(link.namedparams()):
        param.array[...] = random.randn(*param.shape)


def make_link(order=None, nobias=False, seed=0, in_size=N * K, common_num=N):
    """Returns a SharedLinear of float64 whose parameters are filled."""
    with chainer.using_config('dtype', 'd'):
        link = SharedLinear(
            in_size, SIZES[3], nobias, common_num=common_num, order=order
        )
    fill(link, seed)
    return link


def params_of(link):
    return [p.array.copy() for _, p in sorted(link.namedparams())]


def make_batches(random, steps=4, columns=N * K, out_size=3):
    """Returns inputs, and weights for the outputs, of each step."""
    # Every step has other inputs, and some another batch size.
    sizes = [4 + step % 2 for step in range(steps)]
    batches = [random.randn(size, columns) for size in sizes]
    return batches, [random.randn(size, out_size) for size in sizes]


def forward_backward(chain, batch, weight):
    """Returns the output and all gradients of a weighted sum of it."""
    x = chainer.Variable(DEVICE.send(batch.copy()))
    y = chain(x)
    chain.cleargrads()
    F.sum(y * DEVICE.send(weight)).backward()
    grads = [p.grad for _, p in sorted(chain.namedparams())]
    return [to_cpu(a).copy() for a in (y.array, x.grad, *grads)]


def iterate(chain, batches, weights):
    """Trains a chain, and returns all outputs and gradients of each step."""
    chain.to_device(DEVICE)
    optimizer = chainer.optimizers.SGD(0.01).setup(chain)
    results = []
    for batch, weight in zip(batches, weights):
        results.append(forward_backward(chain, batch, weight))
        optimizer.update()
    return results


def run_onnx(graph, *arrays):
    """Returns the outputs of a model in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=['CPUExecutionProvider']
    )
    inputs = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(inputs, arrays)))
