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

_Function = Callable[[numpy.ndarray, numpy.ndarray], None]


class _Refusal(ValueError):
    """Raised while the model runs, by share and not by the model."""


def check_batches(inputs: Any) -> list[tuple[Any, ...]]:
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


def run(
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


def watch(
    model: Link, layers: list[Layer], batches: list[tuple[Any, ...]]
) -> list[Layer]:
    """Returns the layers in the order of their execution."""
    reached: dict[Layer, None] = {}

    def watch(layer: Layer, x: numpy.ndarray, y: numpy.ndarray) -> None:
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
        run(model, batches, functions)
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


def refit(
    model: Link,
    layer: Layer,
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

    run(model, batches, {layer.link: watch})
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
