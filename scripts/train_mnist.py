#!/usr/bin/env python
"""Trains the article's network on MNIST.

784 - 1000 - 900 - 10 units with ReLU. The 10 blocks of the second layer's
1,000 inputs share one weight: its W is (900, 100) instead of (900, 1000).
``CHAINER_SHARED_PATCH=0`` trains the same network with ordinary layers.

``mpiexec -n 4 python scripts/train_mnist.py --distributed`` trains it on 4
processes, each of which takes a quarter of every batch.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import warnings

import chainer_shared_patch
from chainer_shared_patch.compat.mnist import read_directory
import chainer
from chainer import training
from chainer.datasets._mnist_helper import preprocess_mnist
import chainer.functions as F
import chainer.links as L
from chainer.optimizers.adam import AdamRule
from chainer.training import extensions
import distributed
import numpy

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

SAMPLE = os.path.join(os.path.dirname(__file__), 'mnist_sample')


class MLP(chainer.Chain):
    """The network; common_num blocks share the second layer's weight."""

    def __init__(self, n_units, out_units, n_out, common_num, bias):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(784, n_units)
            self.l2 = L.Linear(
                n_units // common_num, out_units, nobias=not bias
            )
            self.l3 = L.Linear(out_units, n_out)

    def forward(self, x):
        h1 = F.relu(self.l1(x))
        h2 = F.relu(self.l2(h1))
        return self.l3(h2)


class BlockwiseAdamRule(AdamRule):
    """Adam's update of float32 on a CPU, a block at a time.

    Does the same operations in the same order, and so gets the same bits, but
    on blocks that stay in the processor's cache and in existing memory.
    """

    BLOCK_SIZE = 2**17

    def update_core_cpu(self, param):
        beta1, beta2 = self.hyperparam.beta1, self.hyperparam.beta2
        if param.dtype != numpy.float32:
            return super().update_core_cpu(param)
        arrays = param.array, param.grad, self.state['m'], self.state['v']
        arrays = [array.reshape(-1) for array in arrays]
        buffer = numpy.empty(self.BLOCK_SIZE, param.dtype)
        for start in range(0, param.size, self.BLOCK_SIZE):
            stop = start + self.BLOCK_SIZE
            p, g, m, v = (array[start:stop] for array in arrays)
            t = buffer[: len(p)]
            numpy.subtract(g, m, out=t)
            t *= 1 - beta1
            m += t
            numpy.multiply(g, g, out=t)
            t -= v
            t *= 1 - beta2
            v += t
            numpy.sqrt(v, out=t)
            t += self.hyperparam.eps
            numpy.divide(self.alpha_t, t, out=t)
            t *= m
            p -= t


class BlockwiseAdam(chainer.optimizers.Adam):
    """Adam with the rule above."""

    def create_update_rule(self):
        return BlockwiseAdamRule(self.hyperparam)


class StopTrigger(training.triggers.IntervalTrigger):
    """Fires from its epoch on.

    Chainer's own fires at multiples of it, so that resuming from a snapshot
    of epoch 3 with ``--epoch 2`` would train to epoch 4.
    """

    def __call__(self, trainer):
        return trainer.updater.epoch >= self.period


class LogReport(extensions.LogReport):
    """Chainer's log, written by way of a directory with a name of its own.

    Chainer's temporary names, such as ``log_archive``, cannot be told from
    those of other people's files.
    """

    def __init__(self):
        super().__init__()
        self._log_name = None  # so that Chainer writes nothing

    def __call__(self, trainer):
        length = len(self.log)
        super().__call__(trainer)
        if len(self.log) > length:
            with chainer.utils.tempdir(
                prefix='tmplog', dir=trainer.out
            ) as directory:
                path = os.path.join(directory, 'log')
                with open(path, 'w') as file:
                    json.dump(self.log, file, indent=4)
                os.replace(path, os.path.join(trainer.out, 'log'))


class PrintReport(extensions.PrintReport):
    """Chainer's table, narrow enough for a terminal of 80 columns."""

    COLUMNS = {
        'epoch': 'epoch',
        'main/loss': 'train loss',
        'validation/main/loss': 'test loss',
        'main/accuracy': 'train acc',
        'validation/main/accuracy': 'test acc',
        'elapsed_time': 'seconds',
    }

    def __init__(self, out):
        super().__init__(list(self.COLUMNS.values()), out=out)

    def _print(self, observation):
        super()._print(
            {name: observation[key] for key, name in self.COLUMNS.items()}
        )


class PlainText:
    """Standard output without the codes that move a terminal's cursor."""

    def write(self, text):
        sys.stdout.write(text.replace('\033[J', ''))

    def flush(self):
        sys.stdout.flush()


def integer(minimum, maximum=None, *others):
    """Makes an argument type."""

    def parse(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number in others:
            return number
        if number is None or number < minimum or number > (maximum or number):
            raise argparse.ArgumentTypeError(
                'must be an integer of at least {}{}{}, not {!r}'.format(
                    minimum,
                    f' and at most {maximum}' if maximum else '',
                    ''.join(map(' or {}'.format, others)),
                    text,
                )
            )
        return number

    return parse


def parse_args():
    parser = argparse.ArgumentParser(
        description="Trains the article's network on MNIST. With "
        'CHAINER_SHARED_PATCH=0 in the environment, no layer is shared.',
    )
    add = parser.add_argument
    add(
        '--batchsize',
        '-b',
        type=integer(1),
        default=100,
        help='images per batch; with --distributed, the total over all ranks, '
        'and a multiple of their number (default: %(default)s)',
    )
    add(
        '--epoch',
        '-e',
        type=integer(1),
        default=20,
        help='epochs to train, including those of a resumed snapshot '
        '(default: %(default)s)',
    )
    add(
        '--unit',
        '-u',
        type=integer(1),
        default=1000,
        help='units of the first layer, a multiple of --common-num '
        '(default: %(default)s)',
    )
    add(
        '--out-units',
        type=integer(1),
        default=900,
        help='units of the second layer (default: %(default)s)',
    )
    add(
        '--common-num',
        type=integer(1),
        default=(
            chainer.global_config.common_num
            if 'CHAINER_COMMON_NUM' in os.environ
            else 10
        ),
        help="blocks of the second layer's input that share its weight "
        '(default: CHAINER_COMMON_NUM, or 10)',
    )
    add('--bias', action='store_true', help='give the second layer a bias')
    add(
        '--dataset',
        default='auto',
        help='mnist, fashion, sample (the bundled sixth of MNIST), a '
        'directory with the four IDX files, or auto: mnist, or sample if '
        'MNIST cannot be downloaded (default: %(default)s)',
    )
    add(
        '--device',
        '-d',
        default='@numpy',
        help="Chainer's device specifier, such as @cupy:0 "
        '(default: %(default)s)',
    )
    add(
        '--distributed',
        action='store_true',
        help='train on all processes that mpiexec has started, each on its '
        'part of every batch; with --device @cupy, each on its own GPU',
    )
    add(
        '--communicator',
        choices=('naive', 'flat', 'pure_nccl'),
        help="ChainerMN's communicator, with --distributed; flat and "
        'pure_nccl need GPUs (default: pure_nccl on GPUs, naive elsewhere)',
    )
    add(
        '--out',
        '-o',
        default='result',
        help='directory to write to (default: %(default)s)',
    )
    add('--resume', '-r', help='snapshot to resume from')
    add(
        '--autoload',
        action='store_true',
        help='resume from the newest undamaged snapshot in --out, if there '
        'is one',
    )
    add(
        '--frequency',
        '-f',
        type=integer(1, None, -1),
        default=1,
        help='epochs between snapshots, of which the newest two are kept, or '
        '-1 for a single one at the end (default: %(default)s)',
    )
    add(
        '--blockwise-adam',
        action='store_true',
        help='update the weights a block at a time, which takes less time on '
        "a CPU and gives Adam's results, bit for bit",
    )
    add(
        '--seed',
        type=integer(0, 2**32 - 1),
        default=0,
        help='seed for the weights and shuffling (default: %(default)s)',
    )
    args = parser.parse_args()
    args.dataset = os.path.expanduser(args.dataset)
    args.out = os.path.expanduser(args.out)
    if args.out.startswith('-'):
        # Graphviz would take it for an option.
        args.out = os.path.join(os.curdir, args.out)

    started = distributed.count_started() or 1
    if started > 1 and not args.distributed:
        parser.error(
            f'mpiexec has started {started} processes, which would all train '
            'the same network; give --distributed'
        )
    if args.communicator and not args.distributed:
        parser.error('--communicator needs --distributed')
    if not chainer_shared_patch.is_installed():
        args.common_num = 1
    if args.unit % args.common_num:
        above = args.unit + -args.unit % args.common_num
        parser.error(
            f'--unit {args.unit} cannot be split into --common-num '
            f'{args.common_num} equal blocks; --unit {above} can'
        )
    resumes_here = args.resume and not args.distributed
    if resumes_here and not os.path.isfile(args.resume):
        parser.error(f'--resume: there is no file {args.resume}')
    return args


def load_dataset(name):
    """Returns the training set, the test set and a description of them."""
    if name == 'fashion':
        try:
            return (*chainer.datasets.get_fashion_mnist(), 'Fashion-MNIST')
        except Exception as error:  # of sockets, HTTP, gzip or NumPy
            raise OSError(f'cannot get Fashion-MNIST: {error}') from error
    directory, description = name, 'the files in ' + name
    if name in ('auto', 'mnist'):
        try:
            return (*chainer.datasets.get_mnist(), 'MNIST')
        except OSError:
            if name == 'mnist':
                raise
        directory = SAMPLE
        description = (
            'the bundled sample, because MNIST cannot be downloaded '
            '(--dataset mnist says why; with make, DATASET=mnist)'
        )
    if name == 'sample':
        directory, description = SAMPLE, 'the bundled sample of MNIST'
    train, test = (
        preprocess_mnist(
            read_directory(directory, kind),
            withlabel=True,
            ndim=1,
            scale=1.0,
            image_dtype=chainer.get_dtype(),
            label_dtype=numpy.int32,
            rgb_format=False,
        )
        for kind in ('train', 't10k')
    )
    return train, test, description


def make_order_sampler(seed):
    """Makes a sampler in which each order determines the next.

    Snapshots hold the order of the current epoch, but not the state of a
    random number generator. With this, a resumed run continues like an
    uninterrupted one.
    """

    def sample(current_order, current_position):
        random = numpy.random.RandomState([seed, *current_order[:16]])
        return random.permutation(len(current_order))

    return sample


def find_snapshots(out):
    """Returns the paths of the snapshots in a directory, newest first."""
    times = {}
    for entry in os.scandir(out):
        if re.fullmatch('snapshot_epoch_[0-9]+', entry.name):
            # Another run may remove it, or it may be a broken link.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    times[entry.path] = entry.stat().st_mtime_ns
    return sorted(times, key=times.__getitem__, reverse=True)


def remove_old_snapshots(trainer):
    """Removes all snapshots but the newest two."""
    # Chainer's n_retains would also remove a snapshot_epoch_1.bak.
    paths = find_snapshots(trainer.out)
    # The one just taken stays, even if others have times in the future.
    last = f'snapshot_epoch_{trainer.updater.epoch}'
    paths.sort(key=lambda path: os.path.basename(path) != last)
    for path in paths[2:]:
        with contextlib.suppress(FileNotFoundError):  # by another run
            os.remove(path)


def check_reports(trainer):
    """Raises an error unless the log and plots are those of a training."""
    epoch = trainer.updater.epoch
    log = trainer.get_extension('LogReport').log
    rows = [[entry[key] for key in PrintReport.COLUMNS] for entry in log]
    if [row[0] for row in rows] != list(range(1, epoch + 1)) or not rows:
        raise ValueError(f'its log is not that of {epoch} epochs')
    for name in ('PlotReport', 'PlotReport_1'):
        extension = trainer.get_extension(name)
        for key in extension._y_keys:
            rows += [[x, y] for x, y in extension._data[key]]
    for number in (number for row in rows for number in row):
        if not isinstance(number, (int, float)):
            raise ValueError(f'its log or plots contain {number!r}')
        float(number)  # an integer may be too large


def load_snapshot(path, trainer, comm=distributed.ONE_RANK):
    """Loads a snapshot, or raises a ValueError that says why it cannot.

    Chainer's load_npz unpickles arrays of objects, which executes them, and
    accepts arrays of other shapes and dtypes if NumPy can convert them.
    """
    describe = '{0.dtype} {0.shape}'.format
    model = trainer.updater.get_optimizer('main').target
    dataset = trainer.updater.get_iterator('main').dataset
    error = None
    try:
        content = distributed.on_rank_0(comm, pathlib.Path(path).read_bytes)
        with numpy.load(io.BytesIO(content)) as file:
            arrays = dict(file)
        ranks = arrays.get('extensions/Ranks/size', 1)
        if ranks != comm.size:
            raise ValueError(
                'it is from a training on {} rank{}, and this is one on '
                '{}'.format(ranks, '' if ranks == 1 else 's', comm.size)
            )
        others = {name for name in arrays if '/model:main/' in name}
        for name, parameter in model.namedparams():
            others.discard('updater/model:main' + name)
            for key in (
                'model:main{}',
                'optimizer:main{}/m',
                'optimizer:main{}/v',
            ):
                key = 'updater/' + key.format(name)
                array = arrays[key]
                if describe(array) != describe(parameter):
                    raise ValueError(
                        f'its {key} is {describe(array)}, that of this '
                        f'network {describe(parameter)}'
                    )
                if not numpy.isfinite(array).all():
                    raise ValueError(f'its {key} is not finite')
        if others:
            raise ValueError(f'this network has no {min(others)}')
        order = arrays['updater/iterator:main/order']
        if len(order) != len(dataset):
            raise ValueError(
                'it is for {:,} training images{}, and here are {:,}'.format(
                    len(order),
                    ' on each rank' if comm.size > 1 else '',
                    len(dataset),
                )
            )
        position = arrays['updater/iterator:main/current_position']
        if (
            not 0 <= position <= len(order)
            or (numpy.sort(order) != numpy.arange(len(order))).any()
            or any(
                (array < 0).any()
                for name, array in arrays.items()
                if name.endswith(('/t', '/v', '/iteration'))
            )
        ):
            raise ValueError('no training has its counts')
        chainer.serializers.NpzDeserializer(arrays).load(trainer)
        if comm.rank == 0:
            check_reports(trainer)
        # Taking a snapshot is the last thing done in an epoch.
        detail = trainer.updater.epoch_detail
        for name, array in arrays.items():
            is_trigger = re.fullmatch(
                'extension.*/previous_epoch_detail', name
            )
            if is_trigger and array != detail:
                raise ValueError(f'its {name} is not {detail}')
    except Exception as caught:  # whatever NumPy raises for other files
        reason = 'it lacks ' if isinstance(caught, KeyError) else ''
        reason += ' '.join(str(caught).split())
        error = f'cannot resume from {path}: {reason}'
    distributed.raise_on_all(comm, error)
    if comm.rank == 0:
        print('resumed from ' + path)


def prepare_out(out):
    """Makes the output directory, and removes what killed runs left in it.

    Each run holds a shared lock on its directory. Only a run that can get an
    exclusive one removes anything, because then no other run is going on.
    """
    os.makedirs(out, exist_ok=True)
    if fcntl is None:
        return
    directory = os.open(out, os.O_RDONLY)
    pattern = r'tmp(snapshot_epoch_\d+|model\.npz|log)[a-z0-9_]{8}'
    # Not every file system supports locks.
    with contextlib.suppress(OSError):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in os.scandir(out):
            if re.fullmatch(pattern, entry.name):
                shutil.rmtree(entry.path, ignore_errors=True)
    with contextlib.suppress(OSError):
        fcntl.flock(directory, fcntl.LOCK_SH)


def remove_unfinished_picture(out):
    """Removes the newest file, if Chainer writes that one in place."""
    with contextlib.suppress(OSError, ValueError):
        newest = max(os.scandir(out), key=lambda e: e.stat().st_mtime_ns)
        if newest.name in ('cg.dot', 'cg.png', 'loss.png', 'accuracy.png'):
            os.remove(newest.path)


def save_npz(path, target):
    """Writes in one go: if writing fails, NumPy 1 leaves a zip file open."""
    content = io.BytesIO()
    # Compressing weights takes a while and saves next to nothing.
    chainer.serializers.save_npz(content, target, compression=False)
    with open(path, 'wb') as file:
        file.write(content.getbuffer())


def label(title, kind, figure, axes, summary):
    """Labels a plot, with ticks at whole epochs only."""
    axes.set(title=title, xlabel='epoch', ylabel=kind)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for line, name in zip(axes.get_lines(), ('training set', 'test set')):
        line.set_label(name)


def print_summary(
    model, common_num, trainer, start, comm=distributed.ONE_RANK
):
    """Prints the parameters, traffic, accuracy, time and files."""
    row = '{:<8}{:>14}{:>14}{:>14}'.format
    print()
    print(row('layer', 'W', 'parameters', 'ordinary'))
    total = ordinary_total = 0
    for name in ('l1', 'l2', 'l3'):
        layer = model[name]
        number = layer.count_params()
        ordinary = number
        if name == 'l2':
            ordinary += (common_num - 1) * layer.W.size
        shape = '{} x {}'.format(*layer.W.shape)
        print(row(name, shape, f'{number:,}', f'{ordinary:,}'))
        total += number
        ordinary_total += ordinary
    print(row('total', '', f'{total:,}', f'{ordinary_total:,}'))
    if comm.size > 1:
        # MPI has no float16: ChainerMN converts it.
        itemsize = max(4, model['l1'].W.dtype.itemsize)
        print()
        print(
            f'gradients          {total * itemsize:,} bytes per batch, '
            f'ordinary {ordinary_total * itemsize:,}'
        )
    last = trainer.get_extension('LogReport').log[-1]
    accuracy = last['validation/main/accuracy']
    print()
    print(f'test accuracy      {accuracy:.4f}')
    seconds = last['elapsed_time'] / last['epoch']
    print(f'seconds per epoch  {seconds:.2f}')
    print('files written')
    for entry in sorted(os.scandir(trainer.out), key=lambda e: e.name):
        if entry.stat(follow_symlinks=False).st_mtime >= start:
            print('  ' + entry.path)


def fail(error, comm=distributed.ONE_RANK):
    message = f'train_mnist.py: error: {error}\n'
    distributed.exit_all(comm, 1, message)


def weigh(model):
    """Makes the evaluator's function, which weights all images alike.

    Chainer's own weights all batches alike, however small they are.
    """

    def evaluate(x, t):
        model(x, t)
        observation = chainer.reporter.get_current_reporter().observation
        for key, value in observation.items():
            observation[key] = value, len(x)

    return evaluate


def make_trainer(
    args, device, train, test, description, comm=distributed.ONE_RANK
):
    """Makes the trainer, the same one at each call."""
    numpy.random.seed(args.seed)
    if device.xp is not numpy:
        device.xp.random.seed(args.seed)
    model = L.Classifier(
        MLP(args.unit, args.out_units, 10, args.common_num, args.bias)
    )
    model.to_device(device)
    optimizer = (
        BlockwiseAdam() if args.blockwise_adam else chainer.optimizers.Adam()
    )
    optimizer.setup(model)

    batch_size = args.batchsize // comm.size
    train_iter = chainer.iterators.SerialIterator(
        train, batch_size, order_sampler=make_order_sampler(args.seed)
    )
    test_iter = chainer.iterators.SerialIterator(
        test, batch_size, repeat=False, shuffle=False
    )
    optimizer, evaluator = distributed.create_multi_node(
        comm,
        optimizer,
        extensions.Evaluator(
            test_iter, model, device=device, eval_func=weigh(model)
        ),
    )
    updater = training.updaters.StandardUpdater(
        train_iter, optimizer, device=device
    )
    trainer = training.Trainer(
        updater, StopTrigger(args.epoch, 'epoch'), out=args.out
    )

    trainer.extend(evaluator)
    if comm.size > 1:
        trainer.extend(distributed.Ranks(comm.size))
        trainer.extend(
            distributed.AverageObservations(
                comm, ['main/loss', 'main/accuracy']
            )
        )
    if comm.rank > 0:
        return trainer
    # It needs the loss itself, not the average.
    trainer.extend(
        extensions.DumpGraph('main/loss'), priority=training.PRIORITY_WRITER
    )
    trainer.extend(LogReport())
    # Without matplotlib it does nothing, but is still part of snapshots.
    warnings.filterwarnings('ignore', 'matplotlib is not installed')
    for kind in ('loss', 'accuracy'):
        trainer.extend(
            extensions.PlotReport(
                ['main/' + kind, 'validation/main/' + kind],
                'epoch',
                filename=f'{kind}.png',
                postprocess=functools.partial(label, description, kind),
            )
        )
    # Under mpiexec, a rank's output looks like a terminal, wherever it goes.
    terminal = sys.stdout.isatty() and comm.size == 1
    trainer.extend(PrintReport(sys.stdout if terminal else PlainText()))
    if terminal:
        trainer.extend(extensions.ProgressBar(update_interval=10))
    frequency = args.epoch if args.frequency == -1 else args.frequency
    snapshot = extensions.snapshot(
        filename='snapshot_epoch_{.updater.epoch}', savefun=save_npz
    )

    def take_snapshot(trainer):
        snapshot(trainer)
        remove_old_snapshots(trainer)

    # Snapshots contain the name.
    trainer.extend(
        take_snapshot,
        name='_Snapshot',
        priority=snapshot.priority,
        trigger=(frequency, 'epoch'),
    )
    return trainer


def resume(args, make, comm):
    """Makes a trainer that continues from what --resume or --autoload say."""
    snapshots = []
    if args.autoload:
        snapshots = distributed.on_rank_0(comm, find_snapshots, args.out)
    for path in snapshots:
        # A half-loaded snapshot is discarded together with its trainer.
        trainer = make()
        try:
            load_snapshot(path, trainer, comm)
            return trainer
        except ValueError as error:
            if comm.rank == 0:
                sys.stderr.write(f'train_mnist.py: {error}\n')
    if snapshots:
        raise ValueError(
            f'no snapshot in {args.out} can be used; give the options of the '
            'run that wrote them, or start over without --autoload'
        )
    trainer = make()
    if args.resume:
        load_snapshot(args.resume, trainer, comm)
    return trainer


def main():
    args = parse_args()
    comm = distributed.ONE_RANK
    train = test = description = None
    try:
        if args.distributed:
            comm = distributed.connect()
            device, comm = distributed.use_device(
                comm, args.device, args.communicator
            )
            distributed.check_same(comm, vars(args))
        else:
            device = chainer.get_device(args.device)
            device.use()
        if comm.rank == 0:
            train, test, description = load_dataset(args.dataset)
    except (OSError, RuntimeError, ValueError) as error:
        fail(error, comm)
    size = comm.bcast_obj(len(train) if comm.rank == 0 else None)
    if args.batchsize > size:
        fail(
            f'--batchsize {args.batchsize} is larger than the training set of '
            f'{size:,} images',
            comm,
        )
    if args.batchsize % comm.size:
        above = args.batchsize + -args.batchsize % comm.size
        fail(
            f'--batchsize {args.batchsize} cannot be divided among '
            f'{comm.size} ranks; --batchsize {above} can',
            comm,
        )
    network = '784 - {} - {} - 10, second layer {}'.format(
        args.unit,
        args.out_units,
        f'shared by {args.common_num} blocks'
        if args.common_num > 1
        else 'not shared',
    )
    if comm.rank == 0:
        print(
            f'data: {len(train):,} training and {len(test):,} test images, '
            f'{description}'
        )
        print('network: ' + network)
        if args.distributed:
            print(
                f'ranks: {comm.size}, each on {args.batchsize // comm.size} '
                f'images of a batch of {args.batchsize}'
            )
    chainer.global_config.common_num = args.common_num

    start = time.time()
    try:
        train, test = distributed.scatter(comm, train, test, args.seed)
        distributed.on_rank_0(comm, prepare_out, args.out)
        trainer = resume(
            args,
            lambda: make_trainer(args, device, train, test, network, comm),
            comm,
        )
    except (OSError, ValueError) as error:
        fail(error, comm)
    model = trainer.updater.get_optimizer('main').target.predictor
    try:
        # Chainer would print a traceback before it raises the error.
        trainer.run(show_loop_exception_msg=False)
        if comm.rank == 0:
            # A run killed right after its last snapshot may have left one too
            # many, and this run may have taken none.
            remove_old_snapshots(trainer)
            extensions.snapshot_object(model, 'model.npz', savefun=save_npz)(
                trainer
            )
            print_summary(model, args.common_num, trainer, start, comm)
    except (OSError, subprocess.CalledProcessError) as error:
        if comm.rank > 0:  # it writes nothing
            raise
        remove_unfinished_picture(args.out)
        fail(f'cannot write to {args.out}: {error}', comm)
    except KeyboardInterrupt:
        if comm.rank > 0:
            raise
        message = 'interrupted; --autoload resumes from the latest snapshot\n'
        distributed.exit_all(comm, 130, message)


if __name__ == '__main__':
    main()
