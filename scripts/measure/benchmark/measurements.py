"""Times of contenders in rounds, their memory, and times of training."""

from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import time

import contenders
from contenders import FLOOR, TRAININGS
import numpy

SECONDS_PER_TURN = 0.03
# A BLAS's threads keep spinning for a while after their work is done.
SECONDS_BETWEEN_LIBRARIES = 0.05


class Processes:
    """One process for each library, started by its first call."""

    def __init__(self, device):
        self._device = device
        self._pools = {}

    def call(self, library, function, *args):
        """Calls a function in the process of a library.

        Raises:
            ImportError: If the library cannot be imported.

        """
        if library not in self._pools:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
            started = pool.submit(contenders.start, library, self._device)
            self._pools[library] = pool, started
        pool, started = self._pools[library]
        started.result()
        return pool.submit(function, *args).result()


def measure_row(processes, row, descriptions, rounds):
    """Measures contenders on a row.

    Args:
        descriptions (dict): The library and the description of each
            contender, by name.

    Returns:
        dict: By name, the seconds of forward, of backward and of both in each
        round, and for training, the bytes of memory; or why the contender is
        absent.

    """
    result = {name: {'seconds': []} for name in descriptions}
    groups = {}
    for name, (library, _) in descriptions.items():
        groups.setdefault(library, []).append(name)
    turns = []
    for library, group in groups.items():
        try:
            seconds, absent = processes.call(
                library, contenders.prepare, group, row
            )
        except ImportError as error:
            seconds, absent = {}, dict.fromkeys(group, str(error))
        result.update((name, {'absent': absent[name]}) for name in absent)
        if seconds:
            turns.append((library, seconds))
    for round_ in range(rounds):
        turns.reverse()
        for library, seconds in turns:
            time.sleep(SECONDS_BETWEEN_LIBRARIES)
            group = list(seconds)
            first = round_ % len(group)
            for name in group[first:] + group[:first]:
                number = int(SECONDS_PER_TURN / seconds[name])
                times = processes.call(
                    library,
                    contenders.time_calls,
                    name,
                    min(max(number, 1), 100),
                )
                result[name]['seconds'].append(times)
    for library, seconds in turns:
        for name in seconds:
            if name not in FLOOR and not row.inference:
                result[name]['bytes'] = processes.call(
                    library, contenders.measure_memory, name
                )
    return result


def measure_sharing(processes, row, examples):
    """Returns the seconds and bytes that converting a layer takes."""
    seconds, nbytes = processes.call(
        'chainer', contenders.share, row, examples
    )
    return {'examples': examples, 'seconds': seconds, 'bytes': nbytes}


def measure_training(processes, dataset, rounds, epochs):
    """Returns the median seconds per epoch in each round, by name."""
    result = {name: {'seconds': []} for name in TRAININGS}
    for _ in range(rounds):
        for name, (library, _) in TRAININGS.items():
            if 'absent' in result[name]:
                continue
            try:
                seconds = processes.call(
                    library, contenders.train, name, dataset, epochs
                )
            except Exception as error:  # PyTorch is missing, or training fails
                result[name] = {'absent': str(error)}
            else:
                result[name]['seconds'].append(float(numpy.median(seconds)))
    return result
