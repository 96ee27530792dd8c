"""The run of Chainer's examples, with others in their place."""

import csv
import sys

import chainer_shared_patch  # noqa: F401
import pytest
from upstream import examples

WORKS = """
import sys
import chainer, chainer_shared_patch
assert chainer_shared_patch.is_installed()
assert sys.argv[1:] == ['--epoch', 'a b']
train, _ = chainer.datasets.get_mnist()
print(len(train), 'images;', input())
"""
FAILS = """
import chainer, numpy
chainer.functions.reshape(numpy.zeros(3, 'f'), (2, 2))
"""
LOGS_NAN = """
import os
os.mkdir('result')
with open('result/log', 'w') as file:
    file.write('[{"main/loss": NaN}]')
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs one example as a row of a list says."""

    def run(code, *options, **row):
        path = tmp_path / 'clone' / 'examples' / 'mnist' / 'train.py'
        path.parent.mkdir(parents=True)
        path.write_text(code)
        names = list(examples.read_list()[0])
        path = tmp_path / 'list.csv'
        with path.open('w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerow({'script': 'mnist/train.py', **row})
        monkeypatch.setattr(examples, 'LIST', path)
        args = ['examples.py', str(tmp_path / 'clone'), *options]
        monkeypatch.setattr(sys, 'argv', args)
        with pytest.raises(SystemExit) as exit:
            examples.main()
        return exit.value.code, capsys.readouterr().out

    return run


def test_example_that_works(run, tmp_path):
    prints = '^3000 images; a b c$'
    status, output = run(WORKS, args='--epoch "a b"', prints=prints)
    assert '1 run, 0 fail as listed, 0 fail otherwise' in output
    assert status == 0
    # Nothing is written into the clone, not even compiled modules.
    assert [p.name for p in (tmp_path / 'clone').rglob('*.*')] == ['train.py']


@pytest.mark.parametrize(
    ('code', 'row', 'words', 'status'),
    [
        (FAILS, {}, 'FAILS exit status 1: ', 1),
        (
            FAILS,
            {'error': 'Invalid.*Reshape', 'cause': 'is wrong'},
            'fails is wrong: exit status 1: ',
            0,
        ),
        (FAILS, {'error': 'ZeroDivision', 'cause': 'is wrong'}, 'FAILS ', 1),
        (LOGS_NAN, {'makes': 'model.npz'}, 'FAILS does not make model', 1),
        (LOGS_NAN, {'prints': 'loss: '}, 'FAILS does not print loss: ', 1),
        (LOGS_NAN, {'makes': 'result/log'}, 'FAILS logs [nan]', 1),
        ('1 / 0', {'skip': 'needs a GPU'}, 'skipped needs a GPU', 0),
        ('1 / 0', {'needs': 'csv no_such'}, 'skipped needs no_such', 0),
    ],
)
def test_example_that_does_not_work(run, code, row, words, status):
    actual, output = run(code, **row)
    assert words in output
    assert actual == status


def test_example_that_hangs(run):
    code = 'import time; time.sleep(1000)'
    status, output = run(code, '--timeout', '3')
    assert 'FAILS no end after 3.0 s' in output
    assert status == 1


def test_the_list_is_in_order():
    rows = examples.read_list()
    assert set(examples.MAKERS) <= {
        r['script'].rpartition('/')[0] for r in rows
    }
    for row in rows:
        assert bool(row['error']) == bool(row['cause'])
