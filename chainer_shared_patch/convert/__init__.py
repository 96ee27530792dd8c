"""Converts the linear layers of a trained model to shared ones, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex
import warnings

from chainer_shared_patch.blocks import count_orders, tile_blocks
from chainer_shared_patch.config import check_integer, check_model
from chainer_shared_patch.convert.calibrate import (
    Calibration,
    check_inputs,
    reset_states,
)
from chainer_shared_patch.convert.choose import (
    Layer,
    LayerOrder,
    check_link,
    choose_layers,
    choose_orders,
)
from chainer_shared_patch.convert.fold import check_fold, fold_order
from chainer_shared_patch.convert.grouping import (
    average_columns,
    group_columns,
)
from chainer_shared_patch.convert.load import load_npz
from chainer_shared_patch.convert.replace import Changes, keep_bias
from chainer_shared_patch.convert.report import SharedLayer, ShareReport
from chainer_shared_patch.convert.tuning import split_batches, tune
from chainer_shared_patch.functions import VariableOrArray
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.initializers import LeCunNormal
from chainer.link import Link
from chainer.links.connection.linear import Linear
import numpy
from tqdm import tqdm

__all__ = ['ShareReport', 'SharedLayer', 'expand', 'load_npz', 'share']


def share(
    model: Link,
    common_num: SupportsIndex | Mapping[Any, SupportsIndex],
    *,
    inputs: VariableOrArray | Iterable[Any] | None = None,
    order: LayerOrder | Mapping[Any, LayerOrder] = 'grouped',
    orders: SupportsIndex | Mapping[Any, SupportsIndex | None] | None = None,
    fold: Mapping[Any, Any] | None = None,
    add_bias: bool = False,
    tune_steps: SupportsIndex = 0,
) -> ShareReport:
    """Replaces linear layers of a trained model by shared ones.

    Each ``chainer.links.Linear`` becomes a :class:`SharedLinear` whose weight
    is the mean of the columns that share. The names of links and parameters,
    dtypes, devices, update rules and their hooks stay, and so does what has
    been added to a link. Without ``inputs``, biases stay too, except those
    that ``fold`` reorders. What an optimizer keeps for a replaced or reordered
    parameter, such as Adam's moments, is reset. Links of subclasses of
    ``chainer.links.Linear`` stay as they are. If there is an error, nothing
    is changed.

    The links and parameters that were there are left alone, so that any other
    model that uses them still computes the same. The weight of a layer to
    share must not be used elsewhere in the model, as in a tied autoencoder.
    With calibration inputs, it is an error if that changes the shapes of the
    outputs or makes the model fail.

    Which inputs share decides how much the model loses. ``'grouped'`` groups
    similar columns of ``W``: starting from contiguous blocks, it exchanges
    pairs of columns as long as that brings columns closer to the means of
    their groups. This is weighted k-means with clusters of equal size; see
    :func:`chainer_shared_patch.convert.grouping.group_columns`. With several
    ``orders``, the outputs are cut into as many slices, and each slice of the
    rows of ``W`` is grouped anew, so that fewer inputs share for all outputs.

    With calibration inputs, each column is weighted by the mean square of its
    input. Then, layer by layer in the order of their execution, ``W`` and the
    bias are refitted by ridge regression (Hoerl and Kennard, "Ridge
    regression: Biased estimation for nonorthogonal problems", 1970), so that
    from the inputs that the layer receives now it reproduces the outputs that
    it gave before. With ``tune_steps``, all of them are then trained together,
    without labels, to reproduce the outputs of the model.

    Besides the new model, it takes at its peak about 18 bytes for each pair of
    the columns that are grouped at a time, at most 2,048 of them (75 MB); or,
    if that is more, 10 bytes for each number that a layer receives and returns
    for the calibration inputs. Layers are converted one after another.

    Args:
        model (chainer.Link): The model, a chain. It is changed in place. A
            link that it also holds outside its children, for example in a
            list, is not replaced there.
        common_num (int or dict): The number of blocks for all layers, or a
            dict that maps links, or their paths, to numbers, such as
            ``{model.l2: 10}`` or ``{'/l2': 10, '/fc*': 8, '/fc8': 1}``. A
            path may be a pattern; an exact path takes precedence. A layer
            stays if its number is 1 or no path matches it. :func:`summary`
            shows the paths. Those in a ``chainer.Sequential`` need not be in
            order.
        inputs (array or iterable): Batches of calibration inputs, about a
            thousand examples in all; a warning says if there are no more than
            a shared weight has columns. Each batch is passed to a copy of the
            model in test mode; a tuple is passed as several arguments. A
            single array is one batch. The model and the random states of
            Python, NumPy and CuPy stay as they are, except that recurrent
            links are reset. Each time, the model runs from the same random
            state.
        order (str, array or dict): Which inputs share: ``'grouped'``;
            ``'contiguous'``, where each block is contiguous; one permutation
            or several, as the ``order`` of :class:`SharedLinear`; or a dict
            that maps links or paths to these. A layer that no path matches is
            ``'grouped'``.
        orders (int or dict): The number of orders for the layers that are
            ``'grouped'``, or a dict that maps links or paths to numbers. More
            orders lose less, but each takes ``in_size`` integers and the time
            of another sum of the inputs. A layer has at most as many orders as
            outputs. By default, it has 4; 20 with a ``common_num`` of 50 or
            more; 16 in Chainer's recurrent links, such as
            ``chainer.links.LSTM``; but no more than take as much memory as
            ``W``, and one if it is in ``fold``.
        fold (dict): Pairs of links or paths such as ``{'/l2': '/l1'}``: the
            outputs of ``l1`` are reordered instead of the inputs of ``l2``, so
            that the order takes no time when the model runs. Between the
            linear layer ``l1`` and the shared layer ``l2`` there must be
            nothing but elementwise functions (BatchNormalization is not one),
            and nothing else may use the outputs of ``l1``. Neither of the two
            may have several orders. With calibration inputs, ``share`` checks
            that folding does not change the outputs of the model.
        add_bias (bool): If ``True``, refitting may add a bias to a layer
            that has none.
        tune_steps (int): How many steps of Adam, from 0.001 falling linearly
            to 0, are to bring the model's outputs back to what they were. The
            loss is the squared error of each array relative to its mean
            square. Only the weights and biases of the shared layers are
            trained, in test mode, each step on one batch. Single arrays are
            cut into batches of a hundred examples, unless the model has
            recurrent links. Two hundred steps with a thousand examples gain
            most of what there is; a thousand with five thousand gain more.
            If the outputs are farther off afterwards, the layers stay as they
            were refitted.

    Returns:
        ShareReport: The layers and what they lose. It prints as a table.

    Raises:
        TypeError: If the model is not a link, a path is neither a string nor
            a link, ``fold`` is not a dict or ``inputs`` is not an iterable.
        ValueError: If ``common_num`` is not an integer of at least 1 or does
            not divide the width of a layer; if ``order`` is invalid; if the
            model holds no ``chainer.links.Linear``; if a path matches no
            layer, or a layer matches several patterns; if a layer has no
            weight yet, occurs twice, has link hooks, is already shared by the
            patch or is not reached by the inputs; if the model cannot be
            called with the inputs, is random in a way that cannot be
            repeated, or returns arrays of other shapes once it is shared; if
            weights, inputs or outputs are not finite or, once refitted,
            exceed the range of their dtype; if an order cannot be folded; if
            ``orders`` is not an integer of at least 1 or names a layer that
            is not grouped; if ``tune_steps`` is not an integer of at least 0,
            or the model returns no variables that depend on the shared
            layers; or if ``add_bias`` or ``tune_steps`` is set without
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
    check_model('share', model)
    layers, passed_over = choose_layers(model, common_num, order, orders)
    folded_into = check_fold(model, layers, fold)
    batches = check_inputs(inputs)
    tune_steps = check_integer(tune_steps, 'share(): tune_steps', 0)
    for setting, value in (('add_bias', add_bias), ('tune_steps', tune_steps)):
        if value and not batches:
            raise ValueError(
                f'share(): {setting} has no effect without inputs'
            )
    calibration = tuned = None
    if tune_steps:
        batches = split_batches(model, batches)
    if batches:
        calibration = Calibration(model, layers, batches)
        for layer in layers:
            if layer not in calibration.layers:
                raise ValueError(
                    f'share(): the inputs never reach {layer.path}'
                )
        layers = calibration.layers
    with Changes(model) as changes:
        rows = []
        # On a terminal only.
        with tqdm(layers, 'share', leave=False, disable=None) as progress:
            for layer in progress:
                progress.set_postfix_str(layer.path)
                shared, weight_error, output_error = make_shared(
                    model, layer, calibration, add_bias
                )
                changes.replace(layer.path, layer.link, shared)
                if calibration is not None:
                    calibration.shared_last = layer.path
                    _check_examples(layer, shared)
                rows.append(
                    SharedLayer(
                        layer.path,
                        layer.common_num,
                        count_orders(shared.order),
                        shared.count_params(),
                        layer.link.count_params(),
                        weight_error,
                        output_error,
                        folded_into.get(layer.path),
                    )
                )
        if calibration is not None:
            calibration.rerun({})
            if tune_steps and rows:
                paths = [row.path for row in rows]
                outputs = calibration.outputs
                tuned = tune(model, paths, batches, outputs, tune_steps)
        for path, target in folded_into.items():
            fold_order(changes, path, target, batches)
    if calibration is not None:
        reset_states(model)
    return ShareReport(
        tuple(rows),
        tuple(changes.restarted),
        passed_over,
        tuned,
    )


def _check_examples(layer: Layer, shared: SharedLinear) -> None:
    examples = sum(map(len, layer.outputs))
    if examples <= shared.W.shape[1]:
        warnings.warn(
            f'share(): too few calibration inputs reach {layer.path}, '
            f'{examples} for a shared weight of shape {shared.W.shape}: with '
            'other inputs, the error is likely to be much larger',
            stacklevel=3,
        )


def make_shared(
    model: Link,
    layer: Layer,
    calibration: Calibration | None,
    add_bias: bool = False,
) -> tuple[SharedLinear, float, float | None]:
    """Returns what is to replace a layer, and its errors."""
    link, n, order = layer.link, layer.common_num, layer.order
    W = to_cpu(link.W.array)
    orders = layer.orders or choose_orders(model, link, n)
    weights = numpy.ones(W.shape[1])
    if numpy.any(layer.squares):
        # A little more, for inputs that are zero in these few examples.
        weights = layer.squares / layer.squares.mean() + 0.01
    if isinstance(order, str):  # 'grouped'
        order = numpy.stack(
            [
                group_columns(rows, n, weights)
                for rows in numpy.array_split(W, orders)
            ]
        )
    narrow, weight_error = average_columns(W, n, order, weights)
    bias = output_error = None
    if calibration is not None:
        has_bias = add_bias or link.b is not None
        narrow, bias, output_error = calibration.refit(
            layer, order, narrow, has_bias
        )
    shared = SharedLinear.from_params(
        narrow, bias, nobias=bias is None, common_num=n, order=order
    )
    if bias is None:
        keep_bias(link, shared)
    return shared, weight_error, output_error


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
    check_model('expand', model)
    if isinstance(model, SharedLinear):
        raise ValueError(
            'expand(): model must hold the SharedLinear links, but is one '
            'itself: put it into a chainer.Sequential'
        )
    links = {
        path: link
        for path, link in model.namedlinks()
        if isinstance(link, SharedLinear)
    }
    for path, link in links.items():
        if type(link) is not SharedLinear:
            raise ValueError(
                f'expand(): {path} is of class {type(link).__name__}, which '
                'may compute something else than SharedLinear'
            )
        check_link('expand', model, path, link)
    with Changes(model) as changes:
        for path, link in links.items():
            narrow, order = to_cpu([link.W.array, link.order])
            W = to_cpu(
                tile_blocks(narrow, link.common_num, order, per_slice=True)
            )
            with chainer.using_config('dtype', W.dtype):
                ordinary: Any = Linear(W.shape[1], W.shape[0], True, W)
            # The array would be kept, and drawn again by copy('init').
            ordinary.W.initializer = LeCunNormal(dtype=W.dtype)
            keep_bias(link, ordinary)
            changes.replace(path, link, ordinary)
