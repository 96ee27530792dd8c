"""Compares shared layers with the alternatives on MNIST.

Each network is trained once per seed. Results are kept in --out, and later
runs compute only what is missing there. Takes about an hour on two cores, or a
few minutes with --quick.
"""

import argparse
import dataclasses
import os
from pathlib import Path
import signal
import sys
import zlib

# The processes of the runs inherit this path.
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))
from experiments import PARTS
from speed import describe_stack, measure_speed
from tables import make_table, render, write_plots
from train_mnist import integer
from training import Store, compute_missing, read_dataset


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
        help='data to train on, as for train_mnist.py (default: auto)',
    )
    add(
        '--out',
        '-o',
        type=os.path.expanduser,
        default='result-compare',
        help='directory to write to (default: result-compare)',
    )
    add(
        '--seeds',
        type=integer(1),
        help='number of seeds (default: 3, or 1 with --quick)',
    )
    add(
        '--epoch',
        '-e',
        type=integer(1),
        help='epochs to train a network from scratch (default: 8, or 1 with '
        '--quick)',
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


def main():
    args = parse_args()
    out = Path(args.out)
    try:
        (images, labels), test, description = read_dataset(args.dataset)
        (out / 'runs').mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f'compare_mnist: error: {error}')
    # Ends the other processes along with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    store = Store(out / 'runs', zlib.crc32(images) ^ zlib.crc32(test[0]))
    parts = {part: list(PARTS[part][1](args)) for part in args.only}
    runs = [
        dataclasses.replace(run, seed=seed)
        for rows in parts.values()
        for _, row_runs in rows
        for run in row_runs
        for seed in range(args.seeds)
    ]
    try:
        records = compute_missing(runs, store, args.dataset)
    except KeyboardInterrupt:
        print('interrupted; the same command continues from here')
        sys.exit(130)
    speed = {}
    machine = describe_stack()
    if 'scratch' in parts:
        scratch = [run for _, (run,) in parts['scratch']]
        key = {'speed on': machine, 'runs': [run.key for run in scratch]}
        columns = store.load(key, lambda record: record[len(scratch) - 1])
        if not columns:
            print('measuring speed', flush=True)
            rounds, repeats = (2, 5) if args.quick else (9, 50)
            columns = measure_speed(scratch, images, labels, rounds, repeats)
            store.save(key, columns)
        speed = dict(zip(scratch, columns))

    tables = {
        part: make_table(rows, records, args.seeds, speed)
        for part, rows in parts.items()
    }
    try:
        plots = write_plots(parts, records, args.seeds, out)
    except ImportError as error:
        print(f'no figures: {error}')
        plots = []
    text = render(args, description + '; ' + machine, tables, plots)
    sys.stdout.reconfigure(errors='replace')  # Not every locale has ±.
    print(text)
    (out / 'compare_mnist.md').write_text(text, encoding='utf-8')
    print('files written')
    for name in ('compare_mnist.md', *plots):
        print(f'  {out / name}')


if __name__ == '__main__':
    main()
