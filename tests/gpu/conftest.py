"""Lets the tests of this folder run on a GPU, where there is one.

With the environment variable REQUIRE_GPU, it is an error if there is none.
"""

import os
from pathlib import Path

import chainer
from chainer.backends import cuda
import pytest

from tests import helpers

DEVICE = '@cupy:0'


def why_not():
    """Returns why there is no GPU to test on."""
    try:
        chainer.get_device(DEVICE).use()
        cuda.cupy.zeros(1).sum()
    except Exception as error:
        return f'needs CuPy and a GPU: {error}'
    return ''


def pytest_collection_modifyitems(items):
    reason = why_not()
    if reason and 'REQUIRE_GPU' in os.environ:
        raise pytest.UsageError(reason)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(bool(reason), reason=reason))


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The device on which the tests compute here."""
    device = chainer.get_device(DEVICE)
    device.use()
    monkeypatch.setattr(helpers, 'DEVICE', device)
    return device
