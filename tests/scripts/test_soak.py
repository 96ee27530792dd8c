"""The long run of shared layers, shortened."""

import sys

import chainer_shared_patch
from chainer_shared_patch import blocks
import numpy
import pytest
from verify import soak


def test_short_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['soak.py', '--steps', '200'])
    monkeypatch.setattr(soak, 'SAMPLES', 4)
    monkeypatch.setattr(soak, 'WARM_UP', 2)
    # The tests' own objects may come and go; memory is the process's.
    monkeypatch.setattr(soak, 'find_growth', lambda samples: None)
    soak.main()
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split()[0] for line in lines[1:-1]]
    assert steps == ['0', '50', '100', '150', '200']
    assert lines[-1] == 'every result is right, and nothing grows'


def test_wrong_sums_are_found(monkeypatch):
    sum_blocks = blocks.sum_blocks
    monkeypatch.setattr(
        blocks, 'sum_blocks', lambda x, n, *args: sum_blocks(x, n, *args) + 1
    )
    with pytest.raises(soak.Wrong, match='blocks, .* is wrong'):
        soak.run_steps(0)


@pytest.mark.parametrize(
    ('module', 'name', 'words'),
    [
        (chainer_shared_patch, 'expand', 'the wide weights is wrong'),
        (soak.chainer.serializers, 'load_npz', 'the loaded model is wrong'),
    ],
)
def test_what_does_nothing_is_found(
    module, name, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, name, lambda *args: None)
    with pytest.raises(soak.Wrong, match=words):
        soak.convert(numpy.random.RandomState(0), tmp_path)


@pytest.mark.parametrize(
    ('last', 'growth'),
    [
        ((9, 5, 7000), None),
        ((10, 5, 7000), '1 more objects'),
        ((9, 6, 7000), '1 more open files'),
        ((9, 5, 9000), '2,000 KiB more memory in half of the run'),
    ],
)
def test_growth(last, growth):
    samples = [(9, 5, 7000)] * 4 + [last] * 3
    assert soak.find_growth(samples) == growth
