"""The pictures of the README."""

import re

from measure import pictures

IMAGES = pictures.DOCS / 'images'
NAMES = ('accuracy.svg', 'sharing.svg')
CHOSEN = {('shared, planned', '4'), ('SVD, best split', '')}


def read(path):
    return path.read_text(encoding='utf-8')


def describe(path):
    return re.search('<dc:description>(.*?)</dc:description>', read(path))[1]


def test_the_committed_pictures_are_what_is_drawn(tmp_path):
    pictures.draw(tmp_path)
    for name in NAMES:
        # The rest of a picture depends on matplotlib's version.
        assert describe(IMAGES / name) == describe(tmp_path / name)


def test_accuracy_shows_what_was_measured():
    description = describe(IMAGES / 'accuracy.svg')
    rows = [
        {cell.strip() for cell in line.split('|')}
        for line in read(pictures.DOCS / 'comparison.md').splitlines()
    ]
    points = re.findall(
        r'([\d,]{6,}) (\d\d\.\d\d(?:\s±\s\d\.\d\d)?)', description
    )
    assert len(points) > 20
    for point in points:
        assert any(row.issuperset(point) for row in rows), point
    # Of two networks of a size, the one that was chosen for it.
    for row in pictures.read_table('A trained network, converted'):
        if (row['network'], row['orders']) in CHOSEN:
            assert f'{row["bytes"]} {row["trained"]}' in description
