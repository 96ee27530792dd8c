"""What today's Python and NumPy have taken from old programs, given back.

Unlike the other fixes, these change modules for everyone. Therefore only
``--legacy`` and ``CHAINER_LEGACY=1`` apply them.
"""

from __future__ import annotations

import ast
import collections
import collections.abc
from collections.abc import Callable, Mapping
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import operator
import os
import sys
import types
from typing import Any
import warnings

from chainer_shared_patch.compat.importing import Fix
from chainer_shared_patch.compat.numpy_removals import SCTYPES
import numpy


class _ByType(dict[Any, Any]):
    """A dictionary that computes its values from data types."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self._compute = compute

    def __missing__(self, key: Any) -> Any:
        return self._compute(key)


def _asfarray(a: Any, dtype: Any = numpy.float64) -> Any:
    is_inexact = numpy.issubdtype(dtype, numpy.inexact)
    return numpy.asarray(a, dtype if is_inexact else numpy.float64)


def _asscalar(a: Any) -> Any:
    return (a if hasattr(a, 'item') else numpy.asarray(a)).item()


def _alen(a: Any) -> int:
    try:
        return len(a)
    except TypeError:
        return 1


def _getargspec(func: Any) -> Any:
    spec = inspect.getfullargspec(func)
    if spec.kwonlyargs or spec.annotations:
        raise ValueError(
            'getargspec(): the function has keyword-only parameters or '
            'annotations; call inspect.getfullargspec() instead'
        )
    return ArgSpec(*spec[:4])


def _in1d(ar1: Any, ar2: Any, *args: Any, **kwargs: Any) -> Any:
    return numpy.isin(numpy.ravel(ar1), ar2, *args, **kwargs)


ArgSpec = collections.namedtuple(
    'ArgSpec', ('args', 'varargs', 'keywords', 'defaults')
)


def _alias(pairs: str) -> dict[str, str]:
    return dict(pair.split('=') for pair in pairs.split())


# For each module, and requirement with which they are gone, names with their
# values or, as strings, with what has the same value in the module today.
# NumPy's names for interactive use and for its own internals are left out.
NAMES: dict[tuple[str, str], Mapping[str, Any]] = {
    ('numpy', 'numpy >= 1.23'): {
        'alen': _alen,
        'asscalar': _asscalar,
    },
    ('numpy', 'numpy >= 1.24'): {
        **{t.__name__: t for t in (bool, complex, float, int, object, str)},
        **{'long': int, 'unicode': str},
        **_alias('bool8=bool_ bytes0=bytes_ int0=intp object0=object_'),
        **_alias('str0=str_ uint0=uintp void0=void'),
        'typeDict': _ByType(lambda key: numpy.dtype(key).type),
        **{module.__name__: module for module in (os, sys, warnings)},
    },
    ('numpy', 'numpy >= 2'): {
        **_alias('Inf=inf Infinity=inf infty=inf NAN=nan NaN=nan PINF=inf'),
        **{'NINF': -numpy.inf, 'NZERO': -0.0, 'PZERO': 0.0},
        **_alias('cfloat=complex128 clongfloat=clongdouble'),
        **_alias('complex_=complex128 float_=float64 longcomplex=clongdouble'),
        **_alias('longfloat=longdouble singlecomplex=complex64'),
        **_alias('string_=bytes_ unicode_=str_ alltrue=all sometrue=any'),
        **_alias('cumproduct=cumprod mat=asmatrix product=prod round_=round'),
        **_alias('AxisError=exceptions.AxisError'),
        **_alias('ComplexWarning=exceptions.ComplexWarning'),
        **_alias('RankWarning=exceptions.RankWarning'),
        **_alias(
            'VisibleDeprecationWarning=exceptions.VisibleDeprecationWarning'
        ),
        **_alias('byte_bounds=lib.array_utils.byte_bounds'),
        **_alias('compare_chararrays=char.compare_chararrays'),
        **_alias('format_parser=rec.format_parser'),
        'asfarray': _asfarray,
        'cast': _ByType(lambda key: lambda a: numpy.array(a).astype(key)),
        'fastCopyAndTranspose': lambda a: numpy.array(a).T.copy(),
        'math': math,
        'msort': lambda a: numpy.sort(a, axis=0),
        'nbytes': _ByType(lambda key: numpy.dtype(key).itemsize),
        'safe_eval': ast.literal_eval,
        'sctypes': SCTYPES,
    },
    ('numpy', 'numpy >= 2.4'): {'in1d': _in1d, 'trapz': 'trapezoid'},
    ('numpy', 'numpy >= 2.5'): _alias(
        'chararray=char.chararray row_stack=vstack'
    ),
    ('numpy.lib', 'numpy >= 2'): {'pad': numpy.pad},
    ('time', 'python >= 3.8'): {
        'clock': 'perf_counter' if os.name == 'nt' else 'process_time',
    },
    ('collections', 'python >= 3.10'): {
        name: f'abc.{name}'
        for name in collections.abc.__all__
        if name != 'Buffer'  # which has never been there
    },
    ('inspect', 'python >= 3.11'): {
        'ArgSpec': ArgSpec,
        'getargspec': _getargspec,
    },
}


def _give_back(names: Mapping[str, Any], module: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, value in names.items():
            # A name that the module has may mean something else today.
            if hasattr(module, name):
                continue
            with contextlib.suppress(AttributeError):
                if isinstance(value, str):
                    value = operator.attrgetter(value)(module)
                setattr(module, name, value)


def _fix_array(module: Any) -> None:
    array = module.array

    @functools.wraps(array)
    def array_copying(*args: Any, **kwargs: Any) -> Any:
        copy = kwargs.get('copy', True)
        if isinstance(copy, (int, numpy.bool_)) and not copy:
            kwargs['copy'] = None  # only where it must
        return array(*args, **kwargs)

    module.array = array_copying


def _fix_fromstring(module: Any) -> None:
    fromstring = module.fromstring

    @functools.wraps(fromstring)
    def fromstring_of_bytes(
        string: Any,
        dtype: Any = float,
        count: int = -1,
        sep: str = '',
        **kwargs: Any,
    ) -> Any:
        if sep:
            return fromstring(string, dtype, count, sep=sep, **kwargs)
        if isinstance(string, str):
            string = string.encode()
        return numpy.frombuffer(string, dtype, count, **kwargs).copy()

    module.fromstring = fromstring_of_bytes


def _load_source(name: str, pathname: str, file: Any = None) -> Any:
    spec = importlib.util.spec_from_file_location(
        name, loader=importlib.machinery.SourceFileLoader(name, pathname)
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A module of this name is executed anew, as it was.
    old = sys.modules.get(name)
    if old is not None:
        vars(old).update(vars(module))
        module = old
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if old is None:
            del sys.modules[name]
        raise
    return module


def _make_imp(importlib_module: Any) -> None:
    if importlib.util.find_spec('imp') is None:
        spec = importlib.machinery.ModuleSpec('imp', None)
        imp: Any = importlib.util.module_from_spec(spec)
        imp.load_source = _load_source
        imp.new_module = types.ModuleType
        imp.reload = importlib.reload
        sys.modules['imp'] = imp


ARRAY = Fix(
    module='numpy',
    broken='array(copy=False) is a ValueError where it has to copy',
    when='numpy >= 2',
    apply=_fix_array,
)
FROMSTRING = Fix(
    module='numpy',
    broken='fromstring refuses bytes',
    when='numpy >= 2.3',
    apply=_fix_fromstring,
)
IMP = Fix(
    module='importlib',
    broken='the module imp is gone',
    when='python >= 3.12',
    apply=_make_imp,
)
FIXES = (
    *(
        Fix(
            module=module,
            broken=f'gone: {", ".join(names)}',
            when=when,
            apply=functools.partial(_give_back, names),
        )
        for (module, when), names in NAMES.items()
    ),
    ARRAY,
    FROMSTRING,
    IMP,
)


def apply() -> None:
    """Gives back everything that is gone."""
    for fix in FIXES:
        if fix.is_needed():
            fix.register()
