"""What NumPy has removed, now refuses, or returns in another form."""

from __future__ import annotations

import functools
import types
from typing import Any

from chainer_shared_patch.compat.importing import Fix, is_at_least, lent
import numpy


class NumPyWith(types.ModuleType):
    """NumPy with additional names.

    It suits code that does not ask whether an array module ``is numpy``.

    Args:
        **names: The names and their values.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.numpy_removals import NumPyWith
        >>> numpy = NumPyWith(float=float)
        >>> numpy.zeros(2, numpy.float)
        array([0., 0.])

    """

    def __init__(self, **names: Any) -> None:
        super().__init__('numpy', numpy.__doc__)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


_SCTYPES = {
    'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
    'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
}


def _fix_as_strided(module: Any) -> None:
    module.np = NumPyWith(sctypes=_SCTYPES)


def _fix_resize_images(module: Any) -> None:
    # The other functions of the module ask `xp is numpy`.
    names = {'__name__': module.__name__, 'numpy': NumPyWith(float=float)}
    module.compute_indices_and_weights = types.FunctionType(
        module.compute_indices_and_weights.__code__, names
    )


def _cast(number: Any, dtype: numpy.dtype) -> Any:
    # As NumPy 1 converted an integer outside the range of the dtype.
    if isinstance(number, (int, numpy.integer)):
        return numpy.array(number).astype(dtype)[()]
    return number


def _fix_pad_sequence(module: Any) -> None:
    forward = module.PadSequence.forward

    @functools.wraps(forward)
    def forward_casting(self: Any, xs: tuple[Any, ...]) -> Any:
        self.padding = _cast(self.padding, xs[0].dtype)
        return forward(self, xs)

    module.PadSequence.forward = forward_casting


def _fix_convert(module: Any) -> None:
    concat = module._concat_arrays_with_padding

    @functools.wraps(concat)
    def concat_casting(arrays: Any, padding: Any) -> Any:
        return concat(arrays, _cast(padding, arrays[0].dtype))

    module._concat_arrays_with_padding = concat_casting


def _list_meshgrid(*args: Any, **kwargs: Any) -> list[Any]:
    return list(numpy.meshgrid(*args, **kwargs))


def _fix_categorical(module: Any) -> None:
    module.numpy = NumPyWith(meshgrid=_list_meshgrid)


def _fix_variable(module: Any) -> None:
    debug_print = module.Variable.debug_print

    @functools.wraps(debug_print)
    def debug_print_fixed(self: Any) -> Any:
        # A NumPy array has a device, 'cpu', which Chainer mistakes for CuPy's.
        return debug_print(self).replace('\n- device: cpu', '\n- device: CPU')

    module.Variable.debug_print = debug_print_fixed


def _is_numpy_2() -> bool:
    return is_at_least('numpy', '2')


FIXES = (
    Fix(
        module='chainer.functions.array.as_strided',
        broken='numpy.sctypes is gone',
        since='NumPy 2.0',
        is_needed=_is_numpy_2,
        lend=lambda: lent(vars(numpy), 'sctypes', _SCTYPES),
        apply=_fix_as_strided,
    ),
    Fix(
        module='chainer.functions.array.resize_images',
        broken='numpy.float is gone',
        since='NumPy 1.24',
        is_needed=lambda: is_at_least('numpy', '1.24'),
        apply=_fix_resize_images,
    ),
    Fix(
        module='chainer.functions.array.pad_sequence',
        broken='padding that the dtype cannot hold is an OverflowError',
        since='NumPy 2.0',
        is_needed=_is_numpy_2,
        apply=_fix_pad_sequence,
    ),
    Fix(
        module='chainer.dataset.convert',
        broken='padding that the dtype cannot hold is an OverflowError',
        since='NumPy 2.0',
        is_needed=_is_numpy_2,
        apply=_fix_convert,
    ),
    Fix(
        module='chainer.distributions.categorical',
        broken='numpy.meshgrid returns a tuple, which log_prob adds to a list',
        since='NumPy 2.0',
        is_needed=_is_numpy_2,
        apply=_fix_categorical,
    ),
    Fix(
        module='chainer.variable',
        broken='arrays have a device, which debug_print shows as a GPU',
        since='NumPy 2.0',
        is_needed=_is_numpy_2,
        apply=_fix_variable,
    ),
)
