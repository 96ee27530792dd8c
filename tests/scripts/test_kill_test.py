import os
from pathlib import Path
import subprocess
import sys

import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


def run(directory, code, *args):
    return subprocess.run(
        [sys.executable, '-c', 'import kill_test\n' + code, *args],
        cwd=str(SCRIPTS),
        env={**os.environ, 'TMPDIR': str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
    )


TRAIN = """
kill_test.TRAIN_ARGS = (
    '--dataset', 'sample', '-e', 2, '-u', 20, '--out-units', 5, '-b', 1000
)
undisturbed, job = kill_test.Job(1), kill_test.Job(1)
print(undisturbed.run())
print(job.run('step', 4, [0]))
print(job.run('snapshot', (1, 5000), [0]))
print(*(p.stat().st_size for p in job.out.glob('tmp*/snapshot_epoch_2')))
print(job.run())
print(kill_test.find_difference(job.out, undisturbed.out))
"""


def test_training_that_is_killed(tmp_path):
    result = run(tmp_path, TRAIN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        'None',
        'before os.rename of log',
        'inside the file of snapshot_epoch_2',
        '5000',
        'None',
        'None',
    ]


# What trains in no time, and does as train_mnist.py does.
STAND_IN = """
import os
import pathlib
import shutil
import sys
import tempfile

import numpy

out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.mkdir(exist_ok=True)
print('network: one number')
for path in out.glob('tmp*'):
    shutil.rmtree(path)
epoch, w = 0, numpy.ones(1)
for path in sorted(out.glob('snapshot_epoch_*')):
    epoch = int(path.name[-1])
    w = numpy.frombuffer(path.read_bytes()).copy()

def save(name, w):
    with tempfile.TemporaryDirectory(prefix='tmp' + name, dir=out) as d:
        path = os.path.join(d, name)
        with open(path, 'wb') as file:
            file.write(w.tobytes())
        os.replace(path, out / name)

while epoch < 4:
    epoch += 1
    w *= 3
    save('snapshot_epoch_{}'.format(epoch), w)
numpy.savez(out / 'model.npz', w=w)
"""


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ('', '', None),
        ('.copy()', ' * (1 + 2**-52)', 'w of model.npz differs'),
        ('.copy()', '.astype("f")', 'w of model.npz differs'),
        ('rmtree(path)', 'os', 'there are the files '),
        (
            'os.path.join(d, name)',
            'str(out / name)',
            'has ended with status 1: ',
        ),
    ],
)
def test_stand_in(tmp_path, old, new, words):
    assert old in STAND_IN
    path = tmp_path / 'train.py'
    path.write_text(STAND_IN.replace(old, new) if old else STAND_IN)
    code = f'kill_test.SCRIPT = {str(path)!r}\nkill_test.main()'
    args = ('--random', '1', '--snapshot', '2', '--step', '4')
    result = run(tmp_path, code, *args)
    if words is None:
        assert result.returncode == 0, result.stderr
        assert 'random: 1\n' in result.stdout
        assert 'snapshot: 2\n' in result.stdout
        assert 'step: 4\n' in result.stdout
        return
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith('kill_test.py: error: ')
    assert words in last
