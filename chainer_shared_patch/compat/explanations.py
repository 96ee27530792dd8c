"""What to tell about an error that today's Python and NumPy have brought."""

from __future__ import annotations

from collections.abc import Iterator
import os
import re
import sysconfig
import traceback
from typing import Any

from chainer_shared_patch.compat import legacy
from chainer_shared_patch.compat.importing import is_met
import chainer
import numpy

_LEGACY = 'run the program with --legacy'
_UPGRADE = 'https://docs.chainer.org/en/stable/upgrade.html'
_PACKAGES = {'numpy': 'NumPy', 'python': 'Python'}
_AXES = 'only 0-dimensional arrays can be converted to Python scalars'

# How the error is printed, the requirement since which it is one, and the
# edit. No sentence may be wrong where something else has caused the error.
EXPLANATIONS: tuple[tuple[str, str | None, str], ...] = (
    (
        f'TypeError: ({_AXES}|%. format: .* is required, not numpy.ndarray)',
        'numpy >= 2.4',
        'an array that has axes is not converted to a number: if x has one '
        'element, write x.item() for x, as in int(x.item())',
    ),
    (
        'ValueError: setting an array element .* inhomogeneous shape',
        'numpy >= 1.24',
        'items of different shapes become an array of objects only on '
        'request: if you want one, write numpy.array(..., dtype=object)',
    ),
    (
        r'OverflowError: Python integer -?\d+ out of bounds for u?int\d+',
        'numpy >= 2',
        'an integer has to fit into the data type that it meets: use a wider '
        'one or, to wrap the integer n, numpy.array(n).astype(dtype)',
    ),
    (
        'ValueError: Object arrays cannot be loaded when allow_pickle=False',
        'numpy >= 1.16.3',
        'numpy.load unpickles only on request: if you trust the file, write '
        'numpy.load(..., allow_pickle=True)',
    ),
    *(
        (
            "AttributeError: ('numpy.ndarray' object has no attribute '"
            f'|`){method}(`.* removed|.$)',
            when,
            f'arrays have no {method}: write {edit}',
        )
        for method, when, edit in (
            ('itemset', 'numpy >= 2', 'x[index] = value'),
            ('ptp', 'numpy >= 2', 'numpy.ptp(x)'),
            ('tostring', 'numpy >= 2.3', 'x.tobytes()'),
        )
    ),
    (
        'ValueError: Unable to avoid copy while creating an array',
        'numpy >= 2',
        f'numpy.array(..., copy=False) refuses to copy: {_LEGACY}, or write '
        'numpy.asarray(...)',
    ),
    (
        'ValueError: The binary mode of fromstring is removed',
        'numpy >= 2.3',
        f'numpy.fromstring refuses bytes: {_LEGACY}, or write '
        'numpy.frombuffer(...).copy()',
    ),
    (
        "ModuleNotFoundError: No module named 'imp'$",
        'python >= 3.12',
        f'imp is gone: {_LEGACY}, or use importlib',
    ),
    (
        "ModuleNotFoundError: No module named 'distutils'$",
        'python >= 3.12',
        'distutils is gone: pip install setuptools, which has it',
    ),
    (
        'RuntimeError: CUDA environment is not correctly set up',
        None,
        'the program wants a GPU, and CuPy is missing or finds none: tell it '
        'to use the CPU, often by --gpu -1',
    ),
    (
        "SyntaxError: Missing parentheses in call to '(print|exec)'"
        "|NameError: name '(basestring|raw_input|unicode|xrange)' is not "
        "|ModuleNotFoundError: No module named '(Queue|cPickle|urllib2)'$"
        "|AttributeError: 'dict' .* no attribute '(has_key|iteritems)'",
        None,
        'this is Python 2: first convert the program to Python 3',
    ),
    (
        'ValueError: (test|train|use_cudnn|volatile) argument is not supp'
        "|ImportError: cannot import name 'FunctionSet' from 'chainer'"
        "|AttributeError: module 'chainer' has no attribute 'FunctionSet'",
        None,
        f'this is Chainer 1: follow {_UPGRADE}',
    ),
)
_GONE = (
    r"AttributeError: module '(?P<module>[\w.]+)' has no .* '(?P<name>\w+)'",
    r'AttributeError: `(?P<module>np)\.(?P<name>\w+)` was removed',
    r"ImportError: cannot import name '(?P<name>\w+)' from '(?P<module>.+?)'",
)


def explain(error: BaseException, trace: Any) -> str | None:
    """Returns what has changed, since when, and what to edit where."""
    if isinstance(error, SyntaxError) and not (
        error.filename and os.path.exists(error.filename)
    ):
        return None  # of a text that the program compiles
    # An array that is put into an element of another is the cause of an error.
    cause = error.__cause__ if _AXES in str(error.__cause__) else error
    has_legacy = any(fix.is_applied for fix in legacy.FIXES)
    for when, sentence in _find(f'{type(cause).__name__}: {cause}'):
        if has_legacy and _LEGACY in sentence:
            continue
        if when is not None:
            if not is_met(when):
                continue
            name, version = when.split(' >= ')
            sentence = f'since {_PACKAGES[name]} {version}, {sentence}'
        places = _locate(error, trace)[-1:]
        return ': '.join(['chainer_shared_patch', *places, sentence])
    return None


def _find(printed: str) -> Iterator[tuple[str | None, str]]:
    for pattern, when, sentence in EXPLANATIONS:
        if re.match(pattern, printed):
            yield when, sentence
    for match in filter(None, (re.match(each, printed) for each in _GONE)):
        # Chainer needs sctypes itself, in a process without the plugin.
        if match['name'] == 'sctypes':
            continue
        module = 'numpy' if match['module'] == 'np' else match['module']
        for (each, since), names in legacy.NAMES.items():
            if each == module and match['name'] in names:
                value = names[match['name']]
                sentence = f'{module}.{match["name"]} is gone: {_LEGACY}'
                if isinstance(value, str):
                    sentence += f', or write {module}.{value}'
                elif isinstance(value, type):
                    sentence += f', or write {value.__name__}'
                yield since, sentence


def _locate(error: BaseException, trace: Any) -> list[str]:
    """Returns the places in the program and in libraries, innermost last."""
    if isinstance(error, SyntaxError):
        return [f'{error.filename}, line {error.lineno}']
    if type(error.__cause__).__name__.endswith('RemoteTraceback'):
        return []  # in another process
    packages = (chainer.__file__, numpy.__file__, os.path.dirname(__file__))
    folders = tuple(os.path.dirname(path) + os.sep for path in packages)
    library = sysconfig.get_path('stdlib') + os.sep
    return [
        f'{path}, line {line}'
        for path, line, _, _ in traceback.extract_tb(trace)
        if not path.startswith(('<', *folders))
        and (not path.startswith(library) or 'site-packages' in path)
    ]
