"""What takes the place of ``Linear``'s methods."""

from __future__ import annotations

import functools
from typing import Any, Callable

import chainer
import chainer.links as L
from chainer_shared_patch.functions import Method


def serialize(original: Method) -> Method:
    """Makes the method that does not take a W of another shape for its own.

    Chainer itself broadcasts what can be broadcast, so that a file of a
    shared layer with ``(out_size, 1)`` passes for one of a dense layer.
    """

    inherited = 'serialize' not in vars(L.Linear)

    @functools.wraps(original)
    def serialize(self: L.Linear, serializer: Any) -> None:
        if isinstance(serializer, chainer.Deserializer):
            _check_stored_shape(self, serializer)
        if inherited:
            # Which need not be Link's, in a subclass of several links.
            super(L.Linear, self).serialize(serializer)
        else:
            original(self, serializer)

    return serialize


def _check_stored_shape(link: L.Linear, serializer: Any) -> None:
    W = getattr(link, 'W', None)
    if not isinstance(W, chainer.Parameter) or W.array is None:
        return
    try:
        stored = serializer('W', None)
    except KeyError:  # which the original says better
        return
    here, there = W.shape, getattr(stored, 'shape', W.shape)
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
                    wide,
                    narrow,
                    wide[1] // narrow[1],
                    there[1],
                    there[0],
                )
            )
    raise ValueError(message)


REPLACEMENTS: dict[str, Callable[[Method], Method]] = {'serialize': serialize}
