"""What is said after errors, if it can be said with certainty."""

from chainer_shared_patch.compat import explanations, importing
import chainer
import pytest

ERRORS = [
    # code, requirement, start of the sentence
    ('numpy.float', 'numpy >= 1.24', 'numpy.float is gone: run the program'),
    ('numpy.product', 'numpy >= 2', 'numpy.product is gone: run the program'),
    ('from numpy import float_', 'numpy >= 2', 'numpy.float_ is gone: run'),
    ('numpy.string_', 'numpy >= 2', 'numpy.string_ is gone: run the'),
    ('import collections; collections.Mapping', 'python >= 3.10', 'coll'),
    ('from collections import Mapping', 'python >= 3.10', 'collections.Map'),
    ('import time; time.clock()', 'python >= 3.8', 'time.clock is gone: run'),
    ('import imp', 'python >= 3.12', 'imp is gone: run the program with'),
    ('numpy.fromstring(b"a")', 'numpy >= 2.3', 'numpy.fromstring refuses'),
    ('numpy.array([1], copy=False)', 'numpy >= 2', 'numpy.array(..., copy=F'),
    ('float(x)', 'numpy >= 2.4', 'an array that has axes is not converted'),
    ('"%d" % x', 'numpy >= 2.4', 'an array that has axes is not converted'),
    ('x[0] = x', 'numpy >= 2.4', 'an array that has axes is not converted'),
    ('numpy.array([[], [1]])', 'numpy >= 1.24', 'items of different shapes'),
    ('numpy.uint8(-1)', 'numpy >= 2', 'an integer has to fit'),
    ('x.itemset(0, 1)', 'numpy >= 2', 'arrays have no itemset: write x[in'),
    ('x.tostring()', 'numpy >= 2.3', 'arrays have no tostring: write x.to'),
    ('x.ptp()', 'numpy >= 2', 'arrays have no ptp: write numpy.ptp(x)'),
    (
        'numpy.save("o.npy", [None]); numpy.load("o.npy")',
        'numpy >= 1.16.3',
        'numpy.load unpickles only on request',
    ),
    (
        'raise ModuleNotFoundError("No module named \'distutils\'")',
        'python >= 3.12',
        'distutils is gone: pip install setuptools',
    ),
    ('xrange(3)', 'python >= 3', 'this is Python 2'),
    ('print x', 'python >= 3', 'this is Python 2'),
    ('chainer.FunctionSet', 'python >= 3', 'this is Chainer 1'),
    ('chainer.functions.dropout(x, train=0)', 'python >= 3', 'this is Chai'),
]


def explain(folder, code):
    path = folder / 'old.py'
    code = f'import chainer, collections, numpy\nx = numpy.ones(1)\n{code}'
    path.write_text(code)
    try:
        exec(compile(code, str(path), 'exec'), {})
    except Exception as error:
        sentence = explanations.explain(error, error.__traceback__)
        return sentence and sentence.replace(str(path), 'old.py')
    raise AssertionError


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('code', 'when', 'start'), ERRORS)
def test_what_has_changed(tmp_path, monkeypatch, code, when, start):
    if not importing.is_met(when):
        pytest.skip(f'an error only with {when}')
    monkeypatch.chdir(tmp_path)
    since = when.replace('numpy', 'NumPy').replace('python', 'Python')
    since = '' if when == 'python >= 3' else f'since {since}, '
    assert explain(tmp_path, code).startswith(
        'chainer_shared_patch: old.py, line 3: '
        + since.replace(' >=', '')
        + start
    )


@pytest.mark.parametrize(
    'code',
    [
        'numpy.nowhere',
        'from collections import nothing',
        'raise ValueError("item")',
        'import nowhere',
        'float([])',
        'x[0] = [1, 2]',
        'numpy.load(__file__)',
        'print(',
        'import ast; ast.parse("print 1", "nowhere")',
        'x.get()',
    ],
)
def test_other_errors(tmp_path, code):
    assert explain(tmp_path, code) is None


def test_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(chainer.backends.cuda, 'available', False)
    code = 'chainer.backends.cuda.get_device_from_id(0).use()'
    assert 'line 3: the program wants a GPU' in explain(tmp_path, code)
