"""What --legacy gives back, in fresh interpreters: it changes all modules."""

import sys

from chainer_shared_patch import info
from chainer_shared_patch.compat import importing, legacy
import numpy
import pytest

from tests.helpers import run_python

# NumPy's own internals, and what is for interactive use.
LEFT_OUT = """
    DataSource add_docstring add_newdoc add_newdoc_ufunc compat deprecate
    deprecate_with_doc disp find_common_type get_array_wrap geterrobj
    issctype issubclass_ issubsctype lookfor maximum_sctype obj2sctype
    recfromcsv recfromtxt sctype2char set_numeric_ops set_string_function
    seterrobj source tracemalloc_domain who
"""


def run(code, folder, **environment):
    options = '-W', 'error::FutureWarning', '-c', code
    result = run_python(*options, cwd=folder, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


NAMES = """
import chainer_shared_patch
import warnings
warnings.simplefilter('ignore')  # of names that are still there
import collections, collections.abc, inspect, math, time
import numpy as np

for old, new in {
    'complex': complex, 'float': float, 'int': int, 'object': object,
    'str': str, 'unicode': str, 'bool8': np.bool_, 'bytes0': np.bytes_,
    'int0': np.intp, 'object0': np.object_, 'str0': np.str_,
    'uint0': np.uintp, 'void0': np.void, 'cfloat': np.complex128,
    'clongfloat': np.clongdouble, 'complex_': np.complex128,
    'float_': np.float64, 'longcomplex': np.clongdouble,
    'longfloat': np.longdouble, 'singlecomplex': np.complex64,
    'string_': np.bytes_, 'unicode_': np.str_,
}.items():
    assert getattr(np, old) is new, old
# These are again there, with another meaning.
again = np.lib.NumpyVersion(np.__version__) >= '2.0.0'
assert np.bool is (np.bool_ if again else bool)
assert (np.long is int) is not again

for name in ('Inf', 'Infinity', 'PINF', 'infty'):
    assert getattr(np, name) == math.inf
assert np.NINF == -math.inf
assert math.isnan(np.NAN) and math.isnan(np.NaN)
assert [str(x) for x in (np.PZERO, np.NZERO)] == ['0.0', '-0.0']

a = np.array([[3, 1], [0, 2]])
def same(actual, expected):
    assert np.asarray(actual).tolist() == expected, (actual, expected)
same(np.alltrue(a, axis=0), [False, True])
same(np.sometrue(a, axis=1), [True, True])
same(np.product(a, axis=0), [0, 2])
same(np.cumproduct(a, axis=1), [[3, 3], [0, 0]])
same(np.round_(1.26, decimals=1), 1.3)
same(np.msort(a), [[0, 1], [3, 2]])
same(np.in1d(a, [0, 1], invert=True), [True, False, False, True])
same(np.trapz([1, 2, 4], dx=2), 9)
same(np.row_stack([[1], [2]]), [[1], [2]])
same(np.asfarray([1, 2]), [1, 2])
assert np.asfarray([1], dtype='i').dtype == np.float64
assert np.asfarray([1], dtype='f').dtype == np.float32
assert np.mat('1 2; 3 4').I.shape == (2, 2)
assert np.alen([[1, 2, 3]]) == 1 and np.alen(5) == 1
assert np.alen('abc') == 3 and np.alen([[1], [1, 2]]) == 2
x = np.asscalar(np.full((1, 1), 2, 'f'))
assert x == 2 and type(x) is float and np.asscalar(2.5) == 2.5
assert np.cast['int8'](2.7) == 2 and np.cast[np.int8](2.7).dtype == 'i1'
assert np.nbytes['f'] == np.nbytes[np.float32] == 4
assert np.float16 in np.sctypes['float'] and np.int8 in np.sctypes['int']
assert np.typeDict['float32'] is np.typeDict['f'] is np.float32
same(np.fastCopyAndTranspose(a), [[3, 0], [1, 2]])
assert np.safe_eval('[1]') == [1]
assert np.math.factorial(3) == 6
same(np.lib.pad([1], 1, 'constant'), [0, 1, 0])
low, high = np.byte_bounds(a)
assert high - low == a.nbytes
warnings.filterwarnings('ignore', category=np.VisibleDeprecationWarning)
np.warnings.filterwarnings('ignore', category=np.ComplexWarning)
try:
    np.sum(a, axis=2)
except np.AxisError:
    pass

from collections import Iterable, Mapping
assert isinstance([], Iterable) and not isinstance([], collections.Mapping)
assert collections.Iterable is collections.abc.Iterable
before = time.clock(), time.process_time()
sum(range(10**6))
assert 0 < time.clock() - before[0] <= time.process_time() - before[1] + .01
def function(a, b=1, *args, **kwargs):
    pass
spec = inspect.getargspec(function)
assert spec == (['a', 'b'], 'args', 'kwargs', (1,)), spec
assert spec.keywords == 'kwargs' and isinstance(spec, inspect.ArgSpec)
try:
    inspect.getargspec(lambda a, *, b: 0)
except ValueError:
    pass
else:
    raise AssertionError
"""


def test_names_have_the_meaning_that_they_had(tmp_path):
    run(NAMES, tmp_path, CHAINER_LEGACY='1')


def test_everything_that_numpy_lists_is_given_back_or_left_out():
    listed = set(getattr(numpy, '__former_attrs__', ()))
    try:
        from numpy import _expired_attrs_2_0

        listed |= set(_expired_attrs_2_0.__expired_attributes__)
    except ImportError:
        assert numpy.lib.NumpyVersion(numpy.__version__) < '2.0.0'
    names = {
        name
        for (module, _), each in legacy.NAMES.items()
        if module == 'numpy'
        for name in each
    }
    assert listed <= names | set(LEFT_OUT.split())


ARRAYS = """
import chainer_shared_patch
import warnings
warnings.simplefilter('ignore')
import numpy as np
x = np.arange(3)
for copy in (False, 0, np.False_):
    assert np.array(x, copy=copy) is x
    assert np.array(x, 'f', copy=copy).dtype == np.float32
    assert np.array([1, 2], copy=copy).tolist() == [1, 2]
assert np.array(x) is not x and np.array(x, copy=True) is not x
assert np.array(x, ndmin=2, copy=False).base is x

import struct
data = struct.pack('<3h', 1, -2, 300)
y = np.fromstring(data, '<i2')
assert y.tolist() == [1, -2, 300]
y[0] = 5  # a copy, which can be written to
assert np.fromstring(data, dtype='<i2', count=2).tolist() == [1, -2]
assert np.fromstring('abc', np.uint8).tolist() == [97, 98, 99]
assert np.fromstring(b'', np.uint8).shape == (0,)
assert np.fromstring('1,2', int, sep=',').tolist() == [1, 2]
try:
    np.fromstring(b'abc', '<i2')
except ValueError:
    pass
else:
    raise AssertionError
"""


def test_arrays_from_bytes_and_without_copies(tmp_path):
    run(ARRAYS, tmp_path, CHAINER_LEGACY='1')


IMP = """
import chainer_shared_patch
import warnings
warnings.simplefilter('ignore')
import imp, sys
module = imp.load_source('my_model', 'my_model.txt')
assert sys.modules['my_model'] is module and module.x == [1]
assert module.__file__.endswith('my_model.txt')
assert imp.load_source('my_model', 'my_model.txt') is module
assert imp.load_source('my_model', 'helper.py').__file__.endswith('helper.py')
for path in ('nowhere.py', 'broken.py'):
    try:
        imp.load_source('settings', path)
    except (OSError, ZeroDivisionError):
        assert 'settings' not in sys.modules
    else:
        raise AssertionError
import helper
imp.reload(helper)
assert imp.new_module('new').__name__ == 'new'
"""


def test_imp(tmp_path):
    (tmp_path / 'my_model.txt').write_text('x = [1]')
    (tmp_path / 'helper.py').write_text('')
    (tmp_path / 'broken.py').write_text('1 / 0')
    run(IMP, tmp_path, CHAINER_LEGACY='1')


@pytest.mark.skipif(sys.version_info < (3, 12), reason='Python has imp')
def test_imp_of_the_program_stays(tmp_path):
    (tmp_path / 'imp.py').write_text('mine = True')
    run(
        'import chainer_shared_patch, imp; assert imp.mine',
        tmp_path,
        CHAINER_LEGACY='1',
    )


def test_nothing_changes_by_default(tmp_path):
    code = """
import collections, inspect, sys, time
import numpy
modules = collections, inspect, numpy.lib, time
before = [dict(vars(module)) for module in modules]
names, functions = set(vars(numpy)), (numpy.array, numpy.fromstring)
import chainer_shared_patch
assert [dict(vars(module)) for module in modules] == before
assert (numpy.array, numpy.fromstring) == functions
assert not {'product', 'float', 'asscalar'} & set(vars(numpy)) - names
assert sys.version_info < (3, 12) or 'imp' not in sys.modules
"""
    run(code, tmp_path)
    run(code, tmp_path, CHAINER_LEGACY='0')


def test_info_says_what_is_given_back(monkeypatch, capsys):
    fix = legacy.ARRAY
    needed = importing.is_met('numpy >= 2')
    for applied, state in (
        (False, 'off, use --legacy' if needed else 'not needed'),
        (True, 'applied'),
    ):
        monkeypatch.setattr(fix, 'is_applied', applied)
        info.print_info()
        assert f'{fix.broken} ({fix.when}): {state}\n' in (
            capsys.readouterr().out
        )
