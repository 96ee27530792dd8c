"""Sums and tiles of the blocks of an array, as array kernels and as functions.

A matrix of ``common_num * k`` columns is a row of ``common_num`` blocks of
``k`` columns. :func:`sum_blocks` adds them up, :func:`tile_blocks` repeats a
matrix that many times; as linear maps the two are each other's transpose, so
each is the other's derivative.
"""

from __future__ import annotations

import functools
from typing import Any

import chainer
from chainer import function_node
from chainer.backends import cuda
import numpy


def sum_dtype(x: Any, *dtypes: Any) -> numpy.dtype:
    """Returns the dtype in which the sum of blocks of an array is multiplied.

    The sum is computed in float32 at least. Of float16 it then exceeds the
    range easily, and what is multiplied with it shows when it is rounded, so
    that NumPy, which has no fast product of float16, is left with float32.
    A GPU multiplies float16 many times faster, and rounds the sum once.
    """
    least = x.dtype if isinstance(x, cuda.ndarray) else numpy.float32
    return numpy.result_type(x.dtype, least, *dtypes)


def sum_blocks(
    x: Any, common_num: int, dtype: Any = None, order: Any = None
) -> Any:
    """Sums the blocks of columns of a matrix.

    .. math:: y_{bi} = \\sum_{j=0}^{n-1} x_{b, p_{jk+i}}

    The terms are not added pairwise, so that the error grows with
    :math:`n`: a sum of 2\\ :sup:`20` terms in float32 may be right to four
    digits only. And a sum can exceed the range of its dtype where the products
    of a dense layer do not.

    Args:
        x (:ref:`ndarray`): Float matrix of shape ``(B, common_num * k)``,
            NumPy's or CuPy's, of any memory layout.
        common_num (int): The number of blocks, :math:`n`.
        dtype (dtype): The dtype to sum in, if it is wider than that of ``x``.
        order (:ref:`ndarray`): The order :math:`p` in which the columns make
            up the blocks: an integer permutation of shape
            ``(common_num * k,)``. If ``None``, they do as they lie.

    Returns:
        :ref:`ndarray`: C-contiguous matrix of shape ``(B, k)`` and of the
        wider of the two dtypes. float16 is summed in float32: NumPy's result
        stays in it, CuPy's is rounded to float16.

    Raises:
        ValueError: If ``common_num`` is less than 1 or does not divide the
            columns of ``x``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import sum_blocks
        >>> sum_blocks(np.array([[1., 2., 10., 20.]]), 2)
        array([[11., 22.]])

    """
    batch_size, columns = x.shape
    if common_num < 1 or columns % common_num:
        raise ValueError(
            'the columns of x must be a multiple of common_num, but x.shape '
            'is {} and common_num is {}'.format(x.shape, common_num)
        )
    k = columns // common_num
    dtype = sum_dtype(x, dtype or x.dtype)
    if order is not None:
        with cuda.get_device_from_array(x):
            x = x.take(order, axis=1)
    if isinstance(x, cuda.ndarray):
        return _sum_blocks_on_gpu(x, common_num, dtype)
    blocks = numpy.asarray(x).reshape(batch_size, common_num, k)
    # BLAS sums the blocks of a row fastest, as their product with ones. Of
    # longer rows, each would wake its threads.
    if columns < 8192 and blocks.dtype == dtype:
        return numpy.matmul(_ones(common_num, dtype), blocks)
    y = numpy.einsum('bnk->bk', blocks, dtype=dtype)
    return numpy.ascontiguousarray(y)


@functools.lru_cache
def _ones(common_num: int, dtype: numpy.dtype) -> numpy.ndarray:
    return numpy.ones(common_num, dtype)


def _sum_blocks_on_gpu(x: Any, common_num: int, dtype: numpy.dtype) -> Any:
    k = x.shape[1] // common_num
    sum_ = numpy.promote_types(dtype, numpy.float32)
    with cuda.get_device_from_array(x):
        y = cuda.cupy.empty((len(x), k), sum_)
        cuda.elementwise(
            'raw T x, int64 common_num, int64 k',
            'S y',
            """
            const auto first = i / k * k * common_num + i % k;
            S sum = 0;
            for (auto j = 0ll; j < common_num; ++j) {
                sum += static_cast<S>(x[first + j * k]);
            }
            y = sum;
            """,
            'sum_blocks',
        )(x, common_num, k, y)
        return y.astype(dtype, copy=False)


def tile_blocks(x: Any, common_num: int, order: Any = None) -> Any:
    """Repeats a matrix along its columns.

    .. math:: y_{b, p_{jk+i}} = x_{bi}, \\quad 0 \\le j < n

    Args:
        x (:ref:`ndarray`): Float matrix of shape ``(B, k)``, NumPy's or
            CuPy's.
        common_num (int): The number of blocks, :math:`n`.
        order (:ref:`ndarray`): The order :math:`p` of :func:`sum_blocks`.

    Returns:
        :ref:`ndarray`: C-contiguous matrix of shape ``(B, common_num * k)``
        and of the dtype of ``x``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import tile_blocks
        >>> tile_blocks(np.array([[1., 2.]]), 2)
        array([[1., 2., 1., 2.]])

    """
    batch_size, k = x.shape
    xp = chainer.backend.get_array_module(x)
    with cuda.get_device_from_array(x):
        if order is not None:
            columns = xp.empty_like(order)
            columns[order] = xp.arange(len(order)) % k
            return x.take(columns, axis=1)
        y = xp.repeat(xp.asarray(x)[:, None, :], common_num, axis=1)
    return y.reshape(batch_size, common_num * k)


class SumBlocks(function_node.FunctionNode):
    """:func:`sum_blocks` as a differentiable function."""

    def __init__(
        self, common_num: int, dtype: Any = None, order: Any = None
    ) -> None:
        self.common_num = common_num
        self.dtype = dtype
        self.order = order

    def forward(self, inputs: tuple) -> tuple:
        (x,) = inputs
        self._dtype = x.dtype
        return (sum_blocks(x, self.common_num, self.dtype, self.order),)

    def backward(self, indexes: tuple, grad_outputs: tuple) -> tuple:
        (gx,) = TileBlocks(self.common_num, self.order).apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)


class TileBlocks(function_node.FunctionNode):
    """:func:`tile_blocks` as a differentiable function."""

    def __init__(self, common_num: int, order: Any = None) -> None:
        self.common_num = common_num
        self.order = order

    def forward(self, inputs: tuple) -> tuple:
        (x,) = inputs
        self._dtype = x.dtype
        return (tile_blocks(x, self.common_num, self.order),)

    def backward(self, indexes: tuple, grad_outputs: tuple) -> tuple:
        sum_of_blocks = SumBlocks(self.common_num, order=self.order)
        (gx,) = sum_of_blocks.apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)
