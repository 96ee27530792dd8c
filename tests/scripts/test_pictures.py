"""The pictures of the README."""

from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / 'docs' / 'images'
NAMES = ('accuracy.svg', 'sharing.svg')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp('images')
    script = ROOT / 'scripts/measure/pictures.py'
    subprocess.run(
        [sys.executable, str(script), '--out', str(out)],
        check=True,
        timeout=300,
    )
    return out


def read(path):
    return path.read_text(encoding='utf-8')


def describe(path):
    return re.search('<dc:description>(.*?)</dc:description>', read(path))[1]


@pytest.mark.parametrize('name', NAMES)
def test_the_committed_pictures_are_what_is_drawn(drawn, name):
    # The rest of a picture depends on matplotlib's version.
    assert describe(IMAGES / name) == describe(drawn / name)


def test_accuracy_shows_what_was_measured():
    description = describe(IMAGES / 'accuracy.svg')
    page = read(ROOT / 'docs' / 'comparison.md')
    rows = [
        {cell.strip() for cell in line.split('|')}
        for line in page.splitlines()
    ]
    points = re.findall(r'([\d,]+) (\d\d\.\d\d ± \d\.\d\d)', description)
    assert len(points) > 20
    for point in points:
        assert any(row.issuperset(point) for row in rows), point
    # Of two networks within a budget, the better one.
    assert '12,310 98.04' in description and '11,510' not in description


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
