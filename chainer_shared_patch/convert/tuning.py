"""Trains the shared layers of a model to give the outputs that it gave."""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any

from chainer_shared_patch.convert.calibrate import (
    Batches,
    find_floats,
    reset_states,
    run,
)
from chainer_shared_patch.convert.choose import hint_at_predictor
from chainer_shared_patch.trial import trial
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.optimizers import Adam
import numpy
from tqdm import tqdm

_BATCH_SIZE = 100
_ALPHA = 0.001


def split_batches(model: Link, batches: Batches) -> Batches:
    """Cuts batches that are single arrays into smaller ones to train with."""
    # A batch of a recurrent model may be a point in time.
    if any(hasattr(link, 'reset_state') for link in model.links()):
        return batches
    smaller: Batches = []
    for batch in batches:
        number = 1
        if len(batch) == 1 and getattr(batch[0], 'ndim', False):
            number = -(-len(batch[0]) // _BATCH_SIZE) or 1
        # Each has examples from everywhere, in case they are sorted.
        smaller += [
            (batch[0][first::number],) if number > 1 else batch
            for first in range(number)
        ]
    return smaller


def tune(
    model: Link,
    paths: list[str],
    batches: Batches,
    outputs: list[Any],
    steps: int,
) -> tuple[float, float]:
    """Trains layers, in place, so that the model gives these outputs.

    It returns the relative error of the outputs before and after. If that
    were larger, as where weights are small for Adam's steps, they stay.
    """
    params = _find_params(model, paths)
    untuned = {path: param.array.copy() for path, param in params.items()}
    targets = list(map(find_floats, outputs))
    optimizer = Adam()
    rules: dict[str, Any] = {
        path: optimizer.create_update_rule() for path in params
    }
    for rule in rules.values():
        rule.use_fp32_update()
    before = _measure_error(model, batches, targets)
    with tqdm(total=steps, desc='tune', leave=False, disable=None) as progress:
        for first in range(0, steps, len(batches)):
            # From the same states as when it gave its outputs.
            with trial(model, same_arrays=True) as copied:
                reset_states(copied)
                copies = _find_params(copied, paths)
                for step, batch, target in zip(
                    range(first, steps), batches, targets
                ):
                    optimizer.alpha = _ALPHA * (1 - step / steps)
                    grads = _differentiate(
                        copied, batch, target, list(copies.values())
                    )
                    for (path, param), grad in zip(copies.items(), grads):
                        if grad is not None:
                            param.grad_var = grad
                            rules[path].update(param)
                    progress.update()
            for path, param in copies.items():
                params[path].array = param.array  # a new one in float16
    if not any(rule.t for rule in rules.values()):
        raise ValueError(
            'share(): tune_steps has no effect, because the model returns no '
            'float variables, other than scalars, that depend on the shared '
            f'layers{hint_at_predictor(model)}'
        )
    for path, param in params.items():
        if not numpy.isfinite(to_cpu(param.array)).all():
            raise ValueError(
                f'share(): tune_steps makes elements of {path} NaN or '
                'infinity, as outputs that are not finite do'
            )
    after = _measure_error(model, batches, targets)
    if after > before:
        for path, param in params.items():
            param.array = untuned[path]
        after = before
    return before, after


def _find_params(model: Link, paths: list[str]) -> dict[str, Any]:
    links: dict[str, Any] = dict(model.namedlinks())
    return {
        f'{path}/{param.name}': param
        for path in paths
        for param in (links[path].W, links[path].b)
        if param is not None
    }


def _compare(
    outputs: Any, targets: list[Any]
) -> Iterator[tuple[Any, Any, float]]:
    """Yields each output, its gradient and the mean squared error.

    Both are relative to the mean square of the target.
    """
    for y, target in zip(find_floats(outputs), targets):
        with chainer.using_device(y.device):
            error = y.array - target.array
            size = _mean_square(target.array) or 1.0
            gy = chainer.Variable(error / size)
            square = _mean_square(error) / size
        yield y, gy, square


def _mean_square(array: Any) -> float:
    return float((array.astype('d') ** 2).mean())


def _measure_error(
    model: Link, batches: Batches, targets: list[list[Any]]
) -> float:
    squares = [
        square
        for outputs, each in zip(run(model, batches, {}), targets)
        for _, _, square in _compare(outputs, each)
    ]
    return math.sqrt(sum(squares) / max(1, len(squares)))


def _differentiate(
    model: Link, batch: Any, targets: list[Any], params: list[Any]
) -> list[Any]:
    with chainer.using_config('enable_backprop', True):
        compared = list(_compare(model(*batch), targets))
        ys, gys = [y for y, _, _ in compared], [gy for _, gy, _ in compared]
        grads: list[Any] = chainer.grad(ys, params, gys)
    for y in ys:
        y.unchain_backward()  # a recurrent link may hold it
    return grads
