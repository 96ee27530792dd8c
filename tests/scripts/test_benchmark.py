"""The benchmark of speed and memory."""

import json
from pathlib import Path
import sys

import chainer_shared_patch  # noqa: F401
from measure.benchmark import __main__ as benchmark
from measure.benchmark import cases, report
import pytest

DOCS = Path(__file__).parents[2] / 'docs'


def test_smallest_benchmark(tmp_path, small, monkeypatch):
    layer = cases.ARTICLE._replace(batch_size=2)
    monkeypatch.setattr(benchmark, 'QUICK_SIZES', [layer])
    inferences = [layer._replace(inference=True)]
    monkeypatch.setattr(benchmark, 'INFERENCE_SIZES', inferences)
    monkeypatch.setattr(benchmark, 'ORDERED_SIZES', [layer])
    monkeypatch.setattr(benchmark, 'CONVERSIONS', [(layer, 0)])
    args = ['--quick', '--dataset', str(small), '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['benchmark', *args])
    benchmark.main()
    path = tmp_path / 'performance' / 'benchmark.json'
    results = json.loads(path.read_text())
    for part, contenders in (
        ('sizes', cases.CONTENDERS),
        ('inference', cases.INFERENCES),
        ('orders', cases.ORDERED),
    ):
        (row,) = results[part]
        assert list(row['contenders']) == list(contenders)
        for name, (library, _) in contenders.items():
            if library == 'chainer':
                seconds = row['contenders'][name]['seconds']
                assert [len(times) for times in seconds] == [3, 3, 3]
                assert min(map(min, seconds)) >= 0
    for name in 'sum', 'dense', 'dense-own-adam':
        assert results['training'][name]['seconds'][0] > 0
    check_memory(results['sizes'][0])
    page = (tmp_path / 'performance_tables.md').read_text(encoding='utf-8')
    assert page == report.render(results)


def check_memory(row):
    dense_W = 4 * row['in_size'] * row['out_size']
    narrow_W = dense_W // row['common_num']
    forward, kept, backward = row['contenders']['sum']['bytes']
    # Only the sums of the blocks, and never the tiled weight.
    assert kept == 4 * row['batch_size'] * row['in_size'] // row['common_num']
    assert forward < narrow_W < backward < dense_W
    assert row['contenders']['tile']['bytes'][0] > dense_W


def test_the_committed_tables_are_those_of_the_results():
    results = json.loads((DOCS / 'performance/benchmark.json').read_text())
    page = (DOCS / 'performance_tables.md').read_text(encoding='utf-8')
    assert page == report.render(results)


def test_ratios_are_taken_within_rounds():
    # A machine that is three times slower in the second round.
    times = {'sum': [1, 3, 1], 'dense': [8, 24, 10]}
    row = {
        'contenders': {
            name: {'seconds': [[t, 2 * t, 3 * t] for t in ts]}
            for name, ts in times.items()
        }
    }
    assert report.get_ratio(row, 'dense', 'sum') == 8
    assert report.get_milliseconds(row, 'dense', 'backward') == 20000
    assert report.get_ratio(row, 'dense', 'torch-sum') is None


@pytest.mark.parametrize(
    ('number', 'text'),
    [
        (0.9996, '1.00'),
        (0.000412, '0.000412'),
        (99.96, '100'),
        (1234.5, '1234'),
    ],
)
def test_numbers_have_three_digits(number, text):
    assert report.format_number(number) == text
