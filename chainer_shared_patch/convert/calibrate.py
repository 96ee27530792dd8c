"""Runs a model with calibration inputs, and refits its shared layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

from chainer_shared_patch.blocks import sum_blocks
from chainer_shared_patch.convert.choose import Layer, hint_at_predictor
from chainer_shared_patch.trial import trial
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.variable import Variable
import numpy

Batches = list[tuple[Any, ...]]
_Callback = Callable[[numpy.ndarray, numpy.ndarray], None]
_Change = Callable[[Mapping[Any, Any]], None]


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
        tuple(map(_detach, batch if isinstance(batch, tuple) else (batch,)))
        for batch in inputs
    ]
    if not batches:
        raise ValueError('share(): inputs must hold at least one batch')
    return batches


def _detach(argument: Any) -> Any:
    """Leaves the graph that a variable may come from to the caller."""
    if isinstance(argument, Variable):
        return Variable(argument.array)
    return argument


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
    model: Link,
    batches: Batches,
    callbacks: Mapping[Any, _Callback],
    change: _Change | None = None,
) -> list[Any]:
    """Returns a model's outputs; a link's callback sees its x and y.

    What runs is a copy, which ``change`` may alter: it maps links to theirs.
    """
    with trial(model, same_arrays=False) as copied:
        copies = dict(zip(model.links(), copied.links()))
        if change is not None:
            change(copies)
        reset_states(copied)
        # What closures refer to is not copied.
        watched = {**callbacks}
        for link, callback in callbacks.items():
            watched[copies[link]] = callback
        with _Watch(watched):
            return [copied(*batch) for batch in batches]


def reset_states(model: Link) -> None:
    """Resets recurrent links."""
    for link in model.links():
        if hasattr(link, 'reset_state'):
            link.reset_state()


def find_arrays(outputs: Any) -> Iterator[Any]:
    """Yields the arrays and variables that a model returns."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        for each in outputs:
            yield from find_arrays(each)
    elif isinstance(outputs, (Variable, *chainer.get_array_types())):
        yield outputs


def find_floats(outputs: Any, scalars: bool = False) -> list[Any]:
    """Returns what can be compared: no labels and, by default, no scalars."""
    return [
        chainer.as_variable(each)
        for each in find_arrays(outputs)
        if each.dtype.kind == 'f' and each.size and (scalars or each.ndim)
    ]


class Calibration:
    """The inputs, and what the model does with them before it is changed.

    Attributes:
        layers: The layers that the inputs reach, in the order of execution.
        outputs: What the model returned for each batch.
        shared_last: The path of the layer that was shared last.

    """

    def __init__(
        self, model: Link, layers: list[Layer], batches: Batches
    ) -> None:
        self.model = model
        self.batches = batches
        self.layers: list[Layer] = []
        self.shared_last = ''
        try:
            outputs = run(
                model,
                batches,
                {
                    layer.link: functools.partial(self._record, layer)
                    for layer in layers
                },
            )
        except Exception as error:
            types = ', '.join(type(each).__name__ for each in batches[0])
            raise ValueError(
                'share(): inputs must be an array or an iterable of batches '
                f'that the model can be called with; with batches of {types}, '
                f'it raises {type(error).__name__}: {error}'
                f'{hint_at_predictor(model)}'
            ) from error
        self.outputs = outputs
        for layer in self.layers:
            self._check(layer)
        self._check_repetition()

    def _record(self, layer: Layer, x: Any, y: Any) -> None:
        if layer not in self.layers:
            self.layers.append(layer)
        layer.squares = layer.squares + numpy.einsum(
            'bi,bi->i', x, x, dtype='d'
        )
        layer.outputs.append(y)

    def _check(self, layer: Layer) -> None:
        columns = len(layer.squares)
        if columns != layer.link.W.shape[1]:
            raise ValueError(
                f'share(): {layer.path} is already shared by the patch: its W '
                f'of shape {layer.link.W.shape} is used for {columns} columns '
                'of input; first make it a SharedLinear, with '
                'SharedLinear.from_params'
            )
        total = sum(y.sum(dtype='d') for y in layer.outputs)
        if not numpy.isfinite(layer.squares.sum() + total):
            raise ValueError(
                f'share(): with the inputs, an input or output of {layer.path}'
                ' is too large or not finite'
            )

    def _check_repetition(self) -> None:
        """Refuses a model whose random state is kept where it is not seen."""
        outputs: dict[Layer, list[Any]] = {each: [] for each in self.layers}
        run(
            self.model,
            self.batches,
            {
                layer.link: functools.partial(_append_output, ys)
                for layer, ys in outputs.items()
            },
        )
        for layer, ys in outputs.items():
            # On a GPU, sums may be rounded differently every time.
            if len(ys) != len(layer.outputs) or not all(
                are_close(y, other, 0.5) for y, other in zip(ys, layer.outputs)
            ):
                raise ValueError(
                    f'share(): when the model runs twice, {layer.path} gives '
                    'two outputs for the same inputs. Draw random numbers '
                    'from numpy.random, or from a numpy.random.RandomState '
                    'that is an attribute of a link'
                )

    def rerun(
        self, callbacks: Mapping[Any, _Callback], change: _Change | None = None
    ) -> list[Any]:
        """Runs the model, whose outputs are to have the shapes they had."""
        path = self.shared_last
        shared = f'share(): once {path} is shared, the model'
        advice = f'The W of {path} may be used in nothing but the layer itself'
        try:
            outputs = run(self.model, self.batches, callbacks, change)
        except Exception as error:
            if not path:
                raise
            raise ValueError(
                f'{shared} raises {type(error).__name__}: {error}. {advice}'
            ) from error
        shapes, before = (
            [array.shape for array in find_arrays(each)]
            for each in (outputs, self.outputs)
        )
        if path and shapes != before:
            raise ValueError(
                f'{shared} returns arrays of the shapes {shapes} instead of '
                f'{before}. {advice}'
            )
        return outputs

    def refit(
        self,
        layer: Layer,
        order: numpy.ndarray | None,
        W: numpy.ndarray,
        has_bias: bool,
    ) -> tuple[numpy.ndarray, numpy.ndarray | None, float]:
        """Returns W, perhaps a bias, and the relative error of the outputs."""
        sums: list[Any] = []

        def record(x: numpy.ndarray, y: numpy.ndarray) -> None:
            sums.append(sum_blocks(x, layer.common_num, 'd', order))

        self.rerun({layer.link: record})
        return _refit(layer, sums, W, has_bias)


def _append_output(ys: list[Any], x: Any, y: Any) -> None:
    ys.append(y)


def are_close(a: numpy.ndarray, b: numpy.ndarray, digits: float = 1.0) -> bool:
    """Tells whether arrays agree in all or some of the digits of ``b``."""
    if a.shape != b.shape:
        return False
    error = numpy.linalg.norm(a.astype('d') - b)
    scale = numpy.linalg.norm(b.astype('d'))
    return bool(error <= numpy.finfo(b.dtype).eps ** digits * scale)


def _refit(
    layer: Layer, sums: list[numpy.ndarray], W: numpy.ndarray, has_bias: bool
) -> tuple[numpy.ndarray, numpy.ndarray | None, float]:
    """Fits W and perhaps a bias to the layer's outputs before."""
    shared = f'share(): once the layers before {layer.path} are shared,'
    if sum(map(len, sums)) != sum(map(len, layer.outputs)):
        raise ValueError(
            f'{shared} the model no longer calls it as often as before'
        )
    S = numpy.concatenate(sums)
    if not numpy.isfinite(S).all():
        raise ValueError(f'{shared} its inputs are not finite')
    y = numpy.concatenate(layer.outputs)
    # Each order has sums of its own, and a slice of the outputs.
    orders = S.shape[1] // W.shape[1]
    slices = zip(
        numpy.split(S, orders, axis=1),
        numpy.array_split(y, orders, axis=1),
        numpy.array_split(W, orders),
    )
    Ws, biases, errors = zip(*(_fit(*each, has_bias) for each in slices))
    with numpy.errstate(over='ignore'):
        W, bias = (
            numpy.concatenate(each).astype(W.dtype) for each in (Ws, biases)
        )
    if not (numpy.isfinite(W).all() and numpy.isfinite(bias).all()):
        raise ValueError(
            f'share(): the refitted {layer.path} has elements outside the '
            f'range of {W.dtype}'
        )
    error = numpy.linalg.norm(errors) / (numpy.linalg.norm(y.astype('d')) or 1)
    return W, bias if has_bias else None, float(error)


def _fit(
    S: numpy.ndarray, y: numpy.ndarray, W: numpy.ndarray, has_bias: bool
) -> tuple[numpy.ndarray, numpy.ndarray, float]:
    """Returns W, the bias or zeros, and the norm of the error."""
    residual = y - S @ W.T
    S_mean, residual_mean = (
        each.mean(axis=0) if has_bias else numpy.zeros(each.shape[1])
        for each in (S, residual)
    )
    S, residual = S - S_mean, residual - residual_mean
    change = _solve_ridge_regression(S, residual)
    bias = residual_mean - S_mean @ change
    return W + change.T, bias, float(numpy.linalg.norm(residual - S @ change))


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
