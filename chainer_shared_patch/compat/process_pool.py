"""Pools of processes, which may have no worker for a moment."""

from __future__ import annotations

import functools
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


FIXES = (
    Fix(
        module='chainer.iterators.multiprocess_iterator',
        broken='with maxtasksperchild it hangs after a ZeroDivisionError',
        since='Python 3.8',
        is_needed=lambda: True,
        mend=_mend_multiprocess_iterator,
    ),
)
