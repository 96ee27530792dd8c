"""Installs and uninstalls the patch: the one place that assigns to Chainer.

Nothing changes on disk. :func:`install` puts functions in the place of four
methods of Chainer's ``LinearFunction`` and of one of its ``Linear``, and
:func:`uninstall` puts the very same methods back. A graph that was built
under the patch stays right after it is gone, and one that was built before it
is not touched by it.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
import os
import threading
from typing import Any, NamedTuple, Optional
import warnings

from chainer_shared_patch import config, functions, links
import chainer
from chainer.functions.connection.linear import LinearFunction
from chainer.links import Linear
from chainer_shared_patch.functions import Method


class _Replacement(NamedTuple):
    owner: Any
    name: str
    original: Optional[Method]  # None if the owner inherits it
    ours: Method

    @property
    def current(self) -> Optional[Method]:
        return vars(self.owner).get(self.name)


class _State:
    """What is installed, and who wants it so."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.replacements: list[_Replacement] = []
        self.is_wanted = False  # by install
        self.users = 0  # calls of patched that have not ended, in all threads
        # A fork while another thread holds the lock must not lock the child.
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(
                before=self.lock.acquire,
                after_in_parent=self.lock.release,
                after_in_child=self.lock.release,
            )


# Reloading this module must not lose the methods that were replaced.
_state: _State = globals().get('_state') or _State()


def install() -> None:
    """Installs the patch in ``LinearFunction``, for all threads.

    Importing the package has done this already, unless the environment
    variable ``CHAINER_SHARED_PATCH`` is 0. Installing twice is the same as
    once.

    .. seealso:: :func:`patched` for a ``with`` statement.
    """
    with _state.lock:
        _state.is_wanted = True
        _put_in()


def uninstall() -> None:
    """Puts ``LinearFunction``'s own methods back, for all threads.

    While a ``with`` statement of :func:`patched` runs in any thread, it holds
    the patch, which then goes when the last of them ends. Uninstalling what
    is not installed does nothing.

    Raises:
        RuntimeError: If somebody else has replaced one of the methods since.
            Nothing is changed then.

    """
    with _state.lock:
        if not _state.users:
            _take_out()
        _state.is_wanted = False


def is_installed() -> bool:
    """Returns whether the patch is installed."""
    with _state.lock:
        return bool(_state.replacements) and all(
            each.current is not each.original for each in _state.replacements
        )


@contextlib.contextmanager
def patched(
    common_num: Optional[int] = None, shared_algorithm: Optional[str] = None
) -> Iterator[None]:
    """Installs the patch for the body of a ``with`` statement.

    The patch is there for all threads while the body runs, whatever other
    threads install and uninstall, and afterwards only if it was before. The
    configuration is that of the current thread.

    Args:
        common_num (int): The number of input blocks that share a weight. If
            ``None``, ``chainer.config.common_num`` stays.
        shared_algorithm (str): ``'sum'`` or ``'tile'``. If ``None``,
            ``chainer.config.shared_algorithm`` stays.

    Raises:
        ValueError: If an argument makes no sense.
        RuntimeError: If the patch has to be taken out at the end and cannot
            be; see :func:`uninstall`. If the body has raised an error, that
            one goes on, and this one becomes a warning.

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
                common_num, 'common_num of patched'
            )
            stack.enter_context(chainer.using_config('common_num', number))
        if shared_algorithm is not None:
            name = config.check_shared_algorithm(
                shared_algorithm, 'shared_algorithm of patched'
            )
            stack.enter_context(chainer.using_config('shared_algorithm', name))
        with _state.lock:
            _put_in()
            _state.users += 1
        stack.push(_leave)
        yield


def _leave(error_type: Any, *_: Any) -> None:
    with _state.lock:
        _state.users -= 1
        if _state.users or _state.is_wanted:
            return
        try:
            _take_out()
        except RuntimeError as error:
            if error_type is None:
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=5)


def _put_in() -> None:
    if not _state.replacements:
        for owner, factories in (
            (LinearFunction, functions.FACTORIES),
            (Linear, links.FACTORIES),
        ):
            for name, make in factories.items():
                original = vars(owner).get(name)
                ours = make(original or _make_inherited(owner, name))
                _state.replacements.append(
                    _Replacement(owner, name, original, ours)
                )
    for each in _state.replacements:
        # A method that is neither ours nor the original is somebody's who has
        # patched on top, and who calls ours.
        if each.current is each.original:
            setattr(each.owner, each.name, each.ours)


def _make_inherited(owner: Any, name: str) -> Method:
    @functools.wraps(getattr(owner, name))
    def inherited(self: Any, *args: Any) -> Any:
        # In a subclass of several classes, the next need not be a base's.
        return getattr(super(owner, self), name)(*args)

    return inherited


def _take_out() -> None:
    for each in _state.replacements:
        if each.current not in (each.original, each.ours):
            raise RuntimeError(
                'cannot uninstall chainer_shared_patch: {}.{} has since been '
                'replaced by {!r}, which has to be undone first'.format(
                    each.owner.__name__, each.name, each.current
                )
            )
    for each in _state.replacements:
        if each.original is not None:
            setattr(each.owner, each.name, each.original)
        elif each.current is not None:
            delattr(each.owner, each.name)
    _state.replacements.clear()
