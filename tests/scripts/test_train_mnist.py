import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist_download
from chainer_shared_patch.datasets import read_directory
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'
NETWORK = '--unit', 20, '--out-units', 5


def start(*args, script=('train_mnist.py',), **environment):
    return subprocess.Popen(
        [sys.executable, *script, *map(str, args)],
        cwd=str(SCRIPTS),
        # On one core each, tests that run at once do not wait for each other.
        env={'OMP_NUM_THREADS': '1', **os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*args, **kwargs):
    """Runs the script to its end."""
    process = start(*args, **kwargs)
    stdout, stderr = process.communicate(timeout=900)
    return subprocess.CompletedProcess(
        args, process.returncode, stdout, stderr
    )


def load(path):
    with numpy.load(path) as file:
        return dict(file)


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope='module')
def trained(tmp_path_factory, small):
    """The options of a run of three epochs, and its output directory."""
    out = tmp_path_factory.mktemp('trained') / 'out'
    args = ('--dataset', small, *NETWORK, '-b', 99)
    result = train(*args, '-e', 3, '--out', out)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    return args, out


def test_sample(tmp_path):
    result = train('--dataset', 'sample', '--epoch', 1, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    log = json.loads((tmp_path / 'log').read_text())
    # Chance is 0.1.
    assert 0.85 < log[-1]['validation/main/accuracy'] < 1
    names = 'accuracy.png', 'loss.png', 'model.npz', 'snapshot_epoch_1'
    assert set(names) <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ('environment', 'W_shape', 'total'),
    [
        ({}, (900, 100), ['884,010', '1,694,010']),
        ({'CHAINER_COMMON_NUM': '4'}, (900, 250), ['1,019,010', '1,694,010']),
        ({'CHAINER_SHARED_PATCH': '0'}, (900, 1000), ['1,694,010']),
    ],
)
def test_environment(tmp_path, small, environment, W_shape, total):
    args = ('--dataset', small, '--epoch', 1, '-b', 600, '--out', tmp_path)
    result = train(*args, **environment)
    assert result.returncode == 0, result.stderr
    (line,) = [
        line for line in result.stdout.splitlines() if line[:5] == 'total'
    ]
    assert line.split()[1 : 1 + len(total)] == total
    model = load(tmp_path / 'model.npz')
    assert model['l2/W'].shape == W_shape
    assert 'l2/b' not in model


def test_every_test_image_weighs_the_same(small, trained):
    _, out = trained
    model = load(out / 'model.npz')
    images, labels = read_directory(str(small), 't10k').values()
    h = numpy.maximum(images / 255.0 @ model['l1/W'].T + model['l1/b'], 0)
    W = numpy.tile(model['l2/W'], (1, 10))
    h = numpy.maximum(h @ W.T, 0) @ model['l3/W'].T + model['l3/b']
    right = numpy.count_nonzero(h.argmax(axis=1) == labels)
    log = json.loads((out / 'log').read_text())
    accuracy = log[-1]['validation/main/accuracy']
    numpy.testing.assert_allclose(accuracy, right / 200, rtol=1e-6)


def test_resumed_training_is_the_uninterrupted_one(tmp_path, trained):
    args, out = trained
    expected = load(out / 'model.npz')
    other = train(*args, '-e', 1, '--out', tmp_path / 'other', '--seed', 1)
    assert other.returncode == 0
    for options in (
        ('--resume', out / 'snapshot_epoch_2', '--out', tmp_path / 'resumed'),
        # Asked for no more than there is, it trains no more.
        ('--autoload', '--out', out),
    ):
        result = train(*args, '-e', 3, *options)
        assert result.returncode == 0, result.stderr
        assert_same_bits(load(options[-1] / 'model.npz'), expected)
    model = load(tmp_path / 'other' / 'model.npz')
    assert (model['l2/W'] != expected['l2/W']).any()


# Kills itself as it makes, renames or removes a file for the n-th time.
KILLED = """
import os, signal, sys
import train_mnist

out, n = sys.argv[sys.argv.index('--out') + 1], {}

def kill(event, args):
    global n
    if event in ('open', 'os.rename', 'os.remove', 'os.mkdir'):
        is_read = event == 'open' and args[1] in ('r', 'rb')
        if str(args[0]).startswith(out) and not is_read:
            n -= 1
            if n == 0:
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
train_mnist.main()
"""


def test_killed_training_ends_as_the_undisturbed_one(tmp_path, trained):
    args, out = trained
    args = (*args, '-e', 3, '--autoload', '--out', tmp_path)
    # In the log, in and after a snapshot, in and after the next one.
    for n in (4, 10, 12, 10, 12):
        result = train(*args, script=('-c', KILLED.format(n)))
        assert result.returncode == -signal.SIGKILL, result.stderr
    result = train(*args)
    assert result.returncode == 0, result.stderr
    assert_same_bits(load(tmp_path / 'model.npz'), load(out / 'model.npz'))


def test_weights_that_are_not_numbers_are_not_saved(tmp_path, trained):
    args, _ = trained
    code = (
        'import train_mnist\n'
        'train_mnist.F.relu = lambda x: x * float("nan")\n'
        'train_mnist.main()\n'
    )
    result = train(
        *args, '-e', 1, '--out', tmp_path / 'out', script=('-c', code)
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "parameters in optimizer 'main' diverge" in last
    assert not list((tmp_path / 'out').glob('*snapshot*'))
    assert not (tmp_path / 'out' / 'model.npz').exists()


def test_options(tmp_path, small):
    args = ('--dataset', small, '--out', tmp_path, '-e', 1, '-b', 50, '--bias')
    args += ('-u', 60, '--out-units', 7, '--common-num', 5, '-f', -1)
    result = train(*args, CHAINER_DTYPE='float64')
    assert result.returncode == 0, result.stderr
    model = load(tmp_path / 'model.npz')
    assert model['l1/W'].shape == (60, 784)
    assert model['l2/W'].shape == (7, 12)
    assert model['l2/b'].shape == (7,)
    assert model['l3/W'].shape == (10, 7)
    assert model['l3/W'].dtype == numpy.float64
    assert f'600 + 200 images, the files in {small}' in result.stdout


def test_auto_falls_back_on_the_sample(tmp_path):
    # All addresses go through a proxy that is not there.
    environment = dict.fromkeys(
        ('http_proxy', 'https_proxy'), 'http://127.0.0.1:9'
    )
    environment['CHAINER_DATASET_ROOT'] = str(tmp_path / 'root')
    args = ('--out', tmp_path / 'out', '-e', 1, '-b', 5000, *NETWORK)
    result = train(*args, **environment)
    assert result.returncode == 0, result.stderr
    assert 'the bundled sample, because MNIST cannot be' in result.stdout
    result = train(*args, '--dataset', 'mnist', **environment)
    assert result.returncode == 1
    assert 'train_mnist.py: error: ' in result.stderr
    assert 'Traceback' not in result.stderr
    for mirror in mnist_download.MIRRORS:
        assert mirror in result.stderr


@pytest.mark.parametrize(
    ('options', 'directory', 'description'),
    [
        ((), 'mnist', 'MNIST'),
        (('--dataset', 'fashion'), 'fashion-mnist', 'Fashion-MNIST'),
    ],
)
def test_files_in_the_dataset_directory(
    tmp_path, small, options, directory, description
):
    root = tmp_path / 'pfnet' / 'chainer' / directory
    root.mkdir(parents=True)
    for kind, name in (('train', 'train.npz'), ('t10k', 'test.npz')):
        numpy.savez(root / name, **read_directory(str(small), kind))
    result = train(
        *(*options, *NETWORK, '--out', tmp_path / 'out', '-e', 1),
        CHAINER_DATASET_ROOT=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert f'600 + 200 images, {description}\n' in result.stdout


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('--unit', 1001), '--unit 1001 cannot be split into --common-num 10'),
        (('--common-num', 0), '--common-num 0'),
        (('--common-num', 'ten'), "'ten'"),
        (('--dataset', 'nowhere'), 'no train-images-idx3-ubyte.gz in nowhere'),
    ],
)
def test_wrong_options(tmp_path, options, words):
    result = train('--out', tmp_path / 'out', *options)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith('train_mnist.py: error: ')
    assert words in last
    assert not (tmp_path / 'out').exists()


def test_unit_need_not_be_divisible_without_the_patch(tmp_path, small):
    args = ('--dataset', small, '--out', tmp_path, '-e', 1, '--unit', 1001)
    result = train(*args, CHAINER_SHARED_PATCH='0')
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('name', ['it\'s "$HOME" `pwd`', '-x', '~/x'])
def test_make_train_takes_any_name(tmp_path, name):
    """A Python that shows its arguments takes the place of the real one."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$0.args"\n')
    python.chmod(0o755)
    (python.parent.parent / 'installed-plot').touch()
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ('MAKEFLAGS', 'MFLAGS', 'ARGS', 'PYTHON', 'EPOCHS')
    }
    subprocess.run(
        ['make', f'VENV={python.parent.parent}', 'train'],
        cwd=str(SCRIPTS.parent),
        env={**environment, 'OUT': name, 'DATASET': f'data {name}'},
        check=True,
        timeout=60,
    )
    args = Path(f'{python}.args').read_text().split('\0')
    assert f'--out={name}' in args
    assert f'--dataset=data {name}' in args
