"""Names that NumPy has removed: ``sctypes``, ``float`` and ``distutils``."""

from __future__ import annotations

import types
from typing import Any

from chainer_shared_patch.compat.importing import (
    Fix,
    has,
    is_missing,
)
import numpy


class NumPyWith(types.ModuleType):
    """NumPy and the names given.

    For code that does not ask whether an array module ``is numpy``.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.numpy_names import NumPyWith
        >>> numpy = NumPyWith(float=float)
        >>> numpy.zeros(2, numpy.float)
        array([0., 0.])

    """

    def __init__(self, **names: Any) -> None:
        super().__init__('numpy', numpy.__doc__)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


def is_at_least(version: str) -> bool:
    """Returns whether NumPy is of this version or a later one."""
    return bool(numpy.lib.NumpyVersion(numpy.__version__) >= version)


_SCTYPES = {
    'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
    'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
}

# Chainer asks on macOS whether NumPy uses the Accelerate of before macOS
# 13.3, whose results are wrong. NumPy without distutils uses none of that.
_NO_DISTUTILS = types.SimpleNamespace(
    system_info=types.SimpleNamespace(get_info=lambda name: {})
)


def _mend_resize_images(module: Any) -> None:
    # The one function that says numpy.float; the others ask `xp is numpy`.
    function = module.compute_indices_and_weights
    names = {**vars(module), 'numpy': NumPyWith(float=float)}
    module.compute_indices_and_weights = types.FunctionType(
        function.__code__, names, function.__name__
    )


FIXES = (
    Fix(
        module='chainer.functions.array.as_strided',
        broken='numpy.sctypes is gone',
        since='NumPy 2.0',
        is_needed=lambda: is_at_least('2.0.0'),
        imports={'numpy': NumPyWith(sctypes=_SCTYPES)},
    ),
    Fix(
        module='chainer.functions.array.resize_images',
        broken='numpy.float is gone',
        since='NumPy 1.24',
        is_needed=lambda: is_at_least('1.24.0'),
        mend=_mend_resize_images,
    ),
    Fix(
        module='chainer._environment_check',
        broken='numpy.distutils is gone, or misses distutils.msvccompiler',
        since='Python 3.12, setuptools 74',
        is_needed=lambda: (
            is_missing('numpy.distutils') or has('setuptools', (74,))
        ),
        imports={
            'numpy.distutils.system_info': NumPyWith(distutils=_NO_DISTUTILS)
        },
    ),
)
