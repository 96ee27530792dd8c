import importlib
import importlib.util
import json
from pathlib import Path
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
HAS_TORCH = importlib.util.find_spec('torch') is not None
PROGRAM = """
import benchmark
from benchmark import Row

benchmark.SECONDS_PER_TURN = 0
benchmark.QUICK_SIZES = [
    Row('fc7', 128, 80, 60, 2),
    Row('fc7', 128, 80, 60, 8),
    Row('LSTM step', 3, 40, 30, 4, 'StatelessLSTM'),
]
if __name__ == '__main__':
    benchmark.main()
"""


def run(tmp_path, *args):
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(program), '--quick', *args],
        cwd=tmp_path,
        env={'PYTHONPATH': str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_benchmark(tmp_path):
    result = run(tmp_path, '--dataset', 'sample', '--out', 'here')
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / 'here' / 'benchmark.json').read_text())
    check_times(results)
    check_memory(results)
    check_training(results)
    check_output(result, tmp_path / 'here')


def check_times(results):
    assert [row['common_num'] for row in results['sizes']] == [2, 8, 4]
    for row in results['sizes']:
        for name, entry in row['contenders'].items():
            if name.startswith('torch') and 'absent' in entry:
                assert name == 'torch-compile' or not HAS_TORCH
                assert entry['absent']
                continue
            assert numpy.shape(entry['seconds']) == (3, 3)
            forward, backward, both = numpy.transpose(entry['seconds'])
            assert (forward > 0).all() and (backward > 0).all()
            # Medians of calls, each on its own, of what adds up in a call.
            assert (both >= numpy.maximum(forward, backward)).all()


def check_memory(results):
    for row in results['sizes'][:2]:
        dense_W = 4 * row['in_size'] * row['out_size']
        narrow_W = dense_W // row['common_num']
        x = 4 * row['batch_size'] * row['in_size']
        y = 4 * row['batch_size'] * row['out_size']
        summed_x = x // row['common_num']
        contenders = row['contenders']
        forward, kept, backward = contenders['sum']['bytes']
        # The rest are Python's objects.
        assert kept == summed_x
        assert 0 <= forward - (y + summed_x) < 8000
        assert 0 <= backward - (x + max(narrow_W, summed_x)) < 8000
        assert contenders['tile']['bytes'][0] > dense_W
        assert contenders['dense']['bytes'][1] == 0
        assert contenders['dense']['bytes'][2] > dense_W


def check_training(results):
    for name in ('sum', 'dense'):
        (seconds,) = results['training'][name]['seconds']
        assert seconds > 0
    assert results['dataset'] == 'the bundled sample of MNIST'


def check_output(result, path):
    assert '1 of 4, fc7: Linear of 80 to 60' in result.stderr
    assert '4 of 4, training' in result.stderr
    for title in ('Targets', 'Sizes', 'Forward and backward against common'):
        assert '## ' + title in result.stdout
    if not HAS_TORCH:
        line = '| torch-sum     | torch is not installed |'
        assert ' '.join(line.split()) in ' '.join(result.stdout.split())
    names = ['benchmark.json', 'benchmark.md', 'roofline.png']
    names.append('time_against_common_num.png')
    assert sorted(each.name for each in path.iterdir()) == names
    assert '![roofline.png]' in (path / 'benchmark.md').read_text()
    for name in names:
        assert '  here/' + name in result.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--dataset', 'nowhere'], 'nowhere'),
        (['--device', '@cupy:99'], 'error'),
        (['--dataset', 'sample', '--out', 'program.py'], 'program.py'),
        (['--peers', 'numpy'], 'torch-sum'),
    ],
)
def test_mistakes(tmp_path, args, message):
    result = run(tmp_path, *args)
    assert result.returncode != 0
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    yield
    for name in [name for name in sys.modules if name.startswith('benchmark')]:
        del sys.modules[name]


def test_ratios_are_taken_within_rounds(scripts):
    report = importlib.import_module('benchmark_report')
    # A machine that is three times slower in the second round.
    sum_, dense = (
        [[t, 2 * t, 3 * t] for t in ts] for ts in ([1, 3, 1], [8, 24, 10])
    )
    row = {
        'contenders': {'sum': {'seconds': sum_}, 'dense': {'seconds': dense}}
    }
    assert report.get_ratio(row, 'dense', 'sum') == 8
    assert report.get_seconds(row, 'dense', 'backward') == 20
    assert report.get_ratio(row, 'dense', 'torch-sum') is None
    assert report.get_seconds(row, 'torch-sum') is None


@pytest.mark.parametrize(
    ('number', 'wanted', 'sign', 'text'),
    [
        (7.3, 7.2, '≥', '7.30 (≥ 7.2)'),
        (7.1, 7.2, '≥', '**7.10 (≥ 7.2) missed**'),
        (1.02, 1.02, '≤', '1.02 (≤ 1.02)'),
        (1.0249, 1.02, '≤', '1.02 (≤ 1.02)'),
        (1.0251, 1.02, '≤', '**1.03 (≤ 1.02) missed**'),
        (123.4, 1, '≤', '**123 (≤ 1) missed**'),
        (5, None, '≤', 5),
        (None, 6, '≥', None),
    ],
)
def test_targets(scripts, number, wanted, sign, text):
    report = importlib.import_module('benchmark_report')
    assert report.format_target(number, wanted, sign) == text


def test_least_work_of_a_layer(scripts):
    report = importlib.import_module('benchmark_report')
    row = {'batch_size': 2, 'in_size': 12, 'out_size': 5, 'dtype': 'float32'}
    # y = x W^T, gx = gy W and gW = gy^T x, each of B k out products and sums.
    assert report.count_operations(row, 3) == 3 * 2 * (2 * 4 * 5)
    x, y, W, summed_x = 24, 10, 20, 8
    forward = x + W + summed_x + y
    backward = y + W + summed_x + x + W
    assert report.count_bytes(row, 3) == 4 * (forward + backward)
    assert report.count_bytes(row, 1) == 4 * (x + 60 + y + y + 60 + x + x + 60)


@pytest.mark.skipif(not HAS_TORCH, reason='PyTorch is not installed')
def test_sum_by_hand_in_torch(scripts, random):
    torch = importlib.import_module('torch')
    shared = importlib.import_module('benchmark_torch').SharedModule
    x, W = (random.randn(*shape).astype('f') for shape in ((3, 12), (5, 4)))
    linear = torch.nn.Linear(4, 5, bias=False)
    linear.weight.data = torch.tensor(W)
    y = shared(3, linear)(torch.tensor(x)).detach().numpy()
    numpy.testing.assert_allclose(y, x @ numpy.tile(W.T, (3, 1)), rtol=1e-4)


@pytest.mark.parametrize(
    ('number', 'text'),
    [
        (0.9996, '1.00'),
        (0.000412, '0.000412'),
        (12.345, '12.3'),
        (99.96, '100'),
        (1234.5, '1234'),
        (0, '0.00'),
    ],
)
def test_numbers(scripts, number, text):
    report = importlib.import_module('benchmark_report')
    assert report.format_number(number) == text
