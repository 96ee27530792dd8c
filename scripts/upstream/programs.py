#!/usr/bin/env python
"""Runs public programs on two stacks of Python and NumPy, and compares.

.. code-block:: console

    $ python scripts/upstream/programs.py record newest
    $ python scripts/upstream/programs.py record period --python PYTHON
    $ python scripts/upstream/programs.py compare newest period

``record`` clones each repository of programs.csv, makes small data, and runs
the program for a few iterations on the CPU, with seeded random numbers. It
keeps what the program prints or logs in the folder that it is given. Without
``--python``, the interpreter that runs this script also runs the programs,
under the plugin; PYTHON, of the other stack, runs them without it.

``compare`` prints what became of each program on the two stacks, and exits
with status 1 if that is not what programs.csv lists.
"""

import argparse
import contextlib
import csv
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys

import examples
import numpy

# Its columns: the repository on GitHub, and its commit; what it is; the shell
# command that runs it; the function below that makes its data; the packages
# that it needs; the file in which it logs, unless it prints; a regular
# expression for what differs in each run, such as times; the result that
# compare() finds, and its cause.
LIST = Path(__file__).with_name('programs.csv')
SEED = """
import random
import numpy
random.seed(0)
numpy.random.seed(0)
"""
# Every version of NumPy then computes a product, an exponential, ... alike.
KERNELS = {
    'NPY_DISABLE_CPU_FEATURES': 'AVX2 FMA3 AVX512F AVX512CD AVX512_SKX '
    'AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4',
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_CORETYPE': 'Haswell',
}
NUMBER = r'[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf)'


def read_list():
    """Returns the rows of the list of programs."""
    with LIST.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def make_boxes(folder):
    """Makes data for the detection of objects, as Pascal VOC has them."""
    folder /= 'VOCdevkit/VOC2007'
    for name in range(4):
        examples.write_image(folder / 'JPEGImages' / f'{name}.jpg')
        corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), (30, 40, 150, 160))
        box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
        path = folder / 'Annotations' / f'{name}.xml'
        text = f'<object><name>cat</name><bndbox>{box}</bndbox></object>'
        examples.write(path, [f'<annotation>{text}</annotation>'])
    examples.write(folder / 'ImageSets' / 'Main' / 'train.txt', '0123')


def make_clouds(folder):
    """Makes clouds of points, as ModelNet has them."""
    import h5py

    folder /= 'experiments/modelnet40/data/modelnet40_ply_hdf5_2048'
    folder.mkdir(parents=True)
    with h5py.File(folder / 'clouds.h5', 'w') as file:
        file['data'] = examples.random.randn(16, 64, 3).astype('f')
        file['label'] = examples.random.randint(40, size=(16, 1))
    for name in 'train', 'test':
        lines = [str(folder / 'clouds.h5')]
        examples.write(folder / f'{name}_files.txt', lines)


def make_segments(folder):
    """Makes images and the classes of their pixels, as CamVid has them."""
    for part in 'train', 'val':
        for number in range(4):
            name = f'{part}_0_{number}.png'
            examples.write_image(folder / 'data' / part / name, size=(64, 64))
            path = folder / 'data' / f'{part}annot' / name
            examples.write_image(path, 'L', (64, 64))
        lines = [f'{part}_0_{n}.png {part}_0_{n}.png' for n in range(4)]
        examples.write(folder / 'data' / f'{part}.txt', lines)


def make_tags(folder):
    """Makes sentences whose words have tags."""
    words = ' '.join(examples.make_sentences(30)).split()
    lines = [f'{word} N B-{word}' for word in words]
    lines[5::6] = [''] * len(lines[5::6])
    examples.write(folder / 'bilstm_tag' / 'train.txt', [*lines, ''])


def make_text(folder):
    examples.make_translations(folder, None, None)


MAKERS = {
    'boxes': make_boxes, 'clouds': make_clouds, 'segments': make_segments, 'tags': make_tags, 'text': make_text,
    'images': lambda folder: [examples.write_image(folder / 'images' / f'{n}.png', size=(64,64)) for n in range(8)],
}


def run(row, python, flags, folder, timeout):
    """Runs a program, and returns what it prints and its exit status."""
    clone = folder / 'clone'
    url = f'https://github.com/{row["repository"]}'
    git = ['git', '-c', 'advice.detachedHead=false']
    subprocess.run([*git, 'clone', '-q', url, clone], check=True)
    subprocess.run([*git, '-C', clone, 'checkout', '-q', row['commit']])
    examples.random.seed(0)
    examples.make_datasets(folder / 'datasets')
    if row['data']:
        MAKERS[row['data']](clone)
    (folder / 'sitecustomize.py').write_text(SEED)
    start = f'#!/bin/sh\nexec {python} {flags} "$@"\n'
    (folder / 'python').write_text(start)
    (folder / 'python').chmod(0o755)
    with (folder / 'output.txt').open('wb') as output:
        process = subprocess.Popen(
            row['command'],
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=(folder / 'errors.txt').open('wb'),
            cwd=clone,
            env={
                **os.environ,
                'CHAINER_DATASET_ROOT': str(folder / 'datasets'),
                'COLUMNS': '80',
                'MPLBACKEND': 'Agg',
                **KERNELS,
                'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
                'PYTHONPATH': f'{folder}{os.pathsep}{clone}',
                'PYTHONHASHSEED': '0',
                'PYTHONUNBUFFERED': '1',
                'http_proxy': 'http://127.0.0.1:9',
                'https_proxy': 'http://127.0.0.1:9',
            },
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def record(row, python, flags, folder, timeout):
    """Runs a program, and keeps what it logs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    status = run(row, python, flags, folder, timeout)
    log = folder / 'clone' / row['log'] if row['log'] else 0
    path = log if log and log.exists() else folder / 'output.txt'
    text = path.read_text(encoding='utf-8', errors='replace')
    if status:
        errors = (folder / 'errors.txt').read_text(errors='replace')
        text = f'fails: {errors.strip().splitlines()[-1:]}'
    (folder / 'record.txt').write_text(text, encoding='utf-8')
    return text


def compare(row, newest, period):
    """Returns how two records of a program differ."""
    texts = []
    for folder in newest, period:
        text = (folder / 'record.txt').read_text(encoding='utf-8')
        if text.startswith('fails: '):
            return f'{text} on {folder.parent.name}'
        text = re.sub(row['ignored'] or '(?!)', '', text)
        # NumPy 2 shows float32(1) where NumPy 1 shows 1.
        texts.append(re.sub(r'np\.\w+\((.*?)\)', r'\1', text).split())
    if texts[0] == texts[1]:
        return 'identical'
    words = [re.sub(NUMBER, '#', ' '.join(text)) for text in texts]
    if words[0] != words[1]:
        return 'differs'
    for numbers in zip(*(re.findall(NUMBER, ' '.join(t)) for t in texts)):
        first, second = map(float, numbers)
        if first != second:
            return f'rounding: {first} and {second}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('record')
    command.add_argument('folder', type=Path)
    command.add_argument('--python', help='the interpreter of another stack')
    command.add_argument('--options', default='', help='those of the plugin')
    command.add_argument('--timeout', type=float, default=600)
    command.add_argument('names', nargs='*')
    command = commands.add_parser('compare')
    command.add_argument('newest', type=Path)
    command.add_argument('period', type=Path)
    command.add_argument('names', nargs='*')
    args = parser.parse_args()
    rows = [r for r in read_list() if not args.names or r['repository'] in args.names]
    failures = 0
    for row in rows:
        name = row['repository'].replace('/', '+')
        print(row['repository'].ljust(44), end='', flush=True)
        if args.command == 'record':
            python = args.python or sys.executable
            flags = '' if args.python else f'-m chainer_shared_patch {args.options}'
            text = record(row, python, flags, (args.folder / name).resolve(), args.timeout)
            print(text[:200] if text.startswith('fails: ') else f'{len(text.split())} words', flush=True)
        else:
            result = compare(row, args.newest / name, args.period / name)
            print(result)


if __name__ == '__main__':
    main()
