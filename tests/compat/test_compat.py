"""Chainer's import, in fresh interpreters."""

from pathlib import Path
import sys
import zipfile

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch import compat
import chainer
from chainer.backends import cuda
import pytest

from tests.helpers import run_python


def run(code, *args):
    result = run_python(*args, '-c', code)
    assert result.returncode == 0, result.stderr
    return result


# Hides modules as if they were not installed.
HIDE = """
import sys

class Hidden:
    names = {names!r}

    def find_spec(self, name, path=None, target=None):
        if any((name + '.').startswith(n + '.') for n in self.names):
            raise ModuleNotFoundError('No module named ' + repr(name))

sys.meta_path.insert(0, Hidden())
"""

NAMESPACES = """
import sys, types, typing  # typing makes up modules up to Python 3.12
import numpy

def find_made_up():
    # Real modules have been found by the import system, but for those that
    # extension modules make, and CuPy.
    return {
        name for name, module in list(sys.modules.items())
        if getattr(module, '__spec__', None) is None
        and not name.startswith(
            ('__', 'pyexpat', 'xml.parsers.expat', '_cython', 'cython_',
             'cupy'))
    }

names, made_up = set(vars(numpy)), find_made_up()
import chainer_shared_patch
import chainer
import chainer.testing
added = set(vars(numpy)) - names
assert all(isinstance(vars(numpy)[name], types.ModuleType) for name in added)
assert all('numpy.' + name in sys.modules for name in added), added
assert find_made_up() == made_up, find_made_up() - made_up
"""

USE = """
import sys
import chainer, chainer.testing, numpy
import chainer.functions as F
with chainer.using_config('common_num', 10):
    y = F.linear(numpy.ones((1, 20), 'f'), numpy.ones((1, 2), 'f'))
assert y.array == 20
x = chainer.Variable(numpy.arange(6.).reshape(2, 3))
y = F.as_strided(x, (3, 2), (1, 3), 0)
y.grad = numpy.ones((3, 2))
y.backward()
assert (x.grad == 1).all()
x = numpy.arange(16.).reshape(1, 1, 4, 4).astype('f')
y = F.resize_images(x, (2, 2))
assert (y.array == [[[[0, 3], [12, 15]]]]).all(), y

@chainer.testing.with_requires('chainer')
def yes():
    pass

@chainer.testing.with_requires('no-such-distribution>=1')
def no():
    pass

@chainer.testing.with_requires('chainer>=8')
def neither():
    pass

assert not getattr(yes, '__unittest_skip__', False)
assert no.__unittest_skip__ and neither.__unittest_skip__
"""

REMOVED = ('pkg_resources', 'numpy.distutils')


def test_namespaces_are_left_as_they_were():
    run(NAMESPACES)


def test_namespaces_are_left_where_everything_is_broken():
    run(
        HIDE.format(names=REMOVED)
        + NAMESPACES
        + f'assert not set(sys.modules) & {set(REMOVED)!r}'
    )


def test_what_was_broken_works():
    run('import chainer_shared_patch' + USE)


def test_what_was_broken_works_where_everything_is():
    run(HIDE.format(names=REMOVED) + 'import chainer_shared_patch' + USE)


def test_no_warning():
    result = run(
        'import chainer_shared_patch, chainer, chainer.testing',
        # CuPy 13 still uses cuDNN.
        '-W{}:cuDNN is not'.format(
            'ignore' if cuda._cupy_major == 13 else 'default'
        ),
    )
    assert result.stderr == ''


def test_after_an_import_that_failed():
    run(
        """
import sys
sys.modules['six'] = None
try:
    import chainer
except ImportError:
    pass
else:
    raise AssertionError
del sys.modules['six']
assert [name for name in sys.modules if name.startswith('chainer.')]
import chainer_shared_patch
"""
        + USE
    )


def test_after_an_import_that_others_made_work():
    # Somebody's own makeshift, as they are found on the net.
    run(
        """
import sys, types
import numpy
lent = not hasattr(numpy, 'sctypes')
if lent:
    numpy.sctypes = {
        'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
        'float': [numpy.float16, numpy.float32, numpy.float64],
    }
distutils = types.ModuleType('numpy.distutils')
distutils.system_info = types.ModuleType('numpy.distutils.system_info')
distutils.system_info.get_info = lambda name: {}
numpy.distutils = sys.modules['numpy.distutils'] = distutils
sys.modules['numpy.distutils.system_info'] = distutils.system_info
resources = types.ModuleType('pkg_resources')
resources.DistributionNotFound = resources.VersionConflict = KeyError
def require(name):
    raise KeyError
resources.require = require
sys.modules['pkg_resources'] = resources
import chainer
if lent:
    del numpy.sctypes
del numpy.distutils
for name in ('pkg_resources', 'numpy.distutils'):
    del sys.modules[name]
del sys.modules['numpy.distutils.system_info']
import chainer_shared_patch
"""
        + USE
    )


def test_imported_anew():
    run(
        """
import sys
import chainer_shared_patch
for name in list(sys.modules):
    if name.split('.')[0] in ('chainer', 'chainerx', 'chainer_shared_patch'):
        del sys.modules[name]
import chainer_shared_patch
import importlib
import chainer.datasets.mnist
importlib.reload(sys.modules['chainer.datasets.mnist'])
"""
        + USE
    )


def test_fixed_modules_keep_their_loaders():
    run(
        """
import chainer_shared_patch, importlib, inspect
from chainer.functions.array import as_strided
assert type(as_strided.__loader__) is type(inspect.__loader__)
assert as_strided.__spec__.loader is as_strided.__loader__
assert 'sctypes' in inspect.getsource(as_strided)
importlib.reload(as_strided)
"""
        + USE
    )


def test_finders_of_others():
    run(
        """
import sys

class Old:
    def find_module(self, name, path=None):
        return None

class Loop:
    def find_spec(self, name, path, target=None):
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, 'find_spec'):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec

import chainer_shared_patch
sys.meta_path[:0] = Loop(), Old()
"""
        + USE
    )


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason='zipimport is of another kind'
)
def test_chainer_in_a_zip_file(tmp_path):
    archive = str(tmp_path / 'chainer.zip')
    root = Path(chainer.__file__).parents[1]
    with zipfile.ZipFile(archive, 'w') as file:
        for package in ('chainer', 'chainerx'):
            for path in (root / package).rglob('*.py'):
                file.write(path, path.relative_to(root))
    run(
        f'import sys; sys.path.insert(0, {archive!r})\n'
        'import chainer_shared_patch, chainer\n'
        f'assert chainer.__file__.startswith({archive!r})' + USE
    )


def test_optimized_interpreter():
    run('import chainer_shared_patch', '-OO')


def test_apply_twice():
    applied = [fix.is_applied for fix in compat.FIXES]
    finders = list(sys.meta_path)
    compat.apply()
    assert [fix.is_applied for fix in compat.FIXES] == applied
    assert sys.meta_path == finders


def test_the_page_lists_every_fix():
    page = Path(__file__).parents[2] / 'docs' / 'compatibility.md'
    rows = {
        tuple(cell.strip() for cell in line.strip('|').split('|'))
        for line in page.read_text(encoding='utf-8').splitlines()
    }
    listed = {
        (module.strip('`'), broken, when.strip('`'))
        for modules, broken, when in (row for row in rows if len(row) == 3)
        for module in modules.split(', ')
    }
    for fix in compat.FIXES:
        assert (fix.module, fix.broken, fix.when or 'always') in listed
