"""The check of an installation."""

from pathlib import Path
import runpy

import chainer_shared_patch
from chainer_shared_patch.functions import SharedLinearFunction
import pytest

SCRIPT = str(Path(__file__).parents[2] / 'scripts/verify/smoke.py')


def test_passes(capfd):
    runpy.run_path(SCRIPT)['main']([])
    info, *_, last = capfd.readouterr().out.splitlines()
    assert info == 'chainer_shared_patch: ' + chainer_shared_patch.__version__
    assert last.endswith('works')


@pytest.mark.parametrize(
    'owner, name',
    [
        (SharedLinearFunction, 'backward'),
        (chainer_shared_patch.SharedLinear, 'serialize'),
        (chainer_shared_patch, 'share'),
        (chainer_shared_patch, 'expand'),
    ],
)
def test_fails_where_something_does_nothing(owner, name, monkeypatch):
    # None too as the gradients of x, W and b.
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (None,) * 3)
    with pytest.raises(AssertionError):
        runpy.run_path(SCRIPT)['main']([])
