"""Groups the columns of a trained weight that are to share; averages them."""

from __future__ import annotations

from chainer_shared_patch.config import check_common_num, check_divides
import numpy

# The time and memory of grouping grow with the square of the columns.
_AT_ONCE = 2048
# How many rows of a weight are cast at a time, to save memory.
_ROWS = 256


def group_columns(
    W: numpy.ndarray, common_num: int, weights: numpy.ndarray
) -> numpy.ndarray:
    """Groups similar columns of a weight.

    With :math:`n` = ``common_num``, the columns :math:`w_i` and their weights
    :math:`e_i`, it looks for groups :math:`c` of :math:`n` columns that make

    .. math::
        \\sum_c \\sum_{i \\in c} e_i \\|w_i - m_c\\|^2, \\quad
        m_c = \\frac{\\sum_{i \\in c} e_i w_i}{\\sum_{i \\in c} e_i},

    small. This is the objective of k-means (MacQueen, "Some methods for
    classification and analysis of multivariate observations", 1967), here
    weighted and with clusters of equal size (Malinen and Fränti, "Balanced
    k-means for clustering", 2014).

    Starting from contiguous blocks, it exchanges pairs of columns as long as
    that makes the sum smaller: in each round the best pairs first, and each
    group in at most one of them. More than 2,048 columns are first sorted
    along their principal direction, then grouped in runs of at most 2,048.

    Args:
        W (numpy.ndarray): Finite float matrix of shape
            ``(out_size, in_size)``.
        common_num (int): The number of columns in a group, which divides
            ``in_size``.
        weights (numpy.ndarray): Positive float vector of shape ``(in_size,)``,
            the :math:`e_i`.

    Returns:
        numpy.ndarray: An int64 permutation of shape ``(in_size,)``, the
        ``order`` of :class:`~chainer_shared_patch.SharedLinear`: group ``i``
        is ``order[i::in_size // common_num]``.

    Raises:
        ValueError: If ``common_num`` is not an integer of at least 1, or does
            not divide ``in_size``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.convert.grouping import group_columns
        >>> W = np.array([[1., 5., 5.1, 1.1, 5.2, 1.2]])
        >>> group_columns(W, 3, np.ones(6)).reshape(3, 2)
        array([[0, 1],
               [3, 2],
               [5, 4]])

    """
    in_size = W.shape[1]
    common_num = check_common_num(common_num, 'group_columns(): common_num')
    check_divides(common_num, in_size, 'group_columns(): common_num')
    # Scaled, so that nothing overflows or vanishes in float32.
    scale = max(W.max(), -W.min()) or 1
    columns = numpy.arange(in_size)
    if in_size > _AT_ONCE:
        columns = numpy.argsort(_principal_direction(W, scale), kind='stable')
    each = columns.reshape(-1, common_num)
    runs = -(-len(each) // max(1, _AT_ONCE // common_num))
    groups = []
    for run in numpy.array_split(each, runs):
        if len(run) == 1:
            groups.append(run)
            continue
        run = numpy.sort(run, axis=None)
        e = weights[run].astype(numpy.float32)
        scaled = (W[:, run] / scale).astype(numpy.float32)
        # What all columns have in common would drown what tells them apart.
        scaled -= (scaled @ e / e.sum())[:, None]
        scaled *= e
        groups.append(run[_exchange(scaled.T @ scaled, e, common_num)])
    # Keep neighbours in the input close to each other where possible.
    order = numpy.sort(numpy.concatenate(groups), axis=1)
    return order[numpy.argsort(order[:, 0])].T.ravel()


def _principal_direction(W: numpy.ndarray, scale: float) -> numpy.ndarray:
    """Returns the columns' coordinates along their principal direction."""
    # The first right singular vector of W less the mean of its columns, by
    # power iteration (Golub and Van Loan, "Matrix Computations", 2013).
    v = numpy.random.RandomState(0).randn(W.shape[1]).astype(numpy.float32)
    for _ in range(10):
        v -= v.mean()
        total = numpy.zeros_like(v)
        for first in range(0, len(W), _ROWS):
            rows = (W[first : first + _ROWS] / scale).astype(numpy.float32)
            total += rows.T @ (rows @ v)
        v = total / (numpy.linalg.norm(total) or 1)
    return v


def _exchange(
    dots: numpy.ndarray, e: numpy.ndarray, common_num: int
) -> numpy.ndarray:
    """Returns the members of each group, of shape ``(k, common_num)``."""
    # dots[i, j] is e_i e_j <w_i, w_j>.
    # Expanding the squares, the sum is small where another one is large: that
    # of the value |s|^2 / t of each group, where s is the sum of its weighted
    # columns and t that of its weights.
    size = len(dots)
    each = numpy.arange(size)
    norms = dots.diagonal()
    least = 1e-6 * common_num * (norms / e).mean()  # above rounding errors
    members = each.reshape(common_num, -1).T
    group = numpy.empty(size, int)
    for _ in range(1000):
        group[members] = numpy.arange(len(members))[:, None]
        with_sums = dots[:, members.ravel()].reshape(size, -1, common_num)
        with_sums = with_sums.sum(axis=2)  # <e_i w_i, s_c>
        own = with_sums[each, group]
        s2 = own[members].sum(axis=1)
        t = e[members].sum(axis=1)
        value = s2 / t
        # gain[i, j] is what the group of i gains when j replaces i.
        gain = with_sums[:, group].T - own[:, None]
        gain *= 2
        gain += (s2[group] + norms)[:, None] + norms - 2 * dots
        gain /= (t[group] - e)[:, None] + e
        gain -= value[group][:, None]
        gain += gain.T.copy()
        gain[members[:, :, None], members[:, None, :]] = 0
        partner = gain.argmax(axis=1)
        best = gain[each, partner]
        free = numpy.ones(len(members), bool)
        for i in numpy.argsort(-best, kind='stable'):
            if best[i] <= least:
                break
            pair = group[[i, partner[i]]]
            if free[pair].all():
                free[pair] = False
                group[[i, partner[i]]] = pair[::-1]
        if free.all():
            break
        members = numpy.argsort(group, kind='stable').reshape(members.shape)
    return members


def average_columns(
    W: numpy.ndarray,
    common_num: int,
    order: numpy.ndarray | None,
    weights: numpy.ndarray,
) -> tuple[numpy.ndarray, float]:
    """Returns the means of the columns that share, and the error of these."""
    if order is None:
        order = numpy.arange(W.shape[1])
    weights = weights[order].reshape(common_num, -1)
    weights = weights / weights.sum(axis=0)
    narrow = numpy.empty((len(W), weights.shape[1]), W.dtype)
    squares = error = 0.0
    for first in range(0, len(W), _ROWS):
        rows = slice(first, first + _ROWS)
        blocks = W[rows][:, order].astype('d')
        blocks = blocks.reshape(len(blocks), common_num, -1)
        means = numpy.einsum('bnk,nk->bk', blocks, weights)
        narrow[rows] = means
        squares += numpy.einsum('bnk,bnk', blocks, blocks)
        blocks -= means[:, None]
        error += numpy.einsum('bnk,bnk', blocks, blocks)
    return narrow, float(numpy.sqrt(error / (squares or 1)))
