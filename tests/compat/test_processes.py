import itertools
import multiprocessing
from multiprocessing.pool import Pool
import pickle
import threading

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat.processes import ForkingByDefault
import chainer
from chainer.iterators import MultiprocessIterator
from chainer.training.extensions import snapshot_writers
import pytest

from tests.helpers import run_python


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


def save_and_load(iterator, new, directory):
    path = str(directory / 'iterator')
    chainer.serializers.save_npz(path, iterator)
    chainer.serializers.load_npz(path, new)
    return new


def pickle_and_unpickle(iterator, new, directory):
    new.finalize()
    return pickle.loads(pickle.dumps(iterator))


@pytest.mark.parametrize('restore', [save_and_load, pickle_and_unpickle])
@pytest.mark.parametrize('repeat', [False, True])
@pytest.mark.parametrize('position', [0, 2, 4])
def test_resuming_without_an_order(tmp_path, restore, repeat, position):
    data = list(range(10))
    serial = chainer.iterators.SerialIterator(data, 3, repeat, shuffle=False)
    iterator, new = (
        MultiprocessIterator(data, 3, repeat, shuffle=False, n_processes=1)
        for _ in range(2)
    )
    for _ in range(position):
        assert iterator.next() == serial.next()
    resumed = restore(iterator, new, tmp_path)
    for each in (resumed, iterator):
        assert each.epoch_detail == serial.epoch_detail
        assert each.previous_epoch_detail == serial.previous_epoch_detail
    for batch in itertools.islice(serial, 4):
        assert resumed.next() == iterator.next() == batch
        assert resumed.is_new_epoch == serial.is_new_epoch
    for each in (resumed, iterator):
        if not repeat:
            with pytest.raises(StopIteration):
                each.next()
        each.finalize()


class Unpicklable:
    """A data set that only a process that is forked can have."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return i

    def __reduce__(self):
        raise TypeError('this data set cannot be pickled')


def test_data_set_that_cannot_be_pickled():
    iterator = MultiprocessIterator(
        Unpicklable(), 2, repeat=False, shuffle=False, n_processes=1
    )
    assert list(iterator) == [[0, 1], [2, 3]]


def test_snapshot_writer_with_a_local_function(tmp_path):
    def save(path, target):
        with open(path, 'w') as file:
            file.write(target)

    writer = snapshot_writers.ProcessWriter(savefun=save)
    writer('snapshot', str(tmp_path), 'weights')
    writer.finalize()
    assert (tmp_path / 'snapshot').read_text() == 'weights'


@pytest.mark.parametrize(
    'chosen, expected', [(None, 'fork'), ('fork', 'fork'), ('spawn', 'spawn')]
)
def test_forking_by_default(monkeypatch, chosen, expected):
    monkeypatch.setattr(
        multiprocessing, 'get_start_method', lambda allow_none: chosen
    )
    context = multiprocessing.get_context(expected)
    assert ForkingByDefault().Process is context.Process
    assert ForkingByDefault().TimeoutError is multiprocessing.TimeoutError


SCRIPT = """
import multiprocessing, sys
import chainer_shared_patch
from chainer.iterators import MultiprocessIterator

class Data:
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return type(multiprocessing.current_process()).__name__

if __name__ == '__main__':
    if len(sys.argv) > 1:
        multiprocessing.set_start_method(sys.argv[1])
    iterator = MultiprocessIterator(Data(), 1, n_processes=1, shared_mem=100)
    print(*iterator.next())
    iterator.finalize()
"""


@pytest.mark.parametrize(
    'args, expected',
    [([], 'ForkProcess'), (['spawn'], 'SpawnProcess')],
    ids=['default', 'spawn'],
)
def test_start_method_that_a_program_chooses(tmp_path, args, expected):
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    result = run_python(path, *args)
    assert result.stdout.split() == [expected], result.stderr


SPAWN = """
import multiprocessing, sys
import chainer_shared_patch
from chainer import links as L, serializers
from chainer.iterators import MultiprocessIterator
from chainer.training.extensions import snapshot_writers

multiprocessing.set_start_method('spawn')
iterator = MultiprocessIterator(
    [L.Linear(1, 2)], 1, n_processes=1, shared_mem=100, repeat=False)
print([link.b.shape for link in iterator.next()])
iterator.finalize()
for name in ('ProcessWriter', 'ProcessQueueWriter'):
    serializer = serializers.DictionarySerializer()
    serializer.save(L.Linear(1, 2))
    writer = getattr(snapshot_writers, name)()
    writer(name, sys.argv[1], serializer.target)
    writer.finalize()
"""


def test_processes_that_do_not_run_the_program_anew(tmp_path):
    # A program given by -c, or in a notebook, is no file for them to run.
    result = run_python('-c', SPAWN, tmp_path)
    assert result.stdout == '[(2,)]\n', result.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'ProcessWriter', 'ProcessQueueWriter'}
