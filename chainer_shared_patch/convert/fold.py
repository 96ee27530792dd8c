"""Folds the order of a layer's inputs into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainer_shared_patch.convert.calibrate import Batches, run
from chainer_shared_patch.convert.choose import Layer, check_link
from chainer_shared_patch.convert.replace import Changes
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.variable import Variable
import numpy


def check_fold(model: Link, layers: list[Layer], fold: Any) -> dict[str, str]:
    """Returns the paths of the layers before, by those of the layers."""
    if fold is None:
        return {}
    if not isinstance(fold, Mapping) or not all(
        isinstance(path, str) for pair in fold.items() for path in pair
    ):
        raise TypeError(
            "share(): fold must be a dict of paths such as {'/l2': '/l1'}, "
            f'but is {fold!r}'
        )
    links = dict(model.namedlinks())
    orders = {layer.path: layer.order for layer in layers}
    targets = list(fold.values())
    for path, target in fold.items():
        refusal = f'share(): cannot fold {path} into {target}: '
        if path == target:
            raise ValueError(refusal + 'they are the same layer')
        if path not in orders:
            raise ValueError(refusal + f'{path} is not being shared')
        if orders[path] is None:
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
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                refusal + f'the former has {in_size} inputs, the latter '
                f'{before.out_size} outputs'
            )
    return dict(fold)


def fold_order(
    changes: Changes, path: str, target: str, batches: Batches
) -> None:
    """Reorders the outputs of one layer instead of the inputs of another."""
    links: dict[str, Any] = dict(changes.model.namedlinks())
    link, before = links[path], links[target]
    expected = run(changes.model, batches, {})
    for param in before.params():
        changes.set_array(param, param.array[link.order])
        changes.restart(f'{target}/{param.name}', param, param.update_rule)
    link.order = None
    actual = run(changes.model, batches, {})
    pairs = list(zip(_find_arrays(actual), _find_arrays(expected)))
    if batches and not pairs:
        raise ValueError(
            'share(): cannot check fold, because the model returns no arrays: '
            f'{actual[0]!r}'
        )
    for a, b in pairs:
        error = numpy.linalg.norm(a.astype('d') - b)
        scale = numpy.linalg.norm(b.astype('d'))
        if not error <= numpy.finfo(a.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f'share(): cannot fold {path} into {target}: that '
                'changes the outputs of the model. Only elementwise functions '
                'may stand between the two (not BatchNormalization), and only '
                f'{path} may use the outputs of {target}'
            )


def _find_arrays(outputs: Any) -> Iterator[numpy.ndarray]:
    """Yields the float arrays that a model returns."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        for each in outputs:
            yield from _find_arrays(each)
    elif isinstance(outputs, (Variable, *chainer.get_array_types())):
        array = to_cpu(chainer.as_array(outputs))
        if array.dtype.kind == 'f':
            yield array
