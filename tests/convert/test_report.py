"""The report of what share did, and of how far it is."""

import io
import re
import sys

from chainer_shared_patch import SharedLayer, ShareReport, share
import numpy

from tests.convert.helpers import IN, MLP


def test_table():
    report = ShareReport(
        (
            SharedLayer('/a', 2, 4, 1234, 5678, 0.5, None, None),
            SharedLayer('/b', 10, 1, 1, 2, 0.0, None, '/a'),
        ),
        ('/a/W', '/b/W'),
        ('/c',),
        (0.5, 0.123456),
    )
    *rows, last, passed_over, tuned = str(report).splitlines()
    columns = [slice(*match.span()) for match in re.finditer('-+', rows[1])]
    header, _, *rows = (
        [row.ljust(len(rows[1]))[column] for column in columns] for row in rows
    )
    # No layer has an output error.
    assert list(map(str.strip, header)) == [
        'layer',
        'common_num',
        'orders',
        'parameters',
        'parameters before',
        'weight error',
        'order folded into',
    ]
    for (path, *numbers, into), expected in zip(
        rows,
        [
            ['/a', '2', '4', '1,234', '5,678', '50.00%', ''],
            ['/b', '10', '1', '1', '2', '0.00%', '/a'],
            ['total', '', '', '1,235', '5,680', '', ''],
        ],
    ):
        aligned = [path.rstrip(), *map(str.lstrip, numbers), into.rstrip()]
        assert aligned == expected
    assert last == 'The state of the optimizer was reset for /a/W, /b/W.'
    assert passed_over == 'Of a subclass of Linear, and not shared: /c.'
    assert tuned.endswith(' error of the outputs from 50.00% to 12.35%.')
    one_order = report._replace(layers=report.layers[1:])
    assert 'orders' not in str(one_order).splitlines()[0]
    html = report._repr_html_()
    for cell in ('common_num', '/b', '1,235', '50.00%', last, passed_over):
        assert f'>{cell}<' in re.sub(r'\s*([<>])\s*', r'\1', html)


def test_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stderr', stream)
        x = numpy.ones((2, IN))
        share(MLP(), {'/l2': 2, '/l3': 3}, inputs=x, tune_steps=7)
        for text in ('share', '/2 ', '/l2', '/l3', 'tune', '/7 '):
            assert (text in stream.getvalue()) == shown
