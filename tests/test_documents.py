"""The commands, code and links of the README and the pages in docs/."""

import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
JAPANESE = ROOT / 'README.ja.md'
PAGES = [README, *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(
    r'^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
SEPARATOR = '=' * 30
# What users have, and what the commands of the pages run.
TRAIN = """
import sys
import chainer
print(sys.argv[1:], chainer.config.common_num)
"""


def read(page):
    return page.read_text(encoding='utf-8')


def read_blocks(page):
    """Returns (reason not to run it, language, text) of each block."""
    return BLOCK.findall(read(page))


def select(language):
    """Returns the pages that have such blocks to run, as parameters."""
    return [
        pytest.param(page, id=page.name)
        for page in PAGES
        if page.name != 'walkthrough.md'  # test_walkthrough.py runs it
        and any(each[:2] == ('', language) for each in read_blocks(page))
    ]


def run(command, directory):
    """Runs a command where ``python`` is this Python; returns its output."""
    python = directory / 'bin' / 'python'
    if not python.exists():
        python.parent.mkdir()
        python.write_text(
            '#!/bin/sh\nexec {} "$@"\n'.format(shlex.quote(sys.executable))
        )
        python.chmod(0o755)
    result = subprocess.run(
        command,
        cwd=str(directory),
        env={
            **os.environ,
            'PATH': '{}:{}'.format(python.parent, os.environ['PATH']),
            'MPLBACKEND': 'agg',
        },
        capture_output=True,
        encoding='utf-8',
        timeout=300,
    )
    assert result.returncode == 0, '{}\n{}'.format(command, result.stderr)
    return result.stdout


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page):
    blocks = read_blocks(page)
    # None has escaped the pattern above.
    assert len(blocks) == len(re.findall('^ *```', read(page), re.M)) / 2
    for reason, language, _ in blocks:
        assert language in ('console', 'python', 'text') or reason


@pytest.mark.parametrize('page', select('python'))
def test_python(page, tmp_path):
    """The blocks of a page are one program, and print what it shows."""
    code, shown = [], []
    for reason, language, text in read_blocks(page):
        if reason:
            continue
        if language == 'python':
            code += [text, 'print({!r})\n'.format(SEPARATOR)]
            shown.append(None)
        elif language == 'text' and shown:
            shown[-1] = text
    program = tmp_path / 'program.py'
    program.write_text(''.join(code), encoding='utf-8')
    output = run(['python', program.name], tmp_path)
    for printed, expected in zip(output.split(SEPARATOR + '\n'), shown):
        assert expected in (None, printed)


@pytest.mark.parametrize('page', select('console'))
def test_console(page, tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ('.git', '.venv', 'bin'):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'train.py').write_text(TRAIN)
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / 'train.py').write_text(TRAIN)
    for reason, language, text in read_blocks(page):
        if language == 'console' and not reason:
            for command in re.findall(r'^\$ ((?:.*\\\n)*.*)', text, re.M):
                run(['bash', '-c', command], tmp_path)


def test_the_gate_runs_the_two_commands():
    (block,) = (text for _, _, text in read_blocks(README) if 'make' in text)
    commands = re.findall(r'\$ (.*)', block)
    assert commands == ['make train', 'make test']
    gate = read(ROOT / '.ci' / 'run').splitlines()
    for command in commands:
        assert any(re.match(command + r'\b', line) for line in gate)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_what_is_made_is_a_target_of_the_makefile(page):
    makefile = read(ROOT / 'Makefile')
    for target in re.findall(r'(?:`|\$ |=\S+ )make\s([a-z]\S+)', read(page)):
        target = target.strip('`.,;:)')
        assert re.search('^{}:'.format(target), makefile, re.M), target


def test_the_japanese_readme_has_the_same_code():
    assert read_blocks(JAPANESE) == read_blocks(README)


def test_the_japanese_readme_has_the_same_links_and_figures():
    def collect(page, pattern):
        return sorted(set(re.findall(pattern, read(page))))

    for pattern in (r'\]\(([^)]*)\)', r'\d[\d,.]*\d', '`[^`\n]+`'):
        english = collect(README, pattern)
        japanese = collect(JAPANESE, pattern)
        assert set(english) - {'README.ja.md'} <= set(japanese), pattern


@pytest.mark.parametrize(
    'page', [*PAGES, JAPANESE], ids=lambda page: page.name
)
def test_links(page):
    links = re.findall(r'\]\((?!http)([^)#]*)#?([^)]*)\)', read(page))
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall('^#+ (.*)', read(target), re.MULTILINE)
            slugs = {
                re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                for heading in headings
            }
            assert anchor in slugs, '{}#{}'.format(path, anchor)
