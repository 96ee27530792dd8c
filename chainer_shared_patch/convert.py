"""Converts the linear layers of a trained model to shared ones, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import copy
from fnmatch import fnmatchcase
import functools
from typing import Any, Literal, NamedTuple, SupportsIndex, Union

from chainer_shared_patch import config
from chainer_shared_patch.blocks import sum_blocks, tile_blocks
from chainer_shared_patch.config import check_divides, check_order
from chainer_shared_patch.functions import VariableOrArray
from chainer_shared_patch.grouping import group_columns
from chainer_shared_patch.links import Permutation, SharedLinear, check_model
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.variable import Parameter, Variable
import numpy
from tabulate import tabulate

# Which inputs of a layer share.
LayerOrder = Union[Literal['grouped', 'contiguous'], Permutation]
_Function = Callable[[numpy.ndarray, numpy.ndarray], None]
# How many rows of a weight are averaged at a time.
_ROWS = 256


class SharedLayer(NamedTuple):
    """What :func:`share` did to a layer.

    Attributes:
        path (str): The layer's path in the model.
        common_num (int): The number of blocks that share its weight.
        size (int): The number of elements of its parameters.
        dense_size (int): The same, before it was shared.
        weight_error (float): The Frobenius norm of the difference between
            the weight's columns and the means that replace them, relative to
            the norm of the weight.
        output_error (float): The Frobenius norm of the difference between the
            layer's outputs for the calibration inputs, before it was shared
            and after it was refitted, relative to the norm of the outputs
            before. ``None`` without calibration inputs.
        folded_into (str): The path of the layer whose outputs have been
            reordered instead of this layer's inputs, or ``None``.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import share
        >>> model = chainer.Sequential(L.Linear(20, 5))
        >>> (layer,) = share(model, 10).layers
        >>> layer.path, layer.common_num, layer.size, layer.dense_size
        ('/0', 10, 15, 105)

    """

    path: str
    common_num: int
    size: int
    dense_size: int
    weight_error: float
    output_error: float | None
    folded_into: str | None


class ShareReport(NamedTuple):
    """What :func:`share` did. It prints as a table.

    Attributes:
        layers (tuple of SharedLayer): The layers, in the order in which they
            were shared.
        restarted (tuple of str): The paths of the parameters whose optimizer
            state was reset.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import share
        >>> import numpy as np
        >>> model = chainer.Sequential(
        ...     L.Linear(4, 1, initialW=np.array([[1., 2., 1., 1.]])))
        >>> print(share(model, 2, order='contiguous'))
        layer      common_num    parameters    parameters before    weight error
        -------  ------------  ------------  -------------------  --------------
        /0                  2             3                    5          26.73%

    """  # noqa: E501

    layers: tuple[SharedLayer, ...]
    restarted: tuple[str, ...]

    def __str__(self) -> str:
        def percent(error: float | None) -> str:
            return '' if error is None else f'{error:.2%}'

        rows: list[tuple[Any, ...]] = [
            (
                layer.path,
                layer.common_num,
                f'{layer.size:,}',
                f'{layer.dense_size:,}',
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
        text: str = tabulate(
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
    model: Link,
    common_num: SupportsIndex | Mapping[str, SupportsIndex],
    *,
    inputs: VariableOrArray | Iterable[Any] | None = None,
    order: LayerOrder | Mapping[str, LayerOrder] = 'grouped',
    fold: Mapping[str, str] | None = None,
    add_bias: bool = False,
) -> ShareReport:
    """Replaces linear layers of a trained model by shared ones.

    Each ``chainer.links.Linear`` becomes a :class:`SharedLinear` whose weight
    is the mean of the columns that share. The names of links and parameters,
    dtypes, devices, update rules and their hooks stay. Without ``inputs``,
    biases stay too, except those that ``fold`` reorders. What an optimizer
    keeps for a replaced or reordered parameter, such as Adam's moments, is
    reset. Links of subclasses of ``chainer.links.Linear`` stay as they are.
    If there is an error, nothing is changed.

    Which inputs share decides how much the model loses. ``'grouped'`` groups
    similar columns of ``W``: starting from contiguous blocks, it exchanges
    pairs of columns as long as that brings columns closer to the means of
    their groups. This is weighted k-means with clusters of equal size; see
    :func:`chainer_shared_patch.grouping.group_columns`.

    With calibration inputs, each column is weighted by the mean square of its
    input. Then, layer by layer in the order of their execution, ``W`` and the
    bias are refitted by ridge regression (Hoerl and Kennard, "Ridge
    regression: Biased estimation for nonorthogonal problems", 1970), so that
    from the inputs that the layer receives now it reproduces the outputs that
    it gave before.

    Args:
        model (chainer.Link): The model, a chain. It is changed in place. A
            link that it also holds outside its children, for example in a
            list, is not replaced there.
        common_num (int or dict): The number of blocks for all layers, or a
            dict that maps paths of links to numbers, such as
            ``{'/l2': 10, '/fc*': 8, '/fc8': 1}``. A path may be a pattern;
            an exact path takes precedence. A layer stays if its number is 1
            or no path matches it. :func:`summary` shows the paths. Those in a
            ``chainer.Sequential`` need not be in order.
        inputs (array or iterable): Batches of calibration inputs, about a
            thousand examples in all. Each batch is passed to ``model(...)``;
            a tuple is passed as several arguments. A single array is one
            batch. Recurrent links are reset before and after.
        order (str, array or dict): Which inputs share: ``'grouped'``;
            ``'contiguous'``, where each block is contiguous; a permutation,
            as the ``order`` of :class:`SharedLinear`; or a dict that maps
            paths to these. A layer that no path matches is ``'grouped'``.
        fold (dict): Pairs of paths such as ``{'/l2': '/l1'}``: the outputs of
            ``l1`` are reordered instead of the inputs of ``l2``, so that the
            order takes no time when the model runs. Between the linear layer
            ``l1`` and the shared layer ``l2`` there must be nothing but
            elementwise functions (BatchNormalization is not one), and nothing
            else may use the outputs of ``l1``. With calibration inputs,
            ``share`` checks that folding does not change the outputs of the
            model.
        add_bias (bool): If ``True``, refitting may add a bias to a layer
            that has none.

    Returns:
        ShareReport: The layers and what they lose. It prints as a table.

    Raises:
        TypeError: If the model is not a link, a path is not a string,
            ``fold`` is not a dict or ``inputs`` is not an iterable.
        ValueError: If ``common_num`` is not an integer of at least 1 or does
            not divide the width of a layer; if ``order`` is invalid; if the
            model holds no ``chainer.links.Linear``; if a path matches no
            layer, or a layer matches several patterns; if a layer has no
            weight yet, occurs twice, has link hooks, is already shared by the
            patch or is not reached by the inputs; if the model cannot be
            called with the inputs; if weights, inputs or outputs are not
            finite or, once refitted, exceed the range of their dtype; if an
            order cannot be folded; or if ``add_bias`` is set without
            ``inputs``.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> import chainer
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
    check_model(model)
    layers = _choose(model, common_num, order)
    pairs = _check_pairs(model, layers, {} if fold is None else fold)
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


def expand(model: Link) -> None:
    """Replaces the shared layers of a model by ordinary ones.

    Each :class:`SharedLinear` becomes a ``chainer.links.Linear`` that computes
    the same with the wide weight, in the order of the inputs. A saved model
    can then be loaded without the plugin. What an optimizer keeps for its
    ``W``, such as Adam's moments, is reset; everything else stays.

    Args:
        model (chainer.Link): The model, a chain. It is changed in place.

    Raises:
        TypeError: If the model is not a link.
        ValueError: If a shared layer is the model itself, has no weight yet,
            occurs twice, has link hooks or is of a subclass. Then nothing is
            changed.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer_shared_patch
        >>> model = chainer.Sequential(
        ...     chainer_shared_patch.SharedLinear(20, 5, common_num=10))
        >>> chainer_shared_patch.expand(model)
        >>> model[0].W.shape
        (5, 20)

    """
    check_model(model)
    links = {
        path: link
        for path, link in model.namedlinks()
        if isinstance(link, SharedLinear)
    }
    if isinstance(model, SharedLinear):
        raise ValueError(
            'expand replaces the SharedLinear links in a model, but cannot '
            'replace the model itself: put it into a chainer.Sequential'
        )
    for path, link in links.items():
        if type(link) is not SharedLinear:
            raise ValueError(
                f'{path} cannot be expanded, because it is of class '
                f'{type(link).__name__}, which may compute something else'
            )
        _check_link(model, path, link)
    changes = _Changes(model)
    with changes.undo:
        for path, link in links.items():
            W = tile_blocks(link.W.array, link.common_num, link.order)
            changes.replace(path, link, W.shape[1], W)
        changes.keep()


class _Refusal(ValueError):
    """Raised while the model runs, by share and not by the model."""


class _Layer:
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


class _Changes:
    """Changes to a model, which are undone if one of them fails."""

    def __init__(self, model: Link) -> None:
        self.model = model
        self.undo = contextlib.ExitStack()
        self.restarted: list[str] = []

    def replace(
        self, path: str, old: Any, in_size: int, W: Any, **sharing: Any
    ) -> Any:
        """Puts a link with another weight in the place of an old one."""
        make = SharedLinear if sharing else Linear
        with chainer.using_config('dtype', old.W.dtype):
            new: Any = make(in_size, old.out_size, True, to_cpu(W), **sharing)
        new.to_device(old.device)
        new.name = old.name
        new.W.update_rule = self.restart(path + '/W', old.W.update_rule)
        if old.b is not None:
            with new.init_scope():
                new.b = old.b
        self.undo.callback(_put, self.model, path, old)
        _put(self.model, path, new)
        return new

    def set_array(self, param: Parameter, array: Any) -> None:
        """Gives a parameter another array of the same shape."""
        self.undo.callback(setattr, param, 'grad', param.grad)
        self.undo.callback(setattr, param, 'array', param.array)
        param.cleargrad()
        sent = param.device.send(array.astype(param.dtype))
        param.array = sent  # type: ignore[misc]  # it can be set

    def keep(self) -> None:
        """Keeps the changes; without this they are undone."""
        self.undo.pop_all()
        for link in self.model.links():
            # What static_graph has recorded uses the old arrays.
            link.__dict__.pop('schedule_manager', None)

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


def _put(model: Link, path: str, new: Link) -> None:
    parent_path, _, name = path.rpartition('/')
    parent = dict(model.namedlinks())[parent_path or '/']
    if isinstance(parent, chainer.ChainList):
        # Setting a layer of a Sequential might renumber the others.
        links = parent._children
        if isinstance(parent, chainer.Sequential):
            layers = parent._layers
            layers[layers.index(links[int(name)])] = new
        links[int(name)] = new
    else:
        setattr(parent, name, new)


def _choose(model: Link, common_num: Any, order: Any) -> list[_Layer]:
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
            _check_link(model, path, link)
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
            layers.append(_Layer(path, link, number, this))
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


def _check_link(model: Link, path: str, link: Linear) -> None:
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


def _check_pairs(
    model: Link, layers: list[_Layer], fold: Mapping[str, str]
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
        _check_link(model, target, before)
        if list(fold.values()).count(target) > 1:
            raise ValueError(pair + f'{target} can take over only one order')
        in_size = links[path].W.shape[1]
        if before.out_size != in_size:
            raise ValueError(
                pair + f'the former has {in_size} inputs, the latter '
                f'{before.out_size} outputs'
            )
    return fold


def _check_batches(inputs: Any) -> list[tuple[Any, ...]]:
    if inputs is None:
        return []
    if isinstance(inputs, chainer.dataset.Iterator):
        raise ValueError(
            'inputs of share must be an array or an iterable of batches, not '
            f'a {type(inputs).__name__}: its batches are lists of examples, '
            'and it may never end'
        )
    if isinstance(inputs, (Variable, *chainer.get_array_types())):
        inputs = [inputs]
    try:
        inputs = iter(inputs)
    except TypeError:
        raise TypeError(
            'inputs of share must be an array or an iterable of batches, but '
            f'are {inputs!r}'
        ) from None
    batches = [
        batch if isinstance(batch, tuple) else (batch,) for batch in inputs
    ]
    if not batches:
        raise ValueError('inputs of share must hold at least one batch')
    return batches


class _Watch(chainer.LinkHook):
    """Passes the inputs and outputs of some links, as matrices, on."""

    name = 'share'

    def __init__(self, functions: Mapping[Any, _Function]) -> None:
        self.functions = functions

    def forward_postprocess(self, args: Any) -> None:
        if args.link in self.functions:
            x = args.args[0] if args.args else args.kwargs['x']
            x, y = (to_cpu(chainer.as_array(array)) for array in (x, args.out))
            out_size, columns = args.link.W.shape
            rows = y.size // out_size
            if x.size != rows * columns:
                raise _Refusal(
                    'share cannot share a layer that the patch already '
                    f'shares: its W of shape {args.link.W.shape} is used for '
                    f'{x.size // rows} columns of input'
                )
            self.functions[args.link](
                x.reshape(rows, columns), y.reshape(rows, out_size)
            )


def _run(
    model: Link,
    batches: list[tuple[Any, ...]],
    functions: Mapping[Any, _Function],
) -> list[Any]:
    """Returns the model's outputs for all batches."""

    def reset() -> None:
        for link in model.links():
            if hasattr(link, 'reset_state'):
                link.reset_state()

    reset()
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            # A static graph would not call the links again.
            with chainer.using_config('use_static_graph', False):
                with _Watch(functions):
                    return [model(*batch) for batch in batches]
    finally:
        reset()


def _watch(
    model: Link, layers: list[_Layer], batches: list[tuple[Any, ...]]
) -> list[_Layer]:
    """Returns the layers in the order of their execution."""
    reached: dict[_Layer, None] = {}

    def watch(layer: _Layer, x: numpy.ndarray, y: numpy.ndarray) -> None:
        reached.setdefault(layer)
        layer.squares += numpy.einsum('bi,bi->i', x, x, dtype='d')
        layer.outputs.append(y)
        if not numpy.isfinite(layer.squares.sum() + y.sum(dtype='d')):
            raise _Refusal(
                'with the inputs of share, an input or output of '
                f'{layer.path} is too large or not finite'
            )

    functions = {
        layer.link: functools.partial(watch, layer) for layer in layers
    }
    try:
        _run(model, batches, functions)
    except _Refusal as error:
        raise ValueError(str(error)) from None
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
            raise ValueError(
                f'the inputs given to share never reach {layer.path}'
            )
    return list(reached)


def _share_layer(
    changes: _Changes,
    layer: _Layer,
    batches: list[tuple[Any, ...]],
    add_bias: bool,
) -> SharedLayer:
    link: Any = layer.link
    path, n = layer.path, layer.common_num
    W = to_cpu(link.W.array)
    weights = numpy.ones(W.shape[1])
    if layer.squares.any():
        # A little more, for inputs that are zero in these few examples.
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
                new.b = Parameter(numpy.zeros(len(W), W.dtype))
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
    """Returns a new parameter's update rule, modelled on another's."""
    if rule is None:
        return None
    new = type(rule)(rule.hyperparam.parent)
    new.enabled = rule.enabled
    new.use_fp32_update(rule._use_fp32_update)
    return new


def _average(
    W: numpy.ndarray,
    common_num: int,
    order: numpy.ndarray | None,
    weights: numpy.ndarray,
) -> tuple[numpy.ndarray, float]:
    """Returns the means of the columns that share, and the error of these."""
    if order is None:
        order = numpy.arange(W.shape[1])
    weights = weights[order].reshape(common_num, -1)
    weights = weights / weights.sum(axis=0)
    narrow = numpy.empty((len(W), weights.shape[1]), W.dtype)
    squares = error = 0.0
    for first in range(0, len(W), _ROWS):  # to save memory
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
    model: Link,
    layer: _Layer,
    batches: list[tuple[Any, ...]],
    order: numpy.ndarray | None,
    W: numpy.ndarray,
    has_bias: bool,
) -> tuple[numpy.ndarray, numpy.ndarray | None, float]:
    """Returns W, perhaps a bias, and the relative error of the outputs.

    The new W and bias solve a ridge regression (Hoerl and Kennard, 1970) that
    shrinks what is added to W; with fewer examples than columns, in its dual
    variables (Saunders, Gammerman and Vovk, "Ridge regression learning
    algorithm in dual variables", 1998). The ridge is 3 % of the mean
    eigenvalue, so the condition number is bounded by the number of columns
    over 0.03, whatever the inputs are.
    """
    sums: list[Any] = []

    def watch(x: numpy.ndarray, y: numpy.ndarray) -> None:
        sums.append(sum_blocks(x, layer.common_num, 'd', order))

    _run(model, batches, {layer.link: watch})
    S = numpy.concatenate(sums)
    y = numpy.concatenate(layer.outputs).astype('d')
    if len(S) != len(y) or not numpy.isfinite(S).all():
        raise ValueError(
            'once the layers before {} are shared, {}'.format(
                layer.path,
                'its inputs are not finite'
                if len(S) == len(y)
                else 'the model no longer calls it as often as before',
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
            f'the refitted {layer.path} has elements outside the range of '
            f'{W.dtype}'
        )
    relative = float(error / (numpy.linalg.norm(y) or 1))
    return new_W, bias if has_bias else None, relative


def _fold(
    changes: _Changes, path: str, target: str, batches: list[tuple[Any, ...]]
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
            f'{target}/{name}', param.update_rule
        )
    link.order = None
    actual = _run(changes.model, batches, {})
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
