import importlib
import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from chainer_shared_patch import is_installed
import chainer
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
HAS_TORCH, HAS_ONNX, HAS_ONNXRUNTIME = (
    importlib.util.find_spec(name) is not None
    for name in ('torch', 'onnx', 'onnxruntime')
)
HAS_ONNXRUNTIME = HAS_ONNX and HAS_ONNXRUNTIME
NO_TORCH = {'absent': "No module named 'torch'"}
NO_ONNX = {'absent': "No module named 'onnx'"}
PROGRAM = """
import runpy, sys
sys.path.insert(0, {folder!r})
import measurements, sizes

measurements.SECONDS_PER_TURN = 0
sizes.QUICK_SIZES = [
    sizes.Row('fc7', 128, 640, 480, 2),
    sizes.Row('fc7', 128, 640, 480, 8),
    sizes.Row('LSTM step', 3, 40, 30, 4, 'StatelessLSTM'),
    sizes.SMALLEST,
]
runpy.run_path({folder!r}, run_name='__main__')
"""


@pytest.fixture
def start(tmp_path):
    """Starts the benchmark with small layers, in another directory."""
    processes = []

    def start(*args):
        program = PROGRAM.format(folder=str(SCRIPTS / 'measure/benchmark'))
        process = subprocess.Popen(
            [sys.executable, '-c', program, '--quick', *args],
            cwd=tmp_path,
            env={
                **os.environ,
                'PYTHONIOENCODING': 'ascii',  # A terminal without ≥.
                'TORCH_COMPILE_DISABLE': '1',  # Compiling takes minutes.
                'ATEN_CPU_CAPABILITY': 'default',
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
    results = read_results(tmp_path / 'here')
    assert results['machine'].endswith(', ATEN_CPU_CAPABILITY=default')
    check_times(results)
    check_inference(results)
    check_memory(results)
    check_sharing(results)
    check_training(results)
    check_output(stdout, stderr, tmp_path / 'here')


def read_results(out):
    return json.loads((out / 'performance' / 'benchmark.json').read_text())


def check_times(results):
    assert [row['common_num'] for row in results['sizes']] == [2, 8, 4, 10]
    for row in results['sizes']:
        for name, entry in row['contenders'].items():
            if name.startswith('torch') and not HAS_TORCH:
                assert entry == NO_TORCH
                continue
            assert numpy.shape(entry['seconds']) == (3, 3)
            forward, backward, both = numpy.transpose(entry['seconds'])
            assert (forward > 0).all() and (backward > 0).all()
            # Medians of calls, each on its own, of what adds up in a call.
            assert (both >= numpy.maximum(forward, backward)).all()


def check_inference(results):
    present = {'sum', 'SharedLinear'}
    present |= {'torch-sum'} if HAS_TORCH else set()
    present |= {'onnxruntime'} if HAS_ONNXRUNTIME else set()
    assert [row['batch_size'] for row in results['inference']] == [1, 32]
    for row in results['inference']:
        for name in present:
            seconds = row['contenders'][name].pop('seconds')
            assert numpy.shape(seconds) == (3, 3)
            assert numpy.min(seconds) > 0
        absent = dict(row['contenders'])
        assert all(absent.pop(name) == {} for name in present)
        assert all('No module' in each['absent'] for each in absent.values())


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
    names = ['sum', 'sum-blockwise', 'dense']
    for name in names + (['torch-sum-fused'] if HAS_TORCH else []):
        (seconds,) = results['training'][name]['seconds']
        assert seconds > 0
    assert results['dataset'] == 'the bundled sample of MNIST'


def check_output(stdout, stderr, out):
    assert '1 of 8, fc7: Linear of 640 to 480' in stderr
    assert '8 of 8, training' in stderr
    for title in (
        'Targets',
        'Inference',
        'Training',
        'Sizes',
        'Forward and backward against common_num',
        'Converting',
    ):
        assert '\n## ' + title in stdout
    names = ['benchmark.json', 'roofline.png', 'time_against_common_num.png']
    names = ['performance/' + name for name in names]
    names += ['performance.md', 'performance_tables.md']
    found = [path for path in out.rglob('*') if path.is_file()]
    assert {str(path.relative_to(out)) for path in found} == set(names)
    for name in names:
        assert '  here/' + name in stdout


def test_ctrl_c(start, tmp_path):
    process = start('--dataset', 'sample', '--out', 'here')
    lines = iter(process.stderr.readline, '')
    assert any('2 of 8' in line for line in lines)
    # As a terminal does, to all processes.
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert 'interrupted' in stderr and 'Traceback' not in stderr
    results = read_results(tmp_path / 'here')
    assert [row['common_num'] for row in results['sizes']] == [2]
    assert '### fc7' in stdout
    for title in ('Inference', 'Training'):
        _, _, section = stdout.partition('\n## ' + title)
        assert 'Nothing was measured.' in section.partition('\n## ')[0]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--dataset', 'nowhere'], 'nowhere'),
        (['--device', '@cupy:99'], 'benchmark: error: '),
        (['--dataset', 'sample', '--out', 'file'], 'Not a directory'),
        (['--render', 'here'], 'no here/performance/benchmark.json'),
    ],
)
def test_mistakes(tmp_path, args, message):
    (tmp_path / 'file').touch()
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / 'measure/benchmark'), *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.syspath_prepend(SCRIPTS / 'measure/benchmark')
    return importlib.import_module


@pytest.fixture
def report(load):
    return load('report')


@pytest.fixture
def pages(load):
    return load('pages')


@pytest.fixture
def sizes(load):
    return load('sizes')


def make_entry(row, **contenders):
    """Makes the results of a row of contenders that take seconds."""
    entry = {**row._asdict(), 'contenders': {}}
    for name, seconds in contenders.items():
        if not isinstance(seconds, dict):
            times = [seconds / 4, 3 * seconds / 4, seconds]
            seconds = {'seconds': [times, times], 'bytes': [400, 40, 200]}
        entry['contenders'][name.replace('_', '-')] = seconds
    return entry


@pytest.fixture
def results(sizes):
    """Results of a run without PyTorch and onnxruntime."""
    contenders = dict.fromkeys(('narrow', 'blocks', 'copy', 'product'), 0.002)
    contenders.update(sum=0.002, dense=0.013, dense_patched=0.013)
    contenders.update(torch_sum=NO_TORCH, torch_product=NO_TORCH)
    smallest = {**contenders, 'dense_patched': 0.0130025}
    inference = {'sum': 0.004, 'torch_sum': NO_TORCH, 'onnxruntime': NO_ONNX}
    return {
        'date': '2026-01-02',
        'machine': 'a machine, 2 cores',
        'device': '@numpy',
        'versions': {'numpy': '2.0'},
        'command': 'python scripts/measure/benchmark',
        'dataset': 'MNIST',
        'quick': False,
        'sizes': [
            make_entry(sizes.ARTICLE, **contenders),
            make_entry(sizes.SMALLEST, **smallest),
        ],
        'sweeps': [],
        'inference': [
            make_entry(row, **inference) for row in sizes.INFERENCE_SIZES
        ],
        'sharing': [],
        'training': {
            'sum': {'seconds': [3, 3]},
            'sum-blockwise': {'absent': 'no memory'},
            'dense': {'seconds': [7, 7]},
            'torch-sum': NO_TORCH,
        },
    }


def find_line(text, *words):
    """Returns the only line of a table that begins with these cells."""
    lines = [' '.join(line.split()) for line in text.splitlines()]
    start = '| {} |'.format(' | '.join(words))
    (line,) = (line for line in lines if line.startswith(start))
    return line


def test_render(tmp_path, results):
    (tmp_path / 'performance').mkdir()
    path = tmp_path / 'performance' / 'benchmark.json'
    path.write_text(json.dumps(results))
    subprocess.run(
        [sys.executable, SCRIPTS / 'measure/benchmark', '--render', tmp_path],
        check=True,
        timeout=120,
    )
    assert json.loads(path.read_text()) == results
    assert (tmp_path / 'performance' / 'roofline.png').exists()
    page, tables = (
        (tmp_path / name).read_text(encoding='utf-8')
        for name in ('performance.md', 'performance_tables.md')
    )
    assert '\n## On a GPU\n' in page
    for text in page, tables:
        assert '2026-01-02, a machine, 2 cores, @numpy, numpy 2.0' in text
    check_figures(page)
    check_tables(tables)


def check_figures(page):
    title = '1000 to 900, batch of {}, n = 10, {}'.format
    line = find_line(page, title(100, 'forward and backward'))
    assert line.endswith('| 2.00 ms | 13.0 ms | | 6.50 | |')
    line = find_line(page, title(32, 'inference'))
    assert line.endswith('| 1.00 ms | | | | |')
    line = find_line(page, 'an epoch, MNIST')
    assert line.endswith('| 3.00 s | 7.00 s | | 2.33 | |')
    assert '| the same with `--blockwise-adam`' not in page


def check_tables(tables):
    assert '![roofline](performance/roofline.png)' in tables
    assert '6.50 (≥ 6)' in tables and '**2.50 (≤ 1) missed**' in tables
    article, smallest = tables.split('\n### ')[1:3]
    for text in article, smallest:
        assert "No module named 'torch'" in find_line(text, 'torch-product')
        assert '`sum_blocks` takes 1.00 times as long' in text
    for batch_size in ('1', '32'):
        assert find_line(tables, 'sum', batch_size).endswith('| 1.00 | |')
        line = find_line(tables, 'onnxruntime', batch_size)
        assert line.endswith("| No module named 'onnx' | |")
    title = 'Chainer, shared: `scripts/train_mnist.py`'
    line = find_line(tables, title, '3.00')
    assert line.endswith('| 0.429 (≤ 0.55) | |')
    find_line(tables, 'Chainer, shared, `--blockwise-adam`', 'no memory')
    find_line(tables, 'PyTorch, shared, eager', "No module named 'torch'")


def test_figures_are_replaced_and_prose_is_kept(
    tmp_path, monkeypatch, pages, results
):
    page = tmp_path / 'performance.md'
    monkeypatch.setattr(pages, 'PAGE', page)
    (tmp_path / 'performance').mkdir()
    page.write_text(
        'Before.\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nAfter.\n'
    )
    pages.write(results, pages.read_prose(), tmp_path)
    text = page.read_text()
    assert text.startswith('Before.\n\n<!-- figures -->\n\n<!-- not run: ')
    assert text.endswith('|\n\n<!-- end of figures -->\n\nAfter.\n')
    assert 'old' not in text
    pages.write(results, pages.read_prose(), tmp_path)
    assert page.read_text() == text


@pytest.mark.parametrize(
    'text',
    [
        'no figures',
        '<!-- figures -->\n',
        '<!-- end of figures -->\n<!-- figures -->\n',
    ],
)
def test_page_without_marks(tmp_path, monkeypatch, pages, text):
    monkeypatch.setattr(pages, 'PAGE', tmp_path / 'page.md')
    pages.PAGE.write_text(text)
    with pytest.raises(ValueError, match='page.md lacks .* <!-- end of fig'):
        pages.read_prose()


@pytest.mark.parametrize(
    ('name', 'batch_size', 'in_size', 'n', 'link', 'wanted'),
    [
        ('article', 100, 1000, 10, 'Linear', [6, 1.05, None, 1, 1.02]),
        ('article', 1, 1000, 10, 'Linear', [None, 1.15, None, None, 1.02]),
        ('fc6', 32, 25088, 7, 'Linear', [7, 1.05, 1.06, None, 1.02]),
        ('fc7', 128, 4096, 8, 'Linear', [8, 1.05, 1.06, None, 1.02]),
        ('fc7', 1024, 4096, 64, 'Linear', [None, 1.05, 1.06, None, 1.02]),
        (
            *('LSTM step', 64, 4096, 8, 'StatelessLSTM'),
            [None, 1.05, None, None, 1.02],
        ),
    ],
)
def test_which_sizes_have_targets(
    report, sizes, name, batch_size, in_size, n, link, wanted
):
    row = sizes.Row(name, batch_size, in_size, 900, n, link)
    names = 'sum dense dense_patched narrow product torch_sum torch_product'
    entry = make_entry(row, **dict.fromkeys(names.split(), 0.1))
    targets = report.get_targets(entry, '@numpy')
    assert targets['product / torch-product'] == 1
    for column, number in zip(
        (
            'dense / sum',
            'sum / narrow',
            'sum / product',
            'sum / torch-sum',
            'dense-patched / dense',
        ),
        wanted,
    ):
        if number is None:
            assert targets[column] == 1
        else:
            assert f' {number})' in targets[column]


def test_smallest_size_has_one_target(report, sizes):
    entry = make_entry(sizes.SMALLEST, dense=1e-4, dense_patched=1.00833e-4)
    assert report.get_targets(entry, '@numpy') == {
        'dense-patched - dense, µs': '0.833 (≤ 1)'
    }


class NoLibrary:
    def call(self, library, function, *args):
        raise ImportError('no ' + library)


def test_library_that_is_missing(load, sizes):
    measurements = load('measurements')
    (row, _) = sizes.INFERENCE_SIZES
    names = {'onnxruntime': ('onnxruntime', '')}
    assert measurements.measure_row(NoLibrary(), row, names, 3) == {
        'onnxruntime': {'absent': 'no onnxruntime'}
    }
    training = measurements.measure_training(NoLibrary(), 'sample', 3, 1)
    assert training['sum-blockwise'] == {'absent': 'no chainer'}


@pytest.mark.parametrize('name', ['sum', 'SharedLinear'])
def test_inference_of_chainer(load, sizes, name):
    library = load('chainer_contenders').Library('@numpy')
    row, _ = sizes.INFERENCE_SIZES
    contender = library.make(name, row)
    with contender.context():
        assert not chainer.config.train
        assert is_installed() == (name == 'sum')
        y = contender.forward()
    assert y.shape == (1, 900) and y.creator_node is None
    assert contender.backward(y) is None


def test_training_that_fails_says_why(load):
    library = load('chainer_contenders').Library('@numpy')
    with pytest.raises(RuntimeError, match='^train_mnist.py: error: .*nowh'):
        library.train('sum', 'nowhere', 1)


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


def test_least_work_of_a_layer(load):
    plots = load('plots')
    row = {'batch_size': 2, 'in_size': 12, 'out_size': 5, 'dtype': 'float32'}
    # y = x W^T, gx = gy W and gW = gy^T x, each of B k out products and sums.
    assert plots.count_operations(row, 3) == 3 * 2 * (2 * 4 * 5)
    x, y, W, summed_x = 24, 10, 20, 8
    forward = x + W + summed_x + y
    backward = y + W + summed_x + x + W
    assert plots.count_bytes(row, 3) == 4 * (forward + backward)
    assert plots.count_bytes(row, 1) == 4 * (x + 60 + y + y + 60 + x + x + 60)


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
def test_sum_by_hand_in_torch(load, random):
    torch = load('torch')
    shared = load('torch_contenders').SharedModule
    x, W = (random.randn(*shape).astype('f') for shape in ((3, 12), (5, 4)))
    linear = torch.nn.Linear(4, 5, bias=False)
    linear.weight.data = torch.tensor(W)
    y = shared(3, linear)(torch.tensor(x)).detach().numpy()
    # Each y is 12 products of float32, added up in any order.
    expected = x.astype('d') @ numpy.tile(W.astype('d').T, (3, 1))
    magnitude = numpy.abs(x) @ numpy.tile(numpy.abs(W).T, (3, 1))
    bound = 12 * numpy.finfo('f').eps * magnitude
    assert (numpy.abs(y - expected) <= bound).all()
