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
    r'^(?:<!-- not run: (.+) -->\n)?(```|~~~)(.*)\n((?:.*\n)*?)\2$', re.M
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
    return [
        (reason, language, text)
        for reason, _, language, text in BLOCK.findall(read(page))
        if not language.startswith('{')  # of Sphinx
    ]


def read_examples(page, language):
    """Returns [code, output or None] of each block in a language to run."""
    examples = []
    previous = None
    for reason, each, text in read_blocks(page):
        if each == 'text' and not reason:
            # It is compared with what the block right above has printed.
            assert previous in ('console', 'python'), text
            if previous == language:
                examples[-1][1] = text
        elif each == language and not reason:
            examples.append([text, None])
        previous = None if reason else each
    return examples


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
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
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
    assert result.returncode == 0, f'{command}\n{result.stderr}'
    return result.stdout


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page):
    # None has escaped the pattern above.
    fences = re.findall('^[ >]*(?:```|~~~)', read(page), re.M)
    assert len(fences) == 2 * len(BLOCK.findall(read(page)))
    for reason, language, text in read_blocks(page):
        assert reason or language in ('console', 'python', 'text')
        if language == 'console':
            assert find_commands(text)
    for language in ('console', 'python'):
        read_examples(page, language)


@pytest.mark.parametrize('page', select('python'))
def test_python(page, tmp_path):
    """The blocks of a page are one program, and print what it shows."""
    examples = read_examples(page, 'python')
    if page.name == 'pytorch.md':
        pytest.importorskip('torch', reason='torch is not a test requirement')
    end = f"\nprint('{SEPARATOR}')\n"
    program = tmp_path / 'program.py'
    program.write_text(
        ''.join(code + end for code, _ in examples), encoding='utf-8'
    )
    output = run(['python', program.name], tmp_path)
    *outputs, rest = output.split(SEPARATOR + '\n')
    assert rest == '' and len(outputs) == len(examples)
    for printed, (_, expected) in zip(outputs, examples):
        assert expected in (None, printed)


def find_commands(text):
    """Returns the commands of a console block, in which is nothing else."""
    commands = re.findall(r'^\$ ((?:.*\\\n)*.*)', text, re.M)
    assert ''.join(f'$ {each}\n' for each in commands) == text
    return commands


@pytest.mark.parametrize('page', select('console'))
def test_console(page, tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ('.git', '.venv', 'bin'):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'train.py').write_text(TRAIN)
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / 'train.py').write_text(TRAIN)
    for text, expected in read_examples(page, 'console'):
        commands = '\n'.join(find_commands(text))
        printed = run(['bash', '-euo', 'pipefail', '-c', commands], tmp_path)
        assert expected in (None, printed)


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
        assert re.search(f'^{target}:', makefile, re.M), target


def test_the_japanese_readme_has_the_same_code():
    assert read_blocks(JAPANESE) == read_blocks(README)


def test_the_japanese_readme_has_the_same_links_and_figures():
    def collect(page, pattern):
        return sorted(set(re.findall(pattern, read(page))))

    for pattern in (r'\]\(([^)#][^)]*)\)', r'\d[\d,.]*\d', '`[^`\n]+`'):
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
            assert anchor in slugs, f'{path}#{anchor}'
