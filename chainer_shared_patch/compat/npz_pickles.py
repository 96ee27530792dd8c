"""Arrays of objects in npz files, unpickled without running any code."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any, ClassVar

from chainer_shared_patch.compat.importing import Fix
import numpy
from numpy.lib import format
from numpy.lib.npyio import NpzFile

_READ_HEADER = {
    (1, 0): format.read_array_header_1_0,
    (2, 0): format.read_array_header_2_0,
}


# NumPy's own functions believe what a pickle tells them: any shape, and flags
# of a dtype that turn bytes into pointers.


def _make_dtype(name: Any, *_: Any) -> Any:
    if isinstance(name, str) and numpy.dtype(name).kind in 'biufcSUO':
        return numpy.dtype(numpy.dtype(name), copy=True)
    raise ValueError(f'cannot unpickle the dtype {name!r}')


def _view(data: Any, dtype: Any) -> Any:
    # A view of an array would outlive the memory that __setstate__ frees.
    if isinstance(data, bytes) and isinstance(dtype, numpy.dtype):
        return numpy.frombuffer(data, dtype)
    raise ValueError(f'cannot unpickle {data!r} as an array of {dtype!r}')


def _make_scalar(dtype: Any, data: Any) -> Any:
    return _view(data, dtype)[0]


def _make_array(*_: Any) -> Any:
    return numpy.empty(0)


def _set_state(value: Any, state: Any) -> None:
    if type(value) is numpy.ndarray:
        _, shape, dtype, is_fortran, data = state
        if dtype.hasobject:
            array = numpy.empty(len(data), bool)
        else:
            array = _view(data, dtype)
        shape = array.reshape(shape).shape
        value.__setstate__((1, shape, dtype, is_fortran, data))
    elif isinstance(value, numpy.dtype):
        dtype = value.newbyteorder(state[1])
        value.__setstate__(dtype.__reduce__()[2])  # type: ignore[attr-defined]
    else:
        raise ValueError(f'cannot unpickle the state of {value!r}')


_CLASSES: dict[tuple[str, str], Any] = {
    ('builtins', 'complex'): complex,
    # This is how bytes are pickled for Python 2.
    ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1'),
    ('numpy', 'dtype'): _make_dtype,
    # It is only an argument of _make_array. The class could make views, too.
    ('numpy', 'ndarray'): None,
}
for _package in ('numpy.core', 'numpy._core'):  # of NumPy 1 and 2
    _CLASSES[_package + '.multiarray', '_reconstruct'] = _make_array
    _CLASSES[_package + '.multiarray', 'scalar'] = _make_scalar


# Python's, because C's has no method for this opcode.
class _Unpickler(pickle._Unpickler):
    """Makes Python's and NumPy's numbers, strings and arrays, and no more."""

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CLASSES:
            raise ValueError(
                f'it needs {module}.{name}, which is not unpickled, because a '
                'file can run any code in this way. If you trust the file, '
                "load it under chainer.using_config('allow_pickle', True)"
            )
        return _CLASSES[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        _set_state(self.stack[-1], state)

    def load_buffer(self) -> None:
        # It would view memory that a state frees.
        raise ValueError('a buffer is not unpickled')

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.NEXT_BUFFER[0]: load_buffer,
        pickle.READONLY_BUFFER[0]: load_buffer,
    }


def _unpickle(key: str, file: Any, **kwargs: Any) -> Any:
    try:
        return _Unpickler(file, **kwargs).load()
    except Exception as error:
        raise ValueError(
            f'load_npz(): cannot unpickle {key}: {error}'
        ) from error


class _Arrays:
    """The arrays of an npz file, each read at its turn as NumPy does."""

    def __init__(self, npz: Any, allow_pickle: bool) -> None:
        self._npz = npz
        self._allow_pickle = allow_pickle

    def __contains__(self, key: str) -> bool:
        return key in self._npz

    def __getitem__(self, key: str) -> Any:
        archive = self._npz.zip
        name = key if key in archive.namelist() else key + '.npy'
        with archive.open(name) as file:
            version = format.read_magic(file)
            if version in _READ_HEADER:
                _, _, dtype = _READ_HEADER[version](file)
                if dtype.hasobject:
                    kwargs = self._npz.pickle_kwargs
                    if self._allow_pickle:
                        return pickle.load(file, **kwargs)
                    return _unpickle(key, file, **kwargs)
            file.seek(0)
            return format.read_array(file)


def _restrict_pickles(module: Any) -> None:
    from chainer.configuration import config, global_config

    settings: Any = global_config
    if not hasattr(settings, 'allow_pickle'):
        settings.allow_pickle = False
    # For numpy.load, which would unpickle a file that is no npz.
    module._allow_pickle_kwargs = {}
    call = module.NpzDeserializer.__call__

    @functools.wraps(call)
    def call_restricted(self: Any, key: str, value: Any) -> Any:
        if isinstance(self.npz, NpzFile):
            self = copy.copy(self)
            self.npz = _Arrays(self.npz, config.allow_pickle)
        return call(self, key, value)

    module.NpzDeserializer.__call__ = call_restricted


FIXES = (
    Fix(
        module='chainer.serializers.npz',
        broken='arrays of objects are unpickled, which can run any code',
        when=None,
        apply=_restrict_pickles,
    ),
)
