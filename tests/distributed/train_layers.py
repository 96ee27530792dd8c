"""Trains layers on all ranks, and counts what they send."""

import sys

import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
import chainermn
import numpy

KINDS = 'dense', 'patched', 'SharedLinear'
N, K, OUT_SIZE, BATCH_SIZE, STEPS = 4, 6, 4, 8, 2


class Counter:
    """An MPI communicator that counts the bytes of gradients."""

    def __init__(self, mpi_comm):
        self.mpi_comm = mpi_comm
        self.bytes = 0

    def __getattr__(self, name):
        return getattr(self.mpi_comm, name)

    def Allreduce(self, sendbuf, recvbuf):
        self.bytes += memoryview(recvbuf).nbytes
        return self.mpi_comm.Allreduce(sendbuf, recvbuf)


def make_layer(kind):
    draw = numpy.random.RandomState(0).randint
    wide = kind == 'dense'
    W = draw(-3, 4, (OUT_SIZE, N * K if wide else K)).astype('f')
    if kind == 'SharedLinear':
        return chainer_shared_patch.SharedLinear(
            N * K, OUT_SIZE, nobias=True, initialW=W, common_num=N
        )
    return L.Linear(W.shape[1], OUT_SIZE, nobias=True, initialW=W)


def make_batches():
    """Returns global batches of integers: no sum of them is rounded."""
    draw = numpy.random.RandomState(1).randint
    return [
        (
            draw(-1, 2, (BATCH_SIZE, N * K)).astype('f'),
            draw(-1, 2, (BATCH_SIZE, OUT_SIZE)).astype('f'),
        )
        for _ in range(STEPS)
    ]


def train(kind, comm):
    """Returns the weight, and the bytes sent in each step."""
    layer = make_layer(kind)
    optimizer = chainermn.create_multi_node_optimizer(
        chainer.optimizers.SGD(lr=2**-2), comm
    ).setup(layer)
    optimizer.update()  # the first one only broadcasts
    sent = []
    for x, t in make_batches():
        x, t = (array[comm.rank :: comm.size] for array in (x, t))
        before = comm.mpi_comm.bytes
        optimizer.update(lambda x, t: F.mean_squared_error(layer(x), t), x, t)
        sent.append(comm.mpi_comm.bytes - before)
    return layer.W.array, sent


def main():
    comm = chainermn.create_communicator('naive')
    comm.mpi_comm = Counter(comm.mpi_comm)
    chainer.global_config.common_num = N
    results = {}
    for kind in KINDS:
        results[kind], results[kind + ' sent'] = train(kind, comm)
    numpy.savez(f'{sys.argv[1]}/{comm.rank}.npz', **results)


if __name__ == '__main__':
    main()
