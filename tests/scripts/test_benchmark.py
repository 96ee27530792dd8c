import importlib
import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
HAS_TORCH = importlib.util.find_spec('torch') is not None
PROGRAM = """
import runpy, sys
sys.path.insert(0, {folder!r})
import measurements, sizes

measurements.SECONDS_PER_TURN = 0
sizes.QUICK_SIZES = [
    sizes.Row('fc7', 128, 640, 480, 2),
    sizes.Row('fc7', 128, 640, 480, 8),
    sizes.Row('LSTM step', 3, 40, 30, 4, 'StatelessLSTM'),
]
runpy.run_path({folder!r}, run_name='__main__')
"""


@pytest.fixture
def start(tmp_path):
    """Starts the benchmark with small layers, in another directory."""
    processes = []

    def start(*args):
        program = PROGRAM.format(folder=str(SCRIPTS / 'benchmark'))
        process = subprocess.Popen(
            [sys.executable, '-c', program, '--quick', *args],
            cwd=tmp_path,
            env={
                **os.environ,
                'PYTHONIOENCODING': 'ascii',  # A terminal without ≥.
                'TORCH_COMPILE_DISABLE': '1',  # Compiling takes minutes.
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=60)


def test_benchmark(start, tmp_path):
    process = start('--dataset', 'sample', '--out', 'here')
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    results = json.loads((tmp_path / 'here' / 'benchmark.json').read_text())
    check_times(results)
    check_memory(results)
    check_sharing(results)
    check_training(results)
    check_output(stdout, stderr, tmp_path / 'here')


def check_times(results):
    assert [row['common_num'] for row in results['sizes']] == [2, 8, 4]
    for row in results['sizes']:
        for name, entry in row['contenders'].items():
            if name.startswith('torch') and not HAS_TORCH:
                assert entry['absent'] == "No module named 'torch'"
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
        # Python's objects take less than any array of the layer.
        objects = min(x, y, narrow_W, summed_x)
        contenders = row['contenders']
        for name in ('sum', 'torch-sum') if HAS_TORCH else ('sum',):
            forward, kept, backward = contenders[name]['bytes']
            assert kept == summed_x
            assert 0 <= forward - (y + summed_x) < objects
            assert 0 <= backward - (x + max(narrow_W, summed_x)) < objects
        assert contenders['tile']['bytes'][0] > dense_W
        assert contenders['dense']['bytes'][1] == 0
        assert contenders['dense']['bytes'][2] > dense_W


def check_sharing(results):
    without, calibrated = results['sharing']
    assert without['examples'] == 0 < calibrated['examples']
    # The narrow weight, and the matrix of dot products of columns.
    narrow_W = 4 * without['in_size'] * without['out_size'] // 10
    assert without['bytes'] > narrow_W + 4 * without['in_size'] ** 2
    assert calibrated['bytes'] > without['bytes'] > 0
    assert min(without['seconds'], calibrated['seconds']) > 0


def check_training(results):
    for name in ('sum', 'dense', *(['torch-sum-fused'] if HAS_TORCH else [])):
        (seconds,) = results['training'][name]['seconds']
        assert seconds > 0
    assert results['dataset'] == 'the bundled sample of MNIST'


def check_output(stdout, stderr, path):
    assert '1 of 5, fc7: Linear of 640 to 480' in stderr
    assert '5 of 5, training' in stderr
    for title in (
        'Targets',
        'Sizes',
        'Converting',
        'Forward and backward against common',
    ):
        assert '## ' + title in stdout
    if not HAS_TORCH:
        line = "| torch-sum | No module named 'torch' |"
        assert line in ' '.join(stdout.split())
    names = ['benchmark.json', 'benchmark.md', 'roofline.png']
    names.append('time_against_common_num.png')
    assert sorted(each.name for each in path.iterdir()) == names
    text = (path / 'benchmark.md').read_text(encoding='utf-8')
    assert '![roofline.png]' in text and '≤' in text
    for name in names:
        assert '  here/' + name in stdout


def test_ctrl_c(start, tmp_path):
    process = start('--dataset', 'sample', '--out', 'here')
    lines = iter(process.stderr.readline, '')
    assert any('2 of 5' in line for line in lines)
    # As a terminal does, to all processes.
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert 'interrupted' in stderr and 'Traceback' not in stderr
    results = json.loads((tmp_path / 'here' / 'benchmark.json').read_text())
    assert [row['common_num'] for row in results['sizes']] == [2]
    assert '### fc7' in stdout
    assert 'the bundled sample of MNIST\n\nNothing was measured.' in stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--dataset', 'nowhere'], 'nowhere'),
        (['--device', '@cupy:99'], 'benchmark: error: '),
        (['--dataset', 'sample', '--out', 'file'], "File exists: 'file'"),
    ],
)
def test_mistakes(tmp_path, args, message):
    (tmp_path / 'file').touch()
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / 'benchmark'), *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS / 'benchmark')
    return importlib.import_module('report')


def test_ratios_are_taken_within_rounds(report):
    # A machine that is three times slower in the second round.
    sum_, dense = (
        [[t, 2 * t, 3 * t] for t in ts] for ts in ([1, 3, 1], [8, 24, 10])
    )
    row = {
        'contenders': {'sum': {'seconds': sum_}, 'dense': {'seconds': dense}}
    }
    assert report.get_ratio(row, 'dense', 'sum') == 8
    assert report.get_milliseconds(row, 'dense', 'backward') == 20000
    assert report.get_ratio(row, 'dense', 'torch-sum') is None
    assert report.get_milliseconds(row, 'torch-sum') is None


@pytest.mark.parametrize(
    ('number', 'sign', 'wanted', 'text'),
    [
        (7.3, '≥', 7.2, '7.30 (≥ 7.2)'),
        (7.1, '≥', 7.2, '**7.10 (≥ 7.2) missed**'),
        (1.02, '≤', 1.02, '1.02 (≤ 1.02)'),
        (1.0249, '≤', 1.02, '1.02 (≤ 1.02)'),
        (1.0251, '≤', 1.02, '**1.03 (≤ 1.02) missed**'),
        (123.4, '≤', 1, '**123 (≤ 1) missed**'),
        (5, '≤', None, 5),
        (None, '≥', 6, None),
    ],
)
def test_targets(report, number, sign, wanted, text):
    assert report.format_target(number, sign, wanted) == text


def test_least_work_of_a_layer(report):
    row = {'batch_size': 2, 'in_size': 12, 'out_size': 5, 'dtype': 'float32'}
    # y = x W^T, gx = gy W and gW = gy^T x, each of B k out products and sums.
    assert report.count_operations(row, 3) == 3 * 2 * (2 * 4 * 5)
    x, y, W, summed_x = 24, 10, 20, 8
    forward = x + W + summed_x + y
    backward = y + W + summed_x + x + W
    assert report.count_bytes(row, 3) == 4 * (forward + backward)
    assert report.count_bytes(row, 1) == 4 * (x + 60 + y + y + 60 + x + x + 60)


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
def test_numbers(report, number, text):
    assert report.format_number(number) == text


@pytest.mark.skipif(not HAS_TORCH, reason='PyTorch is not installed')
def test_sum_by_hand_in_torch(monkeypatch, random):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.syspath_prepend(SCRIPTS / 'benchmark')
    torch = importlib.import_module('torch')
    shared = importlib.import_module('torch_contenders').SharedModule
    x, W = (random.randn(*shape).astype('f') for shape in ((3, 12), (5, 4)))
    linear = torch.nn.Linear(4, 5, bias=False)
    linear.weight.data = torch.tensor(W)
    y = shared(3, linear)(torch.tensor(x)).detach().numpy()
    # Each y is 12 products of float32, added up in any order.
    expected = x.astype('d') @ numpy.tile(W.astype('d').T, (3, 1))
    magnitude = numpy.abs(x) @ numpy.tile(numpy.abs(W).T, (3, 1))
    bound = 12 * numpy.finfo('f').eps * magnitude
    assert (numpy.abs(y - expected) <= bound).all()
