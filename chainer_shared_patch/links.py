"""What takes the place of ``Linear``'s methods."""

from __future__ import annotations

import copy
import functools
from typing import Any, Callable

import chainer
import chainer.links as L
from chainer.serializers import HDF5Deserializer, NpzDeserializer
from chainer_shared_patch.functions import Method
import numpy


class _ArraysWithoutPickles(dict):
    """The arrays of an npz file by name, each read once and none unpickled.

    Unpickling an array of objects can run any code that its author wants.
    """

    def __init__(self, npz: Any) -> None:
        self.npz = npz

    def __contains__(self, name: object) -> bool:
        return name in self.npz.files

    def __missing__(self, name: str) -> numpy.ndarray:
        if name not in self:
            raise KeyError('{} is not in the file'.format(name))
        with self.npz.zip.open(name + '.npy') as file:
            version = numpy.lib.format.read_magic(file)
            read_header = {
                (1, 0): numpy.lib.format.read_array_header_1_0,
                (2, 0): numpy.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            self[name] = self.npz[name]
        elif shape == ():
            # This is how Chainer writes None.
            self[name] = numpy.asarray(None)
        else:
            raise ValueError(
                '{} is an array of objects, of shape {}, which is not '
                'unpickled; a link has arrays of numbers'.format(name, shape)
            )
        return self[name]


def make_serialize(original: Method) -> Method:
    """Makes the method that does not take a W of another shape for its own.

    Chainer itself broadcasts what can be broadcast, so that a file of a
    shared layer with ``(out_size, 1)`` passes for one of a dense layer.
    """

    @functools.wraps(original)
    def serialize(self: L.Linear, serializer: Any) -> None:
        if isinstance(serializer, NpzDeserializer) and isinstance(
            serializer.npz, numpy.lib.npyio.NpzFile
        ):
            serializer = copy.copy(serializer)
            serializer.npz = _ArraysWithoutPickles(serializer.npz)
        if isinstance(serializer, chainer.Deserializer):
            _check_stored_shape(self, serializer)
        original(self, serializer)

    return serialize


def _check_stored_shape(link: L.Linear, serializer: Any) -> None:
    W = getattr(link, 'W', None)
    if not isinstance(W, chainer.Parameter) or W.array is None:
        return
    try:
        if isinstance(serializer, HDF5Deserializer):
            stored = (serializer.group or {})['W']  # which is not read yet
        else:
            stored = serializer('W', None)
    except KeyError:  # which the original says better
        return
    here, there = W.shape, getattr(stored, 'shape', None) or W.shape
    if here == there:
        return
    message = (
        'cannot load a W of shape {} into a Linear whose W has the shape {}'
    ).format(there, here)
    if len(there) == len(here) == 2 and there[0] == here[0]:
        narrow, wide = sorted((here, there))
        if narrow[1] and wide[1] % narrow[1] == 0:
            message += (
                ': {} is that of an ordinary layer, and {} that of one whose '
                'input is shared by {} blocks. Load this file into a '
                'Linear({}, {}), or a file of the other kind'.format(
                    wide, narrow, wide[1] // narrow[1], there[1], there[0]
                )
            )
    raise ValueError(message)


FACTORIES: dict[str, Callable[[Method], Method]] = {
    'serialize': make_serialize
}
