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
        \\sum_c \\sum_{i \\in c} e_i \\left\\|w_i - m_c\\right\\|^2,
        \\quad m_c = \\frac{\\sum_{i \\in c} e_i w_i}{\\sum_{i \\in c} e_i},

    small. This is the objective of k-means (MacQueen, "Some methods for
    classification and analysis of multivariate observations", 1967), here
    weighted and with clusters of equal size (Malinen and Fränti, "Balanced
    k-means for clustering", 2014).

    Starting from groups of equal columns and contiguous blocks of the others,
    it exchanges pairs of columns as long as that makes the sum smaller: in
    each round the best pairs first, and each group in at most one of them, or
    in a few if it is large. More than 2,048 columns are first sorted along
    their principal direction, then grouped in runs of at most 2,048.

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
    if in_size <= _AT_ONCE:
        runs = [_start(W, columns, common_num)]
    else:
        along = _principal_direction(W, scale)
        columns = numpy.argsort(along, kind='stable')
        equal, rest = _find_equal(W, columns, common_num)
        each = numpy.concatenate([equal, rest.reshape(-1, common_num)])
        each = each[numpy.argsort(along[each[:, 0]], kind='stable')]
        number = -(-len(each) // max(1, _AT_ONCE // common_num))
        runs = [
            _start(W, numpy.sort(run, axis=None), common_num)
            for run in numpy.array_split(each, number)
        ]
    groups = []
    for run in runs:
        if len(run) == 1:
            groups.append(run)
            continue
        members = run.ravel()
        e = weights[members].astype(numpy.float32)
        scaled = (W[:, members] / scale).astype(numpy.float32)
        # What all columns share would drown out what tells them apart.
        scaled -= (scaled @ e / e.sum())[:, None]
        scaled *= e
        groups.append(members[_exchange(scaled.T @ scaled, e, common_num)])
    # Keep neighbours in the input close to each other where possible.
    order = numpy.sort(numpy.concatenate(groups), axis=1)
    return order[numpy.argsort(order[:, 0])].T.ravel()


def _start(
    W: numpy.ndarray, columns: numpy.ndarray, common_num: int
) -> numpy.ndarray:
    """Returns groups of equal columns, then contiguous blocks of the rest."""
    equal, rest = _find_equal(W, columns, common_num)
    return numpy.concatenate([equal, rest.reshape(common_num, -1).T])


def _find_equal(
    W: numpy.ndarray, columns: numpy.ndarray, common_num: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns groups of equal columns, and the columns of no such group."""
    # A hash of each column, by multiplication modulo 2**64 (Dietzfelbinger,
    # "Universal hashing and k-wise independent random variables", 1996).
    random = numpy.random.RandomState(0)
    hashes = numpy.zeros(len(columns), numpy.uint64)
    for first in range(0, len(W), _ROWS):
        rows = W[first : first + _ROWS][:, columns] + 0  # no -0.0
        bits = rows.view(f'u{W.itemsize}').astype(numpy.uint64)
        factors = random.randint(0, 2**63, len(bits), numpy.uint64) * 2 + 1
        hashes += (bits * factors[:, None]).sum(axis=0)
    _, value, counts = numpy.unique(
        hashes, return_inverse=True, return_counts=True
    )
    by_value = numpy.argsort(value, kind='stable')
    # How many of the same value come before it.
    rank = numpy.empty(len(columns), int)
    rank[by_value] = numpy.arange(len(columns)) - numpy.repeat(
        counts.cumsum() - counts, counts
    )
    is_full = rank < (counts // common_num * common_num)[value]
    equal = by_value[is_full[by_value]].reshape(-1, common_num)
    return columns[equal], columns[~is_full]


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
    """Returns the members of each group, of shape ``(k, common_num)``.

    The first of them are in the first group, and so on.
    """
    # dots[i, j] is e_i e_j <w_i, w_j>.
    # Expanding the squares, the sum is small where another one is large: that
    # of the value |s|^2 / t of each group, where s is the sum of its weighted
    # columns and t that of its weights.
    size = len(dots)
    members = numpy.arange(size).reshape(-1, common_num)
    changed = numpy.arange(len(members))
    group = changed.repeat(common_num)
    norms = dots.diagonal()
    least = 1e-6 * common_num * (norms / e).mean()  # above rounding errors
    sums, value = _sum_groups(dots, e, members)
    one_sided = numpy.empty_like(dots)
    # In large groups, one exchange makes little difference to the next.
    at_most = limit = max(1, common_num // 8)
    for _ in range(1000):
        _compute_gains(one_sided, dots, e, members, sums, changed)
        gain = one_sided.T.copy()
        gain += one_sided
        best = gain.max(axis=1)
        candidates = numpy.argsort(-best, kind='stable')
        candidates = candidates[best[candidates] > least]
        if not len(candidates):
            break
        while True:
            after = group.copy()
            left = numpy.full(len(members), limit)
            blocked = numpy.zeros(size, dots.dtype)
            for i in candidates:
                j = (gain[i] + blocked if limit > 1 else gain[i]).argmax()
                if blocked[i] or blocked[j] or gain[i, j] <= least:
                    continue
                after[[i, j]] = pair = group[[j, i]]
                blocked[[i, j]] = -numpy.inf
                left[pair] -= 1
                for full in pair[left[pair] == 0]:
                    blocked[members[full]] = -numpy.inf
            exchanged = numpy.argsort(after, kind='stable')
            exchanged = exchanged.reshape(members.shape)
            changed = numpy.unique(after[after != group])
            sums_after, value_after = _sum_groups(dots, e, exchanged[changed])
            gained = value_after.sum(dtype='d') - value[changed].sum(dtype='d')
            if limit == 1 or gained > 0:
                break
            limit //= 2
        members, group = exchanged, after
        sums[changed], value[changed] = sums_after, value_after
        limit = min(2 * limit, at_most)
    return members


def _sum_groups(
    dots: numpy.ndarray, e: numpy.ndarray, members: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns <s_c, e_i w_i> for all columns, and the value, of each group."""
    each = numpy.arange(len(members))[:, None]
    is_in = numpy.zeros((len(members), len(dots)), dots.dtype)
    is_in[each, members] = 1
    sums = is_in @ dots
    s2 = sums[each, members].sum(axis=1)
    return sums, s2 / e[members].sum(axis=1)


def _compute_gains(
    gains: numpy.ndarray,
    dots: numpy.ndarray,
    e: numpy.ndarray,
    members: numpy.ndarray,
    sums: numpy.ndarray,
    changed: numpy.ndarray,
) -> None:
    """Sets how much larger the value of i's group is if j replaces i."""
    norms = dots.diagonal()
    own = numpy.take_along_axis(sums, members, axis=1)
    s2 = own.sum(axis=1)[:, None, None]
    t = e[members].sum(axis=1)[:, None, None]
    # Without i, and before what replaces it comes.
    s2_rest = s2 + (norms[members] - 2 * own)[:, :, None]
    t_rest = t - e[members][:, :, None]
    # As many rows at a time as the processor's cache holds.
    at_once = max(1, 64 // members.shape[1])
    for first in range(0, len(changed), at_once):
        groups = changed[first : first + at_once]
        i = members[groups]
        gain = sums[groups, None] - dots[i]
        gain *= 2
        gain += s2_rest[groups] + norms
        gain /= t_rest[groups] + e
        gain -= s2[groups] / t[groups]
        gains[i] = gain
    gains[members[:, :, None], members[:, None]] = 0


def average_columns(
    W: numpy.ndarray,
    common_num: int,
    order: numpy.ndarray | None,
    weights: numpy.ndarray,
) -> tuple[numpy.ndarray, float]:
    """Returns the means of the columns that share, and the error of these."""
    if order is None:
        order = numpy.arange(W.shape[1])
    orders = numpy.atleast_2d(order)
    narrow = numpy.empty((len(W), W.shape[1] // common_num), W.dtype)
    squares = error = 0.0
    for each, wide, means in zip(
        orders, *(numpy.array_split(a, len(orders)) for a in (W, narrow))
    ):
        shares = weights[each].reshape(common_num, -1)
        shares = shares / shares.sum(axis=0)
        for first in range(0, len(wide), _ROWS):
            rows = slice(first, first + _ROWS)
            blocks = wide[rows][:, each].astype('d')
            blocks = blocks.reshape(len(blocks), common_num, -1)
            mean = numpy.einsum('bnk,nk->bk', blocks, shares)
            means[rows] = mean
            squares += numpy.einsum('bnk,bnk', blocks, blocks)
            blocks -= mean[:, None]
            error += numpy.einsum('bnk,bnk', blocks, blocks)
    return narrow, float(numpy.sqrt(error / (squares or 1)))
