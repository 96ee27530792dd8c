from pathlib import Path
import subprocess
import sys

import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts/verify'


def soak(plant=''):
    """Runs the script on a tenth of its steps, with something planted."""
    code = f'import os, soak\nsoak.SAMPLES = 8\n{plant}\nsoak.main()'
    return subprocess.run(
        [sys.executable, '-c', code, '--steps', '400'],
        cwd=str(SCRIPTS),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_short_soak():
    result = soak()
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        str(step) for step in range(0, 401, 50)
    ]
    assert lines[-1] == 'every result is right, and nothing grows'


IN_EVERY_CYCLE = """
def plant(*args, convert=soak.convert, kept=[], memory=bytearray()):
    {}
    convert(*args)
soak.convert = plant
"""
WRONG_SUM = """
from chainer_shared_patch import blocks
def plant(x, n, *args, sum_blocks=blocks.sum_blocks):
    return sum_blocks(x, n, *args) + (n == 7)
blocks.sum_blocks = plant
"""
WRONG_SHARE = """
from chainer_shared_patch import convert
def plant(*args, _average=convert._average):
    mean, error = _average(*args)
    return mean + 1, error
convert._average = plant
"""


@pytest.mark.parametrize(
    ('plant', 'words'),
    [
        (IN_EVERY_CYCLE.format('kept.append([])'), '8 more objects: 8 list'),
        # An array is none of the objects that the garbage collector knows.
        (
            IN_EVERY_CYCLE.format('kept.append(soak.numpy.ones(1))'),
            '8 more objects: 8 ndarray',
        ),
        (IN_EVERY_CYCLE.format('os.dup(1)'), '8 more open files'),
        (
            IN_EVERY_CYCLE.format('memory.extend(bytes(2**20))'),
            'KiB more memory',
        ),
        (WRONG_SUM, 'blocks, sum is wrong'),
        (WRONG_SHARE, 'the shared model is wrong'),
        (
            'soak.chainer_shared_patch.uninstall = lambda: None',
            'a narrow weight is accepted without the patch',
        ),
        (
            'soak.chainer_shared_patch.expand = lambda model: None',
            'the wide weights is wrong',
        ),
        (
            'soak.chainer.serializers.load_npz = lambda *args: None',
            'the loaded model is wrong',
        ),
    ],
)
def test_what_is_planted_is_found(plant, words):
    result = soak(plant)
    assert result.returncode == 1, result.stdout
    last = result.stderr.splitlines()[-1]
    assert last.startswith('soak.py: error: ')
    assert words in last
