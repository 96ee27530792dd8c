"""Importing the plugin in every Python of an environment.

Python runs the lines of a ``.pth`` file in site-packages as it starts.
"""

from __future__ import annotations

from pathlib import Path
import pkgutil
import sysconfig


def get_path() -> Path:
    """Returns the path of the file that enables the plugin."""
    return Path(sysconfig.get_path('purelib'), 'chainer_shared_patch.pth')


def enable() -> None:
    """Makes every Python of the environment import the plugin and Chainer."""
    hook = pkgutil.get_data('chainer_shared_patch', 'startup_hook.py')
    assert hook is not None
    # One line, because Python runs each line by itself.
    get_path().write_text(
        f'import sys; exec({hook.decode()!r}, '
        "{'__name__': 'chainer_shared_patch.startup_hook'})\n"
    )


def disable() -> None:
    """Undoes :func:`enable`."""
    get_path().unlink(missing_ok=True)
