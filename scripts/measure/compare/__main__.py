"""Compares shared layers with the alternatives.

Each network is trained once per seed. Results are kept in --out, and later
runs compute only what is missing there. On two cores, this takes three
quarters of an hour for images, half an hour for a text, and a few minutes with
--quick.
"""

import os
import shlex
import sys
import time

from measure.compare import networks, text
from measure.compare.experiments import PARTS
from measure.compare.speed import measure_speed
from measure.compare.tables import make_table
from measure.compare.training import compute_missing
from measure.machine import describe_machine, find_versions, make_parser


def parse_args():
    parser = make_parser('compare', __doc__)
    add = parser.add_argument
    add(
        '--text',
        type=os.path.expanduser,
        help='a file of text, for a recurrent network too',
    )
    add(
        '--only',
        nargs='+',
        choices=PARTS,
        help='parts to compute (default: all, and text only with --text)',
    )
    args = parser.parse_args()
    args.only = args.only or [
        part for part in PARTS if part != 'text' or args.text
    ]
    if 'text' in args.only and not args.text:
        parser.error('--only text needs --text FILE')
    args.seeds = 1 if args.quick else 3
    args.epoch = 1 if args.quick else 8
    args.step = 3 if args.quick else 1
    return args


def describe_run(descriptions):
    versions = find_versions('chainer', 'numpy', 'onnxruntime')
    parts = time.strftime('%Y-%m-%d'), *descriptions, describe_machine()
    return ', '.join([*parts, *map(' '.join, versions.items())])


def main():
    args = parse_args()
    out = args.out.expanduser()
    (out / 'runs').mkdir(parents=True, exist_ok=True)
    parts = {part: list(PARTS[part][1](args)) for part in args.only}
    records, descriptions = {}, []
    for kind, data in ((networks, args.dataset), (text, args.text)):
        runs = [
            run._replace(seed=seed)
            for part, rows in parts.items()
            for _, row_runs in rows
            for run in row_runs.values()
            for seed in range(args.seeds)
            if PARTS[part][2] is kind
        ]
        if runs:
            descriptions.append(kind.read(data)[-1])
            records.update(compute_missing(kind, runs, data, out))
    command = ['python', '-m', 'measure.compare', *sys.argv[1:]]
    page = [
        describe_run(descriptions),
        f'```console\n$ PYTHONPATH=scripts {shlex.join(command)}\n```',
    ]
    for part, rows in parts.items():
        title, _, _ = PARTS[part]
        speed = {}
        if part == 'convert':
            print('measuring speed', flush=True)
            rounds, repeats = (2, 5) if args.quick else (9, 50)
            converted = [run for _, runs in rows for run in runs.values()]
            speed = measure_speed(
                converted, records, args.dataset, rounds, repeats
            )
        page += [f'## {title}', make_table(rows, records, args.seeds, speed)]
    tables = '\n\n'.join(page) + '\n'
    (out / 'compare.md').write_text(tables, encoding='utf-8')
    print(tables)


if __name__ == '__main__':
    main()
