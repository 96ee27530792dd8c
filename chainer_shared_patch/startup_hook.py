"""Imports the plugin before Chainer, in every Python of an environment.

Enabling copies these lines to where Python runs them as it starts. They import
nothing, and need not the plugin, until a program imports Chainer.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes milliseconds
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class Finder:
    """Finds Chainer by importing the plugin, which imports it."""

    spec: ModuleSpec | None

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        if (
            name not in ('chainer', 'onnx_chainer')
            or 'chainer_shared_patch' in sys.modules
        ):
            return None
        from importlib import machinery, util

        if util.find_spec('chainer_shared_patch') is None:  # uninstalled
            return None
        if name != 'chainer':  # it imports Chainer too late
            import chainer_shared_patch  # noqa: F401

            return util.find_spec(name)
        return machinery.ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        import chainer_shared_patch  # noqa: F401
        import chainer

        self.spec = chainer.__spec__
        return chainer

    def exec_module(self, module: ModuleType) -> None:
        # It has run already; the import system has only changed its spec.
        module.__spec__ = self.spec


sys.meta_path.insert(0, Finder())
