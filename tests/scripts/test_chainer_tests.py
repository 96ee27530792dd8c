import collections
import csv
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts/upstream/chainer_tests.py'
TESTS = """
import unittest
import chainer, chainer_shared_patch, numpy, pytest
from chainer import testing

def test_plugin():
    assert chainer_shared_patch.is_installed()
    assert chainer.config.common_num == {common_num}

@pytest.mark.gpu
def test_not_selected():
    assert False

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.skip(reason='no such thing')
def test_skipped():
    pass

@testing.parameterize(*testing.product({{'shape': [(2, 3), ()], 'x': [1, 2]}}))
class TestFunction(unittest.TestCase):
    def test_label(self):
        {statement}
"""

# One test that passes in both processes, one that is skipped in the first,
# and one that fails in the second and leaves the first waiting there.
MPI_TESTS = """
from mpi4py.MPI import COMM_WORLD
import pytest

def test_passing():
    assert COMM_WORLD.allreduce(COMM_WORLD.rank) == 1

def test_skipped_in_the_first():
    if COMM_WORLD.rank == 0:
        pytest.skip('not here')

def test_failing_in_the_second():
    assert COMM_WORLD.rank == 0, 'not there'
    {statement}
"""


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tmp_path, name, *options, common_num=10, statement='pass'):
    folder = tmp_path / 'tests' / 'chainer_tests'
    folder.mkdir(parents=True)
    code = TESTS.format(common_num=common_num, statement=statement)
    (folder / name).write_text(code)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_passing(tmp_path):
    result = run(tmp_path, 'test_new.py')
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last == '5 passed, 0 failed (0 of them not listed), 1 skipped'
    assert '1 Skipped: no such thing' in result.stdout


def test_common_num(tmp_path):
    result = run(tmp_path, 'test_new.py', '--common-num', '3', common_num=3)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ('name', 'listed', 'status'),
    [('test_new.py', 'NOT LISTED', 1), ('test_function.py', 'listed', 0)],
)
def test_failing(tmp_path, name, listed, status):
    result = run(tmp_path, name, statement='numpy.no_such_name')
    assert result.returncode == status
    line = f'4 {name}::TestFunction::test_label ({listed})'
    assert line in result.stdout
    assert "no attribute 'no_such_name'" in result.stdout
    number = 0 if listed == 'listed' else 4
    last = result.stdout.splitlines()[-1]
    expected = '1 passed, 4 failed ({} of them not listed), 1 skipped'
    assert last == expected.format(number)


def test_failing_more_often_than_listed(tmp_path, script):
    listed = script.read_list()['test_function.py::TestFunction::test_label']
    code = "@testing.parameterize(*testing.product({{'x': list(range({}))}}))"
    statement = (
        'numpy.no_such_name\n\n'
        + code.format(listed)
        + (
            '\nclass TestFunction(unittest.TestCase):\n'
            '    def test_label(self):\n        numpy.no_such_name'
        )
    )
    result = run(tmp_path, 'test_function.py', statement=statement)
    assert result.returncode == 1
    assert '4 of them not listed' in result.stdout


def test_that_is_aborted(tmp_path):
    statement = 'pytest.exit("enough")'
    result = run(tmp_path, 'test_new.py', statement=statement)
    assert result.returncode == 1
    assert 'pytest did not finish' in result.stderr


def test_that_cannot_be_collected(tmp_path):
    result = run(tmp_path, 'test_new.py', statement='invalid syntax')
    assert result.returncode == 1
    assert 'test_new.py (NOT LISTED)' in result.stdout


def test_slow(tmp_path):
    result = run(tmp_path, 'test_new.py', '--slow')
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last == '1 passed, 0 failed (0 of them not listed), 0 skipped'


def test_that_hangs(tmp_path):
    statement = 'import threading; threading.Event().wait()'
    result = run(
        tmp_path, 'test_new.py', '--time-limit', '1', statement=statement
    )
    assert result.returncode == 1
    assert 'Timeout' in result.stderr
    assert re.search('test_new.py", line .* in test_label', result.stderr)


@pytest.mark.parametrize('statement', ['pass', 'COMM_WORLD.barrier()'])
def test_in_two_processes(tmp_path, statement):
    pytest.importorskip('mpi4py')
    mpiexec = shutil.which('mpiexec', path=Path(sys.executable).parent)
    if mpiexec is None:
        pytest.skip('needs mpiexec beside the interpreter')
    (tmp_path / 'tests' / 'chainer_tests').mkdir(parents=True)
    folder = tmp_path / 'tests' / 'chainermn_tests'
    folder.mkdir()
    code = MPI_TESTS.format(statement=statement)
    (folder / 'test_new.py').write_text(code)
    result = subprocess.run(
        [
            *(mpiexec, '-n', '2', sys.executable, str(SCRIPT)),
            *('--time-limit', '10', str(tmp_path), 'tests/chainermn_tests'),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            'OMPI_ALLOW_RUN_AS_ROOT': '1',
            'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
            'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
        },
    )
    assert result.returncode == 1, result.stdout + result.stderr
    failure = 'rank 1: .*test_failing_in_the_second: AssertionError: not there'
    assert re.search(failure, result.stderr)
    if statement == 'pass':
        line = '2 passed, 1 failed (1 of them not listed), 0 skipped'
        assert result.stdout.count(line) == 1
    else:
        place = 'test_new.py", line .* in test_failing_in_the_second'
        assert re.search(place, result.stderr)


def test_merge(script):
    outcomes = [
        {'a': ('passed', ''), 'b': ('skipped', 'x'), 'c': ('failed', 'y')},
        {'a': ('failed', 'z'), 'b': ('passed', ''), 'c': ('passed', '')},
    ]
    expected = {
        'a': ('failed', 'z'),
        'b': ('passed', ''),
        'c': ('failed', 'y'),
    }
    assert script.merge(outcomes) == script.merge(outcomes[::-1]) == expected


def test_no_checkout(tmp_path):
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert 'there is no' in result.stderr


@pytest.mark.parametrize(
    ('nodeid', 'expected'),
    [
        ('tests/chainer_tests/test_a.py::test_b', 'test_a.py::test_b'),
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
            'tests/onnx_chainer_tests/test_a.py::test_b',
            'onnx_chainer_tests/test_a.py::test_b',
        ),
        (
            'tests/chainer_tests/test_a.py::TestA::test_use_int',
            'test_a.py::TestA::test_use_int',
        ),
        (
            'tests/chainer_tests/test_a.py::TestA_param_12_{x=1}::test_b_{c=d}',
            'test_a.py::TestA::test_b',
        ),
    ],
)
def test_generalize(script, nodeid, expected):
    assert script.generalize(nodeid) == expected


def test_the_page_sums_up_the_list(script):
    with script.LIST.open(encoding='utf-8', newline='') as file:
        listed = list(csv.DictReader(file))
    sums = collections.Counter()
    for row in listed:
        sums[row['cause']] += int(row['failures'])
    page = SCRIPT.parents[2] / 'docs' / 'compatibility.md'
    above, _, below = page.read_text(encoding='utf-8').partition(
        '## What fails'
    )
    rows = re.findall(r'^\| (.+) \| (\d+) \|$', below, re.MULTILINE)
    assert rows == [(cause, str(n)) for cause, n in sums.most_common()]
    # No test twice, and together what fails on the newest stack.
    failed = re.findall(r'\| newest.* \| (\d+) \| \d+ \|\n', above)
    assert sum(script.read_list().values()) == sum(map(int, failed))
