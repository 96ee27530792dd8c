"""Chooses the layers to share, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from fnmatch import fnmatchcase
from typing import Any, Literal, Union

from chainer_shared_patch.config import (
    check_common_num,
    check_divides,
    check_order,
)
from chainer_shared_patch.links import Permutation
from chainer.link import Link
from chainer.links.connection.linear import Linear
import numpy

# Which inputs of a layer share.
LayerOrder = Union[Literal['grouped', 'contiguous'], Permutation]


@dataclasses.dataclass(eq=False)
class Layer:
    """A layer to share, and what calibration inputs show of it."""

    path: str
    link: Linear
    common_num: int
    order: Literal['grouped'] | numpy.ndarray | None  # None: contiguous
    squares: Any = 0.0  # of each input, summed over the examples
    outputs: list[numpy.ndarray] = dataclasses.field(default_factory=list)


def choose_layers(model: Link, common_num: Any, order: Any) -> list[Layer]:
    """Returns the layers to share, in the order of the model."""
    links = dict(model.namedlinks(skipself=True))
    linear = [path for path, link in links.items() if type(link) is Linear]
    if not linear:
        raise ValueError(
            'share(): model must hold links of class chainer.links.Linear, '
            f'but this {type(model).__name__} holds none; if the model itself '
            'is a Linear, put it into a chainer.Sequential'
        )
    numbers = _match('common_num', common_num, links, linear)
    orders = _match('order', order, links, list(numbers))
    layers = []
    for path, number in numbers.items():
        setting = f'share(): common_num for {path}'
        number = check_common_num(number, setting)
        if number == 1:
            continue
        link = links[path]
        check_link('share', model, path, link)
        for param in link.params():
            if not link.xp.isfinite(param.array).all():
                raise ValueError(
                    f'share(): {path}/{param.name} contains NaN or infinity'
                )
        check_divides(number, link.W.shape[1], setting)
        layers.append(
            Layer(path, link, number, _find_order(path, link, orders))
        )
    return layers


def _match(
    setting: str, values: Any, links: Mapping[str, Link], paths: list[str]
) -> dict[str, Any]:
    """Returns the value of a setting for each path that has one."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(paths, values)
    for pattern in values:
        if not isinstance(pattern, str):
            raise TypeError(
                f"share(): {setting} must have paths such as '/l1' as keys, "
                f'but one is {pattern!r}'
            )
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f'share(): {setting} names {pattern}, which '
                f'{_explain(links.get(pattern))}; the layers to choose from '
                f'are {", ".join(paths) or "none"}'
            )
    matches = {}
    for path in paths:
        patterns = [each for each in values if fnmatchcase(path, each)]
        if path in values:
            patterns = [path]
        if len(patterns) > 1:
            raise ValueError(
                f'share(): {setting} has several patterns for {path}: '
                f'{", ".join(patterns)}'
            )
        if patterns:
            matches[path] = values[patterns[0]]
    return matches


def _explain(link: Link | None) -> str:
    """Says why a path is none of those to choose from."""
    if link is None:
        return 'matches none of the layers'
    if type(link) is not Linear:
        return f'is of class {type(link).__name__}, not chainer.links.Linear'
    return 'is not being shared'


def _find_order(
    path: str, link: Any, orders: Mapping[str, Any]
) -> Literal['grouped'] | numpy.ndarray | None:
    """Returns which inputs of a layer share."""
    order = orders.get(path, 'grouped')
    if isinstance(order, str) and order == 'grouped':
        return 'grouped'
    if isinstance(order, str) and order == 'contiguous':
        return None
    return check_order(
        order,
        link.W.shape[1],
        "'grouped', 'contiguous'",
        f'share(): order for {path}',
    )


def check_link(call: str, model: Link, path: str, link: Linear) -> None:
    """Checks that a link can be replaced, or its parameters reordered."""
    if not getattr(link.W.array, 'size', 0):
        raise ValueError(
            f'{call}(): {path} has no weight yet: first call the model once, '
            'or load a file'
        )
    for param in link.params():
        places = [
            place
            for place, other in model.namedparams()
            if other.array is param.array
        ]
        if len(places) > 1:
            raise ValueError(
                f'{call}(): {path} cannot be changed, because its '
                f'{param.name} occurs in several places: {", ".join(places)}'
            )
    if link.local_link_hooks:
        raise ValueError(
            f'{call}(): {path} cannot be changed, because it has link hooks '
            f'({", ".join(link.local_link_hooks)}); delete them first'
        )
