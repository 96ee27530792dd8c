"""The patch: which layers it shares, and what it replaces to do so.

Nothing changes on disk. :func:`install` replaces three methods of Chainer's
``LinearFunction`` and two of its ``Linear``, and :func:`uninstall` puts the
very same methods back. A graph that was built under the patch stays valid once
the patch is gone, and one that was built before is not affected by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import functools
import os
import sys
import threading
import types
from typing import Any, NamedTuple, SupportsIndex
import warnings

from chainer_shared_patch import config, loading
from chainer_shared_patch.functions import (
    SharedLinearFunction,
    compare_widths,
)
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.functions.connection.linear import LinearFunction
from chainer.links import Linear
from chainer.utils import type_check

Method = Callable[..., Any]


def is_shared(x: Any, W: Any) -> bool:
    """Tells whether the patch shares a layer of these arrays, or types.

    With ``common_num`` set, it takes charge of all layers whose ``W`` is not
    as wide as ``x``, and refuses those that do not fit.
    """
    x_shape, W_shape = _shapes(x, W)
    return (
        x_shape[1:] != W_shape[1:]
        and len(x_shape) == len(W_shape) == 2  # others are Chainer's to refuse
        and config.get_common_num() > 1
    )


def _shapes(x: Any, W: Any) -> tuple[Any, Any]:
    if isinstance(x.shape, type_check.Expr):
        return x.shape.eval(), W.shape.eval()
    return x.shape, W.shape


def _make_shared(node: Any) -> None:
    node.__class__ = SharedLinearFunction
    node.__init__(config.get_common_num(), config.get_shared_algorithm())


def _sharing(original: Method, name: str) -> Method:
    """Makes the method that first asks whether the layer is shared."""

    @functools.wraps(original)
    def method(self: Any, inputs: Any) -> Any:
        # A subclass of LinearFunction may compute something else.
        if type(self) is LinearFunction and is_shared(*inputs[:2]):
            _make_shared(self)
            return getattr(self, name)(inputs)
        return original(self, inputs)

    return method


def _comparing_widths(original: Method, name: str) -> Method:
    """Makes the check that says that ``common_num`` may not be set."""
    check = _sharing(original, name)

    @functools.wraps(original)
    def check_type_forward(self: Any, in_types: Any) -> Any:
        try:
            return check(self, in_types)
        except type_check.InvalidType as error:
            how = compare_widths(*_shapes(*in_types[:2]))
            if type(self) is not LinearFunction or not how:
                raise
            raise type_check.InvalidType(
                error.expect, f'{error.actual} ({how}; common_num is 1)'
            ) from None

    return check_type_forward


def _checking(original: Method, name: str) -> Method:
    """Makes the method that checks what is loaded into a ``Linear``."""

    @functools.wraps(original)
    def serialize(self: Linear, serializer: Any) -> None:
        if isinstance(serializer, chainer.Deserializer):
            loading.load_linear(self, serializer, original)
        else:
            original(self, serializer)

    return serialize


def _refusing_orders(original: Method, name: str) -> Method:
    """Makes the method that copies no parameters of another order."""

    @functools.wraps(original)
    def copyparams(self: Linear, link: Any, *args: Any, **kwargs: Any) -> None:
        if (
            isinstance(link, SharedLinear)
            and link.order is not None
            and not isinstance(self, SharedLinear)
        ):
            raise ValueError(
                f'copyparams(): cannot copy the parameters of {link} to '
                f'{self}, which has no order: copy them to a SharedLinear'
            )
        original(self, link, *args, **kwargs)

    return copyparams


def _inherited(name: str) -> Method:
    @functools.wraps(getattr(Linear, name))
    def method(self: Linear, *args: Any, **kwargs: Any) -> Any:
        # With multiple inheritance, the next method may be a sibling's.
        return getattr(super(Linear, self), name)(*args, **kwargs)

    return method


class _Replacement(NamedTuple):
    owner: Any
    name: str
    original: Method | None  # None if the owner inherits it
    ours: Method

    @property
    def current(self) -> Any:
        return vars(self.owner).get(self.name)

    def is_undone(self) -> bool:
        """Tells whether other code has put an older method back.

        That is the original, or Chainer's own if the original was a patch too.
        """
        current = self.current
        return (
            current is self.original
            or current is None
            # A proxy of Chainer's own is none of these.
            or (
                type(current) is types.FunctionType
                and current.__globals__
                is vars(sys.modules[self.owner.__module__])
            )
        )


class _State:
    """What is installed, and for whom."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.replacements: list[_Replacement] = []
        self.is_wanted = False  # by install
        self.users = 0  # calls of patched that have not ended, in all threads
        # A child forked while another thread holds the lock must not hang.
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(
                before=self.lock.acquire,
                after_in_parent=self.lock.release,
                after_in_child=self.lock.release,
            )

    def put_in(self) -> None:
        kept = [each for each in self.replacements if not each.is_undone()]
        replaced = {(each.owner, each.name) for each in kept}
        for owner, name, make in (
            (LinearFunction, 'forward_chainerx', _sharing),
            (LinearFunction, 'forward', _sharing),
            (LinearFunction, 'check_type_forward', _comparing_widths),
            (Linear, 'serialize', _checking),
            (Linear, 'copyparams', _refusing_orders),
        ):
            if (owner, name) not in replaced:
                original = vars(owner).get(name)
                ours = make(original or _inherited(name), name)
                setattr(owner, name, ours)
                kept.append(_Replacement(owner, name, original, ours))
        self.replacements = kept

    def take_out(self) -> None:
        standing = [each for each in self.replacements if not each.is_undone()]
        for each in standing:
            if each.current is not each.ours:
                raise RuntimeError(
                    'cannot uninstall the patch: '
                    f'{each.owner.__name__}.{each.name} has since been '
                    f'replaced by {each.current!r}; undo that first'
                )
        for each in standing:
            if each.original is None:
                delattr(each.owner, each.name)
            else:
                setattr(each.owner, each.name, each.original)
        self.replacements = []


_state = _State()


def install() -> None:
    """Installs the patch, for all threads.

    From then on, Chainer's linear layers whose weight is
    ``chainer.config.common_num`` times narrower than their input share it
    among the blocks of the input.

    Importing the plugin installs the patch, unless the environment variable
    ``CHAINER_SHARED_PATCH`` is 0. Installing it twice is the same as once.

    .. seealso:: :func:`patched` for a ``with`` statement.

    """
    with _state.lock:
        _state.is_wanted = True
        _state.put_in()


def uninstall() -> None:
    """Uninstalls the patch, for all threads.

    While the body of a :func:`patched` statement runs in any thread, the patch
    stays. It is then taken out when the last of them ends. If the patch is not
    installed, nothing happens.

    Raises:
        RuntimeError: If other code has since replaced one of the methods.
            Then nothing is changed.

    """
    with _state.lock:
        if not _state.users:
            _state.take_out()
        _state.is_wanted = False


def is_installed() -> bool:
    """Returns whether the patch is installed in this process."""
    with _state.lock:
        return bool(_state.replacements) and not any(
            each.is_undone() for each in _state.replacements
        )


@contextlib.contextmanager
def patched(
    common_num: SupportsIndex | None = None,
    shared_algorithm: config.Algorithm | None = None,
) -> Iterator[None]:
    """Installs the patch for the body of a ``with`` statement.

    While the body runs, the patch is there for all threads, whatever they
    install and uninstall. Once the last such body ends, the patch stays only
    if :func:`install` has been called, and not :func:`uninstall` since. The
    two settings hold for the current thread only.

    Args:
        common_num (int): The number of input blocks that share a weight. If
            ``None``, ``chainer.config.common_num`` stays as it is.
        shared_algorithm (str): ``'sum'`` or ``'tile'``. If ``None``,
            ``chainer.config.shared_algorithm`` stays as it is.

    Returns:
        context manager: It can also decorate a function.

    Raises:
        ValueError: If ``common_num`` is not an integer of at least 1, or
            ``shared_algorithm`` is neither ``'sum'`` nor ``'tile'``.
        RuntimeError: If at the end the patch cannot be taken out; see
            :func:`uninstall`. If the body itself has raised an error, that
            error is passed on, and this one becomes a ``RuntimeWarning``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch import patched
        >>> import chainer.functions as F
        >>> x = np.ones((2, 20), np.float32)
        >>> W = np.ones((3, 2), np.float32)
        >>> with patched(common_num=10):
        ...     y = F.linear(x, W)
        >>> y.shape
        (2, 3)

    """
    with contextlib.ExitStack() as stack:
        if common_num is not None:
            number = config.check_common_num(
                common_num, 'patched(): common_num'
            )
            stack.enter_context(chainer.using_config('common_num', number))
        if shared_algorithm is not None:
            algorithm = config.check_shared_algorithm(
                shared_algorithm, 'patched(): shared_algorithm'
            )
            stack.enter_context(
                chainer.using_config('shared_algorithm', algorithm)
            )
        with _state.lock:
            _state.put_in()
            _state.users += 1
        stack.push(_leave)
        yield


def _leave(error_type: Any, *_: Any) -> None:
    with _state.lock:
        _state.users -= 1
        if _state.users or _state.is_wanted:
            return
        try:
            _state.take_out()
        except RuntimeError as error:
            if error_type is None:
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=5)
