"""Replaces links and parameters of a model, and undoes it."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.backends.cuda import to_cpu
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.variable import Parameter


class Changes:
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


def new_update_rule(rule: Any) -> Any:
    """Returns a new parameter's update rule, modelled on another's."""
    if rule is None:
        return None
    new = type(rule)(rule.hyperparam.parent)
    new.enabled = rule.enabled
    new.use_fp32_update(rule._use_fp32_update)
    return new
