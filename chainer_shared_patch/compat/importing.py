"""Mends modules as they are imported.

A :class:`Fix` may give one module something else than what it imports, and
may change the module once it is there. Both happen in that module alone: no
name is lent to NumPy and nothing is put into ``sys.modules``, where other
packages would find it.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import types
from typing import Any, Optional


@dataclass(frozen=True)
class Fix:
    """One mended breakage.

    Args:
        module (str): The module that it breaks.
        broken (str): What is broken.
        since (str): What broke it.
        is_needed (callable): Tells whether it is broken here.
        imports (dict): What the module gets instead of the modules that it
            imports by these names.
        execute (callable): Called with the module instead of its code.
        mend (callable): Called with the module once it is imported.

    """

    module: str
    broken: str
    since: str
    is_needed: Callable[[], bool]
    imports: Mapping[str, types.ModuleType] = field(default_factory=dict)
    execute: Optional[Callable[[Any], None]] = None
    mend: Optional[Callable[[Any], None]] = None

    def is_applied(self) -> bool:
        """Returns whether the module has been imported and mended."""
        return self in _applied


def is_missing(name: str) -> bool:
    """Returns whether no module has this name, without importing it."""
    if sys.modules.get(name) is not None:
        return False
    return importlib.util.find_spec(name) is None


def has(distribution: str, version: tuple[int, ...]) -> bool:
    """Returns whether a distribution is installed, this version or later."""
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    numbers = re.findall(r'\d+', installed)[: len(version)]
    return tuple(map(int, numbers)) >= version


_fixes: dict[str, list[Fix]] = {}
_applied: list[Fix] = []


def register(fixes: Iterable[Fix]) -> None:
    """Applies fixes to their modules, now or when they are imported."""
    for fix in fixes:
        if fix not in _fixes.setdefault(fix.module, []):
            _fixes[fix.module].append(fix)
            if fix.module in sys.modules:
                _apply(fix, sys.modules[fix.module])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _apply(fix: Fix, module: types.ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, types.ModuleType):
            substitute = fix.imports.get(value.__name__, value)
            setattr(module, name, substitute)
    if fix.mend is not None:
        fix.mend(module)
    _applied.append(fix)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to mend, on the path as always."""

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]],
        target: Optional[types.ModuleType] = None,
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname not in _fixes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        # Zip files have loaders of another kind up to Python 3.9.
        if spec is not None and hasattr(spec.loader, 'exec_module'):
            spec.loader = _Loader(spec.loader, _fixes[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Executes a module with its fixes, and leaves it its own loader."""

    def __init__(self, loader: Any, fixes: Sequence[Fix]) -> None:
        self.loader = loader
        self.fixes = fixes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(
        self, spec: importlib.machinery.ModuleSpec
    ) -> Optional[types.ModuleType]:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        substitutes = {
            name: substitute
            for fix in self.fixes
            for name, substitute in fix.imports.items()
        }
        if substitutes:
            # The import statements of a module call its own __import__.
            vars(module)['__builtins__'] = {
                **vars(builtins),
                '__import__': _make_import(substitutes),
            }
        execute = self.loader.exec_module
        for fix in self.fixes:
            execute = fix.execute or execute
        execute(module)
        for fix in self.fixes:
            _apply(fix, module)


def _make_import(
    substitutes: Mapping[str, types.ModuleType],
) -> Callable[..., types.ModuleType]:
    def import_(name: str, *args: Any, **kwargs: Any) -> types.ModuleType:
        if name in substitutes:
            return substitutes[name]
        return builtins.__import__(name, *args, **kwargs)

    return import_
