import gzip
import os
from pathlib import Path
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def train(*args, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / 'train_mnist.py'), *map(str, args)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def load(path):
    with numpy.load(path) as file:
        return dict(file)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A directory of IDX files: the first images of the sample."""
    directory = tmp_path_factory.mktemp('small')
    for kind, n in (('train', 600), ('t10k', 200)):
        for name in ('images-idx3-ubyte', 'labels-idx1-ubyte'):
            path = SCRIPTS / 'mnist_sample' / '{}-{}.gz'.format(kind, name)
            content = gzip.decompress(path.read_bytes())
            header = 16 if 'images' in name else 8
            content = (
                content[:4]
                + n.to_bytes(4, 'big')
                + content[8 : header + n * (784 if 'images' in name else 1)]
            )
            (directory / path.stem).write_bytes(content)
    return directory


@pytest.mark.parametrize(
    ('environment', 'W_shape', 'total'),
    [
        ({}, (900, 100), '884,010'),
        ({'CHAINER_SHARED_PATCH': '0'}, (900, 1000), '1,694,010'),
    ],
)
def test_toggle_on_the_sample(tmp_path, environment, W_shape, total):
    args = ('--dataset', 'sample', '--epoch', 1, '--out', tmp_path)
    result = train(*args, **environment)
    assert result.returncode == 0, result.stderr
    # Chance is 0.1.
    (line,) = [
        line
        for line in result.stdout.splitlines()
        if line.startswith('test accuracy')
    ]
    assert 0.85 < float(line.split()[-1]) < 1
    assert '10,000 training and 2,000 test images' in result.stdout
    (line,) = [
        line for line in result.stdout.splitlines() if line[:5] == 'total'
    ]
    assert line.split() == ['total', total, '1,694,010']
    assert '\033' not in result.stdout
    model = load(tmp_path / 'model.npz')
    assert model['l2/W'].shape == W_shape
    assert 'l2/b' not in model
    graph = (tmp_path / 'cg.dot').read_text()
    assert ('SharedLinearFunction (common_num=10)' in graph) == (
        not environment
    )
    expected = ['accuracy.png', 'cg.dot', 'log', 'loss.png', 'model.npz']
    expected.append('snapshot_epoch_1')
    assert sorted(os.listdir(tmp_path)) == expected
    for name in expected:
        assert '  {}\n'.format(tmp_path / name) in result.stdout


def test_resumed_training_is_the_uninterrupted_one(tmp_path, small):
    def run(out, *args):
        result = train('--dataset', small, '--out', tmp_path / out, *args)
        assert result.returncode == 0, result.stderr
        return load(tmp_path / out / 'model.npz')

    expected = run('whole', '--epoch', 3)
    run('autoload', '--epoch', 1)
    autoloaded = run('autoload', '--epoch', 3, '--autoload')
    resumed = run(
        'resume',
        '--epoch',
        3,
        '--resume',
        tmp_path / 'whole' / 'snapshot_epoch_2',
    )
    other = run('other', '--epoch', 3, '--seed', 1)
    for name, array in expected.items():
        numpy.testing.assert_array_equal(autoloaded[name], array)
        numpy.testing.assert_array_equal(resumed[name], array)
    assert (other['l2/W'] != expected['l2/W']).any()
    # Asked for less than there is, it goes neither on nor back.
    run('autoload', '--epoch', 2, '--autoload')
    names = os.listdir(tmp_path / 'autoload')
    assert 'snapshot_epoch_3' in names
    assert 'snapshot_epoch_4' not in names


def test_resuming_another_network(tmp_path, small):
    args = ('--dataset', small, '--out', tmp_path, '-e', 1)
    assert train(*args).returncode == 0
    snapshot = tmp_path / 'snapshot_epoch_1'
    (tmp_path / 'nonsense').write_bytes(snapshot.read_bytes()[:1000])
    for options, environment, words in (
        (('--autoload', '--common-num', 5), {}, '(900, 100), that of this'),
        (('--resume', snapshot, '--bias'), {}, 'l2/b'),
        (('--autoload',), {'CHAINER_SHARED_PATCH': '0'}, '(900, 1000)'),
        (('--resume', tmp_path / 'nonsense'), {}, 'nonsense'),
        (('--resume', tmp_path / 'model.npz'), {}, 'model.npz'),
        (('--autoload', '--dataset', 'sample'), {}, '600 training images'),
        (('--out', snapshot), {}, 'snapshot_epoch_1'),
    ):
        result = train(*args, *options, **environment)
        assert result.returncode == 1
        assert 'Traceback' not in result.stderr
        assert 'train_mnist.py: error: ' in result.stderr
        assert words in result.stderr


def test_options(tmp_path, small):
    args = [
        *('--dataset', small, '--out', tmp_path, '-e', 1, '-b', 50, '--bias'),
        *('-u', 60, '--out-units', 7, '--common-num', 5, '-f', -1),
    ]
    result = train(*args)
    assert result.returncode == 0, result.stderr
    model = load(tmp_path / 'model.npz')
    assert model['l1/W'].shape == (60, 784)
    assert model['l2/W'].shape == (7, 12)
    assert model['l2/b'].shape == (7,)
    assert model['l3/W'].shape == (10, 7)
    assert 'the files in {}'.format(small) in result.stdout


def test_common_num_of_the_environment(tmp_path, small):
    args = ('--dataset', small, '--out', tmp_path, '-e', 1)
    result = train(*args, CHAINER_COMMON_NUM='4')
    assert result.returncode == 0, result.stderr
    assert load(tmp_path / 'model.npz')['l2/W'].shape == (900, 250)


def test_auto_falls_back_on_the_sample(tmp_path):
    # All addresses go through a proxy that is not there.
    proxies = dict.fromkeys(
        ('http_proxy', 'https_proxy'), 'http://127.0.0.1:9'
    )
    args = ('--out', tmp_path / 'out', '-e', 1, '-b', 5000)
    root = str(tmp_path / 'root')
    result = train(*args, CHAINER_DATASET_ROOT=root, **proxies)
    assert result.returncode == 0, result.stderr
    assert 'the bundled sample, as MNIST itself is out' in result.stdout

    args += ('--dataset', 'mnist')
    result = train(*args, CHAINER_DATASET_ROOT=root, **proxies)
    assert result.returncode == 1
    assert 'train_mnist.py: error: ' in result.stderr
    assert 'Traceback' not in result.stderr
    for mirror in mnist.MNIST.mirrors:
        assert mirror in result.stderr


def test_auto_takes_the_cache(tmp_path, small):
    root = tmp_path / 'root' / 'pfnet' / 'chainer' / 'mnist'
    root.mkdir(parents=True)
    for kind, name in (('train', 'train.npz'), ('t10k', 'test.npz')):
        numpy.savez(root / name, **mnist.read_directory(str(small), kind))
    args = ('--out', tmp_path / 'out', '-e', 1)
    result = train(*args, CHAINER_DATASET_ROOT=str(tmp_path / 'root'))
    assert result.returncode == 0, result.stderr
    assert '600 training and 200 test images, MNIST' in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--unit', 1001), ('1001', '7, 11, 13', '1000 and 1010')),
        (('--unit', 5), ('1, 5', 'that can are 10')),
        (('--unit', 0), ('--unit', "'0'")),
        (('--common-num', 'ten'), ('--common-num', "'ten'")),
        (('--epoch', '-1'), ('--epoch', "'-1'")),
        (('--seed', '-1'), ('--seed', "'-1'")),
        (('--frequency', 0), ('--frequency', "'0'")),
        (('--seed', 2**32), ('--seed', "'4294967296'")),
        (('--resume', 'nowhere'), ('--resume', 'nowhere')),
        (('--dataset', 'nowhere'), ('train-images-idx3-ubyte', 'nowhere')),
        (('--device', '@nonsense'), ('nonsense',)),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    result = train('--out', tmp_path / 'out', *arguments)
    assert result.returncode != 0
    assert 'Traceback' not in result.stderr
    assert 'train_mnist.py: error: ' in result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / 'out').exists()


def test_unit_need_not_be_divisible_without_the_patch(tmp_path, small):
    args = ('--dataset', small, '--out', tmp_path, '-e', 1, '--unit', 1001)
    result = train(*args, CHAINER_SHARED_PATCH='0')
    assert result.returncode == 0, result.stderr
