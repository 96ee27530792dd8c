"""What setup.cfg and pyproject.toml declare, and what is built from them."""

import ast
from importlib import metadata
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import zipfile

import chainer_shared_patch
from packaging.requirements import Requirement
import pytest

ROOT = Path(__file__).parents[1]
STEM = 'chainer_shared_patch-' + chainer_shared_patch.__version__


def find_imports(path):
    """Returns the top-level names that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split('.')[0]


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason='needs sys.stdlib_module_names'
)
def test_all_that_is_imported_is_declared():
    imported = {
        name
        for path in (ROOT / 'chainer_shared_patch').rglob('*.py')
        for name in find_imports(path)
        if name not in sys.stdlib_module_names
    }
    requirements = map(Requirement, metadata.requires('chainer_shared_patch'))
    declared = {each.name for each in requirements if each.marker is None}
    # protobuf is imported only for Chainer's own file format, which needs it,
    # onnx for its exporter, onnx_chainer, and matplotlib to plot.
    others = {'chainer_shared_patch', 'google', 'matplotlib', 'onnx'}
    assert imported - others - {'onnx_chainer'} == declared


def test_uv_finds_the_versions_of_python():
    # uv reads it from there alone.
    pyproject = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    assert 'requires-python = ">=3.9"' in pyproject.splitlines()
    requires = metadata.metadata('chainer_shared_patch')['Requires-Python']
    assert requires.replace(' ', '') == '>=3.9'


def run_hook(hook, directory, **environment):
    """Returns the path of what a hook of the build system makes."""
    code = 'import sys; from setuptools import build_meta; build_meta.{}({!r})'
    out = directory.with_name(directory.name + '-dist')
    subprocess.run(
        [sys.executable, '-c', code.format(hook, str(out))],
        cwd=str(directory),
        env={**os.environ, 'SOURCE_DATE_EPOCH': '1700000000', **environment},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (path,) = out.iterdir()
    return path


def build(directory, **environment):
    """Returns the sdist of a directory and the wheel of that sdist."""
    sdist = run_hook('build_sdist', directory, **environment)
    with tarfile.open(str(sdist)) as archive:
        archive.extractall(str(sdist.parent))
    unpacked = sdist.with_name(STEM)
    return sdist, run_hook('build_wheel', unpacked, **environment)


@pytest.fixture(scope='module')
def tracked():
    """The files under version control."""
    git = subprocess.run(
        ['git', 'ls-files', '-z'],
        cwd=str(ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if git.returncode:
        pytest.skip('needs a checkout')
    names = git.stdout.decode().split('\0')
    return {name for name in names if (ROOT / name).is_file()}


def copy_files(names, directory):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(path))
    return directory


def leave_behind(directory):
    """Makes files such as earlier builds and other versions leave."""
    stale = 'build/lib/chainer_shared_patch/stale.py'
    cache = 'chainer_shared_patch/__pycache__/blocks.cpython-39.pyc'
    notes = ('notes.txt', 'chainer_shared_patch/notes.txt')
    sources = 'chainer_shared_patch.egg-info/SOURCES.txt'
    for name in (stale, cache, *notes, sources):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text('\n'.join(notes))


@pytest.fixture(scope='module')
def distributions(tracked, tmp_path_factory):
    directory = tmp_path_factory.mktemp('build') / 'sources'
    return build(copy_files(tracked, directory))


def read_wheel(path):
    with zipfile.ZipFile(str(path)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_sdist_holds_what_is_tracked(distributions, tracked):
    with tarfile.open(str(distributions[0])) as archive:
        members = archive.getmembers()
    assert {(each.uid, each.uname) for each in members} == {(0, '')}
    names = [m.name[len(STEM) + 1 :] for m in members if m.isfile()]
    made = {
        'PKG-INFO',
        'chainer_shared_patch.egg-info/PKG-INFO',
        'chainer_shared_patch.egg-info/SOURCES.txt',
        'chainer_shared_patch.egg-info/dependency_links.txt',
        'chainer_shared_patch.egg-info/requires.txt',
        'chainer_shared_patch.egg-info/top_level.txt',
    }
    assert sorted(names) == sorted(tracked | made)


def test_wheel_holds_the_package(distributions, tracked):
    files = read_wheel(distributions[1])
    made = {'METADATA', 'RECORD', 'WHEEL', 'licenses/LICENSE', 'top_level.txt'}
    package = {
        name: (ROOT / name).read_bytes()
        for name in tracked
        if name.startswith('chainer_shared_patch/')
    }
    assert {
        name: files.pop(name) for name in package if name in files
    } == package
    assert set(files) == {STEM + '.dist-info/' + name for name in made}


def test_builds_are_the_same(distributions, tracked, tmp_path):
    # At another place and time, with another umask and locale.
    directory = copy_files(tracked, tmp_path / 'elsewhere')
    for name in tracked:
        path = directory / name
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(str(path), (0, 0))
    leave_behind(directory)
    umask = os.umask(0o077)
    try:
        again = build(
            directory,
            LC_ALL='tr_TR.UTF-8',
            PYTHONHASHSEED='1',
            TZ='Asia/Tokyo',
        )
    finally:
        os.umask(umask)
    for path, same in zip(distributions, again):
        assert path.read_bytes() == same.read_bytes(), path.name


def test_wheel_of_the_sources_is_that_of_the_sdist(
    distributions, tracked, tmp_path
):
    directory = copy_files(tracked, tmp_path / 'sources')
    leave_behind(directory)
    wheel = run_hook('build_wheel', directory)
    assert read_wheel(wheel) == read_wheel(distributions[1])
