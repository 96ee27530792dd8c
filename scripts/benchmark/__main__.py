"""Compares the speed and memory of shared layers with the alternatives.

Times are medians over rounds, and ratios are medians of the ratios within a
round. Every contender has its turn in each round, so that a noisy machine
slows all of them alike. Takes about ten minutes, or one with --quick.
"""

import argparse
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import shlex
import signal
import sys
import time

import chainer_shared_patch  # noqa: F401
import chainer
from contenders import CONTENDERS
from measurements import (
    Processes,
    measure_row,
    measure_sharing,
    measure_training,
)
import numpy
import report
from sizes import GPU_SIZES, QUICK_SIZES, SHARINGS, SIZES, SWEEPS

# The processes of the libraries inherit this path, and train too.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from machine import describe_machine
import train_mnist


def parse_args():
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
    add('--quick', action='store_true', help='fewer sizes and fewer rounds')
    add(
        '--dataset',
        type=os.path.expanduser,
        default='auto',
        help='what to train on, as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        type=os.path.expanduser,
        default='result-benchmark',
        help='directory of the results (default: result-benchmark)',
    )
    return parser.parse_args()


def describe_run(device):
    """Returns the date, the machine, the versions and the command."""
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
    machine = describe_machine()
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
        sys.exit('benchmark: error: {}'.format(error))
    if args.dataset == 'auto':
        args.dataset = 'mnist' if dataset == 'MNIST' else 'sample'
    sizes, sweeps = (QUICK_SIZES, []) if args.quick else (SIZES, SWEEPS)
    if device.xp is not numpy:
        sizes = sizes + GPU_SIZES
        sizes += [row._replace(dtype='float16') for row in sizes]
    rows = [('sizes', row, CONTENDERS) for row in sizes]
    rows += [('sweeps', row, report.STYLES) for row in sweeps]
    sharings = SHARINGS[:2] if args.quick else SHARINGS
    rounds, training_rounds, epochs = (3, 1, 1) if args.quick else (9, 3, 3)

    # So that the other processes end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begin = time.time()

    def report_progress(step, what):
        text = '{:4.0f} s: {} of {}, {}'
        seconds = time.time() - begin
        print(text.format(seconds, step, len(rows) + 2, what), file=sys.stderr)

    processes = Processes(args.device)
    results = {**describe_run(device), 'dataset': dataset}
    results.update(quick=args.quick, sizes=[], sweeps=[], sharing=[])
    results['training'] = {}
    try:
        for step, (kind, row, names) in enumerate(rows, 1):
            entry = row._asdict()
            report_progress(step, report.get_title(entry))
            entry['contenders'] = measure_row(processes, row, names, rounds)
            results[kind].append(entry)
        report_progress(len(rows) + 1, 'converting dense layers')
        for row, examples in sharings:
            entry = measure_sharing(processes, row, examples)
            results['sharing'].append({**row._asdict(), **entry})
        report_progress(len(rows) + 2, 'training')
        results['training'] = measure_training(
            processes, args.dataset, training_rounds, epochs
        )
    except KeyboardInterrupt:
        print('interrupted; this was measured so far:', file=sys.stderr)

    out = Path(args.out)
    (out / 'benchmark.json').write_text(json.dumps(results, indent=1))
    sys.stdout.reconfigure(errors='replace')  # Not every locale has ≥.
    print(report.render(results))
    try:
        plots = report.plot(results, out)
    except ImportError as error:
        print('no plots: {}'.format(error))
        plots = []
    (out / 'benchmark.md').write_text(
        report.render(results, plots), encoding='utf-8'
    )
    print('files written')
    for name in ('benchmark.json', 'benchmark.md', *plots):
        print('  {}'.format(out / name))


if __name__ == '__main__':
    main()
