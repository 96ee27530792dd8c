"""The pictures of the README."""

import re

from measure import pictures
import pytest

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


def luminance(color):
    """Returns the relative luminance of WCAG 2.1, from 0 to 1."""
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in channels
    )
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize('name', NAMES)
def test_legible_on_light_and_dark_pages(name):
    # WCAG 2.1 wants a contrast of 3 for graphics and large text.
    text = read(IMAGES / name)
    colors = set(re.findall('(?:fill|stroke): (#[0-9a-f]{6})', text))
    assert colors
    for color in colors - {'#ffffff'}:  # written on the others alone
        for page in ('#ffffff', '#0d1117'):
            dark, light = sorted(map(luminance, (color, page)))
            assert (light + 0.05) / (dark + 0.05) >= 3, (color, page)
