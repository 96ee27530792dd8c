"""Summing and tiling the blocks of a matrix: array kernels and functions.

A matrix of ``common_num * k`` columns is a row of ``common_num`` blocks of
``k`` columns. :func:`sum_blocks` adds the blocks up, :func:`tile_blocks`
repeats a matrix that many times. As linear maps the two are each other's
transpose, so each is the other's derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import functools
from typing import Any

import chainer
from chainer import function_node
from chainer.backends import cuda
from chainer.types import NdArray
from chainer.variable import Variable
import numpy
from numpy.typing import DTypeLike

# How many elements the processor's cache holds.
_AT_ONCE = 2**17


class CurrentOrder:
    """The order of a link, looked up each time that a function runs."""

    def __init__(self, array: Any) -> None:
        self.array = array


def _look_up(order: Any) -> Any:
    return order.array if isinstance(order, CurrentOrder) else order


def count_orders(order: Any) -> int:
    """Returns how many orders there are; ``None`` is one."""
    order = _look_up(order)
    return len(order) if getattr(order, 'ndim', 1) == 2 else 1


def slice_evenly(size: int, number: int) -> list[slice]:
    """Returns the slices that ``numpy.array_split`` cuts."""
    shorter, longer = divmod(size, number)
    stops = [shorter * each + min(each, longer) for each in range(number + 1)]
    return list(map(slice, stops, stops[1:]))


def _check_length(order: NdArray | None, columns: int) -> None:
    if order is not None and order.shape[-1] != columns:
        raise ValueError(
            f'order must have {columns} elements, one for each column, but '
            f'has {order.shape[-1]}'
        )


def sum_dtype(x: NdArray | Variable, *dtypes: DTypeLike) -> numpy.dtype[Any]:
    """Returns the dtype in which a sum of blocks is kept and multiplied.

    It is float32 at least: the sum of float16 blocks easily exceeds float16's
    range, and rounding it would show in the product. NumPy has no fast float16
    product, so there the sum stays in float32. A GPU multiplies float16 many
    times faster, so there it is rounded, once.
    """
    least = x.dtype if isinstance(x, cuda.ndarray) else numpy.float32
    return numpy.result_type(x.dtype, least, *dtypes)


def sum_blocks(
    x: NdArray,
    common_num: int,
    dtype: DTypeLike | None = None,
    order: NdArray | None = None,
    per_slice: bool = False,
) -> NdArray:
    """Sums the blocks of columns of a matrix.

    .. math:: y_{b, sk+i} = \\sum_{j=0}^{n-1} x_{b, p_{s, jk+i}},
        \\quad 0 \\le s < g

    The terms are not added pairwise, so the error grows with :math:`n`
    (Higham, "The accuracy of floating point summation", 1993): a sum of
    2\\ :sup:`20` float32 terms may be correct to only four digits. A sum can
    also exceed the range of its dtype where the products of an ordinary layer
    do not.

    Args:
        x (array): Float matrix of shape ``(B, common_num * k)``, NumPy's or
            CuPy's, with any memory layout.
        common_num (int): The number of blocks, :math:`n`.
        dtype (dtype): The dtype to sum in, if it is wider than that of ``x``.
        order (array): The orders :math:`p` in which the columns form the
            blocks: an integer permutation of shape ``(common_num * k,)``, or
            several, of shape ``(g, common_num * k)``. If ``None``, each block
            is contiguous.
        per_slice (bool): If ``True``, several orders are not applied to each
            row, but each to one of ``g`` slices of the rows, those of
            ``numpy.array_split``.

    Returns:
        array: Matrix of shape ``(B, g * k)``, or ``(B, k)`` if
        ``per_slice``, with the wider of the two dtypes. float16 is summed in
        float32: NumPy's result stays float32, CuPy's is rounded to float16.

    Raises:
        ValueError: If ``common_num`` is less than 1 or does not divide the
            number of columns of ``x``, or ``order`` has another length. That
            it is a permutation is not checked.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import sum_blocks
        >>> x = np.array([[1., 2., 10., 20.]])
        >>> sum_blocks(x, 2)
        array([[11., 22.]])
        >>> sum_blocks(x, 2, order=np.array([[0, 1, 2, 3], [0, 2, 1, 3]]))
        array([[11., 22.,  3., 30.]])

    """
    columns = x.shape[1]
    if common_num < 1 or columns % common_num:
        raise ValueError(
            'common_num must be at least 1 and divide the columns of x, but '
            f'x.shape is {x.shape} and common_num is {common_num}'
        )
    order = _look_up(order)
    _check_length(order, columns)
    if per_slice and order is not None and order.ndim == 2:
        return _apply_per_slice(
            lambda rows, each: sum_blocks(rows, common_num, dtype, each),
            x,
            order,
        )
    k = columns // common_num
    dtype = sum_dtype(x, x.dtype if dtype is None else dtype)
    if isinstance(x, cuda.ndarray):
        index = None if order is None else _index_sums(order, common_num, k)
        return _sum_columns_on_gpu(x, common_num, dtype, index)
    x = numpy.asarray(x)
    if order is None:
        return _sum_contiguous(x, common_num, dtype)
    if count_orders(order) > 1:
        return _sum_columns(x, _index_sums(order, common_num, k), dtype)
    order = numpy.asarray(order.ravel())
    y = numpy.empty((len(x), k), dtype)
    for rows in _slice_rows(x):
        gathered = x[rows].take(order, axis=1)
        y[rows] = _sum_contiguous(gathered, common_num, dtype)
    return y


def _index_sums(order: Any, common_num: int, k: int) -> Any:
    """Returns which columns to add up, of shape ``(common_num, g * k)``."""
    index = order.reshape(count_orders(order), common_num, k)
    return index.swapaxes(0, 1).reshape(common_num, -1)


def _apply_per_slice(
    function: Callable[[Any, Any], NdArray], x: Any, order: Any
) -> NdArray:
    xp = chainer.backend.get_array_module(x)
    slices = xp.array_split(x, len(order))
    result: NdArray = xp.concatenate([*map(function, slices, order)])
    return result


def _sum_contiguous(
    x: numpy.ndarray, common_num: int, dtype: numpy.dtype[Any]
) -> numpy.ndarray:
    blocks = x.reshape(len(x), common_num, x.shape[1] // common_num)
    # BLAS sums the blocks of a row fastest, as their product with ones. On
    # longer rows, each product would wake its threads.
    if x.shape[1] < 8192 and x.dtype == dtype:
        y: numpy.ndarray = numpy.matmul(_ones(common_num, dtype), blocks)
        return y
    y = numpy.einsum('bnk->bk', blocks, dtype=dtype)
    return numpy.ascontiguousarray(y)


@functools.lru_cache
def _ones(common_num: int, dtype: numpy.dtype[Any]) -> numpy.ndarray:
    return numpy.ones(common_num, dtype)


def _sum_columns(
    x: numpy.ndarray, index: numpy.ndarray, dtype: numpy.dtype[Any]
) -> numpy.ndarray:
    """Returns ``y`` with ``y[b, i] = sum(x[b, index[:, i]])``."""
    number, columns = index.shape
    y = numpy.empty((len(x), columns), dtype)
    index = index.astype(numpy.intp)  # once, and not in each take
    for rows in _slice_rows(x):
        # Gathering rows takes a third of the time that columns take.
        transposed = numpy.array(x[rows].T, dtype, order='C')
        step = max(1, 1024 // number)
        for start in range(0, columns, step):
            part = slice(start, start + step)
            gathered = transposed.take(index[:, part], axis=0)
            # As in _sum_contiguous, a product with ones is the fastest sum.
            total = _ones(number, dtype).dot(gathered.reshape(number, -1))
            y[rows, part] = total.reshape(gathered.shape[1:]).T
    return y


def _slice_rows(x: numpy.ndarray) -> Iterator[slice]:
    step = max(16, _AT_ONCE // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _sum_columns_on_gpu(
    x: Any, number: int, dtype: numpy.dtype[Any], index: Any
) -> NdArray:
    """Does the same; without an index, the columns are those of blocks."""
    accumulator = 'double' if dtype == numpy.float64 else 'float'
    with cuda.get_device_from_array(x):
        if index is None:
            columns = x.shape[1] // number
            column, names, arrays = 'j * columns + i % columns', '', [x]
        else:
            columns = index.shape[1]
            column, names = 'index[j * columns + i % columns]', ', raw I index'
            arrays = [x, cuda.cupy.asarray(index)]
        y: NdArray = cuda.cupy.empty((len(x), columns), dtype)
        cuda.elementwise(
            f'int64 number, int64 width, int64 columns, raw T x{names}',
            'S y',
            f"""
            const auto row = i / columns * width;
            {accumulator} sum = 0;
            for (auto j = 0ll; j < number; ++j) {{
                sum += static_cast<{accumulator}>(x[row + {column}]);
            }}
            y = sum;
            """,
            'sum_columns',
        )(number, x.shape[1], columns, *arrays, y)
    return y


def tile_blocks(
    x: NdArray,
    common_num: int,
    order: NdArray | None = None,
    per_slice: bool = False,
) -> NdArray:
    """Repeats a matrix along its columns.

    .. math:: y_{b, i} = \\sum_{s=0}^{g-1} x_{b, sk + q_{si} \\bmod k},
        \\quad q_{s, p_{si}} = i

    Args:
        x (array): Float matrix of shape ``(B, g * k)``, or ``(B, k)`` if
            ``per_slice``, NumPy's or CuPy's.
        common_num (int): The number of blocks, :math:`n`.
        order (array): The orders :math:`p` in which the columns of the result
            form the blocks: an integer permutation of shape
            ``(common_num * k,)``, or several, of shape
            ``(g, common_num * k)``. If ``None``, each block is contiguous.
        per_slice (bool): As in :func:`sum_blocks`.

    Returns:
        array: Matrix of shape ``(B, common_num * k)``, with the dtype of
        ``x``.

    Raises:
        ValueError: If ``common_num`` is less than 1, the number of orders
            does not divide the number of columns of ``x``, or ``order`` does
            not have ``common_num * k`` columns. That it is a permutation is
            not checked.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import tile_blocks
        >>> tile_blocks(np.array([[1., 2.]]), 2)
        array([[1., 2., 1., 2.]])

    """
    batch_size, columns = x.shape
    if common_num < 1:
        raise ValueError(f'common_num must be at least 1, but is {common_num}')
    order = _look_up(order)
    number = 1 if per_slice else count_orders(order)
    k, rest = divmod(columns, number)
    if rest:
        raise ValueError(
            f'x must have the same number of columns for each of {number} '
            f'orders, but x.shape is {x.shape}'
        )
    _check_length(order, common_num * k)
    if per_slice and order is not None and order.ndim == 2:
        return _apply_per_slice(
            lambda rows, each: tile_blocks(rows, common_num, each), x, order
        )
    xp = chainer.backend.get_array_module(x)
    with cuda.get_device_from_array(x):
        if order is None:
            y = xp.repeat(xp.asarray(x)[:, None, :], common_num, axis=1)
            return y.reshape(batch_size, common_num * k)
        order = order.reshape(number, common_num * k)
        # Of each column of the result, where it is in the blocks.
        index = xp.empty(order.shape, numpy.intp)
        places = xp.arange(order.shape[1]) % max(k, 1)
        for s in range(number):
            index[s, order[s]] = places + s * k
        if number == 1:
            return x.take(index[0], axis=1)
        if xp is cuda.cupy:
            return _sum_columns_on_gpu(x, number, x.dtype, index)
        y = _sum_columns(numpy.asarray(x), index, sum_dtype(x))
        return y.astype(x.dtype, copy=False)


class SumBlocks(function_node.FunctionNode):
    """:func:`sum_blocks` as a differentiable function.

    It can be differentiated any number of times.

    Args:
        common_num (int): The number of blocks.
        dtype (dtype): As in :func:`sum_blocks`.
        order (array): As in :func:`sum_blocks`.
        per_slice (bool): As in :func:`sum_blocks`.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import SumBlocks
        >>> (y,) = SumBlocks(2).apply((np.ones((1, 4), np.float32),))
        >>> y.array
        array([[2., 2.]], dtype=float32)

    """

    def __init__(
        self,
        common_num: int,
        dtype: DTypeLike | None = None,
        order: NdArray | None = None,
        per_slice: bool = False,
    ) -> None:
        self.common_num = common_num
        self.dtype = dtype
        self.order = order
        self.per_slice = per_slice

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        (x,) = inputs
        self._dtype = x.dtype
        y = sum_blocks(
            x, self.common_num, self.dtype, self.order, self.per_slice
        )
        return (y,)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> tuple[Variable, ...]:
        tile = TileBlocks(self.common_num, self.order, self.per_slice)
        (gx,) = tile.apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)


class TileBlocks(function_node.FunctionNode):
    """:func:`tile_blocks` as a differentiable function.

    It can be differentiated any number of times.

    Args:
        common_num (int): The number of blocks.
        order (array): As in :func:`tile_blocks`.
        per_slice (bool): As in :func:`tile_blocks`.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import TileBlocks
        >>> (y,) = TileBlocks(2).apply((np.array([[1., 2.]], np.float32),))
        >>> y.array
        array([[1., 2., 1., 2.]], dtype=float32)

    """

    def __init__(
        self,
        common_num: int,
        order: NdArray | None = None,
        per_slice: bool = False,
    ) -> None:
        self.common_num = common_num
        self.order = order
        self.per_slice = per_slice

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        (x,) = inputs
        self._dtype = x.dtype
        y = tile_blocks(x, self.common_num, self.order, self.per_slice)
        return (y,)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> tuple[Variable, ...]:
        sum_of_blocks = SumBlocks(
            self.common_num, order=self.order, per_slice=self.per_slice
        )
        (gx,) = sum_of_blocks.apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)
