"""The run of Chainer's own tests, with others in their place."""

import collections
import csv
from pathlib import Path
import re
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest
from upstream import run_chainer_tests

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'scripts/upstream/run_chainer_tests.py'
TESTS = """
import unittest
import chainer, chainer_shared_patch, pytest
from chainer import testing

def test_plugin():
    assert chainer_shared_patch.is_installed()
    assert chainer.config.common_num == 3

@pytest.mark.gpu
def test_not_selected():
    assert False

@pytest.mark.skip(reason='no such thing')
def test_skipped():
    pass

@testing.parameterize(*testing.product({{'shape': [(2, 3), ()], 'x': [1, 2]}}))
class TestFunction(unittest.TestCase):
    def test_label(self):
        {}
"""
# One test that passes in both processes, one that is skipped in the first, and
# one that fails in the second.
MPI_TESTS = """
from mpi4py.MPI import COMM_WORLD
import pytest

def test_passing():
    assert COMM_WORLD.allreduce(COMM_WORLD.rank) == 1

def test_skipped_in_the_first():
    if COMM_WORLD.rank == 0:
        pytest.skip('only in the second')

def test_failing_in_the_second():
    assert COMM_WORLD.rank == 0
"""


def make_clone(path, name, code):
    path = path / 'tests' / name
    path.parent.mkdir(parents=True)
    path.write_text(code)


@pytest.mark.parametrize(
    ('name', 'statement', 'status', 'last'),
    [
        ('new', 'pass', 0, '5 passed, 0 failed (0 of them not listed)'),
        ('new', '1 / 0', 1, '1 passed, 4 failed (4 of them not listed)'),
        # Once for each set of parameters, as listed.
        ('function', '1 / 0', 0, '1 passed, 4 failed (0 of them not listed)'),
        ('new', 'invalid syntax', 1, '0 passed, 1 failed (1 of them'),
        ('new', 'pytest.exit("enough")', 1, 'pytest did not finish'),
    ],
)
def test_results(tmp_path, name, statement, status, last):
    name = f'chainer_tests/test_{name}.py'
    make_clone(tmp_path, name, TESTS.format(statement))
    result = subprocess.run(
        [sys.executable, SCRIPT, '--common-num', '3', tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert last in result.stdout.splitlines()[-1]
    assert result.returncode == status
    not_listed = 'not listed: test_new.py::TestFunction::test_label'
    assert (not_listed in result.stdout) == (
        last.startswith('1 passed, 4') and status
    )


def test_two_processes(tmp_path, mpiexec):
    make_clone(tmp_path, 'chainermn_tests/test_new.py', MPI_TESTS)
    result = mpiexec(2, SCRIPT, tmp_path, 'tests/chainermn_tests')
    assert result.returncode == 1, result.stderr
    line = '2 passed, 1 failed (1 of them not listed), 0 skipped'
    assert result.stdout.count(line) == 1


@pytest.mark.parametrize(
    ('nodeid', 'expected'),
    [
        (
            'tests/chainer_tests/x/test_a.py::TestA_param_3_{shape=(2, 3), '
            'x={}}_param_1_{y=None}::test_b_cpu',
            'x/test_a.py::TestA::test_b_cpu',
        ),
        (
            'tests/chainer_tests/test_a.py::TestA_use_cuda=false::test_b[1-2]',
            'test_a.py::TestA::test_b',
        ),
        (
            'tests/onnx_chainer_tests/test_a.py::TestA::test_use_int',
            'onnx_chainer_tests/test_a.py::TestA::test_use_int',
        ),
    ],
)
def test_names_without_parameters(nodeid, expected):
    assert run_chainer_tests.generalize(nodeid) == expected


def test_the_page_sums_up_the_list():
    with run_chainer_tests.LIST.open(encoding='utf-8', newline='') as file:
        listed = list(csv.DictReader(file))
    sums = collections.Counter()
    for row in listed:
        sums[row['cause']] += int(row['failures'])
    page = (ROOT / 'docs/compatibility.md').read_text(encoding='utf-8')
    above, _, below = page.partition('## What fails')
    rows = re.findall(r'^\| (.+) \| (\d+) \|$', below, re.MULTILINE)
    assert rows == [(cause, str(n)) for cause, n in sums.most_common()]
    # No test twice, and together what fails on the newest stack.
    failed = re.findall(r'\| newest.* \| (\d+) \| \d+ \|\n', above)
    assert sum(run_chainer_tests.read_list().values()) == sum(map(int, failed))
