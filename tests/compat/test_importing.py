from importlib import metadata

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import importing
import pytest


@pytest.mark.parametrize(
    ('installed', 'minimum', 'expected'),
    [
        ('74.0.0', (74,), True),
        ('73.0.1', (74,), False),
        ('84+local', (74,), True),
        ('75rc1', (74,), True),
        ('80.9.0.post20240101', (80, 9), True),
        ('80.10.2', (80, 9), True),
        ('80.8', (80, 9), False),
        ('81', (80, 9), True),
    ],
)
def test_has(monkeypatch, installed, minimum, expected):
    monkeypatch.setattr(metadata, 'version', lambda name: installed)
    assert importing.has('setuptools', minimum) is expected


def test_has_not():
    assert importing.has('no-such-distribution', (1,)) is False


def test_is_missing():
    assert importing.is_missing('no_such_module')
    assert not importing.is_missing('json')
