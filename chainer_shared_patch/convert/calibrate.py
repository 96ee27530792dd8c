"""Runs a model with calibration inputs, and refits its shared layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import Any

from chainer_shared_patch.blocks import sum_blocks
from chainer_shared_patch.convert.choose import Layer
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.variable import Variable
import numpy

Batches = list[tuple[Any, ...]]
_Callback = Callable[[numpy.ndarray, numpy.ndarray], None]


def check_inputs(inputs: Any) -> Batches:
    """Returns the batches, each as a tuple of arguments."""
    if inputs is None:
        return []
    if isinstance(inputs, chainer.dataset.Iterator):
        raise ValueError(
            'share(): inputs must be an array or an iterable of batches, not '
            f'a {type(inputs).__name__}: its batches are lists of examples, '
            'and it may never end'
        )
    if isinstance(inputs, (Variable, *chainer.get_array_types())):
        inputs = [inputs]
    try:
        inputs = iter(inputs)
    except TypeError:
        raise TypeError(
            'share(): inputs must be an array or an iterable of batches, but '
            f'are {inputs!r}'
        ) from None
    batches = [
        batch if isinstance(batch, tuple) else (batch,) for batch in inputs
    ]
    if not batches:
        raise ValueError('share(): inputs must hold at least one batch')
    return batches


class _Watch(chainer.LinkHook):
    """Passes the inputs and outputs of some links, as matrices, on."""

    name = 'share'

    def __init__(self, callbacks: Mapping[Any, _Callback]) -> None:
        self.callbacks = callbacks

    def forward_postprocess(self, args: Any) -> None:
        callback = self.callbacks.get(args.link)
        if callback is None or not args.out.size:
            return
        x = args.args[0] if args.args else args.kwargs['x']
        x, y = (to_cpu(chainer.as_array(array)) for array in (x, args.out))
        y = y.reshape(-1, args.link.out_size)
        callback(x.reshape(len(y), -1), y)


def run(
    model: Link, batches: Batches, callbacks: Mapping[Any, _Callback]
) -> list[Any]:
    """Returns the model's outputs; a link's callback sees its x and y."""

    def reset() -> None:
        for link in model.links():
            if hasattr(link, 'reset_state'):
                link.reset_state()

    reset()
    try:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            # A static graph would not call the links again.
            with chainer.using_config('use_static_graph', False):
                with _Watch(callbacks):
                    return [model(*batch) for batch in batches]
    finally:
        reset()


def watch(model: Link, layers: list[Layer], batches: Batches) -> list[Layer]:
    """Records what the layers see; returns them in the order of execution."""
    reached: list[Layer] = []

    def record(layer: Layer, x: numpy.ndarray, y: numpy.ndarray) -> None:
        if layer not in reached:
            reached.append(layer)
        layer.squares = layer.squares + numpy.einsum(
            'bi,bi->i', x, x, dtype='d'
        )
        layer.outputs.append(y)

    try:
        run(
            model,
            batches,
            {layer.link: functools.partial(record, layer) for layer in layers},
        )
    except Exception as error:
        types = ', '.join(type(each).__name__ for each in batches[0])
        raise ValueError(
            'share(): inputs must be an array or an iterable of batches that '
            f'the model can be called with; with batches of {types}, it '
            f'raises {type(error).__name__}: {error}'
        ) from error
    for layer in layers:
        if layer not in reached:
            raise ValueError(f'share(): the inputs never reach {layer.path}')
    for layer in reached:
        columns = len(layer.squares)
        if columns != layer.link.W.shape[1]:
            raise ValueError(
                f'share(): {layer.path} is already shared by the patch: its W '
                f'of shape {layer.link.W.shape} is used for {columns} columns '
                'of input'
            )
        total = sum(y.sum(dtype='d') for y in layer.outputs)
        if not numpy.isfinite(layer.squares.sum() + total):
            raise ValueError(
                f'share(): with the inputs, an input or output of {layer.path}'
                ' is too large or not finite'
            )
    return reached


def refit(
    model: Link,
    layer: Layer,
    batches: Batches,
    order: numpy.ndarray | None,
    W: numpy.ndarray,
    has_bias: bool,
) -> tuple[numpy.ndarray, numpy.ndarray | None, float]:
    """Returns W, perhaps a bias, and the relative error of the outputs."""
    sums: list[Any] = []

    def record(x: numpy.ndarray, y: numpy.ndarray) -> None:
        sums.append(sum_blocks(x, layer.common_num, 'd', order))

    run(model, batches, {layer.link: record})
    shared = f'share(): once the layers before {layer.path} are shared,'
    if sum(map(len, sums)) != sum(map(len, layer.outputs)):
        raise ValueError(
            f'{shared} the model no longer calls it as often as before'
        )
    S = numpy.concatenate(sums)
    if not numpy.isfinite(S).all():
        raise ValueError(f'{shared} its inputs are not finite')
    y = numpy.concatenate(layer.outputs).astype('d')
    residual = y - S @ W.T
    if has_bias:
        S_mean, residual_mean = S.mean(axis=0), residual.mean(axis=0)
        S, residual = S - S_mean, residual - residual_mean
    change = _solve_ridge_regression(S, residual)
    error = numpy.linalg.norm(residual - S @ change)
    bias = None
    with numpy.errstate(over='ignore'):
        W = (W + change.T).astype(W.dtype)
        if has_bias:
            bias = (residual_mean - S_mean @ change).astype(W.dtype)
    for array in (W, bias):
        if array is not None and not numpy.isfinite(array).all():
            raise ValueError(
                f'share(): the refitted {layer.path} has elements outside the '
                f'range of {W.dtype}'
            )
    return W, bias, float(error / (numpy.linalg.norm(y) or 1))


def _solve_ridge_regression(
    S: numpy.ndarray, target: numpy.ndarray
) -> numpy.ndarray:
    """Returns a small matrix that, multiplied by S, is near the target."""
    # Hoerl and Kennard, 1970; with fewer examples than columns, in its dual
    # variables (Saunders, Gammerman and Vovk, "Ridge regression learning
    # algorithm in dual variables", 1998). The ridge is 3 % of the mean
    # eigenvalue, which bounds the condition number by the number of columns
    # over 0.03, whatever the inputs are.
    rows, columns = S.shape
    squares = numpy.einsum('ij,ij', S, S)
    ridge = 0.03 * squares / min(rows, columns) or 1.0
    if columns <= rows:
        dots = S.T @ S + ridge * numpy.eye(columns)
        return numpy.linalg.solve(dots, S.T @ target)
    dots = S @ S.T + ridge * numpy.eye(rows)
    return S.T @ numpy.linalg.solve(dots, target)
