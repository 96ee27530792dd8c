#!/usr/bin/env python
"""Compares shared layers with the alternatives, on MNIST.

Each network is trained once per seed. What a run gave is kept in --out, so
that another call computes only what is missing there, with whatever parts
and seeds it is asked for. Takes about an hour on two cores, or a few minutes
with --quick.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
from pathlib import Path
import platform
import re
import shlex
import signal
import statistics
import sys
import time
from typing import Optional
import zlib

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
from tabulate import tabulate
from train_mnist import integer, load_dataset

ARTICLE = (784, 1000, 900, 10)
SMALL = (784, 1000, 10)
COMMON_NUMS = (1, 2, 5, 10, 20, 50, 100)
# What is shared of a trained network: n of its first and second layer.
CONVERSIONS = [(1, n) for n in (2, 5, 10, 20, 50)] + [(4, 10), (14, 20)]
VARIANTS = ('contiguous', 'grouped', 'calibrated', 'svd')
LEARNING_RATES = (1e-3, 3e-4)
FIGURES = ('scratch', 'convert')  # the parts that have one
ORDERS = ('contiguous', 'random', 'interleaved', '2x2')
BATCH_SIZE = 100
ONNX_BATCH_SIZES = (1, 32)
CALIBRATION_SIZE = 1000
# What is left of the parameters of 784-1000-10: one of so many, what the
# article on HashedNets reports for that, and networks that keep within it.
HASHEDNETS = {
    8: (98.55, [((784, 1000, 10), (8, 40)), ((784, 480, 10), (4,))]),
    64: (97.21, [((784, 1000, 10), (98, 4)), ((784, 59, 10), (4,))]),
}
THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides what a run gives, apart from the data."""

    sizes: tuple  # of the input and of the layers' outputs
    common_num: tuple = ()  # of the first layers; the others are not shared
    rank: tuple = ()  # of the first layers, where 0 is the full rank
    order: str = 'contiguous'  # of the first layer
    start: Optional[str] = None  # how the trained dense network is converted
    epochs: int = 8
    learning_rate: float = 1e-3
    decay: bool = False  # of the learning rate, linearly to zero
    seed: int = 0

    def iterate_layers(self):
        """Yields in_size, out_size, nobias, common_num and rank of each."""
        for i, shape in enumerate(zip(self.sizes, self.sizes[1:])):
            nobias = i == 1 and len(self.sizes) == 4  # as in the article
            n, rank = (*self.common_num, 1, 1, 1)[i], (*self.rank, 0, 0, 0)[i]
            yield (*shape, nobias, n, rank)

    def count_parameters(self):
        total = 0
        for in_size, out_size, nobias, n, rank in self.iterate_layers():
            shared = out_size * in_size // n
            total += rank * (in_size + out_size) if rank else shared
            total += 0 if nobias else out_size
        return total

    def make_dense(self, epochs):
        """Makes the run of the dense network that this one starts from."""
        return Run(self.sizes, epochs=epochs, seed=self.seed)

    @property
    def is_dense(self):
        return self == self.make_dense(self.epochs)

    @property
    def key(self):
        return dataclasses.asdict(self)

    def __str__(self):
        words = ['-'.join(map(str, self.sizes))]
        for name in ('common_num', 'rank'):
            if any(getattr(self, name)):
                words.append('{} {}'.format(name, getattr(self, name)))
        if self.order != 'contiguous':
            words.append(self.order)
        if self.start:
            words += [self.start, 'rate {:g}'.format(self.learning_rate)]
        return ', '.join([*words, 'seed {}'.format(self.seed)])


def get_rank(in_size, out_size, n):
    """Returns the rank whose factors have W's size, divided by n."""
    return max(1, in_size * out_size // n // (in_size + out_size))


def make_low_rank(run):
    """Makes the run whose factors take the place of the shared layers."""
    ranks = [
        get_rank(in_size, out_size, n) if n > 1 else 0
        for in_size, out_size, _, n, _ in run.iterate_layers()
    ]
    return dataclasses.replace(run, common_num=(), rank=tuple(ranks))


def make_smaller(run):
    """Makes the run of the largest dense network of no more parameters."""
    budget = run.count_parameters()
    width = run.sizes[1]
    while True:
        hidden = [size * width // run.sizes[1] for size in run.sizes[1:-1]]
        sizes = (run.sizes[0], *hidden, run.sizes[-1])
        smaller = dataclasses.replace(run, sizes=sizes, common_num=())
        if smaller.count_parameters() <= budget:
            return smaller
        width -= 1


def make_order(name, n, seed):
    """Returns an order of the 784 pixels, as SharedLinear takes it."""
    if name == 'contiguous':
        return None
    if name == 'random':
        return numpy.random.RandomState(seed).permutation(784)
    if name == 'interleaved':
        return name
    rows, columns = map(int, name.split('x'))
    assert rows * columns == n
    pixels = numpy.arange(784).reshape(28 // rows, rows, 28 // columns, -1)
    return pixels.transpose(1, 3, 0, 2).ravel()


class Network(chainer.Chain):
    def __init__(self, run):
        super().__init__()
        self.depth = len(run.sizes) - 1
        for i, layer in enumerate(run.iterate_layers(), 1):
            in_size, out_size, nobias, n, rank = layer
            if rank:
                link = chainer.Sequential(
                    L.Linear(in_size, rank, nobias=True),
                    L.Linear(rank, out_size, nobias=nobias),
                )
            elif n > 1:
                order = None if i > 1 else make_order(run.order, n, run.seed)
                link = chainer_shared_patch.SharedLinear(
                    in_size, out_size, nobias, common_num=n, order=order
                )
            else:
                link = L.Linear(in_size, out_size, nobias)
            self.add_link('l{}'.format(i), link)

    def forward(self, x):
        for i in range(1, self.depth):
            x = F.relu(self['l{}'.format(i)](x))
        return self['l{}'.format(self.depth)](x)


def factorize(link, rank):
    """Makes two layers of a linear layer, by truncated SVD."""
    U, s, V = numpy.linalg.svd(link.W.array, full_matrices=False)
    out_size, in_size = link.W.shape
    W = U[:, :rank] * s[:rank]
    return chainer.Sequential(
        L.Linear(in_size, rank, True, V[:rank]),
        L.Linear(rank, out_size, link.b is None, W, link.b and link.b.array),
    )


def convert(model, run, images):
    """Shares or factorizes the layers of a trained dense network."""
    if run.start == 'unchanged':
        return
    if run.start == 'svd':
        for i, rank in enumerate(run.rank, 1):
            name = 'l{}'.format(i)
            if rank:
                link = factorize(model[name], rank)
                delattr(model, name)
                model.add_link(name, link)
        return
    order = 'contiguous' if run.start == 'contiguous' else 'grouped'
    if run.order != 'contiguous':
        n = run.common_num[0]
        order = {'/l1': make_order(run.order, n, run.seed)}
    calibrated = run.start == 'calibrated'
    chainer_shared_patch.share(
        model,
        {
            '/l{}'.format(i): n
            for i, n in enumerate(run.common_num, 1)
            if n > 1
        },
        inputs=images[:CALIBRATION_SIZE] if calibrated else None,
        order=order,
        add_bias=calibrated,
    )


def evaluate(model, images, labels):
    """Returns the accuracy."""
    correct = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for i in range(0, len(images), 1000):
            y = model(images[i : i + 1000]).array
            correct += int((y.argmax(1) == labels[i : i + 1000]).sum())
    return correct / len(images)


class Store:
    """The directory of the results, each in a file named after its key."""

    def __init__(self, directory, fingerprint):
        self.directory = directory
        self.fingerprint = fingerprint

    def get_path(self, key, suffix):
        text = json.dumps([self.fingerprint, key])
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.directory / (name + suffix)

    def write(self, path, content):
        """Writes a file as a whole or not at all."""
        temporary = path.with_suffix('.{}'.format(os.getpid()))
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def save(self, key, record):
        content = json.dumps({'key': key, 'record': record}, indent=1)
        self.write(self.get_path(key, '.json'), content.encode())

    def load(self, key, check):
        """Returns a record that check accepts, or None."""
        path = self.get_path(key, '.json')
        try:
            record = json.loads(path.read_text())['record']
            check(record)
            return record
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever JSON, NumPy and check make of it
            print('{} is damaged and computed anew: {!r}'.format(path, error))
            return None

    def save_model(self, run, model):
        content = io.BytesIO()
        chainer.serializers.save_npz(content, model, compression=False)
        self.write(self.get_path(run.key, '.npz'), content.getvalue())

    def load_model(self, run):
        model = Network(run)
        chainer.serializers.load_npz(self.get_path(run.key, '.npz'), model)
        return model

    def load_run(self, run):
        """Returns the record of a run, or None where it is to be computed."""

        def check(record):
            assert record['parameters'] > 0
            assert len(record['accuracies']) == run.epochs + 1
            assert all(0 <= each <= 1 for each in record['accuracies'])
            if run.is_dense:
                self.load_model(run)

        return self.load(run.key, check)


def read_dataset(name):
    """Returns what to train on and to test with, and in words what it is."""
    *parts, description = load_dataset(name)
    parts = [chainer.dataset.concat_examples(part[:]) for part in parts]
    return (*parts, description)


def train(optimizer, images, labels):
    optimizer.update(
        lambda: F.softmax_cross_entropy(optimizer.target(images), labels)
    )


def compute(run, store, args, cache=[]):
    """Trains a network and saves what came of it, in a process of its own."""
    if not cache:
        cache[:] = read_dataset(args.dataset)
    (images, labels), test, _ = cache
    numpy.random.seed(run.seed)
    if run.start:
        model = store.load_model(run.make_dense(args.epoch))
        convert(model, run, images)
    else:
        model = Network(run)
    optimizer = chainer.optimizers.Adam(run.learning_rate)
    optimizer.setup(model)
    accuracies = [evaluate(model, *test)]
    for epoch in range(run.epochs):
        order = numpy.random.permutation(len(images))
        for i in range(0, len(order), BATCH_SIZE):
            if run.decay:
                done = (epoch + i / len(order)) / run.epochs
                optimizer.alpha = run.learning_rate * (1 - done)
            batch = order[i : i + BATCH_SIZE]
            train(optimizer, images[batch], labels[batch])
        accuracies.append(evaluate(model, *test))
    if run.is_dense:  # others start from it
        store.save_model(run, model)
    parameters = sum(parameter.size for parameter in model.params())
    record = {'parameters': parameters, 'accuracies': accuracies}
    store.save(run.key, record)
    return record


def count_cores():
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def compute_missing(runs, store, args):
    """Returns the record of each run, of those that are there and new ones."""
    dense = [run.make_dense(args.epoch) for run in runs if run.start]
    runs = list(dict.fromkeys(dense + runs))
    records = {run: store.load_run(run) for run in runs}
    missing = [run for run in runs if not records[run]]
    print(
        '{} of {} runs are there already'.format(
            len(runs) - len(missing), len(runs)
        )
    )
    begin = time.monotonic()
    total = left = sum(1 + run.epochs for run in missing)
    # So many processes of one thread train more than one of so many threads.
    os.environ.update(dict.fromkeys(THREADS, '1'))
    with ProcessPoolExecutor(
        min(count_cores(), 8),
        multiprocessing.get_context('spawn'),
        # Ctrl-C ends them at once, and without a traceback.
        signal.signal,
        (signal.SIGINT, signal.SIG_DFL),
    ) as executor:
        try:
            # What starts from a dense network waits for all of those.
            for late in (False, True):
                futures = {
                    executor.submit(compute, run, store, args): run
                    for run in missing
                    if bool(run.start) == late
                }
                for number, future in enumerate(as_completed(futures)):
                    run = futures[future]
                    records[run] = future.result()
                    left -= 1 + run.epochs
                    seconds = time.monotonic() - begin
                    print(
                        'about {:.0f} min to go; {}: {:.2%}'.format(
                            seconds * left / (total - left) / 60,
                            run,
                            records[run]['accuracies'][-1],
                        ),
                        flush=True,
                    )
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return records


def take_turns(calls, rounds, repeats):
    """Returns each call's median time in each round, by name.

    A noisy machine slows all of them alike, so that their ratios stand.
    """
    seconds = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            if i:  # the first round warms up
                seconds[name].append(statistics.median(times))
    return seconds


def measure_training(runs, data, rounds):
    """Returns the seconds per epoch of each run in each round."""
    images, labels = data

    def make_call(run):
        optimizer = chainer.optimizers.Adam()
        optimizer.setup(Network(run))
        batch = images[:BATCH_SIZE], labels[:BATCH_SIZE]
        return functools.partial(train, optimizer, *batch)

    calls = {run: make_call(run) for run in runs}
    steps = -(-len(images) // BATCH_SIZE)
    return {
        run: [steps * each for each in seconds]
        for run, seconds in take_turns(calls, rounds, 30).items()
    }


def measure_onnx(runs, rounds):
    """Returns the bytes of each run's ONNX file, and its times by batch.

    Neither depends on what a network has been trained to.
    """
    import onnx  # noqa: F401
    import onnx_chainer
    import onnxruntime

    sizes, times = {}, {}
    for batch_size in ONNX_BATCH_SIZES:
        x = numpy.random.rand(batch_size, 784).astype('f')
        calls = {}
        for run in runs:
            with chainer.using_config('train', False):
                model = onnx_chainer.export(Network(run), x)
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(
                content, providers=['CPUExecutionProvider']
            )
            inputs = {session.get_inputs()[0].name: x}
            sizes[run] = len(content)
            calls[run] = functools.partial(session.run, None, inputs)
        times[batch_size] = take_turns(calls, rounds, 100)
    return sizes, times


def measure_speed(runs, data, rounds):
    """Returns what of each run has to do with speed, by column."""
    training = measure_training(runs, data, rounds)
    columns = [
        {
            's/epoch': statistics.median(training[run]),
            'it / dense': statistics.median(
                numpy.divide(training[run], training[runs[0]])
            ),
        }
        for run in runs
    ]
    try:
        sizes, times = measure_onnx(runs, rounds)
    except ImportError as error:
        print('nothing of ONNX was measured: {}'.format(error))
        return columns
    for run, line in zip(runs, columns):
        line['ONNX bytes'] = sizes[run]
        for batch_size, seconds in times.items():
            name = 'ms, batch of {}'.format(batch_size)
            line[name] = 1e3 * statistics.median(seconds[run])
    return columns


def list_scratch(args):
    yield {'network': 'dense', 'n': 1}, [Run(ARTICLE, epochs=args.epoch)]
    for n in COMMON_NUMS[1 :: args.step]:
        run = Run(ARTICLE, (1, n), epochs=args.epoch)
        yield {'network': 'shared', 'n': n}, [run]
        yield {'network': 'low-rank', 'n': n}, [make_low_rank(run)]
        yield {'network': 'smaller', 'n': n}, [make_smaller(run)]


def list_conversions(args):
    conversions = CONVERSIONS[2::3] if args.quick else CONVERSIONS

    def list_runs(**kwargs):
        for rate in LEARNING_RATES[:: args.step]:
            epochs = min(3, args.epoch)
            yield Run(ARTICLE, epochs=epochs, learning_rate=rate, **kwargs)

    yield {'network': 'dense'}, list(list_runs(start='unchanged'))
    for common_num in conversions:
        for start in VARIANTS:
            runs = list(list_runs(common_num=common_num, start=start))
            if start == 'svd':
                runs = [make_low_rank(run) for run in runs]
            n = '{}, {}'.format(*common_num)
            yield {'network': start, 'n of l1, l2': n}, runs


def list_hashednets(args):
    epochs = 1 if args.quick else 30
    dense = Run(SMALL, epochs=args.epoch)
    yield {'network': str(dense)}, [dense]
    for divisor, (reported, networks) in HASHEDNETS.items():
        budget = '1/{}'.format(divisor)
        line = {'network': 'HashedNets, as reported', 'trained': reported}
        yield {'budget': budget, **line}, []
        for sizes, common_num in networks:
            run = Run(
                sizes,
                common_num,
                start='calibrated',
                epochs=epochs,
                learning_rate=2e-3,
                decay=True,
            )
            yield {'budget': budget, 'network': 'shared, ' + str(run)}, [run]
        smaller = dataclasses.replace(make_smaller(run), start=None)
        yield (
            {'budget': budget, 'network': 'dense, ' + str(smaller)},
            [smaller],
        )


def list_first_layer(args):
    run = Run(SMALL, epochs=args.epoch)
    yield {'order': 'not shared'}, [run]
    for order in ORDERS:
        shared = dataclasses.replace(run, common_num=(4,), order=order)
        yield {'order': order}, [shared]


# By part: its title, and what lists its rows, each with its runs of seed 0.
PARTS = {
    'scratch': ('Trained from scratch', list_scratch),
    'convert': ('A trained dense network, converted', list_conversions),
    'hashednets': ('The budgets of HashedNets', list_hashednets),
    'first-layer': ('The first layer shared by 4', list_first_layer),
}


def summarize(records, run, seeds, epoch=-1):
    """Returns mean and standard deviation of the accuracy, in percent."""
    percents = [
        100 * records[dataclasses.replace(run, seed=seed)]['accuracies'][epoch]
        for seed in range(seeds)
    ]
    return statistics.mean(percents), numpy.std(percents, ddof=seeds > 1)


def make_table(rows, records, seeds, speed):
    lines = []
    for labels, runs in rows:
        line = dict(labels)
        for run in runs:
            line['parameters'] = '{:,}'.format(records[run]['parameters'])
            epochs = {'trained': run.epochs}
            if run.start:
                column = 'epoch {{}} at {:g}'.format(run.learning_rate)
                epochs = {column.format(e): e for e in (1, run.epochs)}
                epochs = {'at once': 0, **epochs}
            for column, epoch in epochs.items():
                line[column] = '{:.2f} ± {:.2f}'.format(
                    *summarize(records, run, seeds, epoch)
                )
            for column, number in speed.get(run, {}).items():
                line[column] = (
                    '{:,}'.format(number)
                    if isinstance(number, int)
                    else '{:.3g}'.format(number)
                )
        lines.append(line)
    return tabulate(lines, 'keys', 'pipe', disable_numparse=True)


def plot(axes, part, rows, records, seeds):
    """Plots test error against parameters."""
    series = {}
    for labels, runs in rows:
        for run in runs[:1]:
            x = records[run]['parameters']
            name = labels['network']
            for epoch in (0, -1) if run.start else (-1,):
                label = name + (', at once' if run.start and not epoch else '')
                point = (x, *summarize(records, run, seeds, epoch))
                series.setdefault(label, []).append(point)
    for name, points in series.items():
        x, means, spreads = numpy.transpose(sorted(points))
        style = 'o:' if name.endswith('at once') else 'o-'
        axes.errorbar(
            x, 100 - means, spreads, fmt=style, capsize=3, label=name
        )
    axes.set(xscale='log', yscale='log')
    axes.set(xlabel='parameters', ylabel='test error [%]')
    axes.set_title(PARTS[part][0])
    axes.legend()


def write_plots(parts, records, seeds, out):
    """Writes the figures; returns the names of their files."""
    from matplotlib.figure import Figure

    names = []
    for part in FIGURES:
        if part in parts:
            figure = Figure(layout='constrained')
            plot(figure.subplots(), part, parts[part], records, seeds)
            names.append('{}.png'.format(part))
            figure.savefig(out / names[-1])
    return names


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
