"""Mends modules as they are imported.

A :class:`Fix` may lend a module what it needs while it is imported, run
something else in place of its code, and change it once it is there. NumPy's
namespace and ``sys.modules`` are afterwards what they were before.
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
from typing import Any, Optional

from packaging.version import Version


@dataclass(frozen=True)
class Fix:
    """One mended breakage.

    Args:
        module (str): The module that it breaks.
        broken (str): What is broken.
        since (str): What broke it.
        is_needed (callable): Tells whether it is broken here.
        lend (callable): Makes the context in which the module is imported.
        execute (callable): Called with the module instead of its code.
        mend (callable): Called with the module once it is imported.

    """

    module: str
    broken: str
    since: str
    is_needed: Callable[[], bool]
    lend: Callable[[], Any] = contextlib.nullcontext
    execute: Optional[Callable[[Any], None]] = None
    mend: Optional[Callable[[Any], None]] = None

    def is_applied(self) -> bool:
        """Returns whether the module has been imported and mended."""
        return self in _applied


@contextlib.contextmanager
def lent(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Gives a name in a namespace a value for a while."""
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
    """Returns whether no module has this name, without importing it."""
    if sys.modules.get(name) is not None:
        return False
    return importlib.util.find_spec(name) is None


def is_at_least(distribution: str, version: str) -> bool:
    """Returns whether a distribution is installed, this version or later."""
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return Version(installed) >= Version(version)


def is_cupy_at_least(version: str) -> bool:
    """Returns whether CuPy is installed, this version or later."""
    return any(
        is_at_least(name, version)
        for name in ('cupy', 'cupy-cuda12x', 'cupy-cuda13x')
    )


_fixes: dict[str, list[Fix]] = {}
_applied: list[Fix] = []


def register(fixes: Iterable[Fix]) -> None:
    """Applies fixes to their modules, now or when they are imported."""
    for fix in fixes:
        if fix not in _fixes.setdefault(fix.module, []):
            _fixes[fix.module].append(fix)
            if fix.module in sys.modules:
                _mend(fix, sys.modules[fix.module])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _mend(fix: Fix, module: types.ModuleType) -> None:
    if fix.mend is not None:
        fix.mend(module)
    _applied.append(fix)


def _ask_others(
    fullname: str, path: Any, target: Any
) -> Optional[importlib.machinery.ModuleSpec]:
    for finder in list(sys.meta_path):
        if hasattr(finder, 'find_spec'):
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
    return None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to mend, where the other finders do."""

    def __init__(self) -> None:
        self._asked_for: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]],
        target: Optional[types.ModuleType] = None,
    ) -> Optional[importlib.machinery.ModuleSpec]:
        # The finders of others may ask this one.
        if fullname not in _fixes or fullname in self._asked_for:
            return None
        self._asked_for.add(fullname)
        try:
            spec = _ask_others(fullname, path, target)
        finally:
            self._asked_for.discard(fullname)
        # Zip files have loaders of another kind up to Python 3.9.
        if spec is not None and hasattr(spec.loader, 'exec_module'):
            # A copy, because all modules of a zip file have one loader.
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
        _mend(fix, module)
