"""Installs and uninstalls the patch.

Nothing changes on disk. :func:`install` replaces four methods of Chainer's
``LinearFunction`` and one of its ``Linear``, and :func:`uninstall` puts the
very same methods back. A graph that was built under the patch stays valid once
the patch is gone, and one that was built before is not affected by it.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
import os
import threading
from typing import Any, NamedTuple, SupportsIndex
import warnings

from chainer_shared_patch import config, functions, links
from chainer_shared_patch.functions import Method
import chainer
from chainer.functions.connection.linear import LinearFunction
from chainer.links import Linear


class _Replacement(NamedTuple):
    owner: Any
    name: str
    original: Method | None  # None if the owner inherits it
    ours: Method

    @property
    def current(self) -> Any:
        return vars(self.owner).get(self.name)


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


# Reloading this module must not lose the methods that were replaced.
_state: _State = globals().get('_state') or _State()


def install() -> None:
    """Installs the patch, for all threads.

    From then on, Chainer's linear layers whose weight is
    ``chainer.config.common_num`` times narrower than their input share it
    among the blocks of the input.

    Importing the plugin installs the patch, unless the environment variable
    ``CHAINER_SHARED_PATCH`` is 0. Installing it twice is the same as once.

    .. seealso:: :func:`patched` for a ``with`` statement.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> was_installed = chainer_shared_patch.is_installed()
        >>> chainer_shared_patch.install()
        >>> chainer_shared_patch.is_installed()
        True
        >>> if not was_installed:
        ...     chainer_shared_patch.uninstall()

    """
    with _state.lock:
        _state.is_wanted = True
        _put_in()


def uninstall() -> None:
    """Uninstalls the patch, for all threads.

    While the body of a :func:`patched` statement runs in any thread, the patch
    stays. It is then taken out when the last of them ends. If the patch is not
    installed, nothing happens.

    Raises:
        RuntimeError: If other code has since replaced one of the methods.
            Then nothing is changed.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> was_installed = chainer_shared_patch.is_installed()
        >>> chainer_shared_patch.uninstall()
        >>> chainer_shared_patch.is_installed()
        False
        >>> if was_installed:
        ...     chainer_shared_patch.install()

    """
    with _state.lock:
        if not _state.users:
            _take_out()
        _state.is_wanted = False


def is_installed() -> bool:
    """Tells whether the patch is installed.

    Returns:
        bool: ``True`` if it is, in this process.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> with chainer_shared_patch.patched():
        ...     chainer_shared_patch.is_installed()
        True

    """
    with _state.lock:
        return bool(_state.replacements) and all(
            each.current is not each.original for each in _state.replacements
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
        # Where a method is neither ours nor the original, other code has
        # patched on top, and calls ours.
        if each.current is each.original:
            setattr(each.owner, each.name, each.ours)


def _make_inherited(owner: Any, name: str) -> Method:
    @functools.wraps(getattr(owner, name))
    def inherited(self: Any, *args: Any) -> Any:
        # With multiple inheritance, the next method may be a sibling's.
        return getattr(super(owner, self), name)(*args)

    return inherited


def _take_out() -> None:
    for each in _state.replacements:
        if each.current not in (each.original, each.ours):
            raise RuntimeError(
                'cannot uninstall the patch: '
                f'{each.owner.__name__}.{each.name} has since been replaced '
                f'by {each.current!r}; undo that first'
            )
    for each in _state.replacements:
        if each.original is not None:
            setattr(each.owner, each.name, each.original)
        elif each.current is not None:
            delattr(each.owner, each.name)
    _state.replacements.clear()
