"""Broadcasts models that each rank has drawn and shared for itself."""

import sys

from chainer_shared_patch import SharedLinear, share
import chainer
import chainer.links as L
import chainermn
import numpy


def main():
    comm = chainermn.create_communicator('naive')
    numpy.random.seed(comm.rank)
    model = chainer.Sequential(
        L.Linear(12, 6),
        SharedLinear(
            6,
            4,
            common_num=2,
            order=[numpy.random.permutation(6) for _ in range(1 + comm.rank)],
        ),
    )
    share(model, {'/0': 3})
    x = numpy.arange(24, dtype='f').reshape(2, 12)
    before = model(x).array
    if sys.argv[2] == 'bcast_data':
        comm.bcast_data(model)
    else:
        optimizer = chainermn.create_multi_node_optimizer(
            chainer.optimizers.SGD(), comm
        ).setup(model)
        optimizer.update()
    numpy.savez(f'{sys.argv[1]}/{comm.rank}', before, model(x).array)


if __name__ == '__main__':
    main()
