"""Compares shared layers with the alternatives on MNIST.

Each network is trained once per seed. Results are kept in --out, and later
runs compute only what is missing there. Takes about an hour on two cores, or a
few minutes with --quick.
"""

import argparse
import importlib.metadata
import os
from pathlib import Path
import platform
import shlex
import sys
import time

from measure.compare_mnist.experiments import PARTS
from measure.compare_mnist.speed import measure_speed
from measure.compare_mnist.tables import make_table, plot
from measure.compare_mnist.training import (
    BATCH_SIZE,
    compute_missing,
    read_dataset,
)
from measure.machine import describe_machine

FIGURES = ('scratch', 'convert')  # the parts with a figure


def parse_args():
    parser = argparse.ArgumentParser(
        prog='python -m measure.compare_mnist',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        '--dataset',
        type=os.path.expanduser,
        default='auto',
        help='data to train on, as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        type=Path,
        default='result-compare',
        help='directory to write to (default: result-compare)',
    )
    add('--seeds', type=int, help='number of seeds (default: 3, quick: 1)')
    add(
        '--epoch',
        '-e',
        type=int,
        help='epochs to train a network from scratch (default: 8, quick: 1)',
    )
    add(
        '--only',
        nargs='+',
        choices=PARTS,
        default=list(PARTS),
        help='parts to compute (default: all)',
    )
    add('--quick', action='store_true', help='fewer networks')
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.epoch = args.epoch or (1 if args.quick else 8)
    args.step = 3 if args.quick else 1
    return args


def describe_run(description):
    versions = [
        f'{name} {importlib.metadata.version(name)}'
        for name in ('chainer', 'numpy', 'onnxruntime')
    ]
    python = 'Python ' + platform.python_version()
    date = time.strftime('%Y-%m-%d')
    parts = date, description, describe_machine(), python, *versions
    return ', '.join(parts)


def main():
    args = parse_args()
    out = args.out.expanduser()
    (images, labels), _, description = read_dataset(args.dataset)
    (out / 'runs').mkdir(parents=True, exist_ok=True)
    parts = {part: list(PARTS[part][1](args)) for part in args.only}
    runs = [
        run._replace(seed=seed)
        for rows in parts.values()
        for _, row_runs in rows
        for run in row_runs
        for seed in range(args.seeds)
    ]
    records = compute_missing(runs, args.dataset, out)
    speed = {}
    if 'scratch' in parts:
        print('measuring speed', flush=True)
        rounds, repeats = (2, 5) if args.quick else (9, 50)
        scratch = [run for _, (run,) in parts['scratch']]
        speed = measure_speed(scratch, images, labels, rounds, repeats)
    command = ['python', '-m', 'measure.compare_mnist', *sys.argv[1:]]
    page = [
        describe_run(description),
        f'```console\n$ PYTHONPATH=scripts {shlex.join(command)}\n```',
        'Test accuracy in percent, the mean ± standard deviation over '
        f'{args.seeds} seeds; Adam, batches of {BATCH_SIZE}, {args.epoch} '
        'epochs from scratch, a learning rate that falls linearly to zero.',
    ]
    for part, rows in parts.items():
        title = PARTS[part][0]
        page += ['## ' + title, make_table(rows, records, args.seeds, speed)]
        if part in FIGURES:
            plot(out / f'{part}.png', title, rows, records, args.seeds)
            page.append(f'![{title}]({part}.png)')
    text = '\n\n'.join(page) + '\n'
    (out / 'compare_mnist.md').write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
