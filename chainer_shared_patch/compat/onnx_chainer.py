"""Chainer's ONNX exporter, which fails to be imported with today's onnx."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib
import sys
import types
from typing import Any

from chainer_shared_patch.compat.importing import Fix, lent
import numpy

_DTYPES = (
    'bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 '
    'float16 float32 float64 complex64 complex128'
)


@contextlib.contextmanager
def _lend_mapping() -> Iterator[None]:
    from onnx import helper

    table = {
        dtype: helper.np_dtype_to_tensor_dtype(dtype)
        for dtype in map(numpy.dtype, _DTYPES.split())
    }
    mapping = types.SimpleNamespace(NP_TYPE_TO_TENSOR_TYPE=table)
    with lent(sys.modules, 'onnx.mapping', mapping):
        yield


def _run_with_mapping(run: Any, module: Any) -> None:
    with _lend_mapping():
        run(module)


def _import_rest(onnx_chainer: Any) -> None:
    # If it was imported without the fix, it found no usable onnx.
    if not sys.modules['onnx_chainer.export']._available:
        with _lend_mapping():
            for name in ('export', 'export_testcase'):
                importlib.reload(sys.modules['onnx_chainer.' + name])


def _fix_context(context: Any) -> None:
    # The original differs only in storing the elements readably.
    context._tensor_from_array_for_constant = context.numpy_helper.from_array


FIXES = (
    Fix(
        module='onnx_chainer',
        broken='onnx.mapping is deprecated, and gone since 1.19, so that onnx '
        'seems not to be installed',
        when='onnx >= 1.13',
        apply=_import_rest,
        execute=_run_with_mapping,
    ),
    Fix(
        module='onnx_chainer.context',
        broken='onnx.mapping is deprecated, and gone since 1.19',
        when='onnx >= 1.13',
        apply=_fix_context,
    ),
)
