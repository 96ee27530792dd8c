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
import os
import threading
from typing import Any, Callable, Optional

from chainer_shared_patch import config, functions, links
import chainer
from chainer.functions.connection.linear import LinearFunction
from chainer.links import Linear

# In the order in which they are put in; they are taken out in reverse.
_REPLACEMENTS: dict[Any, dict[str, Callable[..., functions.Method]]] = {
    LinearFunction: functions.REPLACEMENTS,
    Linear: links.REPLACEMENTS,
}
_lock = threading.RLock()
_originals: dict[tuple[Any, str], functions.Method] = {}
_inherited: set[tuple[Any, str]] = set()
_replacements: dict[tuple[Any, str], functions.Method] = {}
_wanted = False  # by install
_open_blocks = 0  # of patched, in all threads

# A fork while another thread holds the lock must not lock the child for ever.
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_lock.release,
    )


def install() -> None:
    """Installs the patch in ``LinearFunction``, for all threads.

    Importing the package has done this already, unless the environment
    variable ``CHAINER_SHARED_PATCH`` is 0. Installing twice is the same as
    once.

    .. seealso:: :func:`patched` for one block of code.
    """
    global _wanted
    with _lock:
        _wanted = True
        _put_in()


def uninstall() -> None:
    """Puts ``LinearFunction``'s own methods back, for all threads.

    Uninstalling what is not installed does nothing.

    Raises:
        RuntimeError: If somebody else has replaced one of the methods since.
            Nothing is changed then.

    """
    global _wanted
    with _lock:
        _take_out()
        _wanted = False


def is_installed() -> bool:
    """Returns whether the patch is installed."""
    with _lock:
        return bool(_originals) and all(
            getattr(cls, name) is not original
            for (cls, name), original in _originals.items()
        )


@contextlib.contextmanager
def patched(
    common_num: Optional[int] = None, shared_algorithm: Optional[str] = None
) -> Iterator[None]:
    """Installs the patch for one block of code.

    The patch is there for all threads while the block runs, and afterwards
    only if it was before. The configuration is that of the current thread.

    Args:
        common_num (int): The number of input blocks that share a weight. If
            ``None``, ``chainer.config.common_num`` stays.
        shared_algorithm (str): ``'sum'`` or ``'tile'``. If ``None``,
            ``chainer.config.shared_algorithm`` stays.

    Raises:
        ValueError: If an argument makes no sense.
        RuntimeError: If the patch has to be taken out at the end of the block
            and cannot be; see :func:`uninstall`.

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
    global _open_blocks
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
        with _lock:
            _put_in()
            _open_blocks += 1
        try:
            yield
        finally:
            with _lock:
                _open_blocks -= 1
                if _open_blocks == 0 and not _wanted:
                    _take_out()


def _put_in() -> None:
    for cls, replacements in _REPLACEMENTS.items():
        for name, replace in replacements.items():
            current = getattr(cls, name)
            # A method that is neither ours nor the original is somebody's who
            # has patched on top, and who calls ours.
            if current is _originals.get((cls, name), current):
                _originals[cls, name] = current
                if name not in vars(cls):
                    _inherited.add((cls, name))
                _replacements[cls, name] = replace(current)
                setattr(cls, name, _replacements[cls, name])


def _take_out() -> None:
    for (cls, name), original in _originals.items():
        current = getattr(cls, name)
        if current not in (original, _replacements[cls, name]):
            raise RuntimeError(
                'cannot uninstall chainer_shared_patch: {}.{} has since been '
                'replaced by {!r}, which has to be undone first'.format(
                    cls.__name__, name, current
                )
            )
    # The type check goes first: no other thread then gets past it and finds
    # a forward that cannot follow.
    for cls, name in reversed(list(_originals)):
        original = _originals.pop((cls, name))
        if (cls, name) not in _inherited:
            setattr(cls, name, original)
        elif name in vars(cls):
            delattr(cls, name)
    _inherited.clear()
