"""What to include in a bug report: versions, backends, patch and fixes."""

from __future__ import annotations

import platform

import chainer_shared_patch
from chainer_shared_patch import compat, startup
import chainer
from chainer.backends import cuda


def print_info() -> None:
    """Prints the versions, the backends, and the state of patch and fixes."""
    print('chainer_shared_patch:', chainer_shared_patch.__version__)
    print('Python:', platform.python_version())
    chainer.print_runtime_info()
    try:
        cuda.check_cuda_available()
    except RuntimeError as error:
        print('CUDA:', ' '.join(str(error).split()))
    state = 'installed' if chainer_shared_patch.is_installed() else 'off'
    print('Patch:', state)
    path = startup.get_path()
    print('Enabled for this environment:', path if path.exists() else 'no')
    for name in ('common_num', 'shared_algorithm', 'allow_pickle'):
        print(f'chainer.global_config.{name}:', end=' ')
        print(getattr(chainer.global_config, name))
    print('Fixes:')
    for fix in (*compat.FIXES, *compat.legacy.FIXES):
        if fix.is_applied:
            state = 'applied'
        elif not fix.is_needed():
            state = 'not needed'
        elif fix in compat.legacy.FIXES:
            state = 'off, use --legacy'
        else:
            state = 'waiting for the import'
        print(
            f'  {fix.module}: {fix.broken} ({fix.when or "always"}): {state}'
        )
