"""What setup.cfg and pyproject.toml declare."""

import ast
from importlib import metadata
from pathlib import Path
import sys

import chainer_shared_patch  # noqa: F401
from packaging.requirements import Requirement
import pytest

ROOT = Path(__file__).parents[1]


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
    # and onnx for its exporter, onnx_chainer.
    others = {'chainer_shared_patch', 'google', 'onnx', 'onnx_chainer'}
    assert imported - others == declared


def test_uv_finds_the_versions_of_python():
    # uv reads it from there alone.
    pyproject = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    assert 'requires-python = ">=3.9"' in pyproject.splitlines()
    requires = metadata.metadata('chainer_shared_patch')['Requires-Python']
    assert requires.replace(' ', '') == '>=3.9'
