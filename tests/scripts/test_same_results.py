import importlib
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
TESTS = """
import os
import chainer
import chainer.functions as F
import numpy
import pytest


@pytest.mark.parametrize('dtype', ['f', 'd'])
def test_exp(dtype):
    x = chainer.Variable(numpy.random.RandomState().rand(9).astype(dtype))
    x.array += numpy.random.rand(9)
    y = F.exp(x) * float(os.environ['FACTOR'])
    y.grad = numpy.ones_like(y.array)
    y.backward()


def test_optimizer():
    link = chainer.links.Linear(3, 2)
    optimizer = chainer.optimizers.Adam().setup(link)
    optimizer.update(lambda: F.sum(link(numpy.ones((1, 3), 'f'))))
"""


@pytest.fixture(scope='module')
def same_results():
    sys.path.insert(0, str(SCRIPTS / 'upstream'))
    try:
        yield importlib.import_module('same_results')
    finally:
        sys.path.remove(str(SCRIPTS / 'upstream'))


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    """Records three runs, the last of which computes something else."""
    directory = tmp_path_factory.mktemp('stacks')
    tests = directory / 'chainer' / 'tests' / 'chainer_tests'
    tests.mkdir(parents=True)
    (tests / 'test_some.py').write_text(TESTS)
    for name, factor in (('a', 1), ('b', 1), ('c', 1.001)):
        run('record', 'chainer', name, cwd=directory, FACTOR=str(factor))
    return directory


def run(*args, cwd, returncode=0, **environment):
    result = subprocess.run(
        [sys.executable, SCRIPTS / 'upstream/same_results.py', *args],
        cwd=cwd,
        env={
            **os.environ,
            'PYTHONPATH': str(SCRIPTS.parent),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == returncode, result.stdout + result.stderr
    return result.stdout


def test_the_same_stack_computes_the_same(recorded):
    output = run('compare', 'a', 'b', cwd=recorded)
    assert ', 0 with other inputs' in output
    assert 'differ' not in output


def test_difference(recorded):
    output = run('compare', 'a', 'c', cwd=recorded, returncode=1)
    for call in ('MulConstant, forward', 'MulConstant, backward'):
        assert f'{call}\n    tests/chainer_tests/test_some.py' in output
    assert 'Exp, forward' not in output


def test_everything_is_recorded(recorded, same_results):
    calls = same_results.read(recorded / 'a')
    assert {
        'Exp, forward',
        'Exp, backward',
        'LinearFunction, forward',
        'LinearFunction, backward',
        'AdamRule',
        'LeCunNormal',
    } <= {what for _, what in calls}
    dtypes = {
        inputs[0][0]
        for (_, what), found in calls.items()
        for inputs, _ in found
        if what == 'Exp, backward'
    }
    assert dtypes == {'<f4', '<f8'}


def differ(module, old, new, inputs=()):
    # As they are read from a file.
    inputs, old, new = (
        json.loads(json.dumps([module.digest(x) for x in arrays]))
        for arrays in (inputs, [old], [new])
    )
    return module.find_difference(inputs, old, new)


class TestFindDifference:
    x = numpy.linspace(1, 2, 7)

    @pytest.mark.parametrize('dtype', 'efd')
    def test_value(self, same_results, dtype):
        x = self.x.astype(dtype)
        eps = numpy.finfo(dtype).eps
        assert differ(same_results, x, x * (1 + eps)) is None
        changed = x.copy()
        changed[3] += x.dtype.type(x.size * 64 * eps)
        assert differ(same_results, x, changed).startswith('value: ')

    def test_sum_that_cancels(self, same_results):
        x = numpy.array([1, -1], 'f')
        zero = numpy.zeros(1, 'f')
        rounded = zero + 2**-23
        assert differ(same_results, zero, rounded, [x]) is None
        assert 'value' in differ(same_results, zero, rounded, [x * 2**-9])

    def test_integers_are_exact(self, same_results):
        x = numpy.arange(7)
        assert differ(same_results, x, x) is None
        assert 'value' in differ(same_results, x, x[::-1].copy())

    @pytest.mark.parametrize(
        'changed, expected',
        [
            (x.astype('f'), "data type: ['<f8'] and ['<f4']"),
            (x.reshape(7, 1), 'shape: [[7]] and [[7, 1]]'),
            (
                x * [1, 1, numpy.nan, 1, 1, 1, 1],
                'NaN or infinity: [0] and [1]',
            ),
        ],
    )
    def test_kind(self, same_results, changed, expected):
        assert differ(same_results, self.x, changed) == expected

    def test_empty(self, same_results):
        empty = numpy.empty((0, 3))
        assert differ(same_results, empty, empty) is None


def test_identify(same_results):
    nodeid = 'tests/test_a.py::TestB_param_1_{c=array([1.])}::test_d'
    assert same_results.identify(nodeid) == (
        'tests/test_a.py::TestB_param_1_::test_d'
    )
