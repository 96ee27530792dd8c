"""Whether two stacks compute the same: the recording and comparison."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy
import pytest
import same_results

SCRIPT = Path(__file__).parents[2] / 'scripts/upstream/same_results.py'
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


def run(*args, **kwargs):
    result = subprocess.run(
        [sys.executable, SCRIPT, *args],
        capture_output=True,
        text=True,
        **kwargs,
    )
    return result.returncode, result.stdout


def test_stacks(tmp_path):
    tests = tmp_path / 'chainer' / 'tests' / 'chainer_tests'
    tests.mkdir(parents=True)
    (tests / 'test_some.py').write_text(TESTS)
    # A package of this name, as in Chainer.
    (tests / '__init__.py').touch()
    (tests / 'conftest.py').touch()
    # The last one computes something else.
    for name, factor in (('a', '1'), ('b', '1'), ('c', '1.001')):
        environment = {**os.environ, 'FACTOR': factor}
        args = 'record', tests.parents[1], tmp_path / name
        status, output = run(*args, env=environment)
        assert status == 0, output
    assert {
        'Exp, forward',
        'Exp, backward',
        'LinearFunction, forward',
        'LinearFunction, backward',
        'AdamRule',
        'LeCunNormal',
    } <= {what for _, what in same_results.read(tmp_path / 'a')}
    status, output = run('compare', tmp_path / 'a', tmp_path / 'b')
    assert status == 0 and 'differ' not in output
    assert ', 0 with other inputs' in output
    status, output = run('compare', tmp_path / 'a', tmp_path / 'c')
    assert status == 1
    for call in ('MulConstant, forward', 'MulConstant, backward'):
        assert f'{call}, tests/chainer_tests/test_some.py' in output
    assert 'Exp, forward' not in output


def differ(old, new, inputs=()):
    # As they are read from a file.
    inputs, old, new = (
        json.loads(json.dumps([same_results.digest(x) for x in arrays]))
        for arrays in (inputs, [old], [new])
    )
    return same_results.find_difference(inputs, old, new)


X = numpy.linspace(1, 2, 7)


@pytest.mark.parametrize('dtype', 'efd')
def test_values_may_differ_by_rounding(dtype):
    x = X.astype(dtype)
    eps = numpy.finfo(dtype).eps
    assert differ(x, x * (1 + eps)) is None
    changed = x.copy()
    changed[3] += x.dtype.type(x.size * 64 * eps)
    assert differ(x, changed).startswith('value: ')


def test_sum_that_cancels():
    x = numpy.array([1, -1], 'f')
    zero = numpy.zeros(1, 'f')
    rounded = zero + 2**-23
    assert differ(zero, rounded, [x]) is None
    assert 'value' in differ(zero, rounded, [x * 2**-9])


def test_integers_are_exact():
    x = numpy.arange(7)
    assert differ(x, x) is None
    assert 'value' in differ(x, x[::-1].copy())


@pytest.mark.parametrize(
    'changed, expected',
    [
        (X.astype('f'), "data type: ['<f8'] and ['<f4']"),
        (X.reshape(7, 1), 'shape: [[7]] and [[7, 1]]'),
        (X * [1, 1, numpy.nan, 1, 1, 1, 1], 'NaN or infinity: [0] and [1]'),
    ],
)
def test_kinds_of_differences(changed, expected):
    assert differ(X, changed) == expected
