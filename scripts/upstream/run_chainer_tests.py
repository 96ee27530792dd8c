#!/usr/bin/env python
"""Runs Chainer's own CPU tests under the patch.

.. code-block:: console

    $ git clone --branch v7.8.1 https://github.com/chainer/chainer
    $ python scripts/upstream/run_chainer_tests.py chainer

Needs pytest, mock and SciPy. The argument tests/onnx_chainer_tests runs the
tests of the ONNX exporter, which need onnx and onnxruntime. The tests of
ChainerMN need mpi4py and two processes:

.. code-block:: console

    $ mpiexec -n 2 python scripts/upstream/run_chainer_tests.py chainer \\
          tests/chainermn_tests

Prints each failure that chainer_test_failures.csv does not list, or that is
more frequent than listed there, and then exits with status 1.
"""

import argparse
import collections
import csv
import io
import os
from pathlib import Path
import platform
import re
import sys

import chainer_shared_patch
import chainer
import numpy
import pytest

LIST = Path(__file__).with_name('chainer_test_failures.csv')
MARKERS = (
    'not gpu and not multi_gpu and not cudnn and not ideep and not chainerx '
    'and {}slow'
)


def generalize(nodeid):
    """Returns a test's file, class and method, without its parameters."""
    path, *names = nodeid.split('::')
    path = re.sub(r'^(.*/)?tests/(chainer_tests/)?', '', path)
    names = [
        re.sub(r'(_param_\d|_?\{|\[|_use_\w+=).*', '', name) for name in names
    ]
    return '::'.join([path, *names])


class Recorder:
    """A pytest plugin that records the outcome of each test."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.outcome != 'passed' or report.when == 'call':
            self.outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes[report.nodeid] = 'failed'


def merge(outcomes):
    """Merges the outcomes of each test in several processes.

    A test has failed if it failed in one process; otherwise, it has passed if
    it passed in one.
    """
    merged = {}
    for outcome in ('skipped', 'passed', 'failed'):
        for of_one_process in outcomes:
            for nodeid, actual in of_one_process.items():
                if actual == outcome:
                    merged[nodeid] = outcome
    return merged


def read_list():
    """Returns how many times each listed test fails."""
    with LIST.open(encoding='utf-8', newline='') as file:
        rows = csv.DictReader(file)
        return {row['test']: int(row['failures']) for row in rows}


def run_pytest(checkout, pytest_args, plugin, slow=False):
    """Runs tests in a clone of Chainer, by default all those of Chainer."""
    os.chdir(checkout)
    # Without Chainer's setup.cfg, whose filters turn the warnings of today's
    # Python into failures.
    status = pytest.main(
        [
            *('-c', os.devnull, '--rootdir', '.'),
            *('-m', MARKERS.format('' if slow else 'not ')),
            *('-q', '--tb=line', '-rN', '--disable-warnings'),
            *('-p', 'no:cacheprovider'),
            # Says where it hangs: while one process waits for another's end.
            *('-o', 'faulthandler_timeout=600'),
            '--continue-on-collection-errors',
            *(pytest_args or ['tests/chainer_tests']),
        ],
        plugins=[plugin],
    )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f'pytest did not finish: {status!r}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkout', type=Path, help='a clone of Chainer')
    parser.add_argument(
        '--common-num',
        type=int,
        default=10,
        help='common_num during the tests (default: 10)',
    )
    parser.add_argument(
        '--slow', action='store_true', help='run only the tests marked slow'
    )
    parser.add_argument(
        'pytest_args',
        nargs=argparse.REMAINDER,
        help='paths in the clone, and options of pytest (default: '
        'tests/chainer_tests)',
    )
    args = parser.parse_args()
    chainer_shared_patch.install()
    chainer.global_config.common_num = args.common_num
    os.environ['CHAINER_COMMON_NUM'] = str(args.common_num)
    recorder = Recorder()
    outcomes = [recorder.outcomes]
    comm = None
    if any('chainermn_tests' in arg for arg in args.pytest_args):
        from mpi4py.MPI import COMM_WORLD as comm
    if comm is not None and comm.rank > 0:
        sys.stdout = io.StringIO()
    run_pytest(args.checkout, args.pytest_args, recorder, args.slow)
    if comm is not None:
        outcomes = comm.gather(recorder.outcomes)
        if comm.rank > 0:
            return

    outcomes = merge(outcomes)
    counts = collections.Counter(outcomes.values())
    failures = collections.Counter(
        generalize(nodeid)
        for nodeid, outcome in outcomes.items()
        if outcome == 'failed'
    )
    unlisted = failures - collections.Counter(read_list())
    for test, number in sorted(unlisted.items()):
        print(f'{number:6} not listed: {test}')
    print(
        f'Python {platform.python_version()}, NumPy {numpy.__version__}, '
        f'Chainer {chainer.__version__}, common_num {args.common_num}: '
        f'{counts["passed"]} passed, {counts["failed"]} failed '
        f'({sum(unlisted.values())} of them not listed), '
        f'{counts["skipped"]} skipped'
    )
    sys.exit(1 if unlisted else 0)


if __name__ == '__main__':
    main()
