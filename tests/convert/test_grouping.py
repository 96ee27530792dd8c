"""Which columns are grouped, and what replaces them."""

import tracemalloc

from chainer_shared_patch.convert import grouping
from chainer_shared_patch.convert.grouping import (
    average_columns,
    group_columns,
)
import numpy
import pytest

from tests.convert.helpers import average
from tests.helpers import DTYPES, assert_close, widen

pytestmark = pytest.mark.arithmetic


def objective(W, order, n, weights):
    """The weighted squares of the distances to the means, by definition."""
    W = W.astype('d')
    total = 0
    for members in order.reshape(n, -1).T:
        mean = numpy.average(W[:, members], axis=1, weights=weights[members])
        squares = ((W[:, members] - mean[:, None]) ** 2).sum(axis=0)
        total += (weights[members] * squares).sum()
    return total


def groups_of(order, n):
    """The groups as a set, for a comparison."""
    assert order.dtype == numpy.int64
    numpy.testing.assert_array_equal(
        numpy.sort(order), numpy.arange(len(order))
    )
    return {frozenset(group) for group in order.reshape(n, -1).T.tolist()}


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(grouping, '_AT_ONCE', 256)


def plant(random, n, k, out_size=6, offset=0.0):
    """Returns a W whose columns lie closely around centres, and its groups.

    The centres differ by 1 in at least one element, so that any exchange of
    columns makes the objective worse by far more than it can be rounded.
    """
    order = random.permutation(n * k)
    centres = random.permutation(k) + 3 * random.rand(out_size, k)
    W = numpy.empty((out_size, n * k))
    W[:, order] = numpy.tile(centres, (1, n))
    W += 0.01 * random.rand(*W.shape) + offset
    return W, groups_of(order, n)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('n', 'k'), [(1, 1), (2, 1), (1, 4), (2, 20), (7, 10), (60, 3)]
)
def test_planted_groups_are_found(random, n, k, dtype):
    W, groups = plant(random, n, k)
    weights = random.rand(n * k) + 0.1
    order = group_columns(W.astype(dtype), n, weights)
    assert groups_of(order, n) == groups


@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e30, 1e37])
def test_extreme_scales(random, scale):
    W, groups = plant(random, 3, 10)
    W = (W * scale).astype('f')
    assert groups_of(group_columns(W, 3, numpy.ones(30)), 3) == groups


def test_what_columns_have_in_common_does_not_matter(random):
    W, groups = plant(random, 4, 10, offset=1e4)
    assert groups_of(group_columns(W, 4, numpy.ones(40)), 4) == groups


@pytest.mark.parametrize(
    ('common_num', 'message'),
    [(4, '.* in_size is 6 and common_num is 4; try 3 or 6'), (0, '.* is 0')],
)
def test_wrong_numbers(common_num, message):
    message = r'^group_columns\(\): common_num must ' + message
    with pytest.raises(ValueError, match=message):
        group_columns(numpy.ones((2, 6)), common_num, numpy.ones(6))


@pytest.mark.parametrize('seed', range(5))
def test_no_exchange_of_two_columns_makes_it_better(seed):
    random = numpy.random.RandomState(seed)
    n, k = 3, 5
    W = random.randn(4, n * k)
    weights = random.rand(n * k) + 0.1
    order = group_columns(W, n, weights)
    found = objective(W, order, n, weights)
    assert found < objective(W, numpy.arange(n * k), n, weights)
    # It stops where float32 rounds: 1e-6 of all there is.
    least = found - 1e-6 * n * (weights * (W**2).sum(axis=0)).sum()
    for i in range(n * k):
        for j in range(i):
            order[[i, j]] = order[[j, i]]
            assert objective(W, order, n, weights) > least
            order[[i, j]] = order[[j, i]]


def test_groups_that_lie_as_blocks_stay(random):
    n, k = 5, 20
    W = numpy.tile(random.randn(6, k), (1, n))
    order = group_columns(W, n, numpy.ones(n * k))
    numpy.testing.assert_array_equal(order, numpy.arange(n * k))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('n', 'k', 'out_size'), [(20, 5, 10), (4, 300, 3), (2, 100, 300)]
)
def test_groups_of_equal_columns_are_found(
    random, few_at_once, dtype, n, k, out_size
):
    narrow = random.randn(out_size, k).astype(dtype)
    narrow[:, 1] = narrow[:, 0]
    narrow[0, 2:4] = 0.0, -0.0
    order = random.permutation(n * k)
    W = numpy.empty((out_size, n * k), dtype)
    W[:, order] = numpy.tile(narrow, (1, n))
    W[0, order[2]] = -0.0
    found = group_columns(W, n, random.rand(n * k) + 0.1)
    assert (numpy.diff(W[:, found].reshape(out_size, n, k), axis=1) == 0).all()


@pytest.mark.parametrize(('n', 'k'), [(64, 2), (200, 2), (32, 6)])
def test_large_groups(random, n, k):
    """Several exchanges in a round leave no better exchange of two."""
    W, weights = random.randn(5, n * k), random.rand(n * k) + 0.1
    order = group_columns(W, n, weights)
    least = 1e-6 * n * (weights * (W**2).sum(axis=0)).sum()
    found = objective(W, order, n, weights)
    for i, j in random.randint(0, n * k, (200, 2)):
        order[[i, j]] = order[[j, i]]
        assert objective(W, order, n, weights) > found - least
        order[[i, j]] = order[[j, i]]


def test_columns_are_not_held_together_because_they_are_equal():
    W = numpy.array([[0.0, 0.0, 1.0, -1.0]])
    order = group_columns(W, 2, numpy.ones(4))
    assert objective(W, order, 2, numpy.ones(4)) == 1


def test_neighbours_stay_as_close_as_they_can(random):
    W = random.randn(6, 60)
    blocks = group_columns(W, 4, numpy.ones(60)).reshape(4, -1)
    assert (numpy.diff(blocks, axis=0) > 0).all()
    assert (numpy.diff(blocks[0]) > 0).all()


@pytest.mark.parametrize('value', [0.0, 0.1, -7.0])
@pytest.mark.parametrize('in_size', [60, 2100])
def test_equal_columns(in_size, value):
    W = numpy.full((3, in_size), value, 'f')
    with numpy.errstate(divide='raise', over='raise', invalid='raise'):
        order = group_columns(W, 3, numpy.ones(in_size))
    groups_of(order, 3)


def test_the_result_is_the_same_every_time(random, few_at_once):
    W, weights = random.randn(4, 300), random.rand(300)
    before = W.copy(), weights.copy()
    first = group_columns(W, 3, weights)
    numpy.random.seed(3)
    numpy.testing.assert_array_equal(group_columns(W, 3, weights), first)
    assert numpy.random.rand() == numpy.random.RandomState(3).rand()
    numpy.testing.assert_array_equal(W, before[0])
    numpy.testing.assert_array_equal(weights, before[1])


@pytest.mark.parametrize(
    ('dtype', 'offset', 'scale'),
    [
        ('e', 0, 1),
        ('f', 0, 1e-37),
        ('f', 0, 1e37),
        ('d', 0, 1),
        ('d', 100, 1),
    ],
)
def test_more_columns_than_are_grouped_at_once(
    random, few_at_once, dtype, offset, scale
):
    n, k = 7, 100
    order = random.permutation(n * k)
    # Almost on a line, which is why their order along it is right.
    centres = numpy.outer([3.0, -1.0, -2.0], numpy.linspace(-1, 1, k))
    centres += offset
    # More rows than are read at once.
    W = numpy.empty((300, n * k))
    W[:, order] = numpy.tile(centres, (100, n))
    with numpy.errstate(over='raise', invalid='raise'):
        found = group_columns((W * scale).astype(dtype), n, numpy.ones(n * k))
    groups_of(found, n)
    actual = objective(W, found, n, numpy.ones(n * k))
    spread = ((W - W.mean(axis=1, keepdims=True)) ** 2).sum()
    # What differs by less than dtype resolves cannot be told apart: it is at
    # most a few eps of the largest element for each of the elements.
    least = W.size * (8 * numpy.finfo(dtype).eps * abs(W).max()) ** 2
    assert actual <= 1e-4 * spread + least


@pytest.mark.parametrize(('n', 'k'), [(2500, 2), (3000, 1), (1500, 3)])
def test_groups_larger_than_what_is_grouped_at_once(random, n, k):
    W, _ = plant(random, n, k, out_size=2)
    tracemalloc.start()
    order = group_columns(W, n, numpy.ones(n * k))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(groups_of(order, n)) == k
    assert (numpy.diff(order.reshape(n, k), axis=0) > 0).all()
    # Not the square of the columns.
    assert peak < 4 * grouping._AT_ONCE**2


def test_memory(random, monkeypatch):
    """There is no second dense weight."""
    monkeypatch.setattr(grouping, '_AT_ONCE', 128)
    monkeypatch.setattr(grouping, '_ROWS', 32)
    W = random.randn(500, 1024).astype('f')
    tracemalloc.start()
    group_columns(W, 2, numpy.ones(1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 32 rows, or 128 columns and their products, a few times each.
    assert peak < W.nbytes / 2


@pytest.mark.parametrize(
    ('dtype', 'scale'),
    [('e', 1), ('e', 3e4), ('f', 1), ('f', 1e30), ('f', 1e-30), ('d', 1)],
)
@pytest.mark.parametrize('rows', [7, 2 * grouping._ROWS + 3])
@pytest.mark.parametrize('orders', [1, 3])
def test_averages(random, dtype, scale, rows, orders):
    n, k = 5, 8
    W = (random.uniform(-1, 1, (rows, n * k)) * scale).astype(dtype)
    weights = random.rand(n * k) + 0.1
    order = numpy.array([random.permutation(n * k) for _ in range(orders)])
    narrow, error = average_columns(W, n, order, weights)
    assert narrow.dtype == W.dtype
    exact = average(W, n, order, weights)
    # The weights are normalized, and n weighted columns are added up.
    assert_close(
        narrow, exact, average(abs(W), n, order, weights), (3 * n, 'd')
    )
    wide = widen(exact, order, n)
    expected = numpy.linalg.norm(W - wide) / numpy.linalg.norm(W.astype('d'))
    # It is of fewer than 2**15 squares.
    assert error == pytest.approx(expected, rel=2**-30)


def test_averages_of_zeros():
    W = numpy.zeros((4, 6))
    with numpy.errstate(divide='raise', over='raise', invalid='raise'):
        narrow, error = average_columns(W, 3, None, numpy.ones(6))
    assert error == 0
    assert not narrow.any()
