"""Arrays of another shape in files, which Chainer broadcasts on the CPU."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
from chainer_shared_patch.compat.numpy_removals import NumPyWith
import numpy


class _Misfit(ValueError):
    def __str__(self) -> str:
        key, stored, target = self.args
        return (
            f'cannot load {key} of shape {stored.shape} into an array of '
            f'shape {target.shape}'
        )


def _copy_same_shape(target: numpy.ndarray, stored: numpy.ndarray) -> None:
    if stored.shape != target.shape:
        raise _Misfit('an array', stored, target)
    numpy.copyto(target, stored)


def _fix_npz(module: Any) -> None:
    module.numpy = NumPyWith(copyto=_copy_same_shape)
    call = module.NpzDeserializer.__call__

    @functools.wraps(call)
    def call_naming_key(self: Any, key: str, value: Any) -> Any:
        try:
            return call(self, key, value)
        except _Misfit as error:
            raise _Misfit(self.path + key, *error.args[1:]) from None

    module.NpzDeserializer.__call__ = call_naming_key


def _fix_hdf5(module: Any) -> None:
    call = module.HDF5Deserializer.__call__

    @functools.wraps(call)
    def call_checking_shape(self: Any, key: str, value: Any) -> Any:
        if self.group is not None and isinstance(value, numpy.ndarray):
            stored = self.group.get(key)
            # None is written as a dataset without a shape.
            shape = getattr(stored, 'shape', None)
            if shape not in (None, value.shape):
                raise _Misfit(f'{self.group.name}/{key}', stored, value)
        return call(self, key, value)

    module.HDF5Deserializer.__call__ = call_checking_shape


FIXES = tuple(
    Fix(
        module='chainer.serializers.' + name,
        broken='an array of another shape is broadcast, except on a GPU',
        when=None,
        apply=apply,
    )
    for name, apply in (('npz', _fix_npz), ('hdf5', _fix_hdf5))
)
