"""Strings in HDF5 files, which h5py reads as bytes."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
import numpy


def _fix_hdf5(module: Any) -> None:
    if not module._available:
        return
    call = module.HDF5Deserializer.__call__

    @functools.wraps(call)
    def call_decoding(self: Any, key: str, value: Any) -> Any:
        is_array = isinstance(value, numpy.ndarray) and value.dtype == object
        if self.group is not None and (
            is_array or isinstance(value, (str, type(None)))
        ):
            dataset = self.group.get(key)
            text = module.h5py.check_string_dtype(
                getattr(dataset, 'dtype', numpy.dtype('f'))
            )
            # With another encoding or a fixed length it has always been bytes.
            if text == ('utf-8', None) and dataset.shape is not None:
                array = numpy.asarray(dataset.asstr()[()], object)
                if is_array:
                    value[...] = array
                    return value
                return array if value is None else type(value)(array)
        return call(self, key, value)

    module.HDF5Deserializer.__call__ = call_decoding


FIXES = (
    Fix(
        module='chainer.serializers.hdf5',
        broken='strings are read as bytes, abc as "b\'abc\'"',
        when='h5py >= 3',
        apply=_fix_hdf5,
    ),
)
