"""Enabling the plugin for every Python of an environment."""

import os
import sys
import sysconfig

from chainer_shared_patch import info, runner, startup
import pytest

from tests.helpers import run_python


@pytest.fixture
def command(monkeypatch):
    def call(option):
        monkeypatch.setattr(sys, 'argv', ['__main__.py', option])
        runner.main()

    return call


@pytest.fixture
def site(tmp_path, monkeypatch, command):
    """A directory of packages in which the plugin has been enabled."""
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    command('--enable')
    # It makes Python look for .pth files, as it does in site-packages.
    (tmp_path / 'sitecustomize.py').write_text(
        'import os, site; site.addsitedir(os.path.dirname(__file__))'
    )
    # What Python itself imports to read such a file does not count.
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'other.pth').write_text('import sys')
    return tmp_path


def python(site, code, *options, **environment):
    (site / 'program.py').write_text(code)
    environment = {'PYTHONPATH': str(site), **environment}
    result = run_python(*options, 'program.py', cwd=site, **environment)
    assert result.stderr == ''
    assert result.returncode == 0
    return result.stdout


USE = """
import sys
import chainer
import chainer.functions as F
import numpy
assert chainer is sys.modules['chainer']
assert chainer.__spec__.origin == chainer.__file__
import chainer_shared_patch

def get(_):
    return chainer.config.common_num, chainer_shared_patch.is_installed()
"""


def test_processes_that_know_nothing_of_the_plugin(site):
    code = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing

if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context) as pool:
        print(*pool.map(get, [0]))
"""
    output = python(site, USE + code, CHAINER_COMMON_NUM='7')
    assert output == '(7, True)\n'


def test_the_patch_can_be_off(site):
    output = python(site, USE + 'print(get(0))', CHAINER_SHARED_PATCH='0')
    assert output == '(1, False)\n'


def test_plugin_that_is_imported_first(site):
    python(site, 'import chainer_shared_patch' + USE)


@pytest.mark.parametrize('package', ['chainermn', 'onnx_chainer'])
def test_packages_that_import_chainer(site, package):
    # Their fixes are in time.
    code = """
from chainer_shared_patch import compat
for fix in compat.FIXES:
    if fix.is_needed() and fix.module in sys.modules:
        assert fix.is_applied, fix.module
"""
    python(site, f'import {package}' + USE + code)


# Without site-packages, and so without the plugin.
ENABLED_ALONE = """
import site, sys
site.addsitedir({0!r} + '/other')
before = set(sys.modules)
site.addsitedir({0!r})
finder = sys.meta_path[0]
assert finder.__module__ == 'chainer_shared_patch.startup_hook'
"""


def test_programs_without_chainer_import_next_to_nothing(site):
    code = ENABLED_ALONE.format(str(site)) + 'print(*{*sys.modules} - before)'
    assert set(python(site, code, '-S').split()) <= {'__future__'}


def test_plugin_that_is_uninstalled(site):
    (site / 'chainer.py').write_text('')
    python(site, ENABLED_ALONE.format(str(site)) + 'import chainer', '-S')


def test_disable(site, command):
    assert startup.get_path().exists()
    for _ in range(2):
        command('--disable')
        assert not startup.get_path().exists()
    code = 'import sys; print(*map(type, sys.meta_path))'
    assert 'startup_hook' not in python(site, code)


def test_directory_that_cannot_be_written(
    tmp_path, monkeypatch, command, capsys
):
    (tmp_path / 'file').write_text('')
    path = str(tmp_path / 'file' / 'site-packages')
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: path)
    for option in ('--enable', '--disable'):
        with pytest.raises(SystemExit) as error:
            command(option)
        assert error.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('python -m chainer_shared_patch: error: ')
        assert os.path.join(path, 'chainer_shared_patch.pth') in line


def test_info_says_whether_it_is_enabled(site, command, capsys):
    info.print_info()
    path = startup.get_path()
    assert f'Enabled for this environment: {path}\n' in capsys.readouterr().out
    command('--disable')
    info.print_info()
    assert 'Enabled for this environment: no\n' in capsys.readouterr().out
