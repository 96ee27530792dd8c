#!/usr/bin/env python
"""Runs Chainer's own CPU tests under the patch.

.. code-block:: console

    $ git clone --branch v7.8.1 https://github.com/chainer/chainer
    $ python scripts/upstream/chainer_tests.py chainer

Needs pytest, mock and SciPy. The argument tests/onnx_chainer_tests runs the
tests of the ONNX exporter, which need onnx and onnxruntime. The tests of
ChainerMN need mpi4py and two processes:

.. code-block:: console

    $ mpiexec -n 2 python scripts/upstream/chainer_tests.py chainer \\
          tests/chainermn_tests

Sums up failures and skips by cause, and exits with status 1 if a test fails
that chainer_test_failures.csv does not list, or fails more often than listed
there.
"""

import argparse
import collections
import csv
import faulthandler
import io
import os
from pathlib import Path
import platform
import re
import sys

import chainer_shared_patch
import chainer
import google.protobuf
import numpy
import pytest
import scipy

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


def shorten(message):
    """Returns the line of a message that says what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # chainer.testing wraps the message of a test with parameters.
    for number, line in enumerate(lines):
        if line.endswith('Parameterized test failed.'):
            error = line.split(':')[0]
            for later in lines[number:]:
                if later.startswith(error + ': ') and later != line:
                    return later
    return lines[0] if lines else ''


def skip_reason(report):
    """Returns why a test was skipped, or was expected to fail."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return 'expected to fail ' + getattr(report, 'wasxfail', '')


class Recorder:
    """A pytest plugin that records the outcome of each test and its cause.

    A test that takes longer than ``time_limit`` seconds ends the process with
    a traceback: if one of several processes fails in the middle of a test, the
    others keep waiting for it.
    """

    def __init__(self, rank, time_limit):
        self.rank = rank
        self.time_limit = time_limit
        self.outcomes = {}
        # A copy that pytest does not capture.
        self.stderr = os.dup(2)

    def pytest_runtest_logstart(self, nodeid):
        faulthandler.dump_traceback_later(
            self.time_limit, exit=True, file=self.stderr
        )

    def pytest_runtest_logfinish(self, nodeid):
        faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.add_failure(report)
        elif report.skipped:
            self.outcomes[report.nodeid] = 'skipped', skip_reason(report)
        elif report.when == 'call':
            self.outcomes[report.nodeid] = 'passed', ''

    def pytest_collectreport(self, report):
        if report.failed:
            self.add_failure(report)

    def add_failure(self, report):
        crash = getattr(report.longrepr, 'reprcrash', None)
        text = str(report.longrepr)
        message = crash.message if crash else text.splitlines()[-1]
        short = shorten(message)
        if 'Parameterized test failed' in short:
            short = shorten(message + '\n' + text)
        cause = re.sub(r'0x[0-9a-f]+', '0x...', short)[:160]
        self.outcomes[report.nodeid] = 'failed', cause
        if self.rank is not None:
            # Other processes may now wait until their time limit ends.
            line = f'\nrank {self.rank}: {report.nodeid}: {cause}\n'
            os.write(self.stderr, line.encode())


def merge(outcomes):
    """Merges the outcomes of each test in several processes.

    A test has failed if it failed in one process; otherwise, it has passed if
    it passed in one.
    """
    merged = {}
    for outcome in ('skipped', 'passed', 'failed'):
        for of_one_process in outcomes:
            for nodeid, (actual, cause) in of_one_process.items():
                if actual == outcome:
                    merged[nodeid] = outcome, cause
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
    return pytest.main(
        [
            *('-c', os.devnull, '--rootdir', '.'),
            *('-m', MARKERS.format('' if slow else 'not ')),
            *('-q', '--tb=short', '--no-summary', '-p', 'no:cacheprovider'),
            '--continue-on-collection-errors',
            *(pytest_args or ['tests/chainer_tests']),
        ],
        plugins=[plugin],
    )


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
        '--time-limit',
        type=float,
        default=600,
        help='seconds that a test may take before the run ends (default: 600)',
    )
    parser.add_argument(
        'pytest_args',
        nargs=argparse.REMAINDER,
        help='paths in the clone, and options of pytest (default: '
        'tests/chainer_tests)',
    )
    args = parser.parse_args()
    tests = args.checkout / 'tests' / 'chainer_tests'
    if not tests.is_dir():
        parser.error(f'there is no {tests}')
    comm = None
    if any('chainermn_tests' in arg for arg in args.pytest_args):
        from mpi4py.MPI import COMM_WORLD as comm

    chainer_shared_patch.install()
    chainer.global_config.common_num = args.common_num
    os.environ['CHAINER_COMMON_NUM'] = str(args.common_num)
    listed = read_list()
    if comm is not None and comm.rank > 0:
        sys.stdout = io.StringIO()
    recorder = Recorder(comm and comm.rank, args.time_limit)
    status = run_pytest(
        args.checkout, args.pytest_args, recorder, slow=args.slow
    )
    results = [(status, recorder.outcomes)]
    if comm is not None:
        results = comm.gather(results[0])
        if comm.rank > 0:
            return

    statuses, outcomes = zip(*results)
    outcomes = merge(outcomes)
    counts = collections.Counter(outcome for outcome, _ in outcomes.values())
    print('\nSkipped')
    skips = collections.Counter(
        cause for outcome, cause in outcomes.values() if outcome == 'skipped'
    )
    for reason, number in skips.most_common():
        print('  {:6} {}'.format(number, ' '.join(reason.split())[:100]))

    failures = [
        (generalize(nodeid), cause)
        for nodeid, (outcome, cause) in outcomes.items()
        if outcome == 'failed'
    ]
    causes = collections.defaultdict(collections.Counter)
    for test, cause in failures:
        causes[cause][test] += 1
    for cause, tests in sorted(causes.items()):
        print(f'\n{cause}')
        for test, number in sorted(tests.items()):
            mark = 'listed' if test in listed else 'NOT LISTED'
            print(f'  {number:6} {test} ({mark})')
    totals = collections.Counter(test for test, _ in failures)
    unlisted = sum(
        max(0, number - listed.get(test, 0)) for test, number in totals.items()
    )
    print(
        f'\nPython {platform.python_version()}, NumPy {numpy.__version__}, '
        f'SciPy {scipy.__version__}, protobuf {google.protobuf.__version__}, '
        f'Chainer {chainer.__version__}, '
        f'common_num {args.common_num}, processes {len(statuses)}'
    )
    print(
        '{} passed, {} failed ({} of them not listed), {} skipped'.format(
            counts['passed'],
            counts['failed'],
            unlisted,
            counts['skipped'],
        )
    )
    for status in statuses:
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            sys.exit(f'pytest did not finish: {status!r}')
    sys.exit(1 if unlisted else 0)


if __name__ == '__main__':
    main()
