"""The check of an installation."""

import chainer_shared_patch
import pytest
from verify import smoke


def test_passes(capfd):
    smoke.main()
    assert capfd.readouterr().out.endswith('works\n')


@pytest.mark.parametrize(
    'owner, name',
    [
        (chainer_shared_patch.SharedLinear, 'serialize'),
        (chainer_shared_patch, 'share'),
        (chainer_shared_patch, 'expand'),
    ],
)
def test_fails_where_something_does_nothing(owner, name, monkeypatch):
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: None)
    with pytest.raises(AssertionError):
        smoke.main()
