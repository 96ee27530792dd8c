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

# How many rows of a weight are averaged at a time.
_ROWS = 256


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
            'parameters before',
            'weight error',
            'output error',
            'order folded into',
        )
        used = [i for i, cells in enumerate(zip(*rows)) if any(cells)]
        text = tabulate(
            [[row[i] for i in used] for row in rows],
            [headers[i] for i in used],
            disable_numparse=True,
            colalign=['left' if i in (0, 6) else 'right' for i in used],
        )
        if self.restarted:
            text += '\nThe state of the optimizer was reset for {}.'.format(
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
    stay, and so do the biases. Links of subclasses of
    :class:`~chainer.links.Linear` stay as they are. If there is an error,
    nothing is changed.

    Which inputs share decides how much the model loses. ``'grouped'`` makes
    groups of columns of ``W`` that are alike: starting from the blocks as
    they lie, it exchanges pairs of columns, those first that bring the
    columns closest to the means of their groups, until no exchange does.

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
            ``{'/l2': 10, '/fc*': 8, '/fc8': 1}``. A path may be a pattern; an
            exact path takes precedence. Where it is 1, and where no
            path matches, the layer stays. :func:`summary` shows the paths.
            Those of a :class:`chainer.Sequential` need not be in order.
        inputs (iterable): Batches of calibration inputs, about a thousand
            examples in all. Each batch is passed to ``model(...)``, a tuple
            as several arguments. A single array is one batch. Recurrent
            links are reset before and after.
        order (str, :ref:`ndarray` or dict): Which inputs share:
            ``'grouped'``; ``'contiguous'``, the blocks as they lie; a
            permutation, the ``order`` of :class:`SharedLinear`; or a dict of
            these by path, as above. Where no path matches, it is
            ``'grouped'``.
        fold (dict): Pairs of paths such as ``{'/l2': '/l1'}``, where nothing
            but elementwise functions (which BatchNormalization is not)
            stands between the linear layer ``l1`` and the shared layer
            ``l2``, and nothing else uses the outputs of ``l1``. The order of
            ``l2`` then goes into the rows of ``l1``, and takes no time when
            the model runs. With calibration inputs it is checked that this
            does not change the outputs of the model.
        add_bias (bool): If ``True``, the refitting may give a bias to a
            layer without one.

    Returns:
        ShareReport: The layers and what they lose, which prints as a table.

    Raises:
        ValueError: If ``common_num`` does not divide the width of a layer, a
            path matches no layer, a layer has no weight yet, occurs twice,
            has link hooks or is not reached by the inputs, the weights or
            inputs are not finite, an order cannot be folded, or there is
            ``add_bias`` without ``inputs``.

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
    if add_bias and not batches:
        raise ValueError('add_bias of share has no effect without inputs')
    if batches:
        layers = _watch(model, layers, batches)
    changes = _Changes(model)
    with changes.undo:
        reports = []
        for layer in layers:
            reports.append(_share_layer(changes, layer, batches, add_bias))
        for path, target in pairs.items():
            _fold(changes, path, target, batches)
        changes.keep()
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
        ValueError: If a shared layer has no weight yet, occurs twice, has
            link hooks or is of a subclass. Then nothing is changed.

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
        for path, link in model.namedlinks()
        if isinstance(link, SharedLinear)
    }
    if isinstance(model, SharedLinear):
        raise ValueError(
            'expand replaces the SharedLinear links in a model, and cannot '
            'replace the model itself: put it into a chainer.Sequential'
        )
    for path, link in links.items():
        if type(link) is not SharedLinear:
            raise ValueError(
                '{} cannot be expanded, because it is a {}, which may '
                'compute something else'.format(path, type(link).__name__)
            )
        _check_link(model, path, link)
    changes = _Changes(model)
    with changes.undo:
        for path, link in links.items():
            W = tile_blocks(link.W.array, link.common_num, link.order)
            changes.replace(path, link, W.shape[1], W)
        changes.keep()


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
        new.name = old.name
        new.W.update_rule = self.restart(path + '/W', old.W.update_rule)
        if old.b is not None:
            with new.init_scope():
                new.b = old.b
        self.undo.callback(_put, self.model, path, old)
        _put(self.model, path, new)
        return new

    def set_array(self, param: chainer.Parameter, array: Any) -> None:
        """Gives a parameter another array of the same shape."""
        self.undo.callback(setattr, param, 'grad', param.grad)
        self.undo.callback(setattr, param, 'array', param.array)
        param.cleargrad()
        param.array = param.device.send(array.astype(param.dtype))

    def keep(self) -> None:
        """Keeps the changes, where they would be undone."""
        self.undo.pop_all()
        for link in self.model.links():
            # What static_graph has recorded of a link uses the old arrays.
            vars(link).pop('schedule_manager', None)

    def restart(self, path: str, rule: Any) -> Any:
        """Returns a copy of an update rule without its state."""
        if rule is None:
            return None
        if rule.state:
            self.restarted.append(path)
        rule = copy.copy(rule)
        rule._state = None
        rule._fp32_param = None
        rule.t = 0
        return rule


def _put(model: chainer.Link, path: str, new: chainer.Link) -> None:
    parent_path, _, name = path.rpartition('/')
    parent = dict(model.namedlinks())[parent_path or '/']
    if isinstance(parent, chainer.ChainList):
        # Sequential's own way to set a layer may give the others new numbers.
        links = parent._children
        if isinstance(parent, chainer.Sequential):
            layers = parent._layers
            layers[layers.index(links[int(name)])] = new
        links[int(name)] = new
    else:
        setattr(parent, name, new)


def _choose(model: chainer.Link, common_num: Any, order: Any) -> list[_Layer]:
    links = dict(model.namedlinks(skipself=True))
    linear = [path for path, link in links.items() if type(link) is L.Linear]
    if not linear:
        raise ValueError(
            'share replaces the Linear links in a model, and this {} holds '
            'none; a model that is itself a Linear has to be put into a '
            'chainer.Sequential'.format(type(model).__name__)
        )
    setting = 'common_num of share'
    numbers = _match(common_num, links, linear, setting)
    orders = _match(order, links, list(numbers), 'order of share')
    layers = []
    for path, number in numbers.items():
        number = config.check_common_num(
            number, '{} for {}'.format(setting, path)
        )
        if number > 1:
            link = links[path]
            _check_link(model, path, link)
            for name in sorted(link._params):
                if not link.xp.isfinite(getattr(link, name).array).all():
                    raise ValueError(
                        '{}/{} contains NaN or infinity'.format(path, name)
                    )
            in_size = link.W.shape[1]
            try:
                check_divides(number, in_size)
                this = orders.get(path, 'grouped')
                if this is None or isinstance(this, str):
                    if this not in ('grouped', 'contiguous'):
                        raise ValueError(
                            "order must be 'grouped', 'contiguous' or a "
                            'permutation of the inputs, but it is {!r}'.format(
                                this
                            )
                        )
                else:
                    this = check_order(this, in_size)
            except ValueError as error:
                raise ValueError('{}: {}'.format(path, error)) from None
            layers.append(_Layer(path, link, number, this))
    return layers


def _match(
    values: Any,
    links: Mapping[str, chainer.Link],
    candidates: list[str],
    setting: str,
) -> dict[str, Any]:
    """Returns the one value, or those whose patterns match, by path."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(candidates, values)
    for pattern in values:
        if not any(fnmatchcase(path, pattern) for path in candidates):
            link = links.get(pattern)
            raise ValueError(
                '{}: {} {}; the layers to choose from are {}'.format(
                    setting,
                    pattern,
                    'matches none of the layers'
                    if link is None
                    else 'is a {}, and not chainer.links.Linear'.format(
                        type(link).__name__
                    )
                    if type(link) is not L.Linear
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


def _check_link(model: chainer.Link, path: str, link: L.Linear) -> None:
    if not getattr(link.W.array, 'size', 0):
        raise ValueError(
            '{} has no weight yet: call the model once, or load a file, '
            'first'.format(path)
        )
    for param in link.params():
        places = [
            place
            for place, other in model.namedparams()
            if other.array is param.array
        ]
        if len(places) > 1:
            raise ValueError(
                '{} cannot be changed, because the model has its {} in '
                'several places: {}'.format(
                    path, param.name, ', '.join(places)
                )
            )
    if link.local_link_hooks:
        raise ValueError(
            '{} cannot be changed, because it has link hooks, {}: delete '
            'them first'.format(path, ', '.join(link.local_link_hooks))
        )


def _check_pairs(
    model: chainer.Link, layers: list[_Layer], fold: Mapping[str, str]
) -> Mapping[str, str]:
    links = dict(model.namedlinks())
    orders = {layer.path: layer.order for layer in layers}
    for path, target in fold.items():
        pair = 'fold of share cannot fold {} into {}: '.format(path, target)
        if path not in orders:
            raise ValueError(
                pair + '{} is not shared by this call'.format(path)
            )
        if isinstance(orders[path], str) and orders[path] == 'contiguous':
            raise ValueError(pair + 'its inputs keep their order')
        before = links.get(target)
        if before is None or type(before) not in (L.Linear, SharedLinear):
            raise ValueError(
                pair + '{} is no linear layer of the model'.format(target)
            )
        _check_link(model, target, before)
        if target == path or list(fold.values()).count(target) > 1:
            raise ValueError(pair + 'its rows can have one order only')
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                pair
                + 'the first has {} inputs, the second {} outputs'.format(
                    in_size, before.out_size
                )
            )
    return fold


def _check_batches(inputs: Any) -> list[tuple]:
    if inputs is None:
        return []
    if isinstance(inputs, chainer.dataset.Iterator):
        raise ValueError(
            'inputs of share must be an array or an iterable of batches, and '
            'not a {}, whose batches are lists of examples and may never '
            'end'.format(type(inputs).__name__)
        )
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
            x, y = (to_cpu(chainer.as_array(array)) for array in (x, args.out))
            out_size, columns = args.link.W.shape
            rows = y.size // out_size
            if x.size != rows * columns:
                raise ValueError(
                    'share cannot share a layer that the patch shares '
                    'already, with a W of shape {} for {} columns of '
                    'input'.format(args.link.W.shape, x.size // rows)
                )
            self.functions[args.link](
                x.reshape(rows, columns), y.reshape(rows, out_size)
            )


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
            # A static graph does not call links again.
            with chainer.using_config('use_static_graph', False):
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
        reached.setdefault(layer)
        layer.squares += numpy.einsum('bi,bi->i', x, x, dtype='d')
        layer.outputs.append(y)
        if not numpy.isfinite(layer.squares.sum() + y.sum(dtype='d')):
            raise ValueError(
                'inputs of share give {} an input or output that is not '
                'finite, or is too large'.format(layer.path)
            )

    functions = {
        layer.link: functools.partial(watch, layer) for layer in layers
    }
    try:
        _run(model, batches, functions)
    except Exception as error:
        raise ValueError(
            'inputs of share must be an array or an iterable of batches that '
            'the model can be called with; with batches of {}, it raises '
            '{}: {}'.format(
                ', '.join(type(each).__name__ for each in batches[0]),
                type(error).__name__,
                error,
            )
        ) from error
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
    narrow, weight_error = _average(W, n, order, weights)
    bias, output_error = None, None
    if batches:
        has_bias = add_bias or link.b is not None
        narrow, bias, output_error = _refit(
            changes.model, layer, batches, order, narrow, has_bias
        )
    new = changes.replace(
        path, link, W.shape[1], narrow, common_num=n, order=order
    )
    if bias is not None:
        if new.b is None:
            with new.init_scope():
                new.b = chainer.Parameter(numpy.zeros(len(W), W.dtype))
            new.b.to_device(link.device)
            new.b.update_rule = _new_update_rule(link.W.update_rule)
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


def _new_update_rule(rule: Any) -> Any:
    """Returns the update rule of a new parameter, like another's."""
    if rule is None:
        return None
    new = type(rule)(rule.hyperparam.parent)
    new.enabled = rule.enabled
    new.use_fp32_update(rule._use_fp32_update)
    return new


def _average(
    W: numpy.ndarray,
    common_num: int,
    order: Optional[numpy.ndarray],
    weights: numpy.ndarray,
) -> tuple[numpy.ndarray, float]:
    """Returns the means of the columns that share, and their error."""
    if order is None:
        order = numpy.arange(W.shape[1])
    weights = weights[order].reshape(common_num, -1)
    weights = weights / weights.sum(axis=0)
    narrow = numpy.empty((len(W), weights.shape[1]), W.dtype)
    squares = error = 0.0
    for first in range(0, len(W), _ROWS):  # for the memory
        rows = slice(first, first + _ROWS)
        blocks = W[rows][:, order].astype('d')
        blocks = blocks.reshape(len(blocks), common_num, -1)
        means = numpy.einsum('bnk,nk->bk', blocks, weights)
        narrow[rows] = means
        squares += numpy.einsum('bnk,bnk', blocks, blocks)
        blocks -= means[:, None]
        error += numpy.einsum('bnk,bnk', blocks, blocks)
    return narrow, float(numpy.sqrt(error / (squares or 1)))


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
    error = numpy.linalg.norm(residual - S @ change)
    with numpy.errstate(over='ignore'):
        new_W = (W + change.T).astype(W.dtype)
        bias = (means[1] - means[0] @ change).astype(W.dtype)
    if not (numpy.isfinite(new_W).all() and numpy.isfinite(bias).all()):
        raise ValueError(
            'refitted, {} has elements out of the range of {}'.format(
                layer.path, W.dtype
            )
        )
    relative = float(error / (numpy.linalg.norm(y) or 1))
    return new_W, bias if has_bias else None, relative


def _fold(
    changes: _Changes, path: str, target: str, batches: list[tuple]
) -> None:
    links = dict(changes.model.namedlinks())
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
    link.order = None
    actual = _run(changes.model, batches, {})
    pairs = list(zip(_arrays(actual), _arrays(expected)))
    if batches and not pairs:
        raise ValueError(
            'fold of share cannot be checked, because the model returns no '
            'arrays: {!r}'.format(actual[0])
        )
    for a, b in pairs:
        error = numpy.linalg.norm(a.astype('d') - b)
        bound = numpy.finfo(a.dtype).eps ** 0.5 * numpy.linalg.norm(
            b.astype('d')
        )
        if not error <= bound:
            raise ValueError(
                'fold of share cannot fold {0} into {1}: that changes the '
                'outputs of the model. Between the two, only elementwise '
                'functions may stand (not BatchNormalization), and only {0} '
                'may use what {1} returns'.format(path, target)
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
