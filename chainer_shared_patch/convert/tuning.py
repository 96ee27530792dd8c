"""Trains the shared layers of a model to give the outputs that it gave."""

from __future__ import annotations

from typing import Any

from chainer_shared_patch.convert.calibrate import (
    Batches,
    find_arrays,
    reset_states,
)
from chainer_shared_patch.trial import trial
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.optimizers import Adam
from chainer.variable import Parameter, Variable
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
        if len(batch) == 1 and getattr(batch[0], 'ndim', 0):
            number = -(-len(batch[0]) // _BATCH_SIZE) or 1
        # Each has examples from everywhere, in case that they are sorted.
        smaller += [
            tuple(x[first::number] for x in batch) if number > 1 else batch
            for first in range(number)
        ]
    return smaller


def tune(
    model: Link,
    paths: list[str],
    batches: Batches,
    outputs: list[Any],
    steps: int,
) -> None:
    """Trains shared layers, in place, to give the outputs of the model."""
    params = _find_params(model, paths)
    optimizer = Adam()
    rules = [optimizer.create_update_rule() for _ in params]
    for rule in rules:
        rule.use_fp32_update()
    targets = [list(_find_floats(each)) for each in outputs]
    with tqdm(
        total=steps, desc='tune', leave=False, disable=None
    ) as progress:
        for first in range(0, steps, len(batches)):
            # From the same states as when it gave its outputs.
            with trial(model, same_arrays=True) as copied:
                reset_states(copied)
                copies = _find_params(copied, paths)
                for step, batch, target in zip(
                    range(first, steps), batches, targets
                ):
                    optimizer.alpha = _ALPHA * (1 - step / steps)
                    grads = _differentiate(copied, batch, target, copies)
                    for rule, param, grad in zip(rules, copies, grads):
                        if grad is not None:
                            param.grad_var = grad
                            rule.update(param)
                    progress.update()
                for param, copy in zip(params, copies):
                    param.array = copy.array  # another one if it is float16


def _find_params(model: Link, paths: list[str]) -> list[Parameter]:
    links: dict[str, Any] = dict(model.namedlinks())
    params = [(links[path].W, links[path].b) for path in paths]
    return [each for pair in params for each in pair if each is not None]


def _find_floats(outputs: Any) -> list[Variable]:
    return [
        chainer.as_variable(each)
        for each in find_arrays(outputs)
        if each.dtype.kind == 'f'
    ]


def _differentiate(
    model: Link, batch: Any, targets: list[Variable], params: list[Parameter]
) -> list[Any]:
    """Returns the gradients of the squared errors, relative to the squares."""
    with chainer.using_config('enable_backprop', True):
        ys = _find_floats(model(*batch))
        errors = []
        for y, target in zip(ys, targets):
            error = y.array - target.array
            size = float((target.array.astype('f') ** 2).mean()) or 1.0
            errors.append(chainer.Variable(error / size))
        grads: list[Any] = chainer.grad(ys, params, errors)
    for y in ys:
        y.unchain_backward()
    return grads
