"""The README's commands and code, and the gate that runs them."""

from pathlib import Path
import re

import chainer_shared_patch
from chainer.utils.type_check import InvalidType
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def code_blocks(language):
    return re.findall(r'```{}\n(.*?)```'.format(language), README, re.DOTALL)


def test_the_gate_runs_the_two_commands():
    commands = re.findall(r'\$ (.*)', code_blocks('console')[0])
    assert commands == ['make train', 'make test']
    gate = (ROOT / '.ci' / 'run').read_text(encoding='utf-8').splitlines()
    for command in commands:
        assert any(re.match(command + r'\b', line) for line in gate)


def test_the_commands_are_targets_of_the_makefile():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = set(re.findall(r'(?:`|\$ |=\S+ )make\s([a-z]+)', README))
    assert {'train', 'test', 'lint', 'format'} <= targets
    for target in targets:
        assert re.search('^{}:'.format(target), makefile, re.MULTILINE), target


def test_the_code_works(capsys):
    with_patch, unpatched, link, trained = code_blocks('python')
    names = {}
    exec(with_patch, names)
    assert names['y'].shape == (32, 900)
    with pytest.raises(InvalidType, match='1000 != 100'):
        exec(unpatched, names)
    assert not chainer_shared_patch.is_installed()
    exec(link, names)
    assert names['l2'].W.shape == (900, 100)
    assert names['y'].shape == (32, 900)
    exec(trained, names)
    assert [layer.W.shape for layer in names['model']] == [
        (1000, 196),
        (10, 100),
    ]
    printed = capsys.readouterr().out
    assert 'output error' in printed and 'SharedLinear' in printed


@pytest.mark.parametrize(
    'page',
    [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')],
    ids=lambda p: p.name,
)
def test_links(page):
    text = page.read_text(encoding='utf-8')
    for path, anchor in re.findall(r'\]\((?!http)([^)#]*)#?([^)]*)\)', text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(
                '^#+ (.*)', target.read_text(encoding='utf-8'), re.MULTILINE
            )
            slugs = {
                re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                for heading in headings
            }
            assert anchor in slugs, '{}#{}'.format(path, anchor)
