import importlib
from importlib import metadata
from importlib.machinery import PathFinder
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import importing
import pytest


@pytest.mark.parametrize(
    ('installed', 'minimum', 'expected'),
    [
        ('74.0.0', '74', True),
        ('73.0.1', '74', False),
        ('84+local', '74', True),
        ('75rc1', '74', True),
        ('80.9.0.post20240101', '80.9', True),
        ('80.10.2', '80.9', True),
        ('80.8', '80.9', False),
        ('81', '80.9', True),
    ],
)
def test_is_at_least(monkeypatch, installed, minimum, expected):
    monkeypatch.setattr(metadata, 'version', lambda name: installed)
    assert importing.is_at_least('setuptools', minimum) is expected


def test_is_at_least_of_what_is_not_installed():
    assert importing.is_at_least('no-such-distribution', '1') is False


def test_is_missing():
    assert importing.is_missing('no_such_module')
    assert not importing.is_missing('json')


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
    monkeypatch.setattr(importing, '_fixes', dict(importing._fixes))
    fix = importing.Fix('found_elsewhere', '', '', lambda: True, apply=apply)
    importing.register([fix])
    assert importlib.import_module('found_elsewhere').number == 2
    assert fix.is_applied()
    del sys.modules['found_elsewhere']
