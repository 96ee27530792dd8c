"""What is checked when a file is loaded into a linear layer."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import TYPE_CHECKING, Any

from chainer_shared_patch.config import check_order
from chainer.links import Linear
import numpy

if TYPE_CHECKING:
    from chainer_shared_patch.links import SharedLinear


def _naming_path(load: Callable[..., Any]) -> Callable[..., Any]:
    """Lets an error begin with the path of the link in the file."""

    @functools.wraps(load)
    def load_naming_path(link: Linear, deserializer: Any, *args: Any) -> Any:
        try:
            return load(link, deserializer, *args)
        except ValueError as error:
            path = getattr(deserializer, 'path', '').rstrip('/')
            if not path and getattr(deserializer, 'group', None) is not None:
                path = deserializer.group.name[1:]
            if not path:
                raise
            raise ValueError(f'/{path}: {error}') from error

    return load_naming_path


@_naming_path
def load_linear(
    link: Linear, deserializer: Any, serialize: Callable[..., None]
) -> None:
    """Loads a ``Linear``, but no order, and says how a W fails to fit."""
    order = common_num = None
    if not hasattr(link, 'order'):  # as a subclass may have
        order = _read(deserializer, 'order')
        common_num = _read(deserializer, 'common_num')
    # Without its W, an order is not loaded either.
    if (
        getattr(order, 'size', 0)
        and common_num is not None
        and _read(deserializer, 'W') is not None
    ):
        raise ValueError(
            f'cannot load a SharedLinear with common_num {common_num} and an '
            'order of its inputs into a Linear, which has no order. Load the '
            'model with chainer_shared_patch.load_npz, or into a SharedLinear'
        )
    try:
        serialize(link, deserializer)
    except ValueError as error:
        shape = getattr(getattr(link, 'W', None), 'shape', None)
        stored = getattr(_read(deserializer, 'W'), 'shape', shape)
        if stored == shape:  # it is about something else
            raise
        raise ValueError(_describe_misfit(stored, shape)) from error


def _describe_misfit(stored: Any, shape: Any) -> str:
    message = (
        f'cannot load a W of shape {stored} into a Linear whose W has the '
        f'shape {shape}'
    )
    if len(stored) == len(shape) == 2 and stored[0] == shape[0]:
        narrow, wide = sorted((stored, shape))
        if narrow[1] and wide[1] % narrow[1] == 0:
            message += (
                f': {wide} is the shape in an ordinary layer, and {narrow} '
                f'that in a layer shared by {wide[1] // narrow[1]} blocks of '
                f'its input. Load this file into a Linear({stored[1]}, '
                f'{stored[0]}), or load a file of the other kind'
            )
    return message


@_naming_path
def read_sharing(link: SharedLinear, deserializer: Any) -> tuple[Any, Any]:
    """Returns the stored ``in_size`` and order, if all that is stored fits."""
    W = deserializer('W', None)
    b = None if link.b is None else deserializer('b', None)
    if W is None:  # it is skipped, or was saved before it had a width
        return link.in_size, link.order
    common_num = _read(deserializer, 'common_num')
    order = _read(deserializer, 'order')
    if common_num is None or order is None:
        raise ValueError(
            f'cannot load a Linear, whose W has the shape {W.shape}, into a '
            'SharedLinear. Load it into a Linear, then convert that: an '
            'ordinary layer with chainer_shared_patch.share, one that the '
            'patch shares with SharedLinear.from_params'
        )
    if not numpy.array_equal(common_num, link.common_num):
        raise ValueError(
            f'cannot load a SharedLinear with common_num {common_num} into '
            f'one with common_num {link.common_num}'
        )
    if link.b is None and _read(deserializer, 'b') is not None:
        raise ValueError(
            'cannot load a SharedLinear with a bias into one without; make '
            'this one with nobias=False'
        )
    columns = W.shape[-1:] if link.W.array is None else link.W.shape[1:]
    for name, stored, shape in (
        ('W', W, (link.out_size, *columns)),
        ('b', b, (link.out_size,)),
    ):
        if stored is not None and stored.shape != shape:
            raise ValueError(
                f'cannot load a {name} of shape {stored.shape} into a '
                f'SharedLinear whose {name} has the shape {shape}'
            )
    in_size = link.common_num * W.shape[1]
    if not order.size:  # each block is contiguous
        return in_size, None
    return in_size, link.device.send(check_order(order, in_size))


def _read(deserializer: Any, key: str) -> Any:
    try:
        return deserializer(key, None)
    except KeyError:
        return None
