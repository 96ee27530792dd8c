import gc
import importlib
import os
from pathlib import Path
import subprocess
import sys

import chainer_shared_patch
from chainer_shared_patch import config
from chainer_shared_patch.compat import mnist
import pytest

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / 'fuzz_corpus'


@pytest.fixture(scope='module')
def targets():
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / 'scripts' / 'fuzz'))
    try:
        yield importlib.import_module('targets')
    finally:
        sys.path[:] = path
        sys.modules.pop('targets')


def fuzz(*args, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / 'scripts' / 'fuzz'), *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def replay(target, name, directory):
    paths = sorted((CORPUS / name).iterdir())
    return {target(path.read_bytes(), str(directory)) for path in paths}


OUTCOMES = {
    'idx': {'accepted', 'ValueError', 'FileNotFoundError'},
    'snapshot': {'accepted', 'ValueError'},
    'environment': {'accepted', 'ValueError'},
    'options': {'accepted', 'SystemExit(0)', 'SystemExit(2)'},
    'linear': {'accepted', 'InvalidType', 'ValueError'},
    'shared-linear': {'accepted', 'ValueError'},
    'share': {'accepted', 'ValueError'},
}


def test_every_target_is_replayed(targets):
    assert set(OUTCOMES) == set(targets.TARGETS) == set(os.listdir(CORPUS))
    size = sum(path.stat().st_size for path in CORPUS.glob('*/*'))
    assert size < 200_000


@pytest.mark.parametrize('name', OUTCOMES)
def test_corpus(targets, tmp_path, name):
    assert replay(targets.TARGETS[name], name, tmp_path) == OUTCOMES[name]


@pytest.mark.filterwarnings('ignore::UserWarning')
class TestPlantedDefect:
    """What the corpus must find."""

    def check(self, targets, name, tmp_path, error):
        with pytest.raises(error):
            replay(targets.TARGETS[name], name, tmp_path)

    def test_undocumented_error(self, targets, tmp_path, monkeypatch):
        monkeypatch.setattr(mnist, 'read_idx', lambda path: [][0])
        self.check(targets, 'idx', tmp_path, IndexError)

    def test_wrong_array(self, targets, tmp_path, monkeypatch):
        read = mnist.read_idx
        monkeypatch.setattr(mnist, 'read_idx', lambda path: read(path)[::-1])
        self.check(targets, 'idx', tmp_path, AssertionError)

    @pytest.mark.parametrize(
        ('name', 'value'),
        [
            ('underscore', 10),
            ('plus', 1),
            ('space', 1),
            ('arabic-digit', 1),
            ('zeros', 0),
        ],
    )
    def test_number(self, targets, tmp_path, monkeypatch, name, value):
        parse = config.parse_common_num

        def parse_more(text, setting):
            if text.encode() == (CORPUS / 'environment' / name).read_bytes():
                return value
            return parse(text, setting)

        monkeypatch.setattr(config, 'parse_common_num', parse_more)
        self.check(targets, 'environment', tmp_path, AssertionError)

    def test_option_of_the_program(self, targets, tmp_path, monkeypatch):
        parser = targets.runner._make_parser()
        parser._actions[-1].nargs = '*'
        monkeypatch.setattr(targets.runner, '_make_parser', lambda: parser)
        self.check(targets, 'options', tmp_path, AssertionError)

    def test_snapshot_that_is_not_checked(
        self, targets, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(
            targets.train_mnist, 'check_reports', lambda trainer: None
        )
        self.check(targets, 'snapshot', tmp_path, Exception)

    def test_pickle(self, targets, tmp_path, monkeypatch):
        load = targets.numpy.load
        monkeypatch.setattr(
            targets.train_mnist.numpy,
            'load',
            lambda *args: load(*args, allow_pickle=True),
        )
        self.check(targets, 'snapshot', tmp_path, AssertionError)


class TestTrial:
    @pytest.fixture
    def engines(self, targets):  # whose path it needs
        sys.path.insert(0, str(ROOT / 'scripts' / 'fuzz'))
        try:
            yield importlib.import_module('engines')
        finally:
            sys.path.pop(0)
            sys.modules.pop('engines')

    def test_smallest_input_of_each_kind(self, engines, tmp_path):
        def target(data, directory):
            if data == b'fine':
                return 'accepted'
            if data == b'key':
                return {}[data]
            return [][0]

        trial = engines.Trial(target, str(tmp_path), 'name')
        for data in (b'123', b'fine', b'1', b'12', b'key', b'fine'):
            trial(data)
        report = trial.report()
        assert report['inputs'] == 6
        assert report['outcomes'] == {'accepted': 2, 'finding': 4}
        contents = [Path(path).read_bytes() for path, _ in report['findings']]
        assert contents == [b'1', b'key']
        assert len(list(tmp_path.iterdir())) == 2
        assert 'IndexError at test_fuzz.py:' in report['findings'][0][1]

    def test_hang(self, engines, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, 'LIMIT', 0.1)

        def target(data, directory):
            while True:
                try:
                    while True:
                        pass
                except Exception:
                    return 'accepted'

        trial = engines.Trial(target, str(tmp_path), 'name')
        error, _ = trial(b'')
        assert isinstance(error, engines.Hang)

    def test_fewest_files(self, engines):
        contents = [b'environment', b'1', b'2', b'', b'x', b'xx']
        kept = engines.minimise('environment', contents, 40)
        assert b'xx' not in kept
        assert b'x' in kept and len(kept) < len(contents)
        assert len(engines.minimise('environment', contents, 1)) == 1

    def test_garbage_collection_takes_no_branch(self, engines):
        contents = [b'environment', b'1', b'2', b'', b'x', b'xx']
        kept = engines.minimise('environment', contents, 40)
        thresholds = gc.get_threshold()
        gc.callbacks.append(lambda phase, info: len(phase))
        try:
            for threshold in range(1, 60):
                gc.set_threshold(threshold)
                assert engines.minimise('environment', contents, 40) == kept
        finally:
            gc.callbacks.pop()
            gc.set_threshold(*thresholds)


def test_defect_is_reported_and_replayed(targets, tmp_path):
    # Without the patch, what should be shared is refused.
    options = ('linear', '--engine', 'hypothesis', '--out', tmp_path)
    result = fuzz(*options, '-n', 10, CHAINER_SHARED_PATCH='0')
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert 'finding' in lines[1]
    (path,) = tmp_path.glob('linear-hypothesis-*')
    assert f'linear: {path}' in lines
    result = fuzz('linear', '--replay', path)
    assert result.stdout == f'{path}: accepted\n'
    chainer_shared_patch.uninstall()
    with pytest.raises(AssertionError):
        targets.TARGETS['linear'](path.read_bytes(), str(tmp_path))


def test_report(tmp_path):
    result = fuzz(
        *('environment', '--engine', 'hypothesis', '--out', tmp_path),
        *('--inputs', 30, '--seed', 5),
    )
    assert result.returncode == 0, result.stdout
    _, row, total = result.stdout.splitlines()
    assert row.split()[:4] == ['environment', 'hypothesis', '30', '5']
    assert total == '30 inputs, 0 findings'


def test_unknown_target():
    result = fuzz('mnist')
    assert result.returncode == 2
    assert "there is no target 'mnist'" in result.stderr
