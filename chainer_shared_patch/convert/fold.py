"""Folds the order of a layer's inputs into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainer_shared_patch.convert.calibrate import run
from chainer_shared_patch.convert.choose import Layer, check_link
from chainer_shared_patch.convert.replace import Changes
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.variable import Variable
import numpy


def check_pairs(
    model: Link, layers: list[Layer], fold: Mapping[str, str]
) -> Mapping[str, str]:
    if not isinstance(fold, Mapping) or not all(
        isinstance(path, str) for pair in fold.items() for path in pair
    ):
        raise TypeError(
            "fold of share must be a dict of paths such as {'/l2': '/l1'}, "
            f'but is {fold!r}'
        )
    links = dict(model.namedlinks())
    orders = {layer.path: layer.order for layer in layers}
    for path, target in fold.items():
        pair = f'fold of share cannot fold {path} into {target}: '
        if path == target:
            raise ValueError(pair + 'they are the same layer')
        if path not in orders:
            raise ValueError(pair + f'this call does not share {path}')
        if isinstance(orders[path], str) and orders[path] == 'contiguous':
            raise ValueError(
                pair + f'{path} is contiguous, so it has no order'
            )
        before = links.get(target)
        if before is None or type(before) not in (Linear, SharedLinear):
            raise ValueError(
                pair + f'{target} is not a linear layer of the model'
            )
        check_link(model, target, before)
        if list(fold.values()).count(target) > 1:
            raise ValueError(pair + f'{target} can take over only one order')
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                pair + f'the former has {in_size} inputs, the latter '
                f'{before.out_size} outputs'
            )
    return fold


def fold_order(
    changes: Changes, path: str, target: str, batches: list[tuple[Any, ...]]
) -> None:
    links = dict(changes.model.namedlinks())
    link, before = links[path], links[target]
    order = link.order
    expected = run(changes.model, batches, {})
    for name in sorted(before._params):
        param = getattr(before, name)
        changes.set_array(param, param.array[order])
        changes.undo.callback(setattr, param, 'update_rule', param.update_rule)
        param.update_rule = changes.restart(
            f'{target}/{name}', param.update_rule
        )
    link.order = None
    actual = run(changes.model, batches, {})
    pairs = list(zip(_arrays(actual), _arrays(expected)))
    if batches and not pairs:
        raise ValueError(
            'fold of share cannot be checked, because the model returns no '
            f'arrays: {actual[0]!r}'
        )
    for a, b in pairs:
        error = numpy.linalg.norm(a.astype('d') - b)
        bound = numpy.finfo(a.dtype).eps ** 0.5 * numpy.linalg.norm(
            b.astype('d')
        )
        if not error <= bound:
            raise ValueError(
                f'fold of share cannot fold {path} into {target}: that '
                'changes the outputs of the model. Only elementwise functions '
                'may stand between the two (not BatchNormalization), and only '
                f'{path} may use the outputs of {target}'
            )


def _arrays(outputs: Any) -> Iterator[numpy.ndarray]:
    """Yields the float arrays that a model returns."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        for each in outputs:
            yield from _arrays(each)
    elif isinstance(outputs, (Variable, *chainer.get_array_types())):
        array = to_cpu(chainer.as_array(outputs))
        if array.dtype.kind == 'f':
            yield array
