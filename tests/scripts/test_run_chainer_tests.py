import importlib.util
from pathlib import Path
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'run_chainer_tests.py'
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

@pytest.mark.skip(reason='no such thing')
def test_skipped():
    pass

@testing.parameterize(*testing.product({{'shape': [(2, 3), ()], 'x': [1, 2]}}))
class TestFunction(unittest.TestCase):
    def test_label(self):
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
    line = '4 {}::TestFunction::test_label ({})'.format(name, listed)
    assert line in result.stdout
    assert "no attribute 'no_such_name'" in result.stdout
    number = 0 if listed == 'listed' else 4
    last = result.stdout.splitlines()[-1]
    expected = '1 passed, 4 failed ({} of them not listed), 1 skipped'
    assert last == expected.format(number)


def test_failing_more_often_than_listed(tmp_path, script):
    listed = script.listed_tests()[
        'test_function.py::TestFunction::test_label'
    ]
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
    assert 'did not come to its end' in result.stderr


def test_that_cannot_be_collected(tmp_path):
    result = run(tmp_path, 'test_new.py', statement='invalid syntax')
    assert result.returncode == 1
    assert 'test_new.py (NOT LISTED)' in result.stdout


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


def test_the_list_adds_up(script):
    text = script.COMPATIBILITY.read_text(encoding='utf-8')
    rows = [
        line.strip('|').split('|')
        for line in text.splitlines()
        if line.startswith('| `')
    ]
    assert len(rows) == len(script.listed_tests())
    assert all(cause.strip() for _, _, cause in rows)
    # They add up to what the newest stack has in the table above.
    (stack,) = (line for line in text.splitlines() if 'Python 3.13' in line)
    total = int(stack.strip('|').split('|')[2])
    assert sum(int(number) for _, number, _ in rows) == total
