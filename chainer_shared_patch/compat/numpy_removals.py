"""What NumPy has removed, now refuses, or returns in another form."""

from __future__ import annotations

import functools
import types
from typing import Any

from chainer_shared_patch.compat.importing import Fix, lent
import numpy


class NumPyWith(types.ModuleType):
    """NumPy with more names, for code that asks nowhere ``xp is numpy``."""

    def __init__(self, **names: Any) -> None:
        super().__init__('numpy', numpy.__doc__)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


SCTYPES = {
    'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
    'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
    'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
    'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
    'others': [bool, object, bytes, str, numpy.void],
}


def _run_with_sctypes(run: Any, module: Any) -> None:
    with lent(vars(numpy), 'sctypes', SCTYPES):
        run(module)


def _fix_as_strided(module: Any) -> None:
    module.np = NumPyWith(sctypes=SCTYPES)


def _compute_indices_and_weights(
    out_size: Any, in_size: Any, mode: str, align_corners: bool, xp: Any
) -> tuple[Any, ...]:
    """Does what Chainer's function does, with float for numpy.float."""
    indices, weights = [], []
    for n_out, n_in in zip(out_size, in_size):
        index = xp.arange(n_out, dtype=float)
        scale = n_in / n_out
        if mode == 'nearest':
            index = xp.minimum(xp.floor(index * scale), n_in - 1)
            weight = xp.zeros_like(index)
        else:
            if align_corners:
                index = xp.linspace(0, n_in - 1, num=n_out, dtype=float)
            else:
                index = xp.maximum((index + 0.5) * scale - 0.5, 0)
            weight, index = xp.modf(index)
        indices.append(index)
        weights.append(weight)
    return (*indices, *weights)


def _fix_resize_images(module: Any) -> None:
    module.compute_indices_and_weights = _compute_indices_and_weights


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


FIXES = (
    Fix(
        module='chainer.functions.array.as_strided',
        broken='numpy.sctypes is gone',
        when='numpy >= 2',
        apply=_fix_as_strided,
        execute=_run_with_sctypes,
    ),
    Fix(
        module='chainer.functions.array.resize_images',
        broken='numpy.float is gone',
        when='numpy >= 1.24',
        apply=_fix_resize_images,
    ),
    Fix(
        module='chainer.functions.array.pad_sequence',
        broken='padding that the dtype cannot hold is an OverflowError',
        when='numpy >= 2',
        apply=_fix_pad_sequence,
    ),
    Fix(
        module='chainer.dataset.convert',
        broken='padding that the dtype cannot hold is an OverflowError',
        when='numpy >= 2',
        apply=_fix_convert,
    ),
    Fix(
        module='chainer.distributions.categorical',
        broken='numpy.meshgrid returns a tuple, which log_prob adds to a list',
        when='numpy >= 2',
        apply=_fix_categorical,
    ),
    Fix(
        module='chainer.variable',
        broken='arrays have a device, which debug_print shows as a GPU',
        when='numpy >= 2',
        apply=_fix_variable,
    ),
)
