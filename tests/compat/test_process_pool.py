from multiprocessing.pool import Pool
import threading

import chainer_shared_patch  # noqa: F401
from chainer.iterators import MultiprocessIterator
import pytest


def take(batch_size, **kwargs):
    """Returns four batches of the numbers below 100, or fails to in time."""
    iterator = MultiprocessIterator(
        list(range(100)), batch_size, shuffle=False, n_processes=2, **kwargs
    )
    batches = []
    thread = threading.Thread(
        target=lambda: batches.extend(iterator.next() for _ in range(4)),
        daemon=True,
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    iterator.finalize()
    return batches


@pytest.mark.parametrize('batch_size', [1, 8, 9, 100])
def test_pool_without_a_worker(monkeypatch, batch_size):
    map_async = Pool.map_async

    def map_async_without_a_worker(self, *args, **kwargs):
        workers, self._pool = self._pool, []
        try:
            return map_async(self, *args, **kwargs)
        finally:
            self._pool = workers

    monkeypatch.setattr(Pool, 'map_async', map_async_without_a_worker)
    numbers = sum(take(batch_size, shared_mem=1000), [])
    assert numbers == [i % 100 for i in range(4 * batch_size)]


def test_maxtasksperchild():
    batches = take(2, maxtasksperchild=1)
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7]]
