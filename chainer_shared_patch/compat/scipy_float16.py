"""Sparse matrices of float16, which SciPy no longer accepts."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
import numpy


def _fix_sparse_matmul(module: Any) -> None:
    matmul = module._coo_matmul_cpu

    @functools.wraps(matmul)
    def matmul_in_float32(
        A_data: Any, A_row: Any, A_col: Any, A_shape: Any, B: Any, dtype: Any
    ) -> Any:
        # As SciPy itself used to. The result is cast to dtype.
        if A_data.dtype == numpy.float16:
            A_data = A_data.astype(numpy.float32)
        if B.dtype == numpy.float16:
            B = B.astype(numpy.float32)
        return matmul(A_data, A_row, A_col, A_shape, B, dtype)

    module._coo_matmul_cpu = matmul_in_float32


FIXES = (
    Fix(
        module='chainer.functions.math.sparse_matmul',
        broken='sparse matrices of float16 are refused',
        when='scipy >= 1.15',
        apply=_fix_sparse_matmul,
    ),
)
