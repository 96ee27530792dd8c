"""Replaces links and arrays of a model, and undoes it after an error."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import chainer
from chainer.link import Link
from chainer.variable import Parameter
import numpy


class Changes:
    """Changes to a model, which an error in a ``with`` statement undoes."""

    def __init__(self, model: Link) -> None:
        self.model = model
        self.restarted: list[str] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, error_type: Any, *_: Any) -> None:
        if error_type is not None:
            self._undo.close()
            return
        self._undo.pop_all()
        for link in self.model.links():
            # What static_graph has recorded uses the old arrays.
            link.__dict__.pop('schedule_manager', None)

    def replace(self, path: str, old: Any, new: Any) -> None:
        """Replaces a link by one with another W; all else stays."""
        new.to_device(old.device)
        new.name = old.name
        self.restart(path + '/W', new.W, old.W.update_rule)
        if old.b is not None:
            with new.init_scope():
                new.b = old.b
        self._undo.callback(_put, self.model, path, old)
        _put(self.model, path, new)

    def set_array(self, param: Any, array: Any) -> None:
        """Gives a parameter another array of the same shape."""
        self._undo.callback(setattr, param, 'grad', param.grad)
        self._undo.callback(setattr, param, 'array', param.array)
        param.cleargrad()
        param.array = param.device.send(array.astype(param.dtype))

    def restart(self, path: str, param: Any, rule: Any) -> None:
        """Gives a parameter a copy of an update rule without its state."""
        if rule is None:
            return
        if rule.state:
            self.restarted.append(path)
        self._undo.callback(setattr, param, 'update_rule', param.update_rule)
        rule = copy.copy(rule)
        rule._state = None
        rule._fp32_param = None
        rule.t = 0
        param.update_rule = rule


def attach_bias(link: Any) -> None:
    """Adds a bias of zeros, with an update rule of the kind that W has."""
    with link.init_scope():
        link.b = Parameter(numpy.zeros(link.out_size, link.W.dtype))
    link.b.to_device(link.device)
    rule = link.W.update_rule
    if rule is not None:
        link.b.update_rule = type(rule)(rule.hyperparam.parent)
        link.b.update_rule.enabled = rule.enabled
        link.b.update_rule.use_fp32_update(rule._use_fp32_update)


def _put(model: Link, path: str, new: Link) -> None:
    """Puts a link in the place of another one in its chain."""
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
