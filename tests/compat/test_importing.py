import functools
import importlib
from importlib import metadata
from importlib.machinery import PathFinder
import json  # noqa: F401
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import importing
import pytest


@pytest.fixture
def install(monkeypatch):
    """Installs a version of a distribution, for ``metadata`` alone."""

    def pretend(name, version):
        def find_version(each):
            if each != name:
                raise metadata.PackageNotFoundError(each)
            return version

        monkeypatch.setattr(metadata, 'version', find_version)

    importing.is_met.cache_clear()
    yield pretend
    importing.is_met.cache_clear()


@pytest.mark.parametrize(
    ('installed', 'requirement', 'expected'),
    [
        ('74.0.0', 'setuptools >= 74', True),
        ('73.0.1', 'setuptools >= 74', False),
        ('75rc1', 'setuptools >= 74', True),
        ('80.10.2', 'setuptools >= 80.9; python_version < "3"', False),
        ('80.10.2', 'no-such-distribution >= 2', False),
    ],
)
def test_requirements(install, installed, requirement, expected):
    install('setuptools', installed)
    assert importing.is_met(requirement) is expected


@pytest.mark.parametrize('name', ['cupy', 'cupy-cuda13x'])
def test_cupy_under_each_name(install, name):
    install(name, '14.2.0')
    assert importing.is_met('cupy >= 14')
    assert not importing.is_met('cupy >= 15')


@pytest.mark.parametrize('name', ['numpy', 'protobuf'])
def test_module_without_its_distribution(install, name):
    # As in a frozen application.
    install('no-such-distribution', '1')
    assert importing.is_met(f'{name} >= 1')
    assert not importing.is_met(f'{name} >= 1000')


def test_python_is_a_requirement():
    assert importing.is_met('python >= 3.9')
    assert not importing.is_met('python >= 4')


def test_lent_names_are_taken_back():
    namespace = {'a': 1}
    with pytest.raises(ZeroDivisionError):
        with importing.lent(namespace, 'a', 2):
            with importing.lent(namespace, 'b', 3):
                assert namespace == {'a': 2, 'b': 3}
                raise ZeroDivisionError
    assert namespace == {'a': 1}


def test_module_that_only_another_finder_finds(tmp_path, monkeypatch):
    # As that of an editable installation does.
    (tmp_path / 'found_elsewhere.py').write_text('number = 1')

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'found_elsewhere':
                return PathFinder.find_spec(name, [str(tmp_path)])

    def apply(module):
        module.number = 2

    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, Finder])
    monkeypatch.setattr(importing, '_hooks', dict(importing._hooks))
    fix = importing.Fix('found_elsewhere', '', None, apply)
    fix.register()
    assert not fix.is_applied
    assert importlib.import_module('found_elsewhere').number == 2
    assert fix.is_applied
    del sys.modules['found_elsewhere']


def test_code_that_something_else_runs(tmp_path, monkeypatch):
    (tmp_path / 'run_otherwise.py').write_text('order = [*order, "run"]')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, '_hooks', dict(importing._hooks))

    def execute(name, run, module):
        module.order = [*getattr(module, 'order', []), name]
        run(module)

    for name in ('first', 'second'):
        importing.on_import(
            'run_otherwise',
            lambda module: module.order.append('apply'),
            functools.partial(execute, name),
        )
    module = importlib.import_module('run_otherwise')
    # What is registered last is outermost.
    assert module.order == ['second', 'first', 'run', 'apply', 'apply']
    del sys.modules['run_otherwise']


def test_module_that_is_imported_already(monkeypatch):
    monkeypatch.setattr(importing, '_hooks', dict(importing._hooks))
    calls = []
    for _ in range(2):
        importing.on_import('json', calls.append)
    assert calls == [sys.modules['json']]
