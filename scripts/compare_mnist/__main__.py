"""Compares shared layers with the alternatives, on MNIST.

Each network is trained once per seed. What a run gave is kept in --out, so
that another call computes only what is missing there, with whatever parts
and seeds it is asked for. Takes about an hour on two cores, or a few minutes
with --quick.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
from pathlib import Path
import platform
import re
import shlex
import signal
import sys
import time
import zlib

# The processes inherit this path.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from experiments import PARTS
from report import make_table, write_plots
from speed import measure_speed
from train_mnist import integer
from training import (
    BATCH_SIZE,
    Store,
    compute_missing,
    count_cores,
    read_dataset,
)


def render(args, description, tables):
    """Renders everything as Markdown."""
    parts = [
        '{}, {}, {}'.format(
            time.strftime('%Y-%m-%d'), describe_machine(), description
        ),
        '```console\n$ {}\n```'.format(shlex.join(['python', *sys.argv])),
        'Test accuracy in percent, mean ± standard deviation over {} seeds; '
        'Adam, batches of {}, {} epochs unless said otherwise.'.format(
            args.seeds, BATCH_SIZE, args.epoch
        ),
    ]
    for part, table in tables.items():
        parts += ['## ' + PARTS[part][0], table]
    return '\n\n'.join(parts) + '\n'


def describe_machine():
    """Returns the processor, its cores, and the versions, in words."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        models = re.findall(
            r'model name\s*: (.+)', Path('/proc/cpuinfo').read_text()
        )
        processor = models[0] if models else processor
    versions = ['Python ' + platform.python_version()]
    for name in ('chainer', 'numpy', 'onnxruntime'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(name + ' ' + importlib.metadata.version(name))
    return '{}, {} cores, {}'.format(
        processor, count_cores(), ', '.join(versions)
    )


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        '--dataset',
        type=os.path.expanduser,
        default='auto',
        help='as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        type=os.path.expanduser,
        default='result-compare',
        help='directory of the results (default: result-compare)',
    )
    add(
        '--seeds',
        type=integer(1),
        help='number of seeds (default: 3)',
    )
    add(
        '--epoch',
        '-e',
        type=integer(1),
        help='epochs of a network trained from scratch (default: 8)',
    )
    add(
        '--only',
        nargs='+',
        choices=PARTS,
        default=list(PARTS),
        help='parts to compute (default: all)',
    )
    add('--quick', action='store_true', help='fewer runs, one seed, one epoch')
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.epoch = args.epoch or (1 if args.quick else 8)
    args.step = 3 if args.quick else 1
    return args


def main():
    args = parse_args()
    out = Path(args.out)
    try:
        (images, labels), test, description = read_dataset(args.dataset)
        (out / 'runs').mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit('compare_mnist.py: error: {}'.format(error))
    # So that the other processes end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    store = Store(
        out / 'runs', zlib.crc32(images.tobytes() + test[0].tobytes())
    )
    parts = {part: list(PARTS[part][1](args)) for part in args.only}
    runs = [
        dataclasses.replace(run, seed=seed)
        for rows in parts.values()
        for _, row_runs in rows
        for run in row_runs
        for seed in range(args.seeds)
    ]
    try:
        records = compute_missing(runs, store, args)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here')
        sys.exit(130)
    speed = {}
    if 'scratch' in parts:
        scratch = [run for _, (run,) in parts['scratch']]
        machine = describe_machine()
        key = {'speed on': machine, 'runs': [run.key for run in scratch]}
        columns = store.load(key, lambda record: len(record[len(scratch) - 1]))
        if not columns:
            print('measuring speed', flush=True)
            rounds = 3 if args.quick else 9
            columns = measure_speed(scratch, (images, labels), rounds)
            store.save(key, columns)
        speed = dict(zip(scratch, columns))
    tables = {
        part: make_table(rows, records, args.seeds, speed)
        for part, rows in parts.items()
    }
    plots = write_plots(parts, records, args.seeds, out)
    text = render(args, description, tables)
    print(text)
    images = ''.join('\n![{0}]({0})\n'.format(name) for name in plots)
    (out / 'compare_mnist.md').write_text(text + images, encoding='utf-8')
    print('files written')
    for name in ('compare_mnist.md', *plots):
        print('  {}'.format(out / name))


if __name__ == '__main__':
    main()
