"""Plans how many blocks share a weight in each layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import math
from numbers import Real
from typing import Any, NamedTuple, SupportsIndex

from chainer_shared_patch.blocks import count_orders
from chainer_shared_patch.config import check_model
from chainer_shared_patch.convert import make_shared, share
from chainer_shared_patch.convert.calibrate import (
    Calibration,
    check_inputs,
    find_floats,
    reset_states,
    run,
)
from chainer_shared_patch.convert.choose import (
    Layer,
    check_replaceable,
    choose_layers,
    hint_at_predictor,
)
from chainer_shared_patch.convert.replace import Changes
from chainer_shared_patch.convert.report import tabulate_layers
from chainer_shared_patch.functions import VariableOrArray
from chainer_shared_patch.links import SharedLinear
from chainer_shared_patch.trial import trial
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
import numpy
from tqdm import tqdm

# The numbers of blocks to measure first, or those nearest to them. From 50 on,
# a layer has more orders by default, and loses less. Measured there, a loss at
# smaller numbers is underestimated if anything, and then it gets measured.
_FIRST = 4, 64
# What a loss is taken for if it is zero or not finite.
_LEAST_LOSS, _GREATEST_LOSS = 1e-30, 1e30
# More than the logarithm of any number of blocks.
_FAR = 50.0


class PlannedLayer(NamedTuple):
    """What :func:`plan` intends for a layer.

    Attributes:
        path (str): The layer's path in the model.
        common_num (int): The number of blocks that are to share its weight, or
            1 if it is to stay as it is.
        orders (int): The number of orders of its inputs.
        parameters (int): The number of elements of its parameters then.
        loss (float): The loss if only this layer is shared.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import plan
        >>> import numpy as np
        >>> model = chainer.Sequential(L.Linear(20, 5))
        >>> x = np.random.rand(50, 20).astype(np.float32)
        >>> (layer,) = plan(model, x, max_parameters=20).layers
        >>> layer.path, layer.common_num, layer.parameters
        ('/0', 10, 15)

    """

    path: str
    common_num: int
    orders: int
    parameters: int
    loss: float


class Plan(NamedTuple):
    """What :func:`plan` returns. It prints as a table.

    Attributes:
        layers (tuple of PlannedLayer): The layers, in the order in which they
            run.
        parameters (int): The number of elements of all parameters of the
            shared model.
        dense_parameters (int): The same for the model as it is.
        loss (float): The loss of the shared model, as measured.
        score (float): What ``evaluate`` returned for the shared model, or
            ``None``.
        dense_score (float): The same for the model as it is.
        front (tuple): Pairs of the parameters and the expected loss of each
            plan that is better than all smaller ones, from the smallest to
            the model as it is.
        passed_over (tuple of str): The paths of the linear layers that cannot
            be shared, or that the inputs do not reach.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import plan
        >>> import numpy as np
        >>> model = chainer.Sequential(
        ...     L.Linear(20, 30), L.Linear(30, 4))
        >>> x = np.random.rand(50, 20).astype(np.float32)
        >>> result = plan(model, x, max_loss=0)
        >>> result.common_num, result.orders, result.loss
        ({}, {}, 0.0)
        >>> result.front[0]  # doctest: +ELLIPSIS
        (68, ...)

    """

    layers: tuple[PlannedLayer, ...]
    parameters: int
    dense_parameters: int
    loss: float
    score: float | None
    dense_score: float | None
    front: tuple[tuple[int, float], ...]
    passed_over: tuple[str, ...]

    @property
    def common_num(self) -> dict[str, int]:
        """The number of blocks of each layer to share, for :func:`share`."""
        return {
            layer.path: layer.common_num
            for layer in self.layers
            if layer.common_num > 1
        }

    @property
    def orders(self) -> dict[str, int]:
        """The number of orders of each layer to share, for :func:`share`."""
        return {
            layer.path: layer.orders
            for layer in self.layers
            if layer.common_num > 1
        }

    @property
    def expected_loss(self) -> float:
        """The sum of the layers' losses."""
        return sum(layer.loss for layer in self.layers)

    def __repr__(self) -> str:
        return '\n'.join([self._tabulate('simple'), *self._make_notes()])

    def _repr_html_(self) -> str:
        notes = (f'<p>{note}</p>' for note in self._make_notes())
        return '\n'.join([self._tabulate('html'), *notes])

    def _tabulate(self, style: str) -> str:
        columns: dict[str, list[Any]] = {
            'layer': [layer.path for layer in self.layers],
            'common_num': [layer.common_num for layer in self.layers],
            'orders': [layer.orders for layer in self.layers],
            'parameters': [f'{layer.parameters:,}' for layer in self.layers],
            'expected loss': [f'{layer.loss:.2g}' for layer in self.layers],
        }
        return tabulate_layers(columns, style)

    def _make_notes(self) -> list[str]:
        notes = [
            f'The model: {self.parameters:,} of {self.dense_parameters:,} '
            f'parameters; loss {self.loss:.2g}, expected '
            f'{self.expected_loss:.2g}.'
        ]
        if self.score is not None:
            notes.append(
                f'Its score: {self.score:.6g}; as it is: '
                f'{self.dense_score:.6g}.'
            )
        if self.passed_over:
            notes.append(f'Not shared: {", ".join(self.passed_over)}.')
        return notes

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss against the number of parameters with matplotlib.

        Args:
            ax (object): The matplotlib axes to draw in; by default, those of a
                new figure.

        Returns:
            object: The axes, with the expected loss of all plans as a line,
            and the measured loss of this one as a point.

        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.figure().add_subplot()
        # The model as it is comes last. Its loss, 0, has no logarithm.
        sizes, losses = numpy.reshape(self.front[:-1], (-1, 2)).T
        (line,) = ax.loglog(sizes, losses, label='expected')
        ax.loglog(
            self.parameters,
            self.loss,
            'o',
            color=line.get_color(),
            label='this plan, measured',
        )
        ax.set_xlabel('parameters of the model')
        ax.set_ylabel('relative squared error of its outputs')
        ax.legend()
        return ax


@contextlib.contextmanager
def _naming_plan() -> Iterator[None]:
    """Lets the errors of checks that share makes too name what was called."""
    try:
        yield
    except (TypeError, ValueError) as error:
        call, _, message = str(error).partition(': ')
        if call != 'share()':
            raise
        raise type(error)(f'plan(): {message}') from error.__cause__


@_naming_plan()
def plan(
    model: Link,
    inputs: VariableOrArray | Iterable[Any],
    *,
    max_parameters: float | None = None,
    max_loss: float | None = None,
    orders: SupportsIndex | Mapping[Any, SupportsIndex | None] | None = None,
    evaluate: Callable[[Any], float] | None = None,
) -> Plan:
    """Plans how many blocks share in which layer of a trained model.

    Some layers can be shared more than others. Within a number of parameters,
    or a loss, ``plan`` chooses a ``common_num`` for each
    ``chainer.links.Linear``, for :func:`share`. The model stays as it is.

    The loss is the squared error of the model's outputs for calibration
    inputs, relative to their squares: with :math:`y` before and
    :math:`\\hat y` once it is shared,

    .. math::
        \\sum \\left\\|\\hat y - y\\right\\|^2 \\, / \\,
        \\sum \\left\\|y\\right\\|^2.

    It is measured with one layer shared at a time, each with a few numbers of
    blocks; between these, it is taken for a power of the number. Supposing
    that the losses of the layers add up, the best plan for every number of
    parameters is the solution of a knapsack problem, which is solved exactly
    (Nemhauser and Ullmann, "Discrete dynamic programming and capital
    allocation", 1969). Whatever a plan needs is then measured, until the best
    one is all measured. In the end a copy of the model is shared as planned,
    and its loss is measured too. It is often smaller than expected, because a
    layer that is refitted makes up for some of the errors of those before.

    Args:
        model (chainer.Link): The model, a chain. It should return its outputs
            rather than a training loss: of a ``chainer.links.Classifier``,
            pass the predictor.
        inputs (array or iterable): Batches of calibration inputs, as for
            :func:`share`.
        max_parameters (float): The most elements that all parameters of the
            model together may have. Of the plans within it, the one with the
            smallest expected loss is chosen.
        max_loss (float): The most that the shared model may lose, as measured.
            The smallest plan within it is looked for by bisection, as if the
            loss fell with the number of parameters, until the next smaller
            plan is less than 5 % smaller. Each step shares a copy of the
            model. With ``evaluate``, it is the most that the score may fall.
            Either this or ``max_parameters`` must be given.
        orders (int or dict): The number of orders, as for :func:`share`. To
            ``fold`` the orders of the plan, let this be 1.
        evaluate (callable): A function that returns the score of a model, such
            as its accuracy on a validation set; more is better. It is called
            with copies of the model in test mode. With ``max_parameters``,
            the score is only reported.

    Returns:
        Plan: What to pass to :func:`share`, and what it loses. It prints as a
        table.

    Raises:
        TypeError: If the model is not a link, ``inputs`` is not an iterable
            or a limit is not a number.
        ValueError: If not exactly one of ``max_parameters`` and ``max_loss``
            is given; if even the smallest plan has more parameters; if
            ``max_loss`` is negative; if a parameter has no value yet; if the
            model returns no arrays of floats, or some that are not finite; if
            ``evaluate`` does not return a finite number; or if :func:`share`
            would raise it.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> import chainer
        >>> import chainer.functions as F
        >>> import chainer.links as L
        >>> import numpy as np
        >>> model = chainer.Sequential(
        ...     L.Linear(60, 100), F.relu, L.Linear(100, 10))
        >>> x = np.random.rand(200, 60).astype(np.float32)
        >>> plan = chainer_shared_patch.plan(model, x, max_parameters=2000)
        >>> plan.parameters <= 2000 < plan.dense_parameters
        True
        >>> report = chainer_shared_patch.share(
        ...     model, plan.common_num, inputs=x, orders=plan.orders)

    """
    check_model('plan', model)
    _check_limits(max_parameters, max_loss)
    layers, passed_over = _choose_layers(model, orders)
    # On a terminal only.
    with tqdm(desc='plan', leave=False, disable=None) as progress:
        planner = _Planner(model, layers, inputs, evaluate, progress)
        least = planner.least_size
        if max_parameters is not None and not max_parameters >= least:
            raise ValueError(
                f'plan(): max_parameters is {max_parameters!r}, but the '
                f'smallest plan has {least:,} parameters'
            )
        planner.measure_first()
        if max_loss is None:
            numbers, converted = planner.meet_size(max_parameters)
        else:
            numbers, converted = planner.meet_loss(max_loss)
    front = planner.find_front()
    rows = tuple(
        PlannedLayer(
            curve.layer.path,
            n,
            count_orders(curve.orders.get(n)),
            curve.sizes[curve.numbers.index(n)],
            curve.losses[n],
        )
        for curve, n in zip(planner.curves, numbers)
    )
    return Plan(
        rows,
        planner.other_size + sum(row.parameters for row in rows),
        int(front.sizes[-1]),
        converted.loss,
        converted.score,
        planner.dense_score,
        tuple(zip(front.sizes.tolist(), front.losses.tolist())),
        (*passed_over, *planner.unreached),
    )


def _check_limits(max_parameters: Any, max_loss: Any) -> None:
    limits = {'max_parameters': max_parameters, 'max_loss': max_loss}
    given = {name: x for name, x in limits.items() if x is not None}
    if len(given) != 1:
        raise ValueError(
            'plan(): give either max_parameters or max_loss: '
            f'{"both are" if given else "neither is"} given'
        )
    for name, limit in given.items():
        if not isinstance(limit, Real):
            raise TypeError(
                f'plan(): {name} must be a number, but is {limit!r}'
            )
    if max_loss is not None and not max_loss >= 0:
        raise ValueError(
            'plan(): max_loss must be at least 0, the loss of the model as it '
            f'is, but is {max_loss!r}'
        )


def _choose_layers(
    model: Link, orders: Any
) -> tuple[list[Layer], tuple[str, ...]]:
    """Returns the layers that can be shared, and the paths of the others."""
    widths, passed_over = {}, []
    for path, link in model.namedlinks(skipself=True):
        if not isinstance(link, Linear) or type(link) is SharedLinear:
            continue
        try:
            check_replaceable('plan', model, path, link)
        except ValueError:
            passed_over.append(path)
            continue
        if type(link) is Linear:
            # Any number that divides the width will do: curves have their
            # own. Without a weight, choose_layers refuses the layer.
            has_weight = link.W.array is not None
            widths[path] = link.W.shape[1] if has_weight else 2
        else:
            passed_over.append(path)
    layers, _ = choose_layers(model, widths, 'grouped', orders)
    return layers, tuple(passed_over)


def _count_parameters(model: Link) -> int:
    sizes = {}
    for path, param in model.namedparams():
        if param.array is None:
            raise ValueError(
                f'plan(): {path} has no value yet: first call the model once, '
                'or load a file'
            )
        sizes[id(param)] = param.size
    return sum(sizes.values())


class _Curve:
    """What a model loses, for each number of blocks in one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        W, b = layer.link.W, layer.link.b
        in_size = W.shape[1]
        self.numbers = [n for n in range(1, in_size + 1) if in_size % n == 0]
        bias_size = 0 if b is None else b.size
        self.sizes = [W.size // n + bias_size for n in self.numbers]
        # What has been measured, and which inputs shared.
        self.losses = {1: 0.0}
        self.orders: dict[int, Any] = {}

    def choose_first(self) -> set[int]:
        """Returns the numbers to measure first."""
        numbers = self.numbers[1:]
        if len(numbers) <= 4:
            return set(numbers)
        nearest = (
            min(numbers, key=lambda n: abs(math.log(n / first)))
            for first in _FIRST
        )
        # With the last one, there is a single group.
        return {*nearest, numbers[-1]}

    def estimate(self) -> numpy.ndarray:
        """Returns the losses of all numbers, estimated where not measured."""
        known = sorted(self.losses)[1:]
        losses = [self.losses[n] for n in known]
        x = numpy.log(known)
        y = numpy.log(numpy.clip(losses, _LEAST_LOSS, _GREATEST_LOSS))
        # Straight lines, on beyond the first and the last one.
        slopes = numpy.diff(y) / numpy.diff(x)
        first, last = (
            numpy.maximum(slopes[[0, -1]], 0) if len(slopes) else (0, 0)
        )
        x = numpy.array([x[0] - _FAR, *x, x[-1] + _FAR])
        y = numpy.array([y[0] - _FAR * first, *y, y[-1] + _FAR * last])
        with numpy.errstate(over='ignore'):
            estimates = numpy.exp(numpy.interp(numpy.log(self.numbers), x, y))
        estimates = numpy.maximum(estimates, _LEAST_LOSS)
        return numpy.array(
            [self.losses.get(*pair) for pair in zip(self.numbers, estimates)]
        )


class _Front(NamedTuple):
    """The plans that lose less than all smaller ones; the last loses none."""

    sizes: numpy.ndarray
    losses: numpy.ndarray
    numbers: numpy.ndarray  # of blocks, with a row for each plan


def _find_front(curves: list[_Curve], rest: int) -> _Front:
    """Solves the knapsack problem for all sizes, as if losses added up."""
    # Layer by layer, all but the best are dropped (Nemhauser and Ullmann,
    # "Discrete dynamic programming and capital allocation", 1969).
    sizes, losses = numpy.array([rest]), numpy.zeros(1)
    numbers = numpy.empty((1, 0), int)
    for curve in curves:
        sizes = numpy.add.outer(sizes, curve.sizes).ravel()
        losses = numpy.add.outer(losses, curve.estimate()).ravel()
        by_size = numpy.lexsort((losses, sizes))
        least = numpy.minimum.accumulate(losses[by_size])
        kept = by_size[numpy.append(True, least[1:] < least[:-1])]
        sizes, losses = sizes[kept], losses[kept]
        before, last = numpy.divmod(kept, len(curve.numbers))
        numbers = numpy.column_stack(
            [numbers[before], numpy.take(curve.numbers, last)]
        )
    return _Front(sizes, losses, numbers)


class _Converted(NamedTuple):
    """What became of a model that share converted."""

    loss: float
    score: float | None


class _Planner:
    """Shares layers of copies of a model, and measures what that loses."""

    def __init__(
        self,
        model: Link,
        layers: list[Layer],
        inputs: Any,
        evaluate: Callable[[Any], float] | None,
        progress: tqdm[Any],
    ) -> None:
        self.model = model
        self.batches = check_inputs(inputs)
        if not self.batches:
            raise TypeError(
                'plan(): inputs must be an array or an iterable of batches, '
                f'but are {inputs!r}'
            )
        self.evaluate = evaluate
        self.progress = progress
        self.calibration = Calibration(model, layers, self.batches)
        self.dense_outputs = list(_find_outputs(self.calibration.outputs))
        if not self.dense_outputs:
            raise ValueError(
                'plan(): the model must return arrays of floats, but returns '
                f'{self.calibration.outputs[0]!r}{hint_at_predictor(model)}'
            )
        if not all(numpy.isfinite(y).all() for y in self.dense_outputs):
            raise ValueError(
                'plan(): with the inputs, an output of the model is not '
                'finite, so no loss can be measured'
            )
        self.dense_score = self._compute_score(model)
        reached = self.calibration.layers
        self.unreached = [each.path for each in layers if each not in reached]
        self.curves = [_Curve(layer) for layer in reached]
        self.other_size = _count_parameters(model) - sum(
            curve.sizes[0] for curve in self.curves
        )
        self.least_size = self.other_size + sum(
            curve.sizes[-1] for curve in self.curves
        )

    def measure_first(self) -> None:
        """Measures as many losses as it takes to estimate the others."""
        for curve in self.curves:
            for n in curve.choose_first():
                self._measure(curve, n)

    def find_front(self) -> _Front:
        return _find_front(self.curves, self.other_size)

    def meet_size(self, max_parameters: Any) -> tuple[list[int], _Converted]:
        """Returns the numbers of the best plan that is no larger."""
        _, numbers = self._settle(
            lambda front: front.sizes.searchsorted(max_parameters, 'right') - 1
        )
        return numbers, self._convert(numbers)

    def meet_loss(self, max_loss: Any) -> tuple[list[int], _Converted]:
        """Returns the numbers of a small plan that loses no more."""
        numbers = [1] * len(self.curves)
        converted = _Converted(0.0, self.dense_score)
        too_small, enough = 0, int(self.find_front().sizes[-1])

        def bisect(front: _Front) -> Any:
            between = front.sizes.searchsorted([too_small + 1, enough])
            return between.sum() // 2

        while enough > 1.05 * too_small:
            size, candidate = self._settle(bisect)
            if not too_small < size < enough:
                break
            attempt = self._convert(candidate)
            if self.evaluate is None:
                is_enough = attempt.loss <= max_loss
            else:
                is_enough = attempt.score >= self.dense_score - max_loss
            if is_enough:
                enough, numbers, converted = size, candidate, attempt
            else:
                too_small = size
        return numbers, converted

    def _settle(self, pick: Callable[[_Front], Any]) -> tuple[int, list[int]]:
        """Picks a plan on the front of which everything is measured.

        Returns its size and its numbers.
        """
        while True:
            front = self.find_front()
            index = pick(front)
            numbers = front.numbers[index].tolist()
            unknown = [
                (curve, n)
                for curve, n in zip(self.curves, numbers)
                if n not in curve.losses
            ]
            if not unknown:
                return front.sizes[index], numbers
            for curve, n in unknown:
                self._measure(curve, n)

    def _measure(self, curve: _Curve, common_num: int) -> None:
        """Measures the loss if only one layer is shared."""
        self.progress.set_postfix_str(f'{curve.layer.path}: {common_num}')
        layer = dataclasses.replace(curve.layer, common_num=common_num)
        shared, *_ = make_shared(self.model, layer, self.calibration)

        def change(copies: Mapping[Any, Any]) -> None:
            Changes(copies[self.model]).replace(
                layer.path, copies[layer.link], shared
            )

        self.calibration.shared_last = layer.path
        outputs = self.calibration.rerun({}, change)
        self.calibration.shared_last = ''
        loss = max(self._compute_loss(outputs), _LEAST_LOSS)
        curve.losses[common_num], curve.orders[common_num] = loss, shared.order
        self.progress.update()

    def _convert(self, numbers: list[int]) -> _Converted:
        """Shares a copy, as the user would."""
        self.progress.set_postfix_str('')
        shared = [
            (curve.layer.path, n, curve.orders[n])
            for curve, n in zip(self.curves, numbers)
            if n > 1
        ]
        with trial(self.model, same_arrays=False) as copied:
            # The inputs are grouped as they were; they would be again.
            share(
                copied,
                {path: n for path, n, _ in shared},
                inputs=self.batches,
                order={path: order for path, _, order in shared},
            )
            self.progress.update()
            return _Converted(
                self._compute_loss(run(copied, self.batches, {})),
                self._compute_score(copied),
            )

    def _compute_loss(self, outputs: Any) -> float:
        """Returns the relative squared error of the model's outputs."""
        error = norm = 0.0
        with numpy.errstate(over='ignore', invalid='ignore'):
            for y, dense in zip(_find_outputs(outputs), self.dense_outputs):
                error += float(((y - dense) ** 2).sum())
                norm += float((dense**2).sum())
        loss = error / (norm or 1)
        return loss if math.isfinite(loss) else math.inf

    def _compute_score(self, model: Link) -> float | None:
        """Returns what the user's function says of a copy of a model."""
        if self.evaluate is None:
            return None
        with trial(model, same_arrays=False) as copied:
            reset_states(copied)
            # F.accuracy, say, returns a variable.
            score = float(chainer.as_array(self.evaluate(copied)))
        if not math.isfinite(score):
            raise ValueError(
                'plan(): evaluate must return a finite number, but returned '
                f'{score}'
            )
        return score


def _find_outputs(outputs: Any) -> Iterator[numpy.ndarray]:
    return (to_cpu(y.array).astype('d') for y in find_floats(outputs))
