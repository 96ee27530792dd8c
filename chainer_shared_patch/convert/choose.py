"""Chooses the layers to share, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from fnmatch import fnmatchcase
from typing import Any, Literal, Union

from chainer_shared_patch.blocks import count_orders
from chainer_shared_patch.config import (
    check_common_num,
    check_divides,
    check_integer,
    check_order,
)
from chainer_shared_patch.links import Permutation, SharedLinear
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.links.model.classifier import Classifier
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
    orders: int | None  # how many; None: as many as suit the layer
    squares: Any = 0.0  # of each input, summed over the examples
    outputs: list[numpy.ndarray] = dataclasses.field(default_factory=list)


def choose_layers(
    model: Link, common_num: Any, order: Any, orders: Any
) -> tuple[list[Layer], tuple[str, ...]]:
    """Returns the layers to share, and the paths that a pattern passes over.

    The layers are in the order of the model.
    """
    links = dict(model.namedlinks(skipself=True))
    linear = [path for path, link in links.items() if type(link) is Linear]
    if not linear:
        raise ValueError(_explain_no_layers(model, links))
    numbers = _match('common_num', common_num, model, linear)
    order_of = _match('order', order, model, list(numbers))
    grouped = [p for p in numbers if _is_grouped(order_of.get(p, 'grouped'))]
    orders_of = _match('orders', orders, model, grouped, 'grouped')
    layers = []
    for path, number in numbers.items():
        setting = f'share(): common_num for {path}'
        number = check_common_num(number, setting)
        if number == 1:
            continue
        link = links[path]
        check_link('share', model, path, link)
        for param in _params_of(link):
            if not numpy.isfinite(to_cpu(param.array)).all():
                raise ValueError(
                    f'share(): {path}/{param.name} contains NaN or infinity'
                )
        check_divides(number, link.W.shape[1], setting)
        layer = Layer(path, link, number, 'grouped', None)
        if path in grouped:
            layer.orders = _find_orders(path, link, orders_of.get(path))
        else:
            layer.order = _find_order(path, link, order_of[path])
            layer.orders = count_orders(layer.order)
        layers.append(layer)
    patterns = ['*']
    if isinstance(common_num, Mapping):
        patterns = [each for each in common_num if isinstance(each, str)]
    return layers, tuple(
        path
        for path, link in links.items()
        if isinstance(link, Linear)
        and type(link) not in (Linear, SharedLinear)
        and any(fnmatchcase(path, pattern) for pattern in patterns)
    )


def name_links(setting: str, values: Any, model: Link) -> dict[str, Any]:
    """Returns a dict whose keys, paths or links, are all paths."""
    named = {}
    for key, value in values.items():
        path = find_path(setting, key, model)
        if path in named:
            raise ValueError(f'share(): {setting} names {path} twice')
        named[path] = value
    return named


def find_path(setting: str, key: Any, model: Link) -> str:
    """Returns the path of a link, or the path that it is already."""
    if isinstance(key, str):
        return key
    if not isinstance(key, Link):
        raise TypeError(
            f"share(): {setting} must have paths such as '/l1', or links, as "
            f'keys, but one is {key!r}'
        )
    for path, link in model.namedlinks():
        if link is key:
            return path
    raise ValueError(
        f'share(): {setting} names {key}, which is no link of the model'
    )


def _match(
    setting: str,
    values: Any,
    model: Link,
    paths: list[str],
    chosen: str = 'shared',
) -> dict[str, Any]:
    """Returns the value of a setting for each path that has one."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(paths, values)
    values = name_links(setting, values, model)
    links = dict(model.namedlinks())
    for pattern in values:
        if pattern not in paths and not any(
            fnmatchcase(path, pattern) for path in paths
        ):
            mistake = _explain(links.get(pattern), chosen)
            raise ValueError(
                f'share(): {setting} names {pattern}, which {mistake}; the '
                f'layers to choose from are {", ".join(paths) or "none"}'
                f'{hint_at_predictor(model)}'
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


def _explain(link: Any, chosen: str) -> str:
    """Says why a path is none of those to choose from."""
    if link is None:
        return 'matches none of the layers'
    if isinstance(link, SharedLinear):
        return f'is shared already, with common_num {link.common_num}'
    if type(link) is not Linear:
        return f'is of class {type(link).__name__}, not chainer.links.Linear'
    return f'is not being {chosen}'


def _explain_no_layers(model: Link, links: Mapping[str, Link]) -> str:
    """Says why there is nothing to choose from."""
    if isinstance(model, Linear):
        return (
            'share(): model must hold the Linear links, but is one itself: '
            'put it into a chainer.Sequential'
        )
    shared = [
        f'{path} (common_num {link.common_num})'
        for path, link in links.items()
        if isinstance(link, SharedLinear)
    ]
    if shared:
        return (
            'share(): all linear layers of model are shared already: '
            f'{", ".join(shared)}; to share them anew, call expand first'
        )
    return (
        'share(): model must hold links of class chainer.links.Linear, but '
        f'this {type(model).__name__} holds none'
    )


def hint_at_predictor(model: Link) -> str:
    """Returns advice for a model that is wrapped in a ``Classifier``."""
    if isinstance(model, Classifier):
        return '; for the model in this Classifier, pass its predictor'
    return ''


def _params_of(link: Linear) -> list[Any]:
    return [link.W] if link.b is None else [link.W, link.b]


def _is_grouped(order: Any) -> bool:
    return isinstance(order, str) and order == 'grouped'


def _find_orders(path: str, link: Any, orders: Any) -> int | None:
    """Returns how many orders a grouped layer is to have, if that is said."""
    if orders is None:
        return None
    number = check_integer(orders, f'share(): orders for {path}', 1)
    return min(number, len(link.W.array))


def _find_order(path: str, link: Any, order: Any) -> numpy.ndarray | None:
    """Returns which inputs of a layer share that is not grouped."""
    if isinstance(order, str) and order == 'contiguous':
        return None
    return check_order(
        order,
        link.W.shape[1],
        "'grouped', 'contiguous'",
        f'share(): order for {path}',
    )


def choose_orders(model: Link, link: Linear, common_num: int) -> int:
    """Returns how many orders suit a layer."""
    orders = 20 if common_num >= 50 else 4
    for parent in model.links():
        if link in parent.children() and any(
            kind.__module__.startswith('chainer.links.rnn')
            for kind in type(parent).__mro__
        ):
            orders = 16
    # The integers, of 2 bytes, must not outweigh the floats of W, of 4 bytes.
    out_size: int = link.W.shape[0]
    return min(orders, out_size, max(1, 2 * out_size // common_num))


def check_link(call: str, model: Link, path: str, link: Linear) -> None:
    """Checks that a link can be replaced, or its parameters reordered."""
    if not getattr(link.W.array, 'size', 0):
        raise ValueError(
            f'{call}(): {path} has no weight yet: first call the model once, '
            'or load a file'
        )
    check_replaceable(call, model, path, link)


def check_replaceable(call: str, model: Link, path: str, link: Linear) -> None:
    """Checks that a link, perhaps of no width yet, can be replaced."""
    for param in _params_of(link):
        places = [
            place
            for place, other in model.namedparams()
            if other is param
            or (param.array is not None and other.array is param.array)
        ]
        if len(places) > 1:
            raise ValueError(
                f'{call}(): {path} cannot be changed, because its '
                f'{param.name} occurs in several places: {", ".join(places)}'
            )
    if 'forward' in vars(link):
        raise ValueError(
            f'{call}(): {path} cannot be changed, because it has a forward of '
            'its own'
        )
    if link.local_link_hooks:
        raise ValueError(
            f'{call}(): {path} cannot be changed, because it has link hooks '
            f'({", ".join(link.local_link_hooks)}); delete them first'
        )
