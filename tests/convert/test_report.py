"""The report of what share did."""

import re

from chainer_shared_patch import SharedLayer, ShareReport


def test_table():
    report = ShareReport(
        (
            SharedLayer('/a', 2, 1234, 5678, 0.5, None, None),
            SharedLayer('/b', 10, 1, 2, 0.0, None, '/a'),
        ),
        ('/a/W', '/b/W'),
    )
    *rows, last = str(report).splitlines()
    columns = [slice(*match.span()) for match in re.finditer('-+', rows[1])]
    header, _, *rows = (
        [row.ljust(len(rows[1]))[column] for column in columns] for row in rows
    )
    # No layer has an output error.
    assert list(map(str.strip, header)) == [
        'layer',
        'common_num',
        'parameters',
        'parameters before',
        'weight error',
        'order folded into',
    ]
    for (path, *numbers, into), expected in zip(
        rows,
        [
            ['/a', '2', '1,234', '5,678', '50.00%', ''],
            ['/b', '10', '1', '2', '0.00%', '/a'],
        ],
    ):
        aligned = [path.rstrip(), *map(str.lstrip, numbers), into.rstrip()]
        assert aligned == expected
    assert last == 'The state of the optimizer was reset for /a/W, /b/W.'
