"""Runs a program under the patch, or describes the installation.

.. code-block:: console

    $ python -m chainer_shared_patch --common-num 10 train.py --epoch 20
    $ python -m chainer_shared_patch --common-num 10 -m package.train
    $ python -m chainer_shared_patch --info

"""

from __future__ import annotations

import argparse
import builtins
import importlib
from importlib.machinery import (
    BuiltinImporter,
    SourceFileLoader,
    SourcelessFileLoader,
)
import multiprocessing.spawn
import os
import pkgutil
import platform
import runpy
import signal
import sys
from typing import Any

import chainer_shared_patch
from chainer_shared_patch import compat, config
import chainer
from chainer.backends import cuda


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m chainer_shared_patch',
        usage='%(prog)s [--common-num N] [--algorithm A] '
        '(FILE | -m MODULE | -c CODE | -) [ARG ...]\n'
        '       %(prog)s --info',
        description='Run an unmodified program under the patch, which shares '
        'the weights of fully connected layers.',
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
        help='how to compute shared layers, sum or tile (default: '
        'CHAINER_SHARED_ALGORITHM, or sum)',
    )
    parser.add_argument(
        '--info',
        action='store_true',
        help='print what to include in a bug report, and exit',
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('-m', action='store_true', help='run a module')
    kind.add_argument('-c', action='store_true', help='run a piece of code')
    parser.add_argument(
        'program',
        nargs=argparse.REMAINDER,
        help='the program and its arguments; without -m or -c, a script, a '
        '.pyc file, a directory or zip file with a __main__.py, or - for '
        'standard input',
    )
    return parser


def main() -> None:
    """Runs the command line."""
    parser = _make_parser()
    args = parser.parse_args()
    # Set them in the environment too, for processes that the program starts.
    settings: Any = chainer.global_config
    if args.common_num is not None:
        try:
            number = config.parse_common_num(args.common_num, '--common-num')
        except ValueError as error:
            parser.error(str(error))
        settings.common_num = number
        os.environ['CHAINER_COMMON_NUM'] = str(number)
    if args.algorithm is not None:
        settings.shared_algorithm = args.algorithm
        os.environ['CHAINER_SHARED_ALGORITHM'] = args.algorithm

    if args.info:
        if hasattr(signal, 'SIGPIPE'):  # so that `--info | head` ends quietly
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print_info()
        return
    if not args.program:
        parser.error('give a program to run: a file, -m MODULE, -c CODE, or -')
    is_file = not (args.m or args.c or args.program[0] == '-')
    if is_file and not os.path.exists(args.program[0]):
        parser.error(f'no such file: {args.program[0]!r}')

    _patch_spawned_processes()
    sys.excepthook = _print_exception
    sys.argv = args.program
    # multiprocessing also knows this module as __mp_main__, so the program has
    # to run in this module and not in another one.
    namespace = vars(sys.modules['__main__'])
    namespace.clear()
    namespace.update(
        __name__='__main__',
        __doc__=None,
        __package__=None,
        __loader__=BuiltinImporter,
        __spec__=None,
        __builtins__=builtins,
    )
    if sys.version_info < (3, 14):  # where it is not made on demand
        namespace['__annotations__'] = {}
    if args.m:
        runpy._run_module_as_main(sys.argv[0])  # type: ignore[attr-defined]
    elif args.c:
        sys.argv = ['-c', *sys.argv[1:]]
        _set_first_path('')
        _run_code(_compile(args.program[0], '<string>'))
    elif not is_file:
        _set_first_path('')
        _run_code(_compile(sys.stdin.read(), '<stdin>'), __file__='<stdin>')
    else:
        _run_file(os.path.abspath(sys.argv[0]))


def _run_file(path: str) -> None:
    if pkgutil.get_importer(path) is not None:  # a directory or a zip file
        _set_first_path(path, always=True)
        runpy._run_module_as_main(  # type: ignore[attr-defined]
            '__main__', alter_argv=False
        )
        return
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    loader: Any
    if path.endswith('.pyc'):
        loader = SourcelessFileLoader('__main__', path)
        code = loader.get_code('__main__')
    else:
        loader = SourceFileLoader('__main__', path)
        code = _compile(loader.get_data(path), path)
    _run_code(code, __file__=path, __cached__=None, __loader__=loader)


def _set_first_path(path: str, always: bool = False) -> None:
    # Up to Python 3.10, only -I keeps the path out of sys.path.
    if not getattr(sys.flags, 'safe_path', sys.flags.isolated):
        sys.path[0] = path
    elif always:
        sys.path.insert(0, path)


def _compile(source: Any, name: str) -> Any:
    return compile(source, name, 'exec', dont_inherit=True)


def _run_code(code: Any, **names: Any) -> None:
    namespace = vars(sys.modules['__main__'])
    namespace.update(names)
    exec(code, namespace)


def _print_exception(kind: Any, error: BaseException, trace: Any) -> None:
    """Prints a traceback that begins with the program, not its runner."""
    runners = (__file__, runpy.run_path.__code__.co_filename)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name not in runners and not name.startswith('<frozen importlib'):
            break
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def _patch_spawned_processes() -> None:
    # The server that forks processes would import only the script.
    multiprocessing.set_forkserver_preload(['chainer_shared_patch'])
    # A spawned process runs the script again, but not this module. It
    # unpickles these data before it does so.
    get_data = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**get_data(name), 'import': _Import()}

    multiprocessing.spawn.get_preparation_data = get_preparation_data


class _Import:
    """Imports the plugin where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ('chainer_shared_patch',)


def print_info() -> None:
    """Prints the versions, the backends, and the state of patch and fixes.

    .. admonition:: Example

        >>> from chainer_shared_patch.__main__ import print_info
        >>> print_info()  # doctest: +ELLIPSIS
        chainer_shared_patch: ...
        Python: ...

    """
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
        print(f'chainer.global_config.{name}:', end=' ')
        print(getattr(chainer.global_config, name))
    print('Fixes:')
    for fix in compat.FIXES:
        if fix.is_applied:
            state = 'applied'
        elif fix.is_needed():
            state = 'waiting for the import'
        else:
            state = 'not needed'
        print(
            f'  {fix.module}: {fix.broken} ({fix.when or "always"}): {state}'
        )


if __name__ == '__main__':
    # The program takes over this module, so main runs in a second copy.
    importlib.import_module('chainer_shared_patch.__main__').main()
