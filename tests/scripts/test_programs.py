"""The run of public programs, with one of our own in their place."""

import csv
import subprocess
import sys

import chainer_shared_patch  # noqa: F401
import pytest
from upstream import programs

PROGRAM = """
import random, sys, time
import chainer, numpy
if '--patched' in sys.argv:
    import chainer_shared_patch
    assert chainer_shared_patch.is_installed()
train, _ = chainer.datasets.get_mnist()
print('loss', numpy.random.rand(), random.random(), len(train))
print('in', time.time(), 'sec', file=open('log', 'w'))
sys.exit(sys.argv[1] == 'fail')
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the script on a list of one program, in a local repository."""
    clone = tmp_path / 'github' / 'someone' / 'program'
    clone.mkdir(parents=True)
    (clone / 'train.py').write_text(PROGRAM)
    for command in (
        'init -q',
        'add .',
        '-c user.name=A -c user.email=a@example.org commit -qm A',
    ):
        subprocess.run(['git', *command.split()], cwd=clone, check=True)
    head = ['git', 'rev-parse', 'HEAD']
    commit = subprocess.check_output(head, cwd=clone, text=True).strip()
    url = f'url.{(tmp_path / "github").as_uri()}/.insteadOf'
    monkeypatch.setenv('GIT_CONFIG_COUNT', '1')
    monkeypatch.setenv('GIT_CONFIG_KEY_0', url)
    monkeypatch.setenv('GIT_CONFIG_VALUE_0', 'https://github.com/')
    monkeypatch.setattr(programs, 'LIST', tmp_path / 'list.csv')
    monkeypatch.chdir(tmp_path)

    def run(*args, **row):
        names = list(csv.DictReader(list_lines))[0]
        row = {'repository': 'someone/program', 'commit': commit, **row}
        with programs.LIST.open('w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerow(row)
        monkeypatch.setattr(sys, 'argv', ['programs.py', *args])
        with pytest.raises(SystemExit) as exit:
            programs.main()
        return exit.value.code, capsys.readouterr().out

    list_lines = [
        'repository,commit,what,command,data,needs,log,ignored,result,cause',
        ',,,,,,,,,',
    ]
    return run


def test_record_and_compare(run, tmp_path):
    row = {'command': 'python train.py --patched', 'data': 'text'}
    assert 'runs' in run('record', 'newest', **row)[1]
    row['command'] = 'python -m chainer_shared_patch train.py x'
    _, output = run('record', 'period', '--python', sys.executable, **row)
    assert 'runs' in output
    assert 'loss 0.54' in (
        tmp_path / 'newest/someone+program/record.txt'
    ).read_text(encoding='utf-8')
    args = 'compare', 'newest', 'period'
    assert run(*args, result='identical')[0] == 0
    assert run(*args, result='rounding')[0] == 1


def test_compare_programs_that_fail(run):
    _, output = run('record', 'newest', commit='unknown')
    assert 'fails' in output
    run('record', 'newest', command='python train.py fail')
    run('record', 'period', command='python train.py x', log='log')
    status, output = run('compare', 'newest', 'period', result='identical')
    assert (status, 'fails on newest' in output) == (1, True)


@pytest.mark.parametrize(
    ('first', 'second', 'result'),
    [
        ('loss: np.float32(1.5) 3 sec', 'loss: 1.5 4 sec', 'identical'),
        ('loss: 1.5e-7', 'loss: 1.50001e-7', 'rounding'),
        ('loss: 1.5e-7', 'loss: 1.5e-6', 'differs'),
        ('loss: 1.5', 'loss: 1.5\nloss: 1.4', 'differs'),
        ('loss: 1.5', 'error: 1.5', 'differs'),
        ('loss: nan', 'loss: 1.5', 'differs'),
    ],
)
def test_compare_records(first, second, result, tmp_path):
    for name, text in ('newest', first), ('period', second):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'record.txt').write_text(text, encoding='utf-8')
    row = {'ignored': r'\d+ sec'}
    folders = tmp_path / 'newest', tmp_path / 'period'
    assert programs.compare(row, *folders)[0] == result


def test_the_documentation_has_the_list():
    path = programs.LIST.parents[2] / 'docs' / 'compatibility.md'
    text = path.read_text(encoding='utf-8')
    for row in programs.read_list():
        assert f'[{row["repository"]}]' in text
        assert not row['data'] or row['data'] in programs.MAKERS
        assert row['cause'] in text
