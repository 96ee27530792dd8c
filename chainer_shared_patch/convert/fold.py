"""Folds the order of a layer's inputs into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainer_shared_patch.blocks import count_orders
from chainer_shared_patch.convert.calibrate import (
    Batches,
    are_close,
    find_floats,
    run,
)
from chainer_shared_patch.convert.choose import (
    Layer,
    check_link,
    find_path,
    name_links,
)
from chainer_shared_patch.convert.replace import Changes
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.utils import size_of_shape
from chainer.variable import Parameter, Variable
import numpy


def check_fold(model: Link, layers: list[Layer], fold: Any) -> dict[str, str]:
    """Returns the paths of the layers before, by those of the layers.

    All of them have one order, unless more are asked for, which is refused.
    """
    if fold is None:
        return {}
    if not isinstance(fold, Mapping) or not all(
        isinstance(each, (str, Link)) for pair in fold.items() for each in pair
    ):
        raise TypeError(
            "share(): fold must be a dict of paths such as {'/l2': '/l1'}, or "
            f'of links, but is {fold!r}'
        )
    folded_into = {
        path: find_path('fold', target, model)
        for path, target in name_links('fold', fold, model).items()
    }
    links = dict(model.namedlinks())
    shared = {layer.path: layer for layer in layers}
    targets = list(folded_into.values())
    for path, target in folded_into.items():
        refusal = f'share(): cannot fold {path} into {target}: '
        if path == target:
            raise ValueError(refusal + 'they are the same layer')
        if path not in shared:
            raise ValueError(refusal + f'{path} is not being shared')
        if shared[path].order is None:
            raise ValueError(
                refusal + f'{path} is contiguous, so it has no order'
            )
        before = links.get(target)
        if before is None or type(before) not in (Linear, SharedLinear):
            raise ValueError(
                refusal + f'{target} is not a linear layer of the model'
            )
        check_link('share', model, target, before)
        if targets.count(target) > 1:
            raise ValueError(
                refusal + f'{target} can take over only one order'
            )
        for each in (path, target):
            orders = count_orders(getattr(links[each], 'order', None))
            if each in shared:
                orders = shared[each].orders = shared[each].orders or 1
            if orders > 1:
                raise ValueError(
                    refusal + f'{each} has {orders} orders, but both may have '
                    'only one'
                )
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                refusal + f'the former has {in_size} inputs, the latter '
                f'{before.out_size} outputs'
            )
    return folded_into


def fold_order(
    changes: Changes, path: str, target: str, batches: Batches
) -> None:
    """Reorders the outputs of one layer instead of the inputs of another."""
    links: dict[str, Any] = dict(changes.model.namedlinks())
    link, before = links[path], links[target]
    order = to_cpu(link.order)
    if batches:
        _check_outputs(changes.model, link, before, order, batches)
    reordered = before.copy('copy')
    for name in ('W', 'b'):
        param = getattr(before, name)
        if param is not None:
            with reordered.init_scope():
                new = Parameter(to_cpu(param.array)[order])
                new.initializer = param.initializer
                setattr(reordered, name, new)
    changes.replace(target, before, reordered)
    link.order = None


def _check_outputs(
    model: Link, link: Any, before: Any, order: numpy.ndarray, batches: Batches
) -> None:
    """Checks that the outputs stay if the order is undone before the layer."""
    # Nothing is computed anew here, so nothing is rounded differently.
    reached: set[Link] = set()

    def reorder(copies: Mapping[Any, Any]) -> None:
        for each, indices in ((before, order), (link, order.argsort())):
            indices = each.device.send(indices)
            copies[each].forward = wrap(each, copies[each].forward, indices)

    def wrap(each: Link, forward: Any, indices: Any) -> Any:
        def forward_reordered(x: Any, n_batch_axes: int = 1) -> Any:
            reached.add(each)
            if each is before:
                y = forward(x, n_batch_axes)
                return Variable(_take(y.array, indices, n_batch_axes))
            x = _take(chainer.as_array(x), indices, n_batch_axes)
            return forward(x, n_batch_axes)

        return forward_reordered

    ys: list[Any] = []
    record = {link: lambda x, y: ys.append(y)}
    expected = run(model, batches, record)
    expected_ys, ys = ys, []
    actual = run(model, batches, record, reorder)
    pairs = [
        to_cpu([each.array for each in pair])
        for pair in zip(find_floats(actual, True), find_floats(expected, True))
    ]
    if not pairs:
        raise ValueError(
            'share(): cannot check fold, because the model returns no arrays: '
            f'{actual[0]!r}'
        )
    paths = {each: path for path, each in model.namedlinks()}
    path, target = paths[link], paths[before]
    pairs += zip(ys, expected_ys)
    if len(reached) < 2 or not all(map(are_close, *zip(*pairs))):
        raise ValueError(
            f'share(): cannot fold {path} into {target}: that '
            'changes the outputs of the model. Only elementwise functions '
            'may stand between the two (not BatchNormalization), and only '
            f'{path} may use the outputs of {target}'
        )


def _take(array: Any, indices: Any, n_batch_axes: int) -> Any:
    """Reorders all that is not of the batch axes, as if it were one axis."""
    shape = array.shape
    columns = size_of_shape(shape[n_batch_axes:])
    with chainer.using_device(chainer.backend.get_device_from_array(array)):
        rows = array.reshape(*shape[:n_batch_axes], columns)
        return rows.take(indices, axis=-1).reshape(shape)
