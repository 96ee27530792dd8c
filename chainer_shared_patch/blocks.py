"""Summing and tiling the blocks of a matrix: array kernels and functions.

A matrix of ``common_num * k`` columns is a row of ``common_num`` blocks of
``k`` columns. :func:`sum_blocks` adds the blocks up, :func:`tile_blocks`
repeats a matrix that many times. As linear maps the two are each other's
transpose, so each is the other's derivative.
"""

from __future__ import annotations

import functools
from typing import Any

import chainer
from chainer import function_node
from chainer.backends import cuda
from chainer.types import NdArray
from chainer.variable import Variable
import numpy
from numpy.typing import DTypeLike


class CurrentOrder:
    """The order of a link, looked up each time that a function runs."""

    def __init__(self, array: Any) -> None:
        self.array = array


def _look_up(order: Any) -> Any:
    return order.array if isinstance(order, CurrentOrder) else order


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
) -> NdArray:
    """Sums the blocks of columns of a matrix.

    .. math:: y_{bi} = \\sum_{j=0}^{n-1} x_{b, p_{jk+i}}

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
        order (array): The order :math:`p` in which the columns form the
            blocks: an integer permutation of shape ``(common_num * k,)``. If
            ``None``, each block is contiguous.

    Returns:
        array: C-contiguous matrix of shape ``(B, k)``, with the wider of the
        two dtypes. float16 is summed in float32: NumPy's result stays
        float32, CuPy's is rounded to float16.

    Raises:
        ValueError: If ``common_num`` is less than 1 or does not divide the
            number of columns of ``x``, or ``order`` has another length. That
            it is a permutation is not checked.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import sum_blocks
        >>> sum_blocks(np.array([[1., 2., 10., 20.]]), 2)
        array([[11., 22.]])

    """
    batch_size, columns = x.shape
    if common_num < 1 or columns % common_num:
        raise ValueError(
            'common_num must be at least 1 and divide the columns of x, but '
            f'x.shape is {x.shape} and common_num is {common_num}'
        )
    order = _look_up(order)
    _check_length(order, columns)
    k = columns // common_num
    dtype = sum_dtype(x, x.dtype if dtype is None else dtype)
    if isinstance(x, cuda.ndarray):
        return _sum_blocks_on_gpu(x, common_num, dtype, order)
    if order is not None:
        x = x.take(order, axis=1)  # type: ignore[arg-type]  # ChainerX's
    blocks = numpy.asarray(x).reshape(batch_size, common_num, k)
    # BLAS sums the blocks of a row fastest, as their product with ones. On
    # longer rows, each product would wake its threads.
    if columns < 8192 and blocks.dtype == dtype:
        return numpy.matmul(_ones(common_num, dtype), blocks)
    y = numpy.einsum('bnk->bk', blocks, dtype=dtype)
    return numpy.ascontiguousarray(y)


def _check_length(order: NdArray | None, columns: int) -> None:
    if order is not None and len(order) != columns:
        raise ValueError(
            f'order must have {columns} elements, one for each column, but '
            f'has {len(order)}'
        )


@functools.lru_cache
def _ones(common_num: int, dtype: numpy.dtype[Any]) -> numpy.ndarray:
    return numpy.ones(common_num, dtype)


def _sum_blocks_on_gpu(
    x: Any, common_num: int, dtype: numpy.dtype[Any], order: Any
) -> NdArray:
    k = x.shape[1] // common_num
    accumulator = 'double' if dtype == numpy.float64 else 'float'
    column = 'j * k + i % k'
    with cuda.get_device_from_array(x):
        y: NdArray = cuda.cupy.empty((len(x), k), dtype)
        arrays = [x]
        if order is not None:
            column = f'order[{column}]'
            arrays.append(cuda.cupy.asarray(order))
        names = ', raw O order' if order is not None else ''
        cuda.elementwise(
            f'int64 common_num, int64 k, raw T x{names}',
            'S y',
            f"""
            const auto row = i / k * k * common_num;
            {accumulator} sum = 0;
            for (auto j = 0ll; j < common_num; ++j) {{
                sum += static_cast<{accumulator}>(x[row + {column}]);
            }}
            y = sum;
            """,
            'sum_blocks',
        )(common_num, k, *arrays, y)
    return y


def tile_blocks(
    x: NdArray, common_num: int, order: NdArray | None = None
) -> NdArray:
    """Repeats a matrix along its columns.

    .. math:: y_{b, p_{jk+i}} = x_{bi}, \\quad 0 \\le j < n

    Args:
        x (array): Float matrix of shape ``(B, k)``, NumPy's or CuPy's.
        common_num (int): The number of blocks, :math:`n`.
        order (array): The order :math:`p` in which the columns of the result
            form the blocks: an integer permutation of shape
            ``(common_num * k,)``. If ``None``, each block is contiguous.

    Returns:
        array: C-contiguous matrix of shape ``(B, common_num * k)``, with the
        dtype of ``x``.

    Raises:
        ValueError: If ``common_num`` is less than 1, or ``order`` does not
            have ``common_num * k`` elements. That it is a permutation is not
            checked.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import tile_blocks
        >>> tile_blocks(np.array([[1., 2.]]), 2)
        array([[1., 2., 1., 2.]])

    """
    batch_size, k = x.shape
    if common_num < 1:
        raise ValueError(f'common_num must be at least 1, but is {common_num}')
    order = _look_up(order)
    _check_length(order, common_num * k)
    xp = chainer.backend.get_array_module(x)
    with cuda.get_device_from_array(x):
        if order is not None:
            columns = xp.empty_like(order)
            columns[order] = xp.arange(len(order)) % k
            return x.take(columns, axis=1)
        y = xp.repeat(xp.asarray(x)[:, None, :], common_num, axis=1)
    return y.reshape(batch_size, common_num * k)


class SumBlocks(function_node.FunctionNode):
    """:func:`sum_blocks` as a differentiable function.

    It can be differentiated any number of times.

    Args:
        common_num (int): The number of blocks.
        dtype (dtype): As in :func:`sum_blocks`.
        order (array): As in :func:`sum_blocks`.

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
    ) -> None:
        self.common_num = common_num
        self.dtype = dtype
        self.order = order

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        (x,) = inputs
        self._dtype = x.dtype
        return (sum_blocks(x, self.common_num, self.dtype, self.order),)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> tuple[Variable, ...]:
        (gx,) = TileBlocks(self.common_num, self.order).apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)


class TileBlocks(function_node.FunctionNode):
    """:func:`tile_blocks` as a differentiable function.

    It can be differentiated any number of times.

    Args:
        common_num (int): The number of blocks.
        order (array): As in :func:`tile_blocks`.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import TileBlocks
        >>> (y,) = TileBlocks(2).apply((np.array([[1., 2.]], np.float32),))
        >>> y.array
        array([[1., 2., 1., 2.]], dtype=float32)

    """

    def __init__(self, common_num: int, order: NdArray | None = None) -> None:
        self.common_num = common_num
        self.order = order

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        (x,) = inputs
        self._dtype = x.dtype
        return (tile_blocks(x, self.common_num, self.order),)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> tuple[Variable, ...]:
        sum_of_blocks = SumBlocks(self.common_num, order=self.order)
        (gx,) = sum_of_blocks.apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)
