"""How processes start, and the iterator that loads examples in processes."""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

from chainer_shared_patch.compat.importing import Fix


def _fix_multiprocess_iterator(module: Any) -> None:
    run = module._PrefetchLoop._run

    @functools.wraps(run)
    def run_with_chunks(self: Any) -> None:
        # What the pool itself would choose if it divided by the number of
        # workers that it should have, not by the number that it has just now.
        chunksize = -(-self.batch_size // (4 * self.n_processes))
        self._pool.map_async = functools.partial(
            self._pool.map_async, chunksize=chunksize
        )
        run(self)

    module._PrefetchLoop._run = run_with_chunks


def _save_without_order(module: Any) -> None:
    from chainer.iterators.serial_iterator import SerialIterator

    iterator = module.MultiprocessIterator
    serialize = iterator.serialize

    @functools.wraps(serialize)
    def serialize_without_order(self: Any, serializer: Any) -> None:
        if self._state.order is None:
            SerialIterator.serialize(self, serializer)
            self._reset_state(*self._state)
        else:
            serialize(self, serializer)

    def get_state(self: Any) -> dict[str, Any]:
        init = vars(self).copy()
        for name in ('_comm', '_prefetch_loop', '_state'):
            del init[name]
        return {
            **self._state._asdict(),
            'previous_epoch_detail': self._previous_epoch_detail,
            'init': init,
        }

    iterator.serialize = serialize_without_order
    iterator.__getstate__ = get_state


class ForkingByDefault:
    """multiprocessing, with fork unless the program has chosen otherwise."""

    def __getattr__(self, name: str) -> Any:
        method = multiprocessing.get_start_method(allow_none=True)
        return getattr(multiprocessing.get_context(method or 'fork'), name)


def _fork_by_default(module: Any) -> None:
    module.multiprocessing = ForkingByDefault()


def call(function: Any, *args: Any, **kwargs: Any) -> None:
    """Calls a function of Chainer, which unpickling this has fixed first."""
    function(*args, **kwargs)


class FixingFirst:
    """multiprocessing, with processes that fix Chainer before they use it."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def Pool(self, *args: Any, initializer: Any, **kwargs: Any) -> Any:
        initializer = functools.partial(call, initializer)
        return self._original.Pool(*args, initializer=initializer, **kwargs)

    def Process(self, *args: Any, target: Any, **kwargs: Any) -> Any:
        target = functools.partial(call, target)
        return self._original.Process(*args, target=target, **kwargs)


def _fix_first(module: Any) -> None:
    module.multiprocessing = FixingFirst(module.multiprocessing)


_STARTS = tuple(
    fix
    for module in (
        'chainer.iterators.multiprocess_iterator',
        'chainer.training.extensions.snapshot_writers',
    )
    for fix in (
        Fix(
            module=module,
            broken='processes no longer start by fork: what they get is '
            'pickled, and they import the program again',
            when='python >= 3.14; sys_platform == "linux"',
            apply=_fork_by_default,
        ),
        Fix(
            module=module,
            broken='processes that do not start by fork import Chainer before '
            'the program can fix it',
            when=None,
            apply=_fix_first,
        ),
    )
)

FIXES = (
    *_STARTS,
    Fix(
        module='chainer.iterators.multiprocess_iterator',
        broken='with maxtasksperchild it hangs after a ZeroDivisionError',
        when=None,
        apply=_fix_multiprocess_iterator,
    ),
    Fix(
        module='chainer.iterators.multiprocess_iterator',
        broken='with shuffle=False it cannot be saved, and pickling it '
        'loses its position',
        when=None,
        apply=_save_without_order,
    ),
)
