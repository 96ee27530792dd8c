import importlib
import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat.mnist import read_directory
import chainer
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def write_idx(path, array):
    header = b'\0\0\x08' + bytes([array.ndim])
    header += numpy.array(array.shape, '>i4').tobytes()
    path.write_bytes(header + array.astype('u1').tobytes())


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A directory of IDX files: the first images of the sample."""
    directory = tmp_path_factory.mktemp('small')
    for kind, n in (('train', 1000), ('t10k', 300)):
        sample = read_directory(str(SCRIPTS / 'mnist_sample'), kind)
        images = sample['x'][:n].reshape(n, 28, 28)
        write_idx(directory / (kind + '-images-idx3-ubyte'), images)
        write_idx(directory / (kind + '-labels-idx1-ubyte'), sample['y'][:n])
    return directory


def get_command(small, out, *args):
    command = [
        sys.executable,
        str(SCRIPTS / 'measure/compare_mnist'),
        '--quick',
    ]
    return command + ['--dataset', str(small), '--out', str(out), *args]


def compare(small, out, *args):
    return subprocess.run(
        get_command(small, out, *args),
        env={**os.environ, 'PYTHONIOENCODING': 'ascii'},  # It has no ±.
        capture_output=True,
        text=True,
        timeout=600,
    )


def read_rows(text):
    """Returns the cells of each row of the Markdown tables, by column."""
    rows, columns = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if not line.startswith('|'):
            columns = None
        elif columns is None:
            columns = cells
        elif not re.fullmatch('[|:-]+', line):
            rows.append(dict(zip(columns, cells)))
    return rows


@pytest.fixture(scope='module')
def compared(tmp_path_factory, small):
    """The directory of a finished run."""
    out = tmp_path_factory.mktemp('compared') / 'out'
    result = compare(small, out, '--only', 'first-layer', '--seeds', '2')
    assert result.returncode == 0, result.stdout + result.stderr
    assert '0 of 10 runs' in result.stdout
    return out


def test_tables_hold_what_was_computed(compared):
    files = [
        json.loads(path.read_text()) for path in compared.glob('runs/*.json')
    ]
    assert len(files) == 10
    rows = read_rows((compared / 'compare_mnist.md').read_text('utf-8'))
    orders = ['contiguous', 'random', 'interleaved', '2x2']
    assert [row['order'] for row in rows] == ['not shared', *orders]
    for row, n in zip(rows, (1, 4, 4, 4, 4)):
        a, b = (
            100 * file['record']['accuracies'][1]
            for file in files
            if file['key']['common_num'][0] == n
            and (n == 1 or file['key']['order'] == row['order'])
        )
        spread = abs(a - b) / 2**0.5
        assert row['trained'] == f'{(a + b) / 2:.2f} ± {spread:.2f}'
        parameters = 784 // n * 1000 + 1000 + 10 * 1000 + 10
        assert row['parameters'] == f'{parameters:,}'


def test_fine_tuning(tmp_path, small):
    result = compare(small, tmp_path, '--only', 'convert')
    assert result.returncode == 0, result.stdout + result.stderr
    files = [
        json.loads(path.read_text()) for path in tmp_path.glob('runs/*.json')
    ]
    (dense,) = (
        file['record']['accuracies']
        for file in files
        if not file['key']['start']
    )
    rows = read_rows(result.stdout)
    assert len(rows) == len(files) - 1 == 9
    assert rows[0]['at once'] == f'{100 * dense[1]:.2f}'
    for row in rows:
        assert {row['at once'], row['epoch 1 at 0.001']} in [
            {f'{100 * each:.2f}' for each in file['record']['accuracies']}
            for file in files
        ]
    assert (tmp_path / 'convert.png').exists()


def test_resuming(tmp_path, small, compared):
    out = tmp_path / 'out'
    shutil.copytree(compared, out)
    model, *_ = out.glob('runs/*.npz')
    model.write_bytes(model.read_bytes()[:1000])
    removed, truncated, *others = (
        path
        for path in out.glob('runs/*.json')
        if not path.with_suffix('.npz').exists()
    )
    removed.unlink()
    truncated.write_text(truncated.read_text()[:100])
    content = json.loads(others[0].read_text())
    content['record']['accuracies'][1] = 1.5
    others[0].write_text(json.dumps(content))
    args = ('--only', 'first-layer', '--seeds', '2')
    times = {path: path.stat().st_mtime_ns for path in others[1:]}
    result = compare(small, out, *args)
    assert result.returncode == 0, result.stderr
    assert '6 of 10 runs' in result.stdout
    for path in (truncated, others[0], model.with_suffix('.json')):
        assert f'{path} is damaged' in result.stdout
    assert times == {path: path.stat().st_mtime_ns for path in times}
    result = compare(small, out, *args)
    assert '10 of 10 runs' in result.stdout
    assert 'damaged' not in result.stdout and 'min left' not in result.stdout
    # What else decides what a run gives makes it another run.
    for changed in (['--epoch', '2'], ['--dataset', 'sample']):
        result = compare(small, out, '--only', 'first-layer', *changed)
        assert '0 of 5 runs' in result.stdout


def test_ctrl_c(tmp_path, small):
    process = subprocess.Popen(
        get_command(small, tmp_path, '--only', 'first-layer', '--seeds', '9'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = iter(process.stdout.readline, '')
    assert any('min left' in line for line in lines)
    # As a terminal does, to all processes.
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stdout + stderr
    assert 'interrupted' in stdout and 'Traceback' not in stderr
    for path in tmp_path.glob('runs/*.json'):
        assert json.loads(path.read_text())


def test_sigterm(tmp_path, small):
    args = ('--only', 'first-layer', '--epoch', '30', '--seeds', '999')
    process = subprocess.Popen(
        get_command(small, tmp_path, *args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any(
        'min left' in line for line in iter(process.stdout.readline, '')
    )
    process.terminate()
    # Not after the hour that the runs take.
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, stdout + stderr
    # The other processes had the group of this one, and end with it.
    with pytest.raises(ProcessLookupError):
        for _ in range(1200):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--dataset', 'nowhere'], 'nowhere'),
        (['--out', 'file'], 'file'),
        (['--seeds', '0'], 'at least 1'),
        (['--only', 'all'], "invalid choice: 'all'"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, args, message):
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    result = compare('sample', 'out', *args)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.syspath_prepend(SCRIPTS / 'measure/compare_mnist')
    return importlib.import_module('networks')


@pytest.mark.parametrize(
    ('sizes', 'kwargs', 'number'),
    [
        ((784, 1000, 900, 10), {}, 785_000 + 900_000 + 9_010),
        ((784, 1000, 900, 10), {'common_num': (1, 10, 1)}, 884_010),
        ((784, 1000, 900, 10), {'common_num': (4, 10, 1)}, 296_010),
        ((784, 1000, 900, 10), {'rank': (0, 47, 0)}, 785_000 + 89_300 + 9_010),
        ((784, 1000, 10), {'common_num': (8, 40)}, 98_000 + 1_000 + 260),
        ((784, 59, 10), {'common_num': (4, 1)}, 196 * 59 + 59 + 600),
    ],
)
def test_numbers_of_parameters(networks, sizes, kwargs, number):
    run = networks.Run(sizes, **kwargs)
    assert run.count_parameters() == number
    network = networks.Network(run)
    assert sum(each.size for each in network.params()) == number
    x = numpy.zeros((2, 784), 'f')
    assert network(x).shape == (2, 10)


@pytest.mark.parametrize('n', [2, 10, 100])
def test_alternatives_of_the_same_size(networks, n):
    shared = networks.Run((784, 1000, 900, 10), (1, n, 1))
    budget = shared.count_parameters()
    low_rank = networks.make_low_rank(shared).count_parameters()
    # A rank more has 1,000 + 900 more.
    assert 0 <= budget - low_rank < 1900
    smaller = networks.make_smaller(shared, budget)
    assert smaller.count_parameters() <= budget
    _, width, _, _ = smaller.sizes
    wider = (784, width + 1, (width + 1) * 9 // 10, 10)
    assert networks.Run(wider).count_parameters() > budget


def test_what_a_network_starts_from_decides_what_a_run_gives(networks):
    experiments = importlib.import_module('experiments')
    for part in ('convert', 'hashednets'):
        keys = []
        for epoch in (8, 9):
            args = SimpleNamespace(epoch=epoch, step=1)
            for _, runs in experiments.PARTS[part][1](args):
                keys += [str(run.key) for run in runs if run.start]
        assert len(set(keys)) == len(keys)


def test_budgets_of_hashednets(networks):
    experiments = importlib.import_module('experiments')
    for divisor, (_, *runs) in experiments.HASHEDNETS.items():
        for run in runs:
            assert networks.Network(run)  # Its common_num fits.
            assert run.count_parameters() <= 795_010 / divisor


def test_order_of_patches(networks):
    image = numpy.arange(784).reshape(28, 28)
    for rows, columns in ((2, 2), (4, 2), (2, 4)):
        n = rows * columns
        order = networks.make_order(f'{rows}x{columns}', n, 0)
        assert (numpy.sort(order) == numpy.arange(784)).all()
        first = order.reshape(n, -1)[:, 0]  # What uses column 0 of W.
        assert set(first) == set(image[:rows, :columns].ravel())
        last = order.reshape(n, -1)[:, -1]
        assert set(last) == set(image[-rows:, -columns:].ravel())


@pytest.mark.parametrize('start', ['contiguous', 'grouped', 'calibrated'])
def test_conversion(networks, random, start):
    # Neighbours have the same weight, up to little noise.
    run = networks.Run((784, 20, 10), (4, 1), start=start, dense_epochs=1)
    dense = networks.Network(run.dense)
    W = dense.l1.W.array
    W[:] = W[:, ::4].repeat(4, axis=1) + 1e-3 * W
    images = random.rand(50, 784).astype('f')
    expected = dense(images).array
    networks.convert(dense, run, images)
    assert sum(each.size for each in dense.params()) == run.count_parameters()
    assert dense.l1.common_num == 4 and dense.l2.W.shape == (10, 20)
    error = numpy.abs(dense(images).array - expected).max()
    assert (error < 0.1 * numpy.abs(expected).max()) == (start != 'contiguous')


@pytest.mark.parametrize('nobias', [False, True])
def test_truncated_svd(networks, random, nobias):
    link = chainer.links.Linear(8, 5, nobias)
    x = random.randn(3, 8).astype('f')
    W = link.W.array.astype('d')
    factors = networks.factorize(link, 2)
    # The best approximation leaves the other singular values.
    product = factors[1].W.array.astype('d') @ factors[0].W.array
    left = numpy.linalg.norm(W - product)
    values = numpy.linalg.svd(W, compute_uv=False)
    numpy.testing.assert_allclose(left, numpy.linalg.norm(values[2:]), 1e-4)
    assert len(list(factors.params())) == 3 - nobias
    full = networks.factorize(link, 5)(x).array
    numpy.testing.assert_allclose(full, link(x).array, 1e-4, 1e-5)
