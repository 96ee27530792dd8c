import json

from tests.gpu.conftest import DEVICE
from tests.scripts.test_train_mnist import train


def test_training(tmp_path):
    args = ('--dataset', 'sample', '--epoch', 3, '--device', DEVICE)
    result = train(*args, '--out', tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '884,010' in result.stdout
    last = json.loads((tmp_path / 'log').read_text())[-1]
    assert last['validation/main/accuracy'] > 0.9
