"""The report of what share did."""

import re

from chainer_shared_patch import convert, share
import pytest

from tests.convert.helpers import (
    HIDDEN,
    MLP,
    OUT,
)

pytestmark = pytest.mark.arithmetic


class TestReport:
    def test_sizes(self, x):
        model = MLP()
        layers = share(model, {'/l2': 4, '/l3': 2}, inputs=x).layers
        assert [tuple(layer)[:4] for layer in layers] == [
            ('/l2', 4, HIDDEN * 3 + HIDDEN, HIDDEN * HIDDEN + HIDDEN),
            ('/l3', 2, OUT * 6 + OUT, OUT * HIDDEN + OUT),
        ]

    def test_table(self):
        report = convert.ShareReport(
            (
                convert.SharedLayer('/a', 2, 1234, 5678, 0.5, None, None),
                convert.SharedLayer('/b', 10, 1, 2, 0.0, None, '/a'),
            ),
            ('/a/W', '/b/W'),
        )
        header, line, *rows = str(report).splitlines()
        assert set(line) == {'-', ' '}
        assert [' '.join(row.split()) for row in (header, *rows)] == [
            'layer common_num parameters parameters before weight error '
            'order folded into',
            '/a 2 1,234 5,678 50.00%',
            '/b 10 1 2 0.00% /a',
            'The state of the optimizer was reset for /a/W, /b/W.',
        ]

    def test_paths_start_and_numbers_end_in_line(self):
        report = convert.ShareReport(
            (
                convert.SharedLayer('/a', 2, 1234, 5678, 0.5, 0.125, '/b/c'),
                convert.SharedLayer('/b', 10, 1, 2, 0.0, 0.0, '/a'),
            ),
            (),
        )
        _, line, *rows = str(report).splitlines()
        columns = [match.span() for match in re.finditer('-+', line)]
        for row in rows:
            path, *numbers, target = (
                row.ljust(len(line))[slice(*column)] for column in columns
            )
            assert len(numbers) == 5
            assert path[0] == target[0] == '/'
            assert not any(number[-1].isspace() for number in numbers)
