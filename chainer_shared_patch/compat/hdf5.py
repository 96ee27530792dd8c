"""Strings in HDF5 files, which h5py reads as bytes and refuses to save."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
import numpy


def _fix_saving(serializers: Any) -> None:
    module = serializers.hdf5
    if not module._available:
        return
    call = module.HDF5Serializer.__call__
    save = module.save_hdf5

    @functools.wraps(call)
    def call_encoding(self: Any, key: str, value: Any) -> Any:
        if isinstance(value, (str, numpy.ndarray)):
            array = numpy.asarray(value)
            if array.dtype == object and array.size:
                if array.shape == () and array.item() is None:
                    return call(self, key, None)
                if all(isinstance(item, str) for item in array.flat):
                    array = array.astype(str)
            if array.dtype.kind == 'U':
                # This is an array of objects that h5py knows to be text.
                text = array.astype(module.h5py.string_dtype())
                call(self, key, text)
                return value
        try:
            return call(self, key, value)
        except TypeError as error:
            path = self.group.name.rstrip('/') + '/' + key
            raise TypeError(f'cannot save {path} as HDF5: {error}') from None

    @functools.wraps(save)
    def save_hdf5(filename: Any, obj: Any, compression: int = 4) -> None:
        if not isinstance(obj, dict):
            save(filename, obj, compression)
            return
        with module.h5py.File(filename, 'w') as file:
            serializer = module.HDF5Serializer(file, compression)
            for key, value in obj.items():
                serializer(key.lstrip('/'), numpy.asarray(value))

    module.HDF5Serializer.__call__ = call_encoding
    module.save_hdf5 = serializers.save_hdf5 = save_hdf5


def _fix_loading(module: Any) -> None:
    if not module._available:
        return
    call = module.HDF5Deserializer.__call__

    @functools.wraps(call)
    def call_decoding(self: Any, key: str, value: Any) -> Any:
        is_array = isinstance(value, numpy.ndarray)
        if self.group is not None and (
            (is_array and value.dtype.kind in 'OU')
            or isinstance(value, (str, type(None)))
        ):
            dataset = self.group.get(key)
            text = module.h5py.check_string_dtype(
                getattr(dataset, 'dtype', numpy.dtype('f'))
            )
            # With another encoding or a fixed length it has always been bytes.
            if text == ('utf-8', None) and dataset.shape is not None:
                array = numpy.asarray(dataset.asstr()[()], object)
                if is_array and value.dtype == object:
                    value[...] = array
                    return value
                if is_array:  # perhaps too narrow
                    return array.astype(str)
                return array if value is None else type(value)(array)
        return call(self, key, value)

    module.HDF5Deserializer.__call__ = call_decoding


FIXES = (
    Fix(
        module='chainer.serializers.hdf5',
        broken='strings are read as bytes, abc as "b\'abc\'"',
        when='h5py >= 3',
        apply=_fix_loading,
    ),
    Fix(
        module='chainer.serializers',
        broken='strings cannot be saved as HDF5, and the reason is hidden',
        when=None,
        apply=_fix_saving,
    ),
)
