#!/usr/bin/env python
"""Trains the article's network on MNIST.

784 - 1000 - 900 - 10 units with ReLU. The 10 blocks of the second layer's
1,000 inputs share one weight: its W is (900, 100) instead of (900, 1000).
``CHAINER_SHARED_PATCH=0`` trains the same network with ordinary layers.
"""

import argparse
import functools
import os
import sys
import warnings

import chainer_shared_patch
import chainer
from chainer import training
import chainer.functions as F
import chainer.links as L
from chainer.training import extensions
from datasets import load_dataset
import numpy

# Compressing weights takes a while and saves next to nothing.
save_npz = functools.partial(chainer.serializers.save_npz, compression=False)


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


def make_order_sampler(seed):
    """Makes a sampler in which each order determines the next.

    Snapshots hold the order of the current epoch, but not the state of a
    random number generator. With this, a resumed run continues like an
    uninterrupted one, bit for bit.
    """

    def sample(current_order, current_position):
        random = numpy.random.RandomState([seed, *current_order[:16]])
        return random.permutation(len(current_order))

    return sample


def parse_args(description):
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--batchsize', '-b', type=int, default=100, help='images per batch')
    add('--epoch', '-e', type=int, default=20, help='epochs to train')
    add('--unit', '-u', type=int, default=1000, help='units of the 1st layer')
    add('--out-units', type=int, default=900, help='units of the 2nd layer')
    add(
        '--common-num',
        type=int,
        default=os.environ.get('CHAINER_COMMON_NUM', 10),
        help="blocks of the 2nd layer's inputs that share its weight",
    )
    add('--bias', action='store_true', help='give the 2nd layer a bias')
    add(
        '--dataset',
        default='auto',
        help='mnist, fashion, sample (the bundled sixth of MNIST), auto '
        '(mnist or else sample), or a directory with the four IDX files',
    )
    add('--device', '-d', default='@numpy', help='device specifier')
    add('--out', '-o', default='result', help='directory to write to')
    add('--resume', '-r', help='snapshot to resume from')
    add('--autoload', action='store_true', help='resume from the newest one')
    add('--frequency', '-f', type=int, default=1, help='epochs per snapshot')
    add('--seed', type=int, default=0, help='seed for weights and shuffling')
    args = parser.parse_args()
    args.out = os.path.expanduser(args.out)
    if args.frequency == -1:
        args.frequency = args.epoch
    if not chainer_shared_patch.is_installed():
        args.common_num = 1
    if args.common_num < 1 or args.unit % args.common_num:
        parser.error(
            f'--unit {args.unit} cannot be split into --common-num '
            f'{args.common_num} equal blocks'
        )
    return args


def make_model(args):
    chainer.global_config.common_num = args.common_num
    numpy.random.seed(args.seed)
    return L.Classifier(
        MLP(args.unit, args.out_units, 10, args.common_num, args.bias)
    )


def make_snapshot(args):
    return extensions.snapshot(
        save_npz,
        filename='snapshot_epoch_{.updater.epoch}',
        n_retains=2,
        autoload=args.autoload,
    )


def extend_with_reports(trainer):
    warnings.filterwarnings('ignore', 'matplotlib is not installed')
    trainer.extend(extensions.LogReport())
    for kind in ('loss', 'accuracy'):
        keys = [f'main/{kind}', f'validation/main/{kind}']
        plot = extensions.PlotReport(keys, 'epoch', filename=f'{kind}.png')
        trainer.extend(plot)
    columns = ['epoch', 'main/loss', 'validation/main/loss', 'main/accuracy']
    columns += ['validation/main/accuracy', 'elapsed_time']
    trainer.extend(extensions.PrintReport(columns))
    trainer.extend(extensions.ProgressBar())


def main():
    args = parse_args(__doc__.splitlines()[0])
    try:
        train, test, description = load_dataset(args.dataset)
    except (OSError, ValueError) as error:
        sys.exit(f'train_mnist.py: error: {error}')
    print(f'data: {len(train):,} + {len(test):,} images, {description}')

    device = chainer.get_device(args.device)
    device.use()
    model = make_model(args)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam().setup(model)
    train_iter = chainer.iterators.SerialIterator(
        train, args.batchsize, order_sampler=make_order_sampler(args.seed)
    )
    # In one batch, all images weigh the same.
    test_iter = chainer.iterators.SerialIterator(
        test, len(test), repeat=False, shuffle=False
    )
    updater = training.updaters.StandardUpdater(
        train_iter, optimizer, device=device
    )
    trainer = training.Trainer(updater, (args.epoch, 'epoch'), args.out)
    trainer.extend(extensions.Evaluator(test_iter, model, device=device))
    trainer.extend(extensions.DumpGraph('main/loss'))
    extend_with_reports(trainer)
    # It has a higher priority than snapshots, which therefore hold numbers.
    trainer.extend(extensions.FailOnNonNumber(), trigger=(1, 'epoch'))
    trainer.extend(make_snapshot(args), trigger=(args.frequency, 'epoch'))
    if args.resume:
        chainer.serializers.load_npz(args.resume, trainer)
    trainer.run()

    save_npz(os.path.join(args.out, 'model.npz'), model.predictor)
    x, _ = chainer.dataset.concat_examples(test[:1], device)
    print(chainer_shared_patch.summary(model.predictor, x))


if __name__ == '__main__':
    main()
