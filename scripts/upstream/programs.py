#!/usr/bin/env python
"""Runs public programs on two stacks, and compares what they log.

.. code-block:: console

    $ python scripts/upstream/programs.py record newest
    $ python scripts/upstream/programs.py record period --python PYTHON
    $ python scripts/upstream/programs.py compare newest period

``record`` clones the repositories that programs.csv lists, makes small data,
and runs each program for a few iterations on the CPU, with seeded random
numbers. It keeps what the program logs or prints in the folder that it is
given. The programs run under the plugin, in the environment of this script,
or without the plugin in that of PYTHON, which makes the period stack.

``compare`` prints how the two runs of each program differ, and exits with
status 1 if any result is not the one that programs.csv lists.
"""

import argparse
import csv
import math
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import examples

# Its columns: the repository on GitHub and its commit; what the program is;
# the shell command that runs it; its data, among MAKERS; the packages that it
# needs; the file in which it logs, if it does not print; a regular expression
# for what differs in every run, such as times; the result that compare()
# returns, and its cause.
LIST = Path(__file__).with_name('programs.csv')
SEED = """
import random, numpy
random.seed(0)
numpy.random.seed(0)
"""
# With these, all versions of NumPy compute a product or an exponential alike,
# but for a few sums in another order.
KERNELS = {
    'NPY_DISABLE_CPU_FEATURES': 'AVX2 FMA3 AVX512F AVX512CD AVX512_SKX '
    'AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4',
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_CORETYPE': 'Haswell',
}
NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\bnan\b|[-+]?\binf\b'


def make_images(folder):
    for number in range(8):
        path = folder / 'images' / f'{number}.png'
        examples.write_image(path, size=(64, 64))


def make_tags(folder):
    """Makes sentences, with a part of speech and a tag for each word."""
    words = ' '.join(examples.make_sentences(30)).split()
    lines = [f'{word} N B-{word}' for word in words]
    lines[5::6] = [''] * len(lines[5::6])
    examples.write(folder / 'bilstm_tag' / 'train.txt', [*lines, ''])


def make_text(folder):
    examples.make_translations(folder, None, None)


MAKERS = {'images': make_images, 'tags': make_tags, 'text': make_text}


def read_list():
    with LIST.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def prepare(row, python, folder):
    """Clones a program, and makes its data and its command, python."""
    clone = folder / 'clone'
    url = f'https://github.com/{row["repository"]}'
    subprocess.run(['git', 'clone', '-q', url, clone], check=True)
    git = ['git', '-C', clone, '-c', 'advice.detachedHead=false']
    subprocess.run([*git, 'checkout', '-q', row['commit']], check=True)
    examples.random.seed(0)
    examples.make_datasets(folder / 'datasets')
    if row['data']:
        MAKERS[row['data']](clone)
    (folder / 'sitecustomize.py').write_text(SEED)
    (folder / 'python').write_text(
        f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n'
    )
    (folder / 'python').chmod(0o755)


def run(command, folder, timeout):
    """Runs a program; returns its exit status, None if it does not end."""
    environment = dict(
        os.environ,
        **KERNELS,
        **examples.ALONE,
        CHAINER_DATASET_ROOT=str(folder / 'datasets'),
        PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}',
        PYTHONHASHSEED='0',
        PYTHONPATH=f'{folder}{os.pathsep}{folder / "clone"}',
        PYTHONUNBUFFERED='1',
    )
    with (folder / 'output.txt').open('wb') as output:
        with (folder / 'errors.txt').open('wb') as errors:
            return examples.run_process(
                command,
                timeout,
                shell=True,
                stdout=output,
                stderr=errors,
                cwd=folder / 'clone',
                env=environment,
            )


def record(row, python, folder, timeout):
    """Runs a program, keeps what it logs, and returns what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        prepare(row, python, folder)
    except subprocess.CalledProcessError as error:
        return str(error)
    status = run(row['command'], folder, timeout)
    if status is None:
        return f'no end after {timeout} s'
    log = (
        folder / 'clone' / row['log'] if row['log'] else folder / 'output.txt'
    )
    if not status and log.exists():
        shutil.copy(log, folder / 'record.txt')
        return ''
    text = (folder / 'errors.txt').read_text(errors='replace')
    return f'exit status {status}: {text.strip().splitlines()[-1:]}'


def read_record(row, folder):
    """Returns what a program logged, or None if it failed."""
    path = folder / 'record.txt'
    if not path.exists():
        return None
    text = path.read_text(encoding='utf-8')
    if row['ignored']:
        text = re.sub(row['ignored'], '', text)
    # NumPy 2 shows np.float32(1.5) where NumPy 1 shows 1.5.
    return re.sub(r'np\.\w+\((.*?)\)', r'\1', text)


def compare(row, newest, period):
    """Returns how the records of a program differ, and where they first do."""
    texts = [read_record(row, folder) for folder in (newest, period)]
    if None in texts:
        stacks = zip(texts, ('newest', 'period'))
        failed = [stack for text, stack in stacks if text is None]
        return f'fails on {" and ".join(failed)}', ''
    words = [re.sub(NUMBER, '#', text).split() for text in texts]
    if words[0] != words[1]:
        return 'differs', ''
    for first, second in zip(*(re.findall(NUMBER, text) for text in texts)):
        if first != second:
            close = math.isclose(float(first), float(second), rel_tol=1e-3)
            result = 'rounding' if close else 'differs'
            return result, f'{first} and {second}'
    return 'identical', ''


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('record')
    command.add_argument('folder', type=Path)
    command.add_argument(
        '--python',
        type=os.path.abspath,
        help='the interpreter of an environment without the plugin',
    )
    command.add_argument('--timeout', type=float, default=600)
    command = commands.add_parser('compare')
    command.add_argument('folders', type=Path, nargs=2)
    for command in commands.choices.values():
        command.add_argument('--only', nargs='+', help='repositories')
    args = parser.parse_args()
    unexpected = 0
    for row in read_list():
        name = row['repository']
        if args.only and name not in args.only:
            continue
        print(name.ljust(48), end=' ', flush=True)
        folder = name.replace('/', '+')
        if args.command == 'record':
            plugin = [sys.executable, '-m', 'chainer_shared_patch']
            python = [args.python] if args.python else plugin
            path = (args.folder / folder).resolve()
            detail = record(row, python, path, args.timeout)
            print('fails' if detail else 'runs', detail, flush=True)
        else:
            folders = [path.resolve() / folder for path in args.folders]
            result, detail = compare(row, *folders)
            print(result, detail)
            unexpected += result != row['result']
    sys.exit(1 if unexpected else 0)


if __name__ == '__main__':
    main()
