"""Replaces links of a model, and undoes it after an error."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import chainer
from chainer.link import Link

# What an ordinary layer has no use for.
_OF_SHARED_LINEAR = ('common_num', '_order')


class Changes:
    """Changes to a model, which an error in a ``with`` statement undoes.

    They replace links and parameters, and leave those that were there as they
    are, because another model may hold them too.
    """

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
        """Replaces a link by one with another W and perhaps another bias."""
        if old.b is not None and new.b is not None:
            new.b.array = new.b.array.astype(old.b.dtype, copy=False)
        new.to_device(old.device)
        new.name = old.name
        self._restart(path + '/W', new.W, old.W.update_rule)
        if new.b is not None and old.b is None:
            _follow(new.b, new.W.update_rule)
        elif new.b is not old.b and new.b is not None:
            self._restart(path + '/b', new.b, old.b.update_rule)
        for name, value in vars(old).items():
            # What has been added to the link.
            if name not in vars(new) and name not in _OF_SHARED_LINEAR:
                vars(new)[name] = value
                if name in old._params:
                    new._params.add(name)
                elif name in old._persistent:
                    new._persistent.add(name)
        self._undo.callback(_put, self.model, new, old)
        _put(self.model, old, new)

    def _restart(self, path: str, param: Any, rule: Any) -> None:
        """Gives a parameter a copy of an update rule without its state."""
        if rule is None:
            return
        if rule.state:
            self.restarted.append(path)
        rule = copy.copy(rule)
        rule._state = None
        rule._fp32_param = None
        rule.t = 0
        param.update_rule = rule


def keep_bias(old: Any, new: Any) -> None:
    """Gives a link the bias of another one, if that has one."""
    if old.b is not None:
        with new.init_scope():
            new.b = old.b


def _follow(param: Any, rule: Any) -> None:
    """Gives a new parameter an update rule of the same kind."""
    if rule is not None:
        param.update_rule = type(rule)(rule.hyperparam.parent)
        param.update_rule.enabled = rule.enabled
        param.update_rule.use_fp32_update(rule._use_fp32_update)


def _put(model: Link, old: Link, new: Link) -> None:
    """Puts a link in the place of another one in its chain."""
    for parent in list(model.links()):
        if isinstance(parent, chainer.Chain):
            for name in parent._children:
                if getattr(parent, name) is old:
                    setattr(parent, name, new)
        elif isinstance(parent, chainer.ChainList):
            _replace_in(parent._children, old, new)
            # Setting a layer of a Sequential might renumber the others.
            if isinstance(parent, chainer.Sequential):
                _replace_in(parent._layers, old, new)


def _replace_in(links: list[Any], old: Link, new: Link) -> None:
    links[:] = [new if each is old else each for each in links]
