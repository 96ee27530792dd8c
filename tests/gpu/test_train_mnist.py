import json

import pytest

from tests.gpu.conftest import DEVICE
from tests.scripts.test_train_mnist import train


@pytest.mark.parametrize('dtype', ['float32', 'mixed16'])
def test_training(tmp_path, dtype):
    result = train(
        *('--dataset', 'sample', '--epoch', '3', '--device', DEVICE),
        *('--out', tmp_path),
        CHAINER_DTYPE=dtype,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert '884,010' in result.stdout
    last = json.loads((tmp_path / 'log').read_text())[-1]
    if dtype == 'float32':
        assert last['validation/main/accuracy'] > 0.9
