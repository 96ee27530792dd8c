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
import importlib.abc
import importlib.machinery
import importlib.util
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
        mend (callable): Called with the module once it is imported.

    """

    module: str
    broken: str
    since: str
    is_needed: Callable[[], bool]
    imports: Mapping[str, types.ModuleType] = field(default_factory=dict)
    mend: Optional[Callable[[Any], None]] = None

    def is_applied(self) -> bool:
        """Returns whether the module has been imported and mended."""
        return self in _applied


def is_missing(name: str) -> bool:
    """Returns whether no module has this name, without importing it."""
    return name not in sys.modules and importlib.util.find_spec(name) is None


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
    """Finds the modules to mend where the other finders find them."""

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]],
        target: Optional[types.ModuleType] = None,
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname not in _fixes:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _execute_with_fixes(spec.loader, _fixes[fullname])
                return spec
        return None


def _execute_with_fixes(loader: Any, fixes: Sequence[Fix]) -> None:
    execute = loader.exec_module

    def exec_module(module: types.ModuleType) -> None:
        substitutes = {
            name: substitute
            for fix in fixes
            for name, substitute in fix.imports.items()
        }

        def import_(name: str, *args: Any) -> types.ModuleType:
            if name in substitutes:
                return substitutes[name]
            return builtins.__import__(name, *args)

        # The import statements of a module call its own __import__.
        vars(module)['__builtins__'] = {
            **vars(builtins),
            '__import__': import_,
        }
        execute(module)
        for fix in fixes:
            _apply(fix, module)

    loader.exec_module = exec_module
