"""Fixes modules as they are imported.

A :class:`Fix` can lend a module what it needs while it is imported, run
something else instead of its code, and change it once it is imported.
Afterwards, NumPy's namespace and ``sys.modules`` are as they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import copy
from dataclasses import dataclass
import functools
from importlib import metadata
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

from packaging.version import Version


@dataclass(frozen=True)
class Fix:
    """The fix of one thing that is broken.

    Args:
        module (str): The name of the module to fix.
        broken (str): What is broken.
        since (str): The release that broke it.
        is_needed (callable): Returns whether it is broken here.
        lend (callable): Returns a context manager in which the module is
            imported.
        execute (callable): Called with the module, instead of running the
            module's code.
        apply (callable): Called with the module once it is imported.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat import FIXES
        >>> [fix.since for fix in FIXES if fix.module.endswith('mnist')]
        ['2020']

    """

    module: str
    broken: str
    since: str
    is_needed: Callable[[], bool]
    lend: Callable[[], Any] = contextlib.nullcontext
    execute: Callable[[Any], None] | None = None
    apply: Callable[[Any], None] | None = None

    def is_applied(self) -> bool:
        """Tells whether the module has been imported and fixed.

        Returns:
            bool: ``True`` if so.

        """
        return self in _applied


@contextlib.contextmanager
def lent(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Gives a name in a namespace another value for a ``with`` statement.

    Args:
        namespace (dict): The namespace.
        name (str): The name. It may be new.
        value (object): The value while the body of the statement runs.

    Returns:
        context manager: It restores the namespace at the end.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.importing import lent
        >>> namespace = {}
        >>> with lent(namespace, 'name', 1):
        ...     print(namespace)
        {'name': 1}
        >>> namespace
        {}

    """
    missing = object()
    before = namespace.get(name, missing)
    namespace[name] = value
    try:
        yield
    finally:
        if before is missing:
            del namespace[name]
        else:
            namespace[name] = before


def is_missing(name: str) -> bool:
    """Tells whether a module is missing, without importing it.

    Args:
        name (str): The name of the module.

    Returns:
        bool: ``True`` if there is none.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.importing import is_missing
        >>> is_missing('json')
        False

    """
    if sys.modules.get(name) is not None:
        return False
    return importlib.util.find_spec(name) is None


def is_at_least(distribution: str, version: str) -> bool:
    """Tells whether some version of a distribution, or later, is installed.

    Args:
        distribution (str): The name of the distribution.
        version (str): The oldest version that counts.

    Returns:
        bool: ``False`` if an older version or none is installed.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.importing import is_at_least
        >>> is_at_least('chainer', '7.8.1')
        True

    """
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return Version(installed) >= Version(version)


def is_cupy_at_least(version: str) -> bool:
    """Tells whether some version of CuPy, or later, is installed.

    Args:
        version (str): The oldest version that counts.

    Returns:
        bool: ``False`` if an older version or none is installed.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat.importing import (
        ...     is_cupy_at_least)
        >>> is_cupy_at_least('1000')
        False

    """
    return any(
        is_at_least(name, version)
        for name in ('cupy', 'cupy-cuda12x', 'cupy-cuda13x')
    )


_fixes: dict[str, list[Fix]] = {}
_applied: list[Fix] = []


def register(fixes: Iterable[Fix]) -> None:
    """Applies fixes to their modules, now or once those are imported.

    Registering a fix twice is the same as once.

    Args:
        fixes (iterable of Fix): The fixes.

    .. admonition:: Example

        >>> from chainer_shared_patch.compat import FIXES
        >>> from chainer_shared_patch.compat.importing import register
        >>> register(fix for fix in FIXES if fix.is_needed())

    """
    for fix in fixes:
        if fix not in _fixes.setdefault(fix.module, []):
            _fixes[fix.module].append(fix)
            if fix.module in sys.modules:
                _apply(fix, sys.modules[fix.module])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _apply(fix: Fix, module: types.ModuleType) -> None:
    if fix.apply is not None:
        fix.apply(module)
    _applied.append(fix)


def _ask_others(
    fullname: str, path: Any, target: Any
) -> importlib.machinery.ModuleSpec | None:
    for finder in list(sys.meta_path):
        if hasattr(finder, 'find_spec'):
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
    return None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to fix, where the other finders do."""

    def __init__(self) -> None:
        self._asked_for: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        # Another finder may ask this one.
        if fullname not in _fixes or fullname in self._asked_for:
            return None
        self._asked_for.add(fullname)
        try:
            spec = _ask_others(fullname, path, target)
        finally:
            self._asked_for.discard(fullname)
        # Up to Python 3.9, zip files have loaders of another kind.
        if spec is not None and hasattr(spec.loader, 'exec_module'):
            # A copy, because all modules of a zip file share one loader.
            loader: Any = copy.copy(spec.loader)
            loader.exec_module = functools.partial(
                _execute, loader.exec_module, _fixes[fullname]
            )
            spec.loader = loader
        return spec


def _execute(
    execute: Callable[[Any], None],
    fixes: Sequence[Fix],
    module: types.ModuleType,
) -> None:
    with contextlib.ExitStack() as stack:
        for fix in fixes:
            stack.enter_context(fix.lend())
            execute = fix.execute or execute
        execute(module)
    for fix in fixes:
        _apply(fix, module)
