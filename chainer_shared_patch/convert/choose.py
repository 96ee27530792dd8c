"""Chooses the layers to share, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, Union

from chainer_shared_patch import config
from chainer_shared_patch.config import check_divides, check_order
from chainer_shared_patch.links import Permutation
from chainer.link import Link
from chainer.links.connection.linear import Linear
import numpy

# Which inputs of a layer share.
LayerOrder = Union[Literal['grouped', 'contiguous'], Permutation]


class Layer:
    """A layer to share, and what is known about it before."""

    def __init__(
        self, path: str, link: Linear, common_num: int, order: Any
    ) -> None:
        self.path = path
        self.link = link
        self.common_num = common_num
        self.order = order
        self.outputs: list[numpy.ndarray] = []
        self.squares = numpy.zeros(link.W.shape[1])  # sums over the examples


def choose_layers(model: Link, common_num: Any, order: Any) -> list[Layer]:
    links = dict(model.namedlinks(skipself=True))
    linear = [path for path, link in links.items() if type(link) is Linear]
    if not linear:
        raise ValueError(
            'share replaces the Linear links in a model, but this '
            f'{type(model).__name__} holds none; if the model itself is a '
            'Linear, put it into a chainer.Sequential'
        )
    setting = 'common_num of share'
    numbers = _match(common_num, links, linear, setting)
    orders = _match(order, links, list(numbers), 'order of share')
    layers = []
    for path, number in numbers.items():
        number = config.check_common_num(number, f'{setting} for {path}')
        if number > 1:
            link = links[path]
            check_link(model, path, link)
            for name in sorted(link._params):
                if not link.xp.isfinite(getattr(link, name).array).all():
                    raise ValueError(f'{path}/{name} contains NaN or infinity')
            in_size = link.W.shape[1]
            try:
                check_divides(number, in_size)
                this = orders.get(path, 'grouped')
                names = 'grouped', 'contiguous'
                if not isinstance(this, str) or this not in names:
                    this = check_order(
                        this, in_size, '{!r}, {!r}'.format(*names)
                    )
            except ValueError as error:
                raise ValueError(f'{path}: {error}') from None
            layers.append(Layer(path, link, number, this))
    return layers


def _match(
    values: Any,
    links: Mapping[str, Link],
    candidates: list[str],
    setting: str,
) -> dict[str, Any]:
    """Returns the one value, or those whose patterns match, by path."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(candidates, values)
    for pattern in values:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{setting}: paths must be strings such as '/l1', but one is "
                f'{pattern!r}'
            )
        if not any(fnmatchcase(path, pattern) for path in candidates):
            link = links.get(pattern)
            raise ValueError(
                '{}: {} {}; the layers to choose from are {}'.format(
                    setting,
                    pattern,
                    'matches none of the layers'
                    if link is None
                    else f'is of class {type(link).__name__}, not '
                    'chainer.links.Linear'
                    if type(link) is not Linear
                    else 'is not shared',
                    ', '.join(candidates) or 'none',
                )
            )
    found = {}
    for path in candidates:
        patterns = [each for each in values if fnmatchcase(path, each)]
        if path in values:
            patterns = [path]
        if len(patterns) > 1:
            raise ValueError(
                '{}: {} matches several patterns, {}'.format(
                    setting, path, ', '.join(patterns)
                )
            )
        if patterns:
            found[path] = values[patterns[0]]
    return found


def check_link(model: Link, path: str, link: Linear) -> None:
    if not getattr(link.W.array, 'size', 0):
        raise ValueError(
            f'{path} has no weight yet: first call the model once, or load a '
            'file'
        )
    for param in link.params():
        places = [
            place
            for place, other in model.namedparams()
            if other.array is param.array
        ]
        if len(places) > 1:
            raise ValueError(
                '{} cannot be changed, because its {} occurs in several '
                'places: {}'.format(path, param.name, ', '.join(places))
            )
    if link.local_link_hooks:
        raise ValueError(
            '{} cannot be changed, because it has link hooks ({}); delete '
            'them first'.format(path, ', '.join(link.local_link_hooks))
        )
