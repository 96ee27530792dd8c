"""Sums and tiles of the blocks of an array, as array kernels and as functions.

A matrix of ``common_num * k`` columns is a row of ``common_num`` blocks of
``k`` columns. :func:`sum_blocks` adds them up, :func:`tile_blocks` repeats a
matrix that many times; as linear maps the two are each other's transpose, so
each is the other's derivative.
"""

from __future__ import annotations

from typing import Any

import chainer
from chainer import function_node
from chainer.backends import cuda
import numpy


def sum_blocks(x: Any, common_num: int, dtype: Any = None) -> Any:
    """Sums the blocks of columns of a matrix.

    .. math:: y_{bi} = \\sum_{j=0}^{n-1} x_{b, jk+i}

    Args:
        x (:ref:`ndarray`): Float matrix of shape ``(B, common_num * k)``,
            NumPy's or CuPy's, of any memory layout.
        common_num (int): The number of blocks, :math:`n`.
        dtype (dtype): The dtype to sum in, if it is wider than that of ``x``.
            float16 is summed in float32 at least: its sum may exceed its
            range, and what is multiplied with it would show the rounding.

    Returns:
        :ref:`ndarray`: C-contiguous matrix of shape ``(B, k)`` and of the
        dtype that it is summed in.

    Raises:
        ValueError: If ``common_num`` does not divide the columns of ``x``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.blocks import sum_blocks
        >>> sum_blocks(np.array([[1., 2., 10., 20.]]), 2)
        array([[11., 22.]])

    """
    batch_size, columns = x.shape
    k, rest = divmod(columns, common_num)
    if rest:
        raise ValueError(
            'the columns of x must be a multiple of common_num, but x.shape '
            'is {} and common_num is {}'.format(x.shape, common_num)
        )
    dtype = numpy.result_type(x.dtype, numpy.float32, dtype or x.dtype)
    if isinstance(x, cuda.ndarray):
        return _sum_blocks_gpu(x, common_num, k, dtype)
    blocks = numpy.asarray(x).reshape(batch_size, common_num, k)
    # A product of each row with ones sums short blocks several times faster
    # than a reduction does, at about the cost of copying x. But for rows much
    # longer than this, BLAS would wake its threads, and for each row anew.
    short = k < 64 or k < 1024 and columns < 8192
    if short and blocks.strides[2] == blocks.itemsize:
        return numpy.matmul(numpy.ones(common_num, dtype), blocks)
    return numpy.ascontiguousarray(numpy.add.reduce(blocks, 1, dtype))


def _sum_blocks_gpu(
    x: Any, common_num: int, k: int, dtype: numpy.dtype
) -> Any:
    y = cuda.cupy.empty((x.shape[0], k), dtype)
    # Neighbouring threads read neighbouring columns of the same block.
    cuda.elementwise(
        'raw T x, int64 n, int64 k',
        'raw A y',
        """
        const ptrdiff_t first = (i / k) * k * n + i % k;
        A sum = 0;
        for (ptrdiff_t j = 0; j < n; ++j) {
            sum += static_cast<A>(x[first + j * k]);
        }
        y[i] = sum;
        """,
        'sum_blocks',
    )(x, common_num, k, y, size=y.size)
    return y


def tile_blocks(x: Any, common_num: int) -> Any:
    """Repeats a matrix along its columns.

    .. math:: y_{b, jk+i} = x_{bi}, \\quad 0 \\le j < n

    Args:
        x (:ref:`ndarray`): Matrix of shape ``(B, k)``, NumPy's or CuPy's.
        common_num (int): The number of blocks, :math:`n`.

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
    xp = cuda.get_array_module(x)
    y = xp.repeat(x[:, None, :], common_num, axis=1)
    return y.reshape(batch_size, common_num * k)


class SumBlocks(function_node.FunctionNode):
    """:func:`sum_blocks` as a differentiable function."""

    def __init__(self, common_num: int, dtype: Any = None) -> None:
        self.common_num = common_num
        self.dtype = dtype

    def forward(self, inputs: tuple) -> tuple:
        (x,) = inputs
        self._dtype = x.dtype
        return (sum_blocks(x, self.common_num, self.dtype),)

    def backward(self, indexes: tuple, grad_outputs: tuple) -> tuple:
        (gx,) = TileBlocks(self.common_num).apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)


class TileBlocks(function_node.FunctionNode):
    """:func:`tile_blocks` as a differentiable function."""

    def __init__(self, common_num: int) -> None:
        self.common_num = common_num

    def forward(self, inputs: tuple) -> tuple:
        (x,) = inputs
        self._dtype = x.dtype
        return (tile_blocks(x, self.common_num),)

    def backward(self, indexes: tuple, grad_outputs: tuple) -> tuple:
        (gx,) = SumBlocks(self.common_num).apply(grad_outputs)
        return (chainer.functions.cast(gx, self._dtype),)
