"""Runs a script or a module under the patch, or describes the installation.

.. code-block:: console

    $ python -m chainer_shared_patch --common-num 10 train.py --epoch 20
    $ python -m chainer_shared_patch --common-num 10 -m package.train
    $ python -m chainer_shared_patch --info

"""

from __future__ import annotations

import argparse
import builtins
from collections.abc import Sequence
import importlib
import multiprocessing.spawn
import os
import platform
import runpy
import sys
import types
from typing import Any

import chainer_shared_patch
from chainer_shared_patch import compat, config
import chainer
from chainer.backends import cuda


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m chainer_shared_patch',
        usage='%(prog)s [--common-num N] [--algorithm A] '
        '(script.py | -m module) [args ...]\n'
        '       %(prog)s --info',
        description='Runs a script or a module, unmodified, under the patch '
        'that shares the weights of fully connected layers.',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--common-num',
        metavar='N',
        help='number of input blocks that share a weight (default: '
        'CHAINER_COMMON_NUM, or 1)',
    )
    parser.add_argument(
        '--algorithm',
        metavar='A',
        choices=config.ALGORITHMS,
        help='how shared layers are computed, sum or tile (default: '
        'CHAINER_SHARED_ALGORITHM, or sum)',
    )
    parser.add_argument(
        '--info',
        action='store_true',
        help='print what a bug report needs, and run nothing',
    )
    parser.add_argument(
        '-m',
        dest='is_module',
        action='store_true',
        help='run a module and not a script',
    )
    parser.add_argument(
        'command',
        nargs=argparse.REMAINDER,
        help='the script or module and its arguments',
    )
    return parser


def main() -> None:
    """Does what the command line asks for."""
    parser = _make_parser()
    args = parser.parse_args()
    # Set in the environment too, for the processes that the script starts.
    if args.common_num is not None:
        try:
            number = config.parse_common_num(args.common_num, '--common-num')
        except ValueError as error:
            parser.error(str(error))
        chainer.global_config.common_num = number
        os.environ['CHAINER_COMMON_NUM'] = str(number)
    if args.algorithm is not None:
        chainer.global_config.shared_algorithm = args.algorithm
        os.environ['CHAINER_SHARED_ALGORITHM'] = args.algorithm

    _patch_spawned_processes()

    if args.info:
        print_info()
    elif not args.command:
        parser.error('a script, -m and a module, or --info is needed')
    elif args.is_module:
        sys.argv = args.command
        runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
    elif not os.path.isfile(args.command[0]):
        parser.error('there is no file {!r}'.format(args.command[0]))
    else:
        _run_script(args.command)


def _run_script(argv: Sequence[str]) -> None:
    # Unlike runpy.run_path, this leaves the script in sys.modules for what
    # still runs when it has ended, and makes __file__ absolute, as Python
    # does.
    path = os.path.abspath(argv[0])
    with open(path, 'rb') as file:
        code = compile(file.read(), path, 'exec', dont_inherit=True)
    module = types.ModuleType('__main__')
    vars(module).update(__file__=path, __cached__=None, __builtins__=builtins)
    sys.modules['__main__'] = module
    sys.argv = list(argv)
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    exec(code, vars(module))


def _patch_spawned_processes() -> None:
    # A process that is spawned, and not forked, runs the script anew, but
    # not this module. It unpickles these data before it does so.
    get_data = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**get_data(name), 'import': _Import()}

    multiprocessing.spawn.get_preparation_data = get_preparation_data


class _Import:
    """Imports the package where it is unpickled."""

    def __reduce__(self) -> tuple:
        return importlib.import_module, ('chainer_shared_patch',)


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
    for name in ('common_num', 'shared_algorithm'):
        print('chainer.global_config.{}:'.format(name), end=' ')
        print(getattr(chainer.global_config, name))
    print('Fixes:')
    for fix in compat.FIXES:
        if fix.is_applied():
            state = 'applied'
        elif fix.is_needed():
            state = 'waits for the import'
        else:
            state = 'not needed'
        print(
            '  {}: {} (since {}): {}'.format(
                fix.module, fix.broken, fix.since, state
            )
        )


if __name__ == '__main__':
    main()
