"""Changes modules as they are imported.

Afterwards, NumPy's namespace and ``sys.modules`` are as they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import copy
from dataclasses import dataclass, field
import functools
import importlib
from importlib import metadata
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

from packaging.requirements import Requirement

Apply = Callable[[Any], None]
Execute = Callable[[Apply, Any], None]

CUPY = ('cupy', 'cupy-cuda12x', 'cupy-cuda13x')


@functools.cache
def is_met(text: str) -> bool:
    """Tells whether a requirement such as ``'numpy >= 2'`` is met."""
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate():
        return False
    return any(
        requirement.specifier.contains(version, prereleases=True)
        for version in _find_versions(requirement.name)
    )


def _find_versions(name: str) -> list[str]:
    if name == 'python':
        return ['.'.join(map(str, sys.version_info[:3]))]
    versions = []
    for distribution in CUPY if name == 'cupy' else (name,):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(metadata.version(distribution))
    if not versions:  # frozen applications have modules alone
        with contextlib.suppress(ImportError, AttributeError):
            module = importlib.import_module(
                'google.protobuf' if name == 'protobuf' else name
            )
            versions.append(module.__version__)
    return versions


@dataclass(eq=False)
class Fix:
    """What is broken in a module when a requirement is met, and its repair.

    ``when=None`` is always; :func:`on_import` explains the rest.
    """

    module: str
    broken: str
    when: str | None
    apply: Apply = lambda module: None
    execute: Execute | None = None
    is_applied: bool = field(default=False, init=False)

    def is_needed(self) -> bool:
        """Tells whether the module is broken with what is installed."""
        return self.when is None or is_met(self.when)

    def register(self) -> None:
        """Repairs the module, now or once it is imported."""
        on_import(self.module, self._apply, self.execute)

    def _apply(self, module: types.ModuleType) -> None:
        self.apply(module)
        self.is_applied = True


@contextlib.contextmanager
def lent(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Gives a name in a namespace another value for a ``with`` statement."""
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


_hooks: dict[str, list[tuple[Apply, Execute | None]]] = {}


def on_import(name: str, apply: Apply, execute: Execute | None = None) -> None:
    """Calls ``apply(module)`` when a module is imported, or now if it is.

    ``execute(run, module)`` imports it, instead of ``run(module)``.
    """
    hooks = _hooks.setdefault(name, [])
    if (apply, execute) not in hooks:
        hooks.append((apply, execute))
        if name in sys.modules:
            apply(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to change, where the other finders do."""

    def __init__(self) -> None:
        self._asked_for: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        # This one asks the others, and one of them may ask this one.
        if fullname not in _hooks or fullname in self._asked_for:
            return None
        self._asked_for.add(fullname)
        try:
            specs = (
                finder.find_spec(fullname, path, target)
                for finder in list(sys.meta_path)
                if hasattr(finder, 'find_spec')
            )
            spec = next(filter(None, specs), None)
        finally:
            self._asked_for.discard(fullname)
        # Up to Python 3.9, zip files have loaders of another kind.
        if spec is not None and hasattr(spec.loader, 'exec_module'):
            # A copy, because all modules of a zip file share one loader.
            loader: Any = copy.copy(spec.loader)
            loader.exec_module = functools.partial(
                _execute, fullname, loader.exec_module
            )
            spec.loader = loader
        return spec


def _execute(name: str, run: Apply, module: types.ModuleType) -> None:
    hooks = _hooks[name]
    for _, execute in hooks:
        if execute is not None:
            run = functools.partial(execute, run)
    run(module)
    for apply, _ in hooks:
        apply(module)
