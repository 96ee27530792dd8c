#!/usr/bin/env python
"""Trains the article's network on MNIST, with ChainerMN.

``mpiexec -n 4 python scripts/train_mnist_distributed.py`` trains it on 4
ranks, each of which takes a quarter of every batch.
"""

import os

import chainer_shared_patch
import chainer
from chainer import training
import chainer.functions as F
from chainer.training import extensions
import chainermn
from datasets import load_dataset
import numpy
from train_mnist import (
    extend_with_reports,
    make_model,
    make_order_sampler,
    make_snapshot,
    parse_args,
    save_npz,
)


class Evaluator(chainermn.extensions.GenericMultiNodeEvaluator):
    """Reports averages over all images, however many each rank has."""

    def calc_local(self, x, t):
        with chainer.using_config('train', False):
            y = self._targets['main'].predictor(x)
        loss, accuracy = F.softmax_cross_entropy(y, t), F.accuracy(y, t)
        return numpy.array([loss.item(), accuracy.item(), 1]) * len(x)

    def aggregate(self, results):
        loss, accuracy, size = sum(results)
        chainer.report({'validation/main/loss': loss / size})
        chainer.report({'validation/main/accuracy': accuracy / size})


def main():
    # An error on one rank ends all.
    chainermn.global_except_hook.add_hook()
    args = parse_args(__doc__.splitlines()[0])
    gpu = args.device == '@cupy'
    comm = chainermn.create_communicator('pure_nccl' if gpu else 'naive')
    settings = vars(args), chainer.get_dtype().name
    if comm.mpi_comm.bcast(settings) != settings:
        raise ValueError(
            f'rank {comm.rank} has other settings than rank 0: {settings}'
        )
    if args.batchsize % comm.size:
        raise ValueError(
            f'--batchsize {args.batchsize} cannot be divided among '
            f'{comm.size} ranks'
        )
    device = chainer.get_device(
        f'@cupy:{comm.intra_rank}' if gpu else args.device
    )
    device.use()

    train = test = None
    if comm.rank == 0:
        train, test, description = load_dataset(args.dataset)
        print(f'data: {len(train):,} + {len(test):,} images, {description}')
        print(f'ranks: {comm.size}')
    train = chainermn.scatter_dataset(
        train, comm, shuffle=True, seed=args.seed
    )
    test = chainermn.scatter_dataset(test, comm, force_equal_length=False)

    model = make_model(args)
    model.to_device(device)
    optimizer = chainermn.create_multi_node_optimizer(
        chainer.optimizers.Adam(), comm
    ).setup(model)
    optimizer.update()  # The first only broadcasts the weights.
    train_iter = chainer.iterators.SerialIterator(
        train,
        args.batchsize // comm.size,
        order_sampler=make_order_sampler(args.seed),
    )
    test_iter = chainer.iterators.SerialIterator(
        test, args.batchsize, repeat=False, shuffle=False
    )
    updater = training.updaters.StandardUpdater(
        train_iter, optimizer, device=device
    )
    trainer = training.Trainer(updater, (args.epoch, 'epoch'), args.out)
    trainer.extend(Evaluator(comm, test_iter, model, device=device))
    for key in ('main/loss', 'main/accuracy'):
        trainer.extend(chainermn.extensions.ObservationAggregator(comm, key))
    if comm.rank == 0:
        extend_with_reports(trainer)
    trainer.extend(extensions.FailOnNonNumber(), trigger=(1, 'epoch'))
    snapshot = chainermn.extensions.multi_node_snapshot(
        comm, make_snapshot(args), [range(comm.size)]
    )
    trainer.extend(snapshot, trigger=(args.frequency, 'epoch'))
    if args.resume:
        chainer.serializers.load_npz(args.resume, trainer)
    trainer.run()

    if comm.rank == 0:
        save_npz(os.path.join(args.out, 'model.npz'), model.predictor)
        x, _ = chainer.dataset.concat_examples(test[:1], device)
        print(chainer_shared_patch.summary(model.predictor, x))


if __name__ == '__main__':
    main()
