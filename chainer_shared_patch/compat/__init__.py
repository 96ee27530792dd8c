"""What Chainer 7.8.1 needs on today's Python, NumPy, CuPy and onnx.

Each :class:`Fix` names one thing that is broken, the release that broke it
and the module that it breaks. Most fixes are applied only with the versions
that need them, a few always. No fix touches modules other than Chainer's,
ChainerMN's and onnx_chainer's.
"""

from __future__ import annotations

import importlib
import sys

from chainer_shared_patch.compat import (
    adam,
    chainermn,
    environment,
    hdf5,
    importing,
    mnist,
    numpy_changes,
    onnx,
    pkg_resources,
    processes,
    promotion,
    protobuf,
    scipy_float16,
)
from chainer_shared_patch.compat.importing import Fix

__all__ = ['FIXES', 'Fix', 'apply']

FIXES: tuple[Fix, ...] = (
    *environment.FIXES,
    *numpy_changes.FIXES,
    *promotion.FIXES,
    *adam.FIXES,
    *pkg_resources.FIXES,
    *processes.FIXES,
    *protobuf.FIXES,
    *scipy_float16.FIXES,
    *hdf5.FIXES,
    *mnist.FIXES,
    *onnx.FIXES,
    *chainermn.FIXES,
)


def apply() -> None:
    """Imports Chainer with every fix that it needs here.

    This also works when Chainer was imported before, or when an
    ``import chainer`` has failed. Importing ``chainer_shared_patch`` calls it.

    .. admonition:: Example

        >>> from chainer_shared_patch import compat
        >>> compat.apply()
        >>> import chainer
        >>> chainer.__version__
        '7.8.1'

    """
    if 'chainer' not in sys.modules:
        # What a failed import has left behind no longer belongs to a package.
        for name in list(sys.modules):
            if name.startswith('chainer.') or name.split('.')[0] == 'chainerx':
                del sys.modules[name]
    importing.register(fix for fix in FIXES if fix.is_needed())
    importlib.import_module('chainer')
