#!/usr/bin/env python
"""Trains the network of the article on MNIST.

784 - 1000 - 900 - 10 units with ReLU. The second layer shares its weight
among the 10 blocks of its 1000 inputs: its W is (900, 100) instead of
(900, 1000). ``CHAINER_SHARED_PATCH=0`` trains the same network unshared.
"""

import argparse
import functools
import glob
import os
import sys
import time

import chainer_shared_patch
import chainer
from chainer import training
from chainer.datasets._mnist_helper import preprocess_mnist
import chainer.functions as F
import chainer.links as L
from chainer.training import extensions
from chainer_shared_patch.compat.mnist import read_directory
import numpy

SAMPLE = os.path.join(os.path.dirname(__file__), 'mnist_sample')


class MLP(chainer.Chain):
    """The network; the second layer's input is shared by common_num."""

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


class StopTrigger(training.triggers.IntervalTrigger):
    """Fires from its epoch on.

    Chainer's own fires at multiples of it, so that resuming from a snapshot
    of epoch 3 with ``--epoch 2`` would train to epoch 4.
    """

    def __call__(self, trainer):
        return trainer.updater.epoch >= self.period


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
                'must be an integer of at least {}{}, not {!r}'.format(
                    minimum,
                    ' and at most {}'.format(maximum) if maximum else '',
                    text,
                )
            )
        return number

    return parse


def parse_args():
    parser = argparse.ArgumentParser(
        description='Trains the network of the article on MNIST. '
        'CHAINER_SHARED_PATCH=0 trains it unshared.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--batchsize', '-b', type=integer(1), default=100, help='batch size')
    add('--epoch', '-e', type=integer(1), default=20, help='number of epochs')
    add('--unit', '-u', type=integer(1), default=1000, help='units of layer 1')
    add('--out-units', type=integer(1), default=900, help='units of layer 2')
    add(
        '--common-num',
        type=integer(1),
        default=(
            chainer.global_config.common_num
            if 'CHAINER_COMMON_NUM' in os.environ
            else 10
        ),
        help="blocks of the second layer's input that share its weight",
    )
    add('--bias', action='store_true', help='give the second layer a bias')
    add(
        '--dataset',
        default='auto',
        help='mnist, fashion, sample (bundled, a sixth of MNIST), a directory '
        'with the four IDX files, or auto: mnist, and sample where that is '
        'out of reach',
    )
    add(
        '--device',
        '-d',
        default='@numpy',
        help="Chainer's device specifier, such as @numpy or @cupy:0",
    )
    add('--out', '-o', default='result', help='directory of the results')
    add('--resume', '-r', help='snapshot to resume training from')
    add(
        '--autoload',
        action='store_true',
        help='resume from the latest snapshot in --out, if there is one',
    )
    add(
        '--frequency',
        '-f',
        type=integer(1, None, -1),
        default=1,
        help='epochs between two snapshots; -1 for one at the end',
    )
    add(
        '--seed',
        type=integer(0, 2**32 - 1),
        default=0,
        help='seed of weights and shuffling',
    )
    args = parser.parse_args()
    args.dataset = os.path.expanduser(args.dataset)
    args.out = os.path.expanduser(args.out)

    if not chainer_shared_patch.is_installed():
        args.common_num = 1
    if args.unit % args.common_num:
        divisors = [n for n in range(1, args.unit + 1) if not args.unit % n]
        near = sorted(divisors, key=lambda n: abs(n - args.common_num))[:3]
        below = args.unit - args.unit % args.common_num
        parser.error(
            '--unit {} cannot be split into {} equal blocks; the divisors of '
            '{} nearby are {}, the units nearby that can are {}'.format(
                args.unit,
                args.common_num,
                args.unit,
                ', '.join(map(str, sorted(near))),
                ' and '.join(
                    str(unit)
                    for unit in (below, below + args.common_num)
                    if unit
                ),
            )
        )
    if args.resume and not os.path.isfile(args.resume):
        parser.error('--resume: there is no file {}'.format(args.resume))
    return args


def load_dataset(name):
    """Returns training set, test set, and in words what they are."""
    if name == 'fashion':
        return (*chainer.datasets.get_fashion_mnist(), 'Fashion-MNIST')
    directory, description = name, 'the files in ' + name
    if name in ('auto', 'mnist'):
        try:
            return (*chainer.datasets.get_mnist(), 'MNIST')
        except OSError:
            if name == 'mnist':
                raise
        directory = SAMPLE
        description = (
            'the bundled sample, as MNIST itself is out of reach '
            '(--dataset mnist says why)'
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
    """Makes a sampler whose every order determines the next.

    Snapshots hold the order of the current epoch and not the state of a
    random number generator, so this makes a resumed run go on as the
    uninterrupted one.
    """

    def sample(current_order, current_position):
        random = numpy.random.RandomState([seed, *current_order[:16]])
        return random.permutation(len(current_order))

    return sample


def check_snapshot(path, model, size):
    """Raises an error if a snapshot is of another network or data set."""
    try:
        with numpy.load(path) as snapshot:
            for name, parameter in model.namedparams():
                shape = snapshot['updater/model:main' + name].shape
                if shape != parameter.shape:
                    raise ValueError(
                        'its {} is {}, that of this network {}'.format(
                            name, shape, parameter.shape
                        )
                    )
            number = len(snapshot['updater/iterator:main/order'])
            if number != size:
                raise ValueError(
                    'it is of {:,} training images, and here are {:,}'.format(
                        number, size
                    )
                )
    except Exception as error:  # whatever NumPy makes of other files
        raise ValueError(
            'cannot resume from {}: {}'.format(path, error)
        ) from error


def print_summary(model, common_num, trainer, start):
    """Prints parameters, accuracy, time and files."""
    row = '{:<8}{:>14}{:>14}{:>14}'.format
    print()
    print(row('layer', 'W', 'parameters', 'unshared'))
    total = unshared_total = 0
    for name in ('l1', 'l2', 'l3'):
        layer = model[name]
        number = layer.count_params()
        unshared = number
        if name == 'l2':
            unshared += (common_num - 1) * layer.W.size
        shape = '{} x {}'.format(*layer.W.shape)
        print(row(name, shape, '{:,}'.format(number), '{:,}'.format(unshared)))
        total += number
        unshared_total += unshared
    print(
        row('total', '', '{:,}'.format(total), '{:,}'.format(unshared_total))
    )
    last = trainer.get_extension('LogReport').log[-1]
    accuracy = last['validation/main/accuracy']
    print()
    print('test accuracy      {:.4f}'.format(accuracy))
    seconds = last['elapsed_time'] / last['epoch']
    print('seconds per epoch  {:.2f}'.format(seconds))
    print('files written')
    for path in sorted(glob.glob(os.path.join(trainer.out, '*'))):
        if os.path.getmtime(path) >= start:
            print('  ' + path)


def fail(error):
    sys.exit('train_mnist.py: error: {}'.format(error))


def main():
    args = parse_args()
    try:
        device = chainer.get_device(args.device)
        device.use()
        train, test, description = load_dataset(args.dataset)
    except (OSError, RuntimeError, ValueError) as error:
        fail(error)
    numpy.random.seed(args.seed)
    if device.xp is not numpy:
        device.xp.random.seed(args.seed)

    print(
        'data: {:,} training and {:,} test images, {}'.format(
            len(train), len(test), description
        )
    )
    chainer.global_config.common_num = args.common_num
    print(
        'network: 784 - {} - {} - 10, second layer {}'.format(
            args.unit,
            args.out_units,
            'shared by {} blocks'.format(args.common_num)
            if args.common_num > 1
            else 'not shared',
        )
    )

    network = MLP(args.unit, args.out_units, 10, args.common_num, args.bias)
    model = L.Classifier(network)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam()
    optimizer.setup(model)

    train_iter = chainer.iterators.SerialIterator(
        train,
        args.batchsize,
        order_sampler=make_order_sampler(args.seed),
    )
    test_iter = chainer.iterators.SerialIterator(
        test, args.batchsize, repeat=False, shuffle=False
    )
    updater = training.updaters.StandardUpdater(
        train_iter, optimizer, device=device
    )
    trainer = training.Trainer(
        updater, StopTrigger(args.epoch, 'epoch'), out=args.out
    )

    trainer.extend(extensions.Evaluator(test_iter, model, device=device))
    trainer.extend(extensions.DumpGraph('main/loss'))
    trainer.extend(extensions.LogReport())
    if extensions.PlotReport.available():
        for kind in ('loss', 'accuracy'):
            keys = ['main/' + kind, 'validation/main/' + kind]
            trainer.extend(
                extensions.PlotReport(
                    keys, 'epoch', file_name='{}.png'.format(kind)
                )
            )
    columns = [
        'epoch',
        'main/loss',
        'validation/main/loss',
        'main/accuracy',
        'validation/main/accuracy',
        'elapsed_time',
    ]
    terminal = sys.stdout.isatty()
    trainer.extend(
        extensions.PrintReport(
            columns, out=sys.stdout if terminal else PlainText()
        )
    )
    if terminal:
        trainer.extend(extensions.ProgressBar(update_interval=10))
    frequency = args.epoch if args.frequency == -1 else args.frequency
    trainer.extend(
        extensions.snapshot(
            filename='snapshot_epoch_{.updater.epoch}',
            n_retains=2,
            # To compress weights takes a while and saves next to nothing.
            savefun=functools.partial(
                chainer.serializers.save_npz, compression=False
            ),
            autoload=args.autoload,
        ),
        trigger=(frequency, 'epoch'),
    )
    try:
        os.makedirs(args.out, exist_ok=True)
        if args.autoload:
            for path in glob.glob(os.path.join(args.out, 'snapshot_epoch_*')):
                check_snapshot(path, model, len(train))
        if args.resume:
            check_snapshot(args.resume, model, len(train))
            chainer.serializers.load_npz(args.resume, trainer)
    except (OSError, ValueError) as error:
        fail(error)

    start = time.time()
    try:
        trainer.run()
    except KeyboardInterrupt:
        print('interrupted; --autoload resumes from the latest snapshot')
        sys.exit(130)
    chainer.serializers.save_npz(os.path.join(args.out, 'model.npz'), network)
    print_summary(network, args.common_num, trainer, start)


if __name__ == '__main__':
    main()
