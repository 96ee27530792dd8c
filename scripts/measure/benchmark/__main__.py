"""Compares the speed and memory of shared layers with the alternatives.

Times are medians over rounds; ratios are medians of the ratios within each
round. Every contender has its turn in each round, so a busy machine slows all
of them alike. Takes a quarter of an hour, or one or two minutes with --quick.

In --out, writes performance.md (docs/performance.md with new figures) and
performance_tables.md, and in --out/performance, the plots and benchmark.json.
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
from contenders import CONTENDERS, INFERENCES
from measurements import (
    Processes,
    measure_row,
    measure_sharing,
    measure_training,
)
import numpy
import pages
from report import STYLES, get_title
from sizes import (
    GPU_SIZES,
    INFERENCE_SIZES,
    QUICK_SIZES,
    SHARINGS,
    SIZES,
    SWEEPS,
)

# The processes of the libraries inherit this path, and train too.
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))
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
        help="Chainer's device specifier, such as @cupy:0 (default: @numpy)",
    )
    add('--quick', action='store_true', help='fewer sizes and fewer rounds')
    add(
        '--dataset',
        type=os.path.expanduser,
        default='auto',
        help='data to train on, as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        type=os.path.expanduser,
        default='result-benchmark',
        help='directory to write to (default: result-benchmark)',
    )
    add(
        '--render',
        metavar='OUT',
        type=os.path.expanduser,
        help='measure nothing; rewrite the pages and plots in OUT from its '
        'performance/benchmark.json',
    )
    return parser.parse_args()


def describe_run(device):
    """Returns the date, the machine, the versions and the command."""
    versions = {'Python': platform.python_version()}
    for name in ('chainer', 'numpy', 'torch', 'onnxruntime'):
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
    for name in (
        'OPENBLAS_NUM_THREADS',
        'MKL_NUM_THREADS',
        'OMP_NUM_THREADS',
        'OPENBLAS_CORETYPE',
        'MKL_ENABLE_INSTRUCTIONS',
        'ATEN_CPU_CAPABILITY',
    ):
        if name in os.environ:
            machine += f', {name}={os.environ[name]}'
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


def measure(args, device, dataset):
    """Returns the results; after Ctrl-C, those measured so far."""
    sizes, sweeps = (QUICK_SIZES, []) if args.quick else (SIZES, SWEEPS)
    inferences = INFERENCE_SIZES
    if device.xp is not numpy:
        sizes = sizes + GPU_SIZES
        sizes += [row._replace(dtype='float16') for row in sizes]
        inferences = []  # onnxruntime uses the CPU
    swept = {name: CONTENDERS[name] for name in STYLES}
    rows = [('sizes', row, CONTENDERS) for row in sizes]
    rows += [('sweeps', row, swept) for row in sweeps]
    rows += [('inference', row, INFERENCES) for row in inferences]
    sharings = SHARINGS[:2] if args.quick else SHARINGS
    rounds, training_rounds, epochs = (3, 1, 1) if args.quick else (9, 3, 3)
    begin = time.time()

    def report_progress(step, what):
        text = '{:4.0f} s: {} of {}, {}'
        seconds = time.time() - begin
        print(text.format(seconds, step, len(rows) + 2, what), file=sys.stderr)

    processes = Processes(args.device)
    results = {**describe_run(device), 'dataset': dataset}
    results.update(quick=args.quick, sizes=[], sweeps=[], inference=[])
    results.update(sharing=[], training={})
    try:
        for step, (kind, row, descriptions) in enumerate(rows, 1):
            entry = row._asdict()
            report_progress(step, get_title(entry))
            entry['contenders'] = measure_row(
                processes, row, descriptions, rounds
            )
            results[kind].append(entry)
        report_progress(len(rows) + 1, 'converting ordinary layers')
        for row, examples in sharings:
            entry = measure_sharing(processes, row, examples)
            results['sharing'].append({**row._asdict(), **entry})
        report_progress(len(rows) + 2, 'training')
        results['training'] = measure_training(
            processes, args.dataset, training_rounds, epochs
        )
    except KeyboardInterrupt:
        print('interrupted; results so far:', file=sys.stderr)
    return results


def main():
    args = parse_args()
    out = Path(args.render or args.out)
    path = out / 'performance' / 'benchmark.json'
    try:
        prose = pages.read_prose()
        if args.render:
            results = pages.read_results(path)
        else:
            device = chainer.get_device(args.device)
            device.use()
            _, _, dataset = train_mnist.load_dataset(args.dataset)
            path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'benchmark: error: {error}')
    if not args.render:
        if args.dataset == 'auto':
            args.dataset = 'mnist' if dataset == 'MNIST' else 'sample'
        # Ends the other processes along with this one.
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
        )
        results = measure(args, device, dataset)
        path.write_text(json.dumps(results, indent=1))
        sys.stdout.reconfigure(errors='replace')  # Not every locale has ≥.
        print(pages.render_tables(results))
    names = pages.write(results, prose, out)
    if not args.render:
        names = ['performance/benchmark.json', *names]
    print('files written')
    for name in names:
        print(f'  {out / name}')


if __name__ == '__main__':
    main()
