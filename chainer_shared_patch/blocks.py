"""Sums and tiles of the blocks of an array, as array kernels and as functions.

A matrix of ``common_num * k`` columns is a row of ``common_num`` blocks of
``k`` columns. :func:`sum_blocks` adds them up, :func:`tile_blocks` repeats a
matrix that many times; as linear maps the two are each other's transpose, so
each is the other's derivative.
"""

from __future__ import annotations

import math
from typing import Any

import chainer
from chainer import function_node
from chainer.backends import cuda
import numpy

# The kernels of both directions differ in what a thread does with its columns:
# WIDTH neighbours of a row, which one load or store of up to 16 bytes moves.
# Their indexes are narrow in the matrix of one block, and wide in the first
# block of the other. Neighbouring threads have neighbouring columns.
_KERNEL = """
#include <cuda_fp16.h>

template <typename Type>
struct alignas(WIDTH * sizeof(Type)) Columns {
    Type of[WIDTH];
};

extern "C" __global__ void NAME(
    const SOURCE* x, TARGET* y, INDEX size, INDEX common_num, INDEX k
) {
    const INDEX thread = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
    const INDEX narrow = WIDTH * thread;
    if (narrow >= size) return;
    const INDEX wide = narrow + narrow / k * k * (common_num - 1);
    %s
}
"""
_SOURCES = {
    'sum_blocks': _KERNEL
    % """
    SUM sums[WIDTH] = {};
    #pragma unroll 4
    for (INDEX j = 0; j < common_num; ++j) {
        const auto columns = *(const Columns<SOURCE>*)(x + wide + j * k);
        for (int i = 0; i < WIDTH; ++i) sums[i] += (SUM)columns.of[i];
    }
    Columns<TARGET> columns;
    for (int i = 0; i < WIDTH; ++i) columns.of[i] = (TARGET)sums[i];
    *(Columns<TARGET>*)(y + narrow) = columns;
    """,
    'tile_blocks': _KERNEL
    % """
    const auto columns = *(const Columns<SOURCE>*)(x + narrow);
    for (INDEX j = 0; j < common_num; ++j) {
        *(Columns<TARGET>*)(y + wide + j * k) = columns;
    }
    """,
}
_TYPES = {'e': 'half', 'f': 'float', 'd': 'double'}
_THREADS = 256
# 64-bit division is several times slower.
_INT32_SIZE = 2**30


def sum_dtype(x: Any, *dtypes: Any) -> numpy.dtype:
    """Returns the dtype in which the sum of blocks of an array is multiplied.

    The sum is computed in float32 at least. Of float16 it then exceeds the
    range easily, and what is multiplied with it shows when it is rounded, so
    that NumPy, which has no fast product of float16, is left with float32.
    A GPU multiplies float16 many times faster, and rounds the sum once.
    """
    least = x.dtype if isinstance(x, cuda.ndarray) else numpy.float32
    return numpy.result_type(x.dtype, least, *dtypes)


def sum_blocks(x: Any, common_num: int, dtype: Any = None) -> Any:
    """Sums the blocks of columns of a matrix.

    .. math:: y_{bi} = \\sum_{j=0}^{n-1} x_{b, jk+i}

    Args:
        x (:ref:`ndarray`): Float matrix of shape ``(B, common_num * k)``,
            NumPy's or CuPy's, of any memory layout.
        common_num (int): The number of blocks, :math:`n`.
        dtype (dtype): The dtype to sum in, if it is wider than that of ``x``.

    Returns:
        :ref:`ndarray`: C-contiguous matrix of shape ``(B, k)`` and of the
        wider of the two dtypes. float16 is summed in float32: NumPy's result
        stays in it, CuPy's is rounded to float16.

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
    dtype = sum_dtype(x, dtype or x.dtype)
    if isinstance(x, cuda.ndarray):
        with cuda.get_device_from_array(x):
            y = cuda.cupy.empty((batch_size, k), dtype)
            _launch('sum_blocks', x, y, common_num)
        return y
    blocks = numpy.asarray(x).reshape(batch_size, common_num, k)
    # A product of each row with ones sums short blocks as fast as x is copied.
    # It does not pay for very short rows, and for long ones BLAS would wake
    # its threads, for each anew.
    if (
        128 <= columns < 8192
        and k < 1024
        and blocks.dtype == dtype
        and blocks.strides[2] == blocks.itemsize
    ):
        return numpy.matmul(numpy.ones(common_num, dtype), blocks)
    if k < 256:
        y = numpy.einsum('bnk->bk', blocks, dtype=dtype)
    else:
        y = numpy.add.reduce(blocks, 1, dtype)
    return numpy.ascontiguousarray(y)


def tile_blocks(x: Any, common_num: int) -> Any:
    """Repeats a matrix along its columns.

    .. math:: y_{b, jk+i} = x_{bi}, \\quad 0 \\le j < n

    Args:
        x (:ref:`ndarray`): Float matrix of shape ``(B, k)``, NumPy's or
            CuPy's.
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
    if isinstance(x, cuda.ndarray):
        with cuda.get_device_from_array(x):
            y = cuda.cupy.empty((batch_size, common_num * k), x.dtype)
            _launch('tile_blocks', x, y, common_num)
        return y
    y = numpy.repeat(numpy.asarray(x)[:, None, :], common_num, axis=1)
    return y.reshape(batch_size, common_num * k)


def _launch(name: str, x: Any, y: Any, common_num: int) -> None:
    """Runs a kernel from x to y, one of which has common_num blocks."""
    x = cuda.cupy.ascontiguousarray(x)
    size = min(x.size, y.size)
    if size == 0:
        return
    k = min(x.shape[1], y.shape[1])
    width = math.gcd(16, k * x.itemsize, x.data.ptr) // x.itemsize
    index = numpy.int32 if size * common_num < _INT32_SIZE else numpy.int64
    macros = {
        'NAME': name,
        'SOURCE': _TYPES[x.dtype.char],
        'TARGET': _TYPES[y.dtype.char],
        'SUM': _TYPES[numpy.promote_types(y.dtype, numpy.float32).char],
        'INDEX': 'int' if index is numpy.int32 else 'long long',
        'WIDTH': width,
    }
    options = tuple('-D{}={}'.format(*each) for each in macros.items())
    blocks = -(-size // (width * _THREADS))
    arguments = (x, y, index(size), index(common_num), index(k))
    kernel = cuda.raw(_SOURCES[name], name, options)
    kernel((blocks,), (_THREADS,), arguments)


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
