"""Runs a program under the patch.

.. code-block:: console

    $ python -m chainer_shared_patch --common-num 10 train.py --epoch 20
    $ python -m chainer_shared_patch --common-num 10 -m package.train

"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import multiprocessing.spawn
import os
import pkgutil
import runpy
import sys
import types
from typing import Any

from chainer_shared_patch import compat, config, info, startup
from chainer_shared_patch.compat import explanations
from chainer_shared_patch.functions import shared_weights
from chainer_shared_patch.patch import is_installed
import chainer


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m chainer_shared_patch',
        usage='%(prog)s [--common-num N] [--algorithm A] [--legacy] '
        '(FILE | -m MODULE) [ARG ...]\n'
        '       %(prog)s (--info | --enable | --disable)',
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
        '--legacy',
        action='store_true',
        help='give back, to all modules, what Python and NumPy have removed, '
        'such as numpy.float (default: CHAINER_LEGACY, or 0)',
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        '--info',
        action='store_true',
        help='print what to include in a bug report, and exit',
    )
    instead.add_argument(
        '--enable',
        action='store_true',
        help='make every Python of this environment import the plugin '
        'before Chainer, and exit',
    )
    instead.add_argument(
        '--disable', action='store_true', help='undo --enable, and exit'
    )
    parser.add_argument('-m', action='store_true', help='run a module')
    parser.add_argument(
        'program',
        nargs=argparse.REMAINDER,
        help='the program and its arguments; without -m, a script, a .pyc '
        'file, or a directory or zip file with a __main__.py',
    )
    return parser


def main() -> None:
    """Runs the command line."""
    parser = _make_parser()
    args = parser.parse_args()
    # Set them in the environment too, for processes that the program starts.
    settings: Any = chainer.global_config
    number = settings.common_num
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
    if args.legacy:
        compat.legacy.apply()
        os.environ['CHAINER_LEGACY'] = '1'

    if args.program and (args.info or args.enable or args.disable):
        parser.error('--info, --enable and --disable run no program')
    if args.info:
        info.print_info()
    elif args.enable or args.disable:
        path = startup.get_path()
        try:
            startup.enable() if args.enable else startup.disable()
            print(
                'enabled by' if args.enable else 'no longer enabled by', path
            )
        except OSError as error:
            parser.exit(
                1,
                f'{parser.prog}: error: cannot change {error.filename}: '
                f'{error.strerror}\n',
            )
    elif not args.program:
        parser.error('give a program to run: a file, or -m MODULE')
    elif not args.m and not os.path.exists(args.program[0]):
        parser.error(f'no such file: {args.program[0]!r}')
    else:
        _patch_spawned_processes()
        sys.excepthook = _print_exception
        sys.argv = args.program
        process = os.getpid()
        try:
            _run(args.program[0], args.m)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        # A child that the program has forked may come here, too.
        if number > 1 and os.getpid() == process:
            print(_describe_sharing(number), file=sys.stderr)


def _describe_sharing(common_num: int) -> str:
    """Says which layers have been shared, since nothing else may show it."""
    if not shared_weights:
        return (
            'no layer was shared in this process: no input was '
            f'{common_num} times as wide as the weight of its layer'
            if is_installed()
            else 'no layer was shared in this process: the patch is off'
        )
    return 'shared layers in this process: ' + ', '.join(
        f'W of shape {shape} by {n} blocks' for shape, n in shared_weights
    )


def _run(program: str, is_module: bool) -> None:
    """Runs a program as ``__main__``, as Python itself does.

    Unlike that of ``runpy.run_path``, the module stays: for threads, functions
    that are called at exit, and what spawned processes return.
    """
    main: Any = types.ModuleType('__main__')
    main.__builtins__ = builtins  # exec would put a dict there
    if sys.version_info < (3, 14):  # where it is not made on demand
        vars(main)['__annotations__'] = {}
    # Spawned processes return objects of the program by the second name.
    sys.modules['__main__'] = sys.modules['__mp_main__'] = main
    if is_module:
        runpy._run_module_as_main(program)  # type: ignore[attr-defined]
        return
    path = os.path.abspath(program)
    is_archive = pkgutil.get_importer(path) is not None
    # Up to Python 3.10, only -I keeps the program's folder out of sys.path.
    is_safe = getattr(sys.flags, 'safe_path', sys.flags.isolated)
    if not is_safe:
        del sys.path[0]  # of the runner
    if is_archive:  # or a directory
        sys.path.insert(0, path)
        runpy._run_module_as_main(  # type: ignore[attr-defined]
            '__main__', alter_argv=False
        )
        return
    if not is_safe:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    main.__file__ = path
    with io.open_code(path) as file:
        content = file.read()
    code = pkgutil.read_code(io.BytesIO(content))
    if code is None:  # it is no .pyc file
        code = compile(content, path, 'exec', dont_inherit=True)
    exec(code, vars(main))


def _print_exception(kind: Any, error: BaseException, trace: Any) -> None:
    """Prints a traceback from the program on, and what may explain it."""
    runners = (
        os.path.join(os.path.dirname(__file__), ''),
        runpy.run_path.__code__.co_filename,
        '<frozen importlib',
    )
    while trace and trace.tb_frame.f_code.co_filename.startswith(runners):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)
    explanation = None
    with contextlib.suppress(Exception):  # of the error's own str()
        explanation = explanations.explain(error, trace)
    if explanation:
        print(explanation, file=sys.stderr)


def _patch_spawned_processes() -> None:
    # The server that forks processes would import only the script.
    multiprocessing.set_forkserver_preload(['chainer_shared_patch'])
    # A spawned process runs the script again, but not the runner. It
    # unpickles these data before it does so.
    get_data = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**get_data(name), 'import': _Import()}

    multiprocessing.spawn.get_preparation_data = get_preparation_data


class _Import:
    """Imports the plugin where it is unpickled, and in what that starts."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _patch_spawned_processes, ()
