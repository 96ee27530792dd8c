"""Turns the linear layers of a trained model into shared ones, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import copy
from fnmatch import fnmatchcase
import functools
from typing import Any, NamedTuple, Optional

from chainer_shared_patch import config
import chainer
from chainer.backends.cuda import to_cpu
import chainer.links as L
from chainer_shared_patch.blocks import sum_blocks, tile_blocks
from chainer_shared_patch.grouping import group_columns
from chainer_shared_patch.links import (
    SharedLinear,
    check_divides,
    check_order,
)
import numpy
from tabulate import tabulate


class SharedLayer(NamedTuple):
    """What :func:`share` did to a layer.

    Attributes:
        path (str): The layer's path in the model.
        common_num (int): The number of blocks that share its weight.
        size (int): The number of its parameters.
        dense_size (int): The number of its parameters before.
        weight_error (float): The Frobenius norm of the difference between
            the columns of the weight before and their means, relative to the
            norm of that weight.
        output_error (float): The Frobenius norm of the difference between
            its outputs before and after, for the calibration inputs and
            refitted, relative to those before. ``None`` without inputs.
        folded_into (str): The path of the layer whose units have the order
            now, or ``None``.

    """

    path: str
    common_num: int
    size: int
    dense_size: int
    weight_error: float
    output_error: Optional[float]
    folded_into: Optional[str]


class ShareReport(NamedTuple):
    """What :func:`share` did, which prints as a table.

    Attributes:
        layers (tuple of SharedLayer): The layers, in the order in which they
            were shared.
        restarted (tuple of str): The paths of the parameters for which the
            state of the optimizer starts anew.

    """

    layers: tuple[SharedLayer, ...]
    restarted: tuple[str, ...]

    def __str__(self) -> str:
        def percent(error: Optional[float]) -> str:
            return '' if error is None else '{:.2%}'.format(error)

        rows: list[tuple] = [
            (
                layer.path,
                layer.common_num,
                '{:,}'.format(layer.size),
                '{:,}'.format(layer.dense_size),
                percent(layer.weight_error),
                percent(layer.output_error),
                layer.folded_into or '',
            )
            for layer in self.layers
        ]
        headers = (
            'layer',
            'common_num',
            'parameters',
            'before',
            'weight error',
            'output error',
            'order in',
        )
        used = [i for i, cells in enumerate(zip(*rows)) if any(cells)]
        text = tabulate(
            [[row[i] for i in used] for row in rows],
            [headers[i] for i in used],
            disable_numparse=True,
            colalign=['left' if i in (0, 6) else 'right' for i in used],
        )
        if self.restarted:
            text += '\nThe state of the optimizer starts anew for {}.'.format(
                ', '.join(self.restarted)
            )
        return text


def share(
    model: chainer.Link,
    common_num: int | Mapping[str, int],
    *,
    inputs: Any = None,
    order: Any = 'grouped',
    fold: Optional[Mapping[str, str]] = None,
    add_bias: bool = False,
) -> ShareReport:
    """Replaces linear layers of a trained model by shared ones.

    Each :class:`chainer.links.Linear` becomes a :class:`SharedLinear`, whose
    weight is the mean of the columns that share. The names of links and
    parameters, their dtypes and devices, the update rules and their hooks
    stay, and so do the biases. If there is an error, nothing is changed.

    Which inputs share decides how much the model loses. ``'grouped'`` makes
    groups of columns of ``W`` that are alike: starting from a random
    partition, it exchanges the two columns that bring the columns closest to
    the means of their groups, until no exchange does.

    With calibration inputs, a column counts as much as the mean square of
    its input, and layer after layer, in the order of their execution, ``W``
    and the bias are refitted: so that the layer, with the inputs that it gets
    now, gives the outputs that it gave before, in the sense of ridge
    regression.

    Args:
        model (~chainer.Link): The model, a chain. It is changed in place. A
            link that it holds elsewhere than among its children, for example
            in a list of its own, is not replaced there.
        common_num (int or dict): The number of blocks, for all layers, or a
            dict from the path of a link to the number, such as
            ``{'/l2': 10, '/fc*': 8, '/fc8': 1}``. A path may be a pattern; one
            without wildcards goes before those. Where it is 1, and where no
            path matches, the layer stays.
        inputs (iterable): Batches of calibration inputs, a thousand examples
            in all, say: what ``model`` is called with, a tuple if it takes
            several arguments. A single array is one batch. Recurrent links
            are reset before and after.
        order (str, :ref:`ndarray` or dict): Which inputs share:
            ``'grouped'``; ``'contiguous'``, the blocks as they lie; a
            permutation, the ``order`` of :class:`SharedLinear`; or a dict of
            these by path, as above. Where no path matches, it is
            ``'grouped'``.
        fold (dict): Pairs of paths such as ``{'/l2': '/l1'}``, where nothing
            but functions that are elementwise follows the linear layer
            ``l1`` before the shared layer ``l2``, and nothing else uses its
            outputs. The order of ``l2`` then goes into the rows of ``l1``,
            and takes no time when the model runs. With calibration inputs it
            is checked that this does not change the outputs of the model.
        add_bias (bool): If ``True``, the refitting may give a bias to a
            layer without one.

    Returns:
        ShareReport: The layers and what they lose, which prints as a table.

    Raises:
        ValueError: If ``common_num`` does not divide the width of a layer, a
            path matches no layer, a layer has no weight yet, occurs twice or
            is not reached by the inputs, the weights or inputs are not
            finite, or an order cannot be folded.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> import chainer.functions as F
        >>> import chainer.links as L
        >>> import numpy as np
        >>> model = chainer.Sequential(
        ...     L.Linear(784, 1000), F.relu, L.Linear(1000, 10))
        >>> x = np.random.rand(500, 784).astype(np.float32)
        >>> report = chainer_shared_patch.share(
        ...     model, {'/0': 4, '/1': 10}, inputs=x)
        >>> model[0].W.shape, model[2].W.shape
        ((1000, 196), (10, 100))

    """
    layers = _choose(model, common_num, order)
    pairs = _check_pairs(model, layers, fold or {})
    batches = _check_batches(inputs)
    if batches:
        layers = _watch(model, layers, batches)
    changes = _Changes(model)
    with changes.undo:
        reports = []
        for layer in layers:
            reports.append(_share_layer(changes, layer, batches, add_bias))
        for path, target in pairs.items():
            _fold(changes, path, target, batches)
        changes.undo.pop_all()
    return ShareReport(
        tuple(
            each._replace(folded_into=pairs.get(each.path)) for each in reports
        ),
        tuple(changes.restarted),
    )


def expand(model: chainer.Link) -> None:
    """Replaces the shared layers of a model by ordinary ones.

    Each :class:`SharedLinear` becomes a :class:`chainer.links.Linear` with
    the wide weight, in the order of the inputs, and computes the same. The
    files of such a model need no plugin to load. As with :func:`share`,
    everything else stays.

    Args:
        model (~chainer.Link): The model, a chain. It is changed in place.

    Raises:
        ValueError: If a shared layer has no weight yet or occurs twice. Then
            nothing is changed.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer_shared_patch
        >>> model = chainer.Sequential(
        ...     chainer_shared_patch.SharedLinear(20, 5, common_num=10))
        >>> chainer_shared_patch.expand(model)
        >>> model[0].W.shape
        (5, 20)

    """
    links = {
        path: link
        for path, link in model.namedlinks(skipself=True)
        if isinstance(link, SharedLinear)
    }
    for path, link in links.items():
        _check_link(model, path, link)
    changes = _Changes(model)
    with changes.undo:
        for path, link in links.items():
            W = tile_blocks(link.W.array, link.common_num, link.order)
            changes.replace(path, link, W.shape[1], W)
        changes.undo.pop_all()


class _Layer:
    """A layer to share, and what is known of it before."""

    def __init__(
        self, path: str, link: L.Linear, common_num: int, order: Any
    ) -> None:
        self.path = path
        self.link = link
        self.common_num = common_num
        self.order = order
        self.outputs: list[numpy.ndarray] = []
        self.squares = numpy.zeros(link.W.shape[1])  # sums over the examples


class _Changes:
    """Changes of a model, which are undone if one of them fails."""

    def __init__(self, model: chainer.Link) -> None:
        self.model = model
        self.undo = contextlib.ExitStack()
        self.restarted: list[str] = []

    def replace(
        self, path: str, old: L.Linear, in_size: int, W: Any, **sharing: Any
    ) -> Any:
        """Puts a link with another weight in the place of an old one."""
        make = SharedLinear if sharing else L.Linear
        with chainer.using_config('dtype', old.W.dtype):
            new = make(in_size, old.out_size, True, to_cpu(W), **sharing)
        new.to_device(old.device)
        new.W.update_rule = self.restart(path + '/W', old.W.update_rule)
        if old.b is not None:
            with new.init_scope():
                new.b = old.b
        self.undo.callback(_put, self.model, new, old)
        _put(self.model, old, new)
        return new

    def set_array(self, param: chainer.Parameter, array: Any) -> None:
        """Gives a parameter another array of the same shape."""
        self.undo.callback(setattr, param, 'grad', param.grad)
        self.undo.callback(setattr, param, 'array', param.array)
        param.cleargrad()
        param.array = param.device.send(to_cpu(array).astype(param.dtype))

    def restart(self, path: Optional[str], rule: Any) -> Any:
        """Returns a copy of an update rule without its state."""
        rule = copy.copy(rule)
        if rule is not None and rule.state is not None:
            if path is not None:
                self.restarted.append(path)
            rule._state = None
            rule._fp32_param = None
            rule.t = 0
        return rule


def _put(model: chainer.Link, old: chainer.Link, new: chainer.Link) -> None:
    for parent in model.links():
        if isinstance(parent, chainer.ChainList):
            for i, child in enumerate(parent):
                if child is old:
                    parent[i] = new
        elif any(child is old for child in parent.children()):
            setattr(parent, old.name, new)
            new.name = old.name


def _choose(model: chainer.Link, common_num: Any, order: Any) -> list[_Layer]:
    links = dict(model.namedlinks(skipself=True))
    linear = [path for path, link in links.items() if type(link) is L.Linear]
    setting = 'common_num of share'
    if not isinstance(common_num, Mapping):
        common_num = {'*': common_num}
    numbers = _match(common_num, links, linear, setting)
    if not isinstance(order, Mapping):
        order = {'*': order}
    orders = _match(order, links, list(numbers), 'order of share')
    layers = []
    for path, number in numbers.items():
        number = config.check_common_num(
            number, '{} for {}'.format(setting, path)
        )
        if number > 1:
            link = links[path]
            _check_link(model, path, link)
            in_size = link.W.shape[1]
            try:
                check_divides(number, in_size)
                this = orders.get(path, 'grouped')
                if not isinstance(this, str):
                    this = check_order(this, in_size)
                elif this not in ('grouped', 'contiguous'):
                    raise ValueError(
                        "order must be 'grouped', 'contiguous' or a "
                        'permutation of the inputs, but it is {!r}'.format(
                            this
                        )
                    )
            except ValueError as error:
                raise ValueError('{}: {}'.format(path, error)) from None
            layers.append(_Layer(path, link, number, this))
    return layers


def _match(
    values: Mapping[str, Any],
    links: Mapping[str, chainer.Link],
    candidates: list[str],
    setting: str,
) -> dict[str, Any]:
    """Returns the values of the candidates that patterns match."""
    for pattern in values:
        if not any(fnmatchcase(path, pattern) for path in candidates):
            link = links.get(pattern)
            raise ValueError(
                '{} names {}, {}; the layers to choose from are {}'.format(
                    setting,
                    pattern,
                    'which matches none of the layers'
                    if link is None
                    else 'which is a {}'.format(type(link).__name__),
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
                '{} names {} by several patterns, {}'.format(
                    setting, path, ', '.join(patterns)
                )
            )
        if patterns:
            found[path] = values[patterns[0]]
    return found


def _check_link(model: chainer.Link, path: str, link: L.Linear) -> None:
    if link.W.array is None:
        raise ValueError(
            '{} has no weight yet: call the model once, or load a file, '
            'before'.format(path)
        )
    places = [
        '{}/{}'.format(other_path, name).replace('//', '/')
        for other_path, other in model.namedlinks()
        for name in sorted(other._params)
        if getattr(other, name) is link.W
    ]
    if len(places) > 1:
        raise ValueError(
            '{} cannot be replaced, because the model has its weight in '
            'several places: {}'.format(path, ', '.join(places))
        )
    if link.local_link_hooks:
        raise ValueError(
            '{} cannot be replaced, because it has link hooks, {}: delete '
            'them before'.format(path, ', '.join(link.local_link_hooks))
        )
    for name in sorted(link._params):
        param = getattr(link, name)
        if not link.xp.isfinite(param.array).all():
            raise ValueError(
                '{}/{} has elements that are not finite'.format(path, name)
            )


def _check_pairs(
    model: chainer.Link, layers: list[_Layer], fold: Mapping[str, str]
) -> Mapping[str, str]:
    links = dict(model.namedlinks(skipself=True))
    orders = {layer.path: layer.order for layer in layers}
    for path, target in fold.items():
        pair = 'fold of share cannot fold {} into {}: '.format(path, target)
        if path not in orders:
            raise ValueError(pair + '{} is not shared by it'.format(path))
        if isinstance(orders[path], str) and orders[path] == 'contiguous':
            raise ValueError(pair + 'its inputs keep their order')
        before = links.get(target)
        if not isinstance(before, L.Linear) or before.W.array is None:
            raise ValueError(
                pair + '{} is no linear layer with a weight'.format(target)
            )
        if target == path or list(fold.values()).count(target) > 1:
            raise ValueError(pair + 'its rows can have one order only')
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                pair
                + 'the one has {} inputs, the other {} outputs'.format(
                    in_size, before.out_size
                )
            )
    return fold


def _check_batches(inputs: Any) -> list[tuple]:
    if inputs is None:
        return []
    if isinstance(inputs, (chainer.Variable, *chainer.get_array_types())):
        inputs = [inputs]
    batches = [
        batch if isinstance(batch, tuple) else (batch,) for batch in inputs
    ]
    if not batches:
        raise ValueError('inputs of share has no batch')
    return batches


class _Watch(chainer.LinkHook):
    """Shows inputs and outputs of some links, as matrices, to functions."""

    name = 'share'

    def __init__(self, functions: Mapping[Any, Callable]) -> None:
        self.functions = functions

    def forward_postprocess(self, args: Any) -> None:
        if args.link in self.functions:
            x = args.args[0] if args.args else args.kwargs['x']
            y = to_cpu(chainer.as_array(args.out))
            y = y.reshape(-1, args.link.out_size)
            x = to_cpu(chainer.as_array(x)).reshape(len(y), -1)
            self.functions[args.link](x, y)


def _run(
    model: chainer.Link,
    batches: list[tuple],
    functions: Mapping[Any, Callable],
) -> list:
    """Returns the model's outputs for all batches."""

    def reset() -> None:
        for link in model.links():
            if hasattr(link, 'reset_state'):
                link.reset_state()

    reset()
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            with _Watch(functions):
                return [model(*batch) for batch in batches]
    finally:
        reset()


def _watch(
    model: chainer.Link, layers: list[_Layer], batches: list[tuple]
) -> list[_Layer]:
    """Returns the layers in the order of their execution."""
    reached: dict[_Layer, None] = {}

    def watch(layer: _Layer, x: numpy.ndarray, y: numpy.ndarray) -> None:
        if not numpy.isfinite(x).all():
            raise ValueError(
                'inputs of share give {} an input that is not finite'.format(
                    layer.path
                )
            )
        reached.setdefault(layer)
        layer.squares += numpy.einsum('bi,bi->i', x, x, dtype='d')
        layer.outputs.append(y)

    _run(
        model,
        batches,
        {layer.link: functools.partial(watch, layer) for layer in layers},
    )
    for layer in layers:
        if not sum(map(len, layer.outputs)):
            raise ValueError('inputs of share never reach ' + layer.path)
    return list(reached)


def _share_layer(
    changes: _Changes, layer: _Layer, batches: list[tuple], add_bias: bool
) -> SharedLayer:
    link, path, n = layer.link, layer.path, layer.common_num
    W = to_cpu(link.W.array)
    weights = numpy.ones(W.shape[1])
    if layer.squares.any():
        # A little more for inputs that are zero in these few examples.
        weights = layer.squares / layer.squares.mean() + 0.01
    order = layer.order
    if isinstance(order, str):
        grouped = order == 'grouped'
        order = group_columns(W, n, weights) if grouped else None
    narrow = _mean_of_columns(W, n, order, weights)
    weight_error = _weight_error(W, n, order, narrow)
    bias, output_error = None, None
    if batches:
        has_bias = add_bias or link.b is not None
        narrow, bias, output_error = _refit(
            changes.model, layer, batches, order, narrow, has_bias
        )
    narrow = narrow.astype(W.dtype)
    new = changes.replace(
        path, link, W.shape[1], narrow, common_num=n, order=order
    )
    if bias is not None:
        if new.b is None:
            with new.init_scope():
                new.b = chainer.Parameter(numpy.zeros(len(W), W.dtype))
            new.b.to_device(link.device)
            new.b.update_rule = changes.restart(None, link.W.update_rule)
        changes.set_array(new.b, bias)
    return SharedLayer(
        path,
        n,
        new.count_params(),
        link.count_params(),
        weight_error,
        output_error,
        None,
    )


def _blocks(
    columns: int, common_num: int, order: Optional[numpy.ndarray]
) -> numpy.ndarray:
    """Returns the columns of each block, of shape ``(common_num, k)``."""
    if order is None:
        order = numpy.arange(columns)
    return order.reshape(common_num, -1)


def _mean_of_columns(
    W: numpy.ndarray,
    common_num: int,
    order: Optional[numpy.ndarray],
    weights: numpy.ndarray,
) -> numpy.ndarray:
    blocks = _blocks(W.shape[1], common_num, order)
    weights = weights[blocks] / weights[blocks].sum(axis=0)
    # Block by block, for the memory.
    return sum(W[:, block] * w for block, w in zip(blocks, weights))


def _weight_error(
    W: numpy.ndarray,
    common_num: int,
    order: Optional[numpy.ndarray],
    narrow: numpy.ndarray,
) -> float:
    blocks = _blocks(W.shape[1], common_num, order)
    norm = numpy.linalg.norm(
        [numpy.linalg.norm(W[:, block] - narrow) for block in blocks]
    )
    return float(norm / (numpy.linalg.norm(W) or 1))


def _refit(
    model: chainer.Link,
    layer: _Layer,
    batches: list[tuple],
    order: Optional[numpy.ndarray],
    W: numpy.ndarray,
    has_bias: bool,
) -> tuple:
    """Returns W, perhaps a bias, and the relative error of the outputs.

    The new W and bias solve a ridge regression that shrinks what is added to
    W. The ridge is 3 % of the mean eigenvalue, so that the condition number
    is bounded by the number of columns over 0.03, whatever the inputs are.
    """
    sums: list[numpy.ndarray] = []

    def watch(x: numpy.ndarray, y: numpy.ndarray) -> None:
        sums.append(sum_blocks(x, layer.common_num, 'd', order))

    _run(model, batches, {layer.link: watch})
    S = numpy.concatenate(sums)
    y = numpy.concatenate(layer.outputs).astype('d')
    if len(S) != len(y) or not numpy.isfinite(S).all():
        raise ValueError(
            'with the layers before it shared, the model {} {}'.format(
                'gives inputs that are not finite to'
                if len(S) == len(y)
                else 'no longer calls as often as before',
                layer.path,
            )
        )
    residual = y - S @ W.T
    means = S.mean(axis=0), residual.mean(axis=0)
    if has_bias:
        S, residual = S - means[0], residual - means[1]
    rows, columns = S.shape
    squares = numpy.einsum('ij,ij', S, S)
    ridge = 0.03 * squares / min(rows, columns) or 1.0
    if columns <= rows:
        dots = S.T @ S + ridge * numpy.eye(columns)
        change = numpy.linalg.solve(dots, S.T @ residual)
    else:
        dots = S @ S.T + ridge * numpy.eye(rows)
        change = S.T @ numpy.linalg.solve(dots, residual)
    bias = means[1] - means[0] @ change if has_bias else None
    error = numpy.linalg.norm(residual - S @ change)
    return W + change.T, bias, float(error / (numpy.linalg.norm(y) or 1))


def _fold(
    changes: _Changes, path: str, target: str, batches: list[tuple]
) -> None:
    links = dict(changes.model.namedlinks(skipself=True))
    link, before = links[path], links[target]
    order = link.order
    expected = _run(changes.model, batches, {})
    for name in sorted(before._params):
        param = getattr(before, name)
        changes.set_array(param, param.array[order])
        changes.undo.callback(setattr, param, 'update_rule', param.update_rule)
        param.update_rule = changes.restart(
            '{}/{}'.format(target, name), param.update_rule
        )
    changes.undo.callback(setattr, link, 'order', order)
    link.order = None
    actual = _run(changes.model, batches, {})
    for a, b in zip(_arrays(actual), _arrays(expected)):
        error = numpy.linalg.norm(a - b)
        if error > numpy.finfo(a.dtype).eps ** 0.5 * numpy.linalg.norm(b):
            raise ValueError(
                'fold of share cannot fold {} into {}: it changes the '
                'outputs of the model, so that something else than '
                'elementwise functions and {} must use its '
                'outputs'.format(path, target, path)
            )


def _arrays(outputs: Any) -> Iterator[numpy.ndarray]:
    """Yields the float arrays among what a model returns."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        for each in outputs:
            yield from _arrays(each)
    elif isinstance(outputs, (chainer.Variable, *chainer.get_array_types())):
        array = to_cpu(chainer.as_array(outputs))
        if array.dtype.kind == 'f':
            yield array
