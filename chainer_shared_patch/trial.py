"""Runs a copy of a model, so that the model stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import copy
import random
from typing import Any

import chainer
from chainer.backends import cuda
from chainer.link import Link
import numpy


@contextlib.contextmanager
def trial(model: Link, *, same_arrays: bool) -> Iterator[Link]:
    """Yields a copy to run in test mode, from the same random state each time.

    The copy's parameters have the same arrays, or else copies of them.
    """
    copied = _copy(model, same_arrays)
    reporter = chainer.Reporter()
    reporter.add_observers('', copied.namedlinks())
    with contextlib.ExitStack() as stack:
        _keep_random_states(stack, model)
        stack.enter_context(reporter)
        stack.enter_context(chainer.no_backprop_mode())
        # A static graph would not call the links and their hooks.
        for setting in ('train', 'use_static_graph'):
            stack.enter_context(chainer.using_config(setting, False))
        yield copied


def _copy(model: Link, same_arrays: bool) -> Link:
    # Unlike deepcopy, this can copy a Sequential of lambdas.
    held: list[Any] = []
    for param in model.params():
        held += [param._grad, param.update_rule]
        if same_arrays:
            held.append(param.array)
    memo: dict[int, Any] = {id(each): each for each in held}
    links = {id(link): link for link in model.links()}
    for key, link in links.items():
        memo[key] = object.__new__(type(link))
    for key, link in links.items():
        for name, value in vars(link).items():
            # CuPy copies to the current device.
            with chainer.using_device(link.device):
                with contextlib.suppress(Exception):  # a lock or a file, say
                    value = copy.deepcopy(value, memo)
            vars(memo[key])[name] = value
    copied: Link = memo[id(model)]
    return copied


def _keep_random_states(stack: contextlib.ExitStack, model: Link) -> None:
    """Restores Python's, NumPy's and CuPy's random states at the end."""
    stack.callback(random.setstate, random.getstate())
    stack.callback(numpy.random.set_state, numpy.random.get_state())
    for device in {link.device for link in model.links()}:
        if isinstance(device, chainer.backend.GpuDevice):
            # A state of CuPy's cannot be copied, only be put aside.
            generator = cuda.cupy.random
            with chainer.using_device(device):
                state = generator.get_random_state()
                generator.set_random_state(generator.RandomState(0))
            stack.callback(_set_on, device, generator.set_random_state, state)


def _set_on(device: Any, setter: Any, state: Any) -> None:
    with chainer.using_device(device):
        setter(state)
