"""How processes start, and pools of them that have no worker for a moment."""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

from chainer_shared_patch.compat.importing import Fix


def _mend_multiprocess_iterator(module: Any) -> None:
    run = module._PrefetchLoop._run

    @functools.wraps(run)
    def run_with_chunks(self: Any) -> None:
        # What a pool would take itself, if it did not divide by the number of
        # workers that it has, but by that of those it is to have.
        chunksize = -(-self.batch_size // (4 * self.n_processes))
        self._pool.map_async = functools.partial(
            self._pool.map_async, chunksize=chunksize
        )
        run(self)

    module._PrefetchLoop._run = run_with_chunks


class ForkingByDefault:
    """The names of multiprocessing, for processes that start by fork.

    Once the program has chosen another way to start them, for those that
    start in that way.
    """

    def __getattr__(self, name: str) -> Any:
        method = multiprocessing.get_start_method(allow_none=True)
        return getattr(multiprocessing.get_context(method or 'fork'), name)


def _fork_by_default(module: Any) -> None:
    module.multiprocessing = ForkingByDefault()


FIXES = (
    *(
        Fix(
            module=module,
            broken='processes no longer start by fork: what they get is '
            'pickled, and they import the program again',
            since='Python 3.14',
            # The first is the default.
            is_needed=lambda: (
                multiprocessing.get_all_start_methods()[0] == 'forkserver'
            ),
            mend=_fork_by_default,
        )
        for module in (
            'chainer.iterators.multiprocess_iterator',
            'chainer.training.extensions.snapshot_writers',
        )
    ),
    Fix(
        module='chainer.iterators.multiprocess_iterator',
        broken='with maxtasksperchild it hangs after a ZeroDivisionError',
        since='Python 3.8',
        is_needed=lambda: True,
        mend=_mend_multiprocess_iterator,
    ),
)
