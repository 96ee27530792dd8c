import csv
import importlib.util
from pathlib import Path
import sys

import chainer_shared_patch  # noqa: F401
import chainer
import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts/upstream/examples.py'
WORKS = """
import sys
import chainer, numpy
import chainer_shared_patch
import net

assert chainer_shared_patch.is_installed()
assert sys.argv[1:] == ['--epoch', 'a b']
model = chainer.links.Linear(784, 10)
train, _ = chainer.datasets.get_mnist()
iterator = chainer.iterators.SerialIterator(train, 1000)
optimizer = chainer.optimizers.SGD().setup(chainer.links.Classifier(model))
updater = chainer.training.StandardUpdater(iterator, optimizer)
trainer = chainer.training.Trainer(updater, (1, 'epoch'))
trainer.extend(chainer.training.extensions.LogReport())
trainer.run()
print('loss of', input())
"""
FAILS = """
import chainer, numpy
print('Traceback')
try:
    1 / 0
finally:
    chainer.functions.reshape(numpy.zeros(3, 'f'), (2, 2))
"""
HANGS = """
import subprocess, sys
subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])
"""
LOGS_NAN = """
import os
os.mkdir('result')
with open('result/log', 'w') as file:
    file.write('[{"main/loss": NaN}]')
"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, monkeypatch, capsys):
    """Runs the script with examples and rows of a list; returns its status."""

    def run(examples, rows, *options):
        for name, code in examples.items():
            path = tmp_path / 'clone' / 'examples' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        names = list(script.read_list()[0])
        path = tmp_path / 'list.csv'
        with path.open('w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        monkeypatch.setattr(script, 'LIST', path)
        monkeypatch.setattr(
            sys, 'argv', ['script', str(tmp_path / 'clone'), *options]
        )
        with pytest.raises(SystemExit) as exit:
            script.main()
        return exit.value.code, capsys.readouterr().out

    return run


@pytest.fixture(autouse=True)
def dataset_root():
    root = chainer.dataset.get_dataset_root()
    yield
    assert chainer.dataset.get_dataset_root() == root


def test_example_that_works(run, tmp_path):
    row = {
        'script': 'mnist/works.py',
        'args': '--epoch "a b"',
        'makes': 'result/log',
        'prints': '^loss of a b c$',
    }
    examples = {'mnist/works.py': WORKS, 'mnist/net.py': ''}
    status, output = run(examples, [row])
    assert output.split()[:2] == ['mnist/works.py', 'runs']
    assert '1 run, 0 failed (0 of them listed), 0 skipped' in output
    assert status == 0
    # Nothing is written into the clone, not even compiled modules.
    files = [path.name for path in (tmp_path / 'clone').rglob('*.*')]
    assert sorted(files) == ['net.py', 'works.py']


@pytest.mark.parametrize(
    ('row', 'expected', 'status'),
    [
        (
            {},
            'FAILS: chainer.utils.type_check.InvalidType: Invalid operation',
            1,
        ),
        (
            {'error': 'Invalid.*Reshape', 'cause': 'is wrong'},
            'fails: is wrong: chainer.utils.type_check.InvalidType: ',
            0,
        ),
        ({'error': 'ZeroDivision', 'cause': 'is wrong'}, 'FAILS: ', 1),
    ],
)
def test_example_that_fails(run, row, expected, status):
    rows = [{'script': 'mnist/fails.py', **row}]
    actual, output = run({'mnist/fails.py': FAILS}, rows)
    assert '  ' + expected in output
    assert ', chainer/utils/type_check.py:' in output
    assert f'1 failed ({1 - status} of them listed)' in output
    assert actual == status


def test_example_that_fails_in_its_own_file(run):
    examples = {'a/fails.py': '\n1 / 0'}
    status, output = run(examples, [{'script': 'a/fails.py'}])
    message = 'FAILS: ZeroDivisionError: division by zero, '
    assert message + 'examples/a/fails.py:2\n' in output
    assert status == 1


def test_example_that_hangs(run):
    rows = [{'script': 'a/hangs.py'}]
    status, output = run({'a/hangs.py': HANGS}, rows, '--timeout', '5')
    assert 'FAILS: no end after 5.0 s\n' in output
    assert status == 1


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        ({'makes': 'model.npz'}, 'does not make model.npz'),
        ({'prints': 'loss: '}, 'does not print loss: '),
        ({'makes': 'result/log'}, 'logs [nan]'),
    ],
)
def test_example_that_does_not_train(run, row, expected):
    rows = [{'script': 'a/stops.py', **row}]
    status, output = run({'a/stops.py': LOGS_NAN}, rows)
    assert 'FAILS: ' + expected in output
    assert status == 1


def test_examples_that_are_not_run(run):
    rows = [
        {'script': 'a.py', 'skip': 'needs a GPU'},
        {'script': 'b.py', 'needs': 'numpy no_such_module'},
    ]
    status, output = run({'a.py': '1 / 0', 'b.py': '1 / 0'}, rows)
    assert 'skipped: needs a GPU\n' in output
    assert 'skipped: needs no_such_module\n' in output
    assert status == 0


def test_example_that_is_not_listed(run):
    examples = {
        'a/listed.py': '    from module import x',
        'a/module.py': '',
        'a/models/__init__.py': '',
        'a/models/VGG.py': '',
        'a/.testdata/hidden.py': '',
        'a/new.py': '',
    }
    rows = [{'script': 'a/listed.py', 'skip': 'for a reason'}]
    status, output = run(examples, rows)
    assert [line for line in output.splitlines() if 'NOT LISTED' in line] == [
        '{:66}  NOT LISTED'.format('a/new.py')
    ]
    assert status == 1


def test_selection(run):
    rows = [{'script': name} for name in ('a/b.py', 'a/c.py', 'ab/d.py')]
    examples = {'a/b.py': '', 'a/c.py': '1 / 0', 'ab/d.py': '1 / 0'}
    assert '1 run, 1 failed' in run(examples, rows, 'a/')[1]
    assert run(examples, rows, 'a/b.py')[0] == 0
    assert run(examples, rows, 'b.py')[0] == 2


def test_output_is_kept(run, tmp_path):
    rows = [{'script': 'a/prints.py', 'makes': 'made'}]
    code = "print('done')\nopen('made', 'w')"
    run({'a/prints.py': code}, rows, '--out', str(tmp_path / 'out'))
    assert (tmp_path / 'out' / '00_a_prints.py.txt').read_text() == 'done\n'
    assert (tmp_path / 'out' / 'a' / 'made').exists()


def test_no_checkout(run):
    assert run({}, [])[0] == 2


def test_data_sets(script, tmp_path, monkeypatch):
    script.make_datasets(tmp_path)
    monkeypatch.setattr(
        chainer.dataset.download, '_dataset_root', str(tmp_path)
    )
    train, test = chainer.datasets.get_mnist()
    assert (len(train), len(test)) == (3000, 1000)
    for get, classes in (
        (chainer.datasets.get_cifar10, 10),
        (chainer.datasets.get_cifar100, 100),
    ):
        train, test = get()
        assert train[0][0].shape == test[0][0].shape == (3, 32, 32)
        assert all(0 <= label < classes for _, label in [*train, *test])
    train, valid, test = chainer.datasets.get_ptb_words()
    vocabulary = chainer.datasets.get_ptb_words_vocabulary()
    assert set(vocabulary) == {*script.WORDS, '<eos>'}
    assert set(train) == set(range(9)) >= {*valid, *test}
