#!/usr/bin/env python
"""Measures shared layers against what one would use instead.

Times are medians over rounds, and ratios the medians of the ratios within a
round. In each round every contender has its turn, so that a noisy machine
slows all of them alike. Takes some ten minutes; --quick, one.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import time

import chainer_shared_patch  # noqa: F401
import benchmark_contenders as contenders
from benchmark_contenders import CONTENDERS, FLOOR, TRAININGS, Row
import benchmark_report
import chainer
import numpy
import train_mnist

SIZES = [
    Row('article', 100, 1000, 900, 10),
    Row('article', 1, 1000, 900, 10),
    Row('fc6', 32, 25088, 4096, 7),
    *(
        Row('fc7', batch_size, 4096, 4096, n)
        for batch_size in (128, 1024)
        for n in (2, 8, 64)
    ),
    Row('LSTM step', 64, 4096, 1024, 8, 'StatelessLSTM'),
]
GPU_SIZES = [Row('large', 8192, 8192, 8192, 8)]
QUICK_SIZES = [SIZES[0], SIZES[4]]
# What the sweeps over n and over the batch need besides.
SWEEPS = [
    *(Row('fc7', 128, 4096, 4096, n) for n in (4, 16, 32, 128)),
    *(Row('fc7', batch_size, 4096, 4096, 8) for batch_size in (1, 8, 32, 512)),
]
SWEPT = ('sum', 'tile', 'dense', 'torch-dense', 'torch-sum', 'product')
SECONDS_PER_TURN = 0.03
# For the threads of a BLAS that spin for a while when their work is done.
SECONDS_BETWEEN_LIBRARIES = 0.05


class Processes:
    """One process for each library, started when it is first called."""

    def __init__(self, device):
        self._device = device
        self._pools = {}

    def call(self, library, function, *args):
        """Calls a function in the process of a library.

        Raises:
            ImportError: If the library is not installed.

        """
        if library not in self._pools:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
            started = pool.submit(contenders.start, library, self._device)
            self._pools[library] = pool, started
        pool, started = self._pools[library]
        started.result()
        return pool.submit(function, *args).result()


def parse_args():
    peers = [name for name in CONTENDERS if name != 'sum']
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        '--device',
        '-d',
        default='@numpy',
        help="Chainer's device specifier, such as @numpy (the default) or "
        '@cupy:0',
    )
    add(
        '--peers',
        nargs='*',
        choices=peers,
        default=peers,
        metavar='PEER',
        help='what to compare with, of {} (default: all)'.format(
            ', '.join(peers)
        ),
    )
    add('--quick', action='store_true', help='two sizes and few rounds')
    add(
        '--dataset',
        default='auto',
        help='what to train with, as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        default='result-benchmark',
        help='directory of the results (default: result-benchmark)',
    )
    args = parser.parse_args()
    args.dataset = os.path.expanduser(args.dataset)
    args.out = os.path.expanduser(args.out)
    return args


def measure_row(processes, row, names, rounds):
    """Returns what its contenders take of a row, by name.

    The seconds of forward, of backward and of both in each round, and the
    bytes of memory; or why a contender is absent.
    """
    result = {name: {'seconds': []} for name in names}
    numbers = {}
    turns = {}
    for name in names:
        turns.setdefault(CONTENDERS[name][0], []).append(name)
    for library, group in turns.items():
        try:
            prepared = processes.call(library, contenders.prepare, group, row)
        except ImportError:
            prepared = dict.fromkeys(group, library + ' is not installed')
        for name, seconds in prepared.items():
            if isinstance(seconds, str):
                result[name] = {'absent': seconds}
                group.remove(name)
            else:
                number = int(SECONDS_PER_TURN / seconds)
                numbers[name] = min(max(number, 1), 100)
    order = list(turns.items())
    for round_ in range(rounds):
        order.reverse()
        for library, group in order:
            time.sleep(SECONDS_BETWEEN_LIBRARIES)
            first = round_ % (len(group) or 1)
            for name in group[first:] + group[:first]:
                seconds = processes.call(
                    library, contenders.time_calls, name, numbers[name]
                )
                result[name]['seconds'].append(seconds)
    for library, group in order:
        for name in set(group).difference(FLOOR):
            result[name]['bytes'] = processes.call(
                library, contenders.measure_memory, name
            )
    return result


def measure_training(processes, names, dataset, rounds, epochs):
    """Returns the median seconds of an epoch in each round, by name."""
    result = {name: {'seconds': []} for name in names}
    for _ in range(rounds):
        for name in names:
            if 'absent' in result[name]:
                continue
            try:
                seconds = processes.call(
                    TRAININGS[name][0], contenders.train, name, dataset, epochs
                )
            except Exception as error:  # of the script, or no such library
                result[name] = {'absent': str(error)}
            else:
                result[name]['seconds'].append(float(numpy.median(seconds)))
    return result


def describe_run(device):
    """Returns the machine, the versions and the command."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            names = [line for line in file if line.startswith('model name')]
        processor = names[0].split(':')[1].strip() if names else processor
    versions = {'Python': platform.python_version()}
    for name in ('chainer', 'numpy', 'torch'):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = '(absent)'
    try:
        blas = numpy.show_config('dicts')['Build Dependencies']['blas']
        versions['numpy'] += ' ({name} {version})'.format(**blas)
    except (KeyError, TypeError):  # NumPy before 1.25
        pass
    cores = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count()))
    machine = '{}, {} cores'.format(processor, len(cores(0)))
    for name in ('OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS'):
        if name in os.environ:
            machine += ', {}={}'.format(name, os.environ[name])
    if device.xp is not numpy:
        versions['cupy'] = device.xp.__version__
        properties = device.xp.cuda.runtime.getDeviceProperties(
            device.device.id
        )
        machine += ', ' + properties['name'].decode()
    return {
        'date': time.strftime('%Y-%m-%d'),
        'machine': machine,
        'device': device.name,
        'versions': versions,
        'command': shlex.join(['python', *sys.argv]),
    }


def main():
    args = parse_args()
    try:
        device = chainer.get_device(args.device)
        device.use()
        _, _, dataset = train_mnist.load_dataset(args.dataset)
        os.makedirs(args.out, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit('benchmark.py: error: {}'.format(error))
    peers = ('sum', *args.peers)
    names = [name for name in CONTENDERS if name in peers]
    trainings = [
        name for name in TRAININGS if name.replace('-fused', '') in peers
    ]
    sizes, sweeps = (QUICK_SIZES, []) if args.quick else (SIZES, SWEEPS)
    if device.xp is not numpy:
        sizes = sizes + GPU_SIZES
        sizes += [row._replace(dtype='float16') for row in sizes]
    rows = [('sizes', row) for row in sizes]
    rows += [('sweeps', row) for row in sweeps]
    rounds, training_rounds, epochs = (3, 1, 1) if args.quick else (9, 3, 3)
    if args.dataset == 'auto':
        args.dataset = 'mnist' if dataset == 'MNIST' else 'sample'

    # So that the processes end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begin = time.time()

    def report_progress(done, what):
        text = '{:4.0f} s: {} of {}, {}'
        number, seconds = len(rows) + 1, time.time() - begin
        print(text.format(seconds, done + 1, number, what), file=sys.stderr)

    processes = Processes(args.device)
    results = {**describe_run(device), 'dataset': dataset}
    results.update(quick=args.quick, sizes=[], sweeps=[], training={})
    try:
        for i, (kind, row) in enumerate(rows):
            entry = row._asdict()
            report_progress(i, benchmark_report.get_title(entry))
            entry['contenders'] = measure_row(
                processes,
                row,
                [name for name in names if kind == 'sizes' or name in SWEPT],
                rounds,
            )
            results[kind].append(entry)
        report_progress(len(rows), 'training')
        results['training'] = measure_training(
            processes, trainings, args.dataset, training_rounds, epochs
        )
    except KeyboardInterrupt:
        print('interrupted; this is what has been measured', file=sys.stderr)

    def write(name, content):
        with open(os.path.join(args.out, name), 'w') as file:
            file.write(content)

    print(benchmark_report.render(results))
    write('benchmark.json', json.dumps(results, indent=1))
    try:
        plots = benchmark_report.plot(results, args.out)
    except ImportError as error:
        print('no plots: {}'.format(error))
        plots = []
    write('benchmark.md', benchmark_report.render(results, plots))
    print('files written')
    for name in ('benchmark.json', 'benchmark.md', *plots):
        print('  ' + os.path.join(args.out, name))


if __name__ == '__main__':
    main()
