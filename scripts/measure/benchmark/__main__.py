"""Compares the speed and memory of shared layers with the alternatives.

Times are medians over rounds; ratios are medians of the ratios within each
round. Takes a quarter of an hour, or one or two minutes with --quick. Writes
performance_tables.md and, in performance/, the plots and benchmark.json.
"""

import json
import os
import shlex
import sys
import time

import chainer_shared_patch  # noqa: F401
import chainer
from datasets import load_dataset
from measure.benchmark.cases import (
    CONTENDERS,
    CONVERSIONS,
    GPU_SIZES,
    INFERENCE_SIZES,
    INFERENCES,
    ORDERED,
    ORDERED_SIZES,
    QUICK_SIZES,
    SIZES,
    SWEEPS,
    SWEPT,
    TRAININGS,
)
from measure.benchmark.plots import plot
from measure.benchmark.report import get_title, render
from measure.benchmark.timing import (
    Processes,
    call,
    measure_layer,
    measure_training,
)
from measure.machine import describe_machine, find_versions, make_parser
import numpy

# Which instructions NumPy's BLAS, PyTorch and PyTorch's BLAS may use.
INSTRUCTIONS = (
    'OPENBLAS_CORETYPE',
    'ATEN_CPU_CAPABILITY',
    'MKL_ENABLE_INSTRUCTIONS',
)


def parse_args():
    parser = make_parser('benchmark', __doc__)
    add = parser.add_argument
    add(
        '--device',
        '-d',
        default='@numpy',
        help="Chainer's device specifier, such as @cupy:0 (default: @numpy)",
    )
    add(
        '--render',
        action='store_true',
        help='measure nothing; rewrite the page and the plots in --out from '
        'its performance/benchmark.json',
    )
    return parser.parse_args()


def describe_run(device):
    """Returns the date, the machine, the versions and the command."""
    versions = find_versions(
        'chainer_shared_patch', 'chainer', 'numpy', 'torch', 'onnxruntime'
    )
    machine = describe_machine()
    for name in INSTRUCTIONS:
        if name in os.environ:
            machine += f', {name}={os.environ[name]}'
    if device.xp is not numpy:
        versions['cupy'] = device.xp.__version__
        properties = device.xp.cuda.runtime.getDeviceProperties(
            device.device.id
        )
        machine += ', ' + properties['name'].decode()
    command = ['python', '-m', 'measure.benchmark', *sys.argv[1:]]
    return {
        'date': time.strftime('%Y-%m-%d'),
        'machine': machine,
        'device': device.name,
        'versions': versions,
        'command': 'PYTHONPATH=scripts ' + shlex.join(command),
    }


def measure(args, device):
    sizes, sweeps = (QUICK_SIZES, []) if args.quick else (SIZES, SWEEPS)
    inferences = INFERENCE_SIZES
    if device.xp is not numpy:
        sizes = sizes + GPU_SIZES
        sizes += [layer._replace(dtype='float16') for layer in sizes]
        inferences = []  # onnxruntime uses the CPU
    swept = {name: CONTENDERS[name] for name in SWEPT}
    parts = [('sizes', layer, CONTENDERS) for layer in sizes]
    parts += [('sweeps', layer, swept) for layer in sweeps]
    parts += [('inference', layer, INFERENCES) for layer in inferences]
    ordered = ORDERED_SIZES[: 1 if args.quick else None]
    parts += [('orders', layer, ORDERED) for layer in ordered]
    rounds, training_rounds, epochs = (3, 1, 1) if args.quick else (9, 3, 3)
    processes = Processes(args.device)
    results = describe_run(device)
    *_, results['dataset'] = load_dataset(args.dataset)
    results.update(sizes=[], sweeps=[], inference=[], orders=[])
    results['sharing'] = []
    for kind, layer, contenders in parts:
        row = layer._asdict()
        print(get_title(row), file=sys.stderr)
        row['contenders'] = measure_layer(processes, layer, contenders, rounds)
        results[kind].append(row)
    print('converting ordinary layers', file=sys.stderr)
    for layer, examples in CONVERSIONS[: 2 if args.quick else None]:
        seconds, nbytes = processes.run(
            'chainer', call, 'share', layer, examples
        )
        results['sharing'].append(
            {
                **layer._asdict(),
                'examples': examples,
                'seconds': seconds,
                'bytes': nbytes,
            }
        )
    print('training', file=sys.stderr)
    results['training'] = measure_training(
        processes, TRAININGS, args.dataset, training_rounds, epochs
    )
    return results


def main():
    args = parse_args()
    folder = args.out.expanduser() / 'performance'
    path = folder / 'benchmark.json'
    if args.render:
        results = json.loads(path.read_text())
    else:
        device = chainer.get_device(args.device)
        device.use()
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(args, device)
        path.write_text(json.dumps(results, indent=1))
    page = folder.with_name('performance_tables.md')
    page.write_text(render(results), encoding='utf-8')
    plot(results, folder)
    print(page.read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
