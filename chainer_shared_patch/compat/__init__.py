"""What Chainer 7.8.1 needs on today's Python, NumPy, CuPy and onnx.

Each :class:`Fix` names a module, what is broken in it, and with which
versions. No fix touches other modules than those of Chainer, ChainerMN and
onnx_chainer, but for those of :mod:`legacy`, which are off by default.
"""

from __future__ import annotations

import importlib
import sys

from chainer_shared_patch.compat import (
    adam,
    chainermn,
    cupy_atomic_add,
    environment_check,
    hdf5,
    legacy,
    mnist_download,
    npz_pickles,
    numpy_promotion,
    numpy_removals,
    onnx_chainer,
    onnx_converters,
    onnx_example,
    onnx_recurrent,
    pkg_resources,
    processes,
    protobuf,
    scipy_float16,
    stored_shapes,
)
from chainer_shared_patch.compat.importing import Fix

__all__ = ['FIXES', 'Fix', 'apply', 'legacy']

FIXES: tuple[Fix, ...] = (
    *environment_check.FIXES,
    *cupy_atomic_add.FIXES,
    *numpy_removals.FIXES,
    *numpy_promotion.FIXES,
    *adam.FIXES,
    *pkg_resources.FIXES,
    *processes.FIXES,
    *protobuf.FIXES,
    *scipy_float16.FIXES,
    *hdf5.FIXES,
    *npz_pickles.FIXES,
    *stored_shapes.FIXES,
    *mnist_download.FIXES,
    *onnx_chainer.FIXES,
    *onnx_converters.FIXES,
    *onnx_recurrent.FIXES,
    *onnx_example.FIXES,
    *chainermn.FIXES,
)


def apply() -> None:
    """Imports Chainer with every fix that it needs, or fixes it afterwards."""
    if 'chainer' not in sys.modules:
        # What a failed import has left behind no longer belongs to a package.
        for name in list(sys.modules):
            if name.startswith('chainer.') or name.split('.')[0] == 'chainerx':
                del sys.modules[name]
    for fix in FIXES:
        if fix.is_needed():
            fix.register()
    importlib.import_module('chainer')
