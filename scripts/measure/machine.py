"""What the measurements share: options, and a description of their run."""

import argparse
import importlib.metadata
import os
from pathlib import Path
import platform
import re


def make_parser(name, description):
    """Makes a parser with the options that both measurements have."""
    parser = argparse.ArgumentParser(
        prog=f'python -m measure.{name}',
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        '--dataset',
        type=os.path.expanduser,
        default='auto',
        help='images to train on, as for train_mnist.py (default: auto)',
    )
    out = f'result-{name}'
    help = f'directory to write to (default: {out})'
    add('--out', '-o', type=Path, default=out, help=help)
    add('--quick', action='store_true', help='measure less')
    return parser


def find_versions(*names):
    """Returns the versions of Python and of distributions, by name."""
    versions = {'Python': platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = '(absent)'
    return versions


def count_cores():
    """Returns the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def describe_machine():
    """Returns the processor and its cores, in words."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        models = re.findall(
            r'model name\s*: (.+)', Path('/proc/cpuinfo').read_text()
        )
        processor = models[0] if models else processor
    return f'{processor}, {count_cores()} cores'
