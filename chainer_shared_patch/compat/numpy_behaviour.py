"""What NumPy 2 does differently: refusing, returning and naming things."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
from chainer_shared_patch.compat.numpy_names import NumPyWith, is_at_least
import numpy


def _mend_pad_sequence(module: Any) -> None:
    forward = module.PadSequence.forward

    @functools.wraps(forward)
    def forward_casting(self: Any, xs: tuple) -> tuple:
        # As NumPy 1 did with an integer outside the range of the dtype.
        self.padding = numpy.array(self.padding).astype(xs[0].dtype)[()]
        return forward(self, xs)

    module.PadSequence.forward = forward_casting


def _list_meshgrid(*args: Any, **kwargs: Any) -> list:
    return list(numpy.meshgrid(*args, **kwargs))


def _mend_variable(module: Any) -> None:
    debug_print = module.Variable.debug_print

    @functools.wraps(debug_print)
    def debug_print_mended(self: Any) -> str:
        # A NumPy array has a device, 'cpu', which Chainer takes for CuPy's.
        return debug_print(self).replace('\n- device: cpu', '\n- device: CPU')

    module.Variable.debug_print = debug_print_mended


FIXES = (
    Fix(
        module='chainer.functions.array.pad_sequence',
        broken='padding that the dtype cannot hold is an OverflowError',
        since='NumPy 2.0',
        is_needed=lambda: is_at_least('2.0.0'),
        mend=_mend_pad_sequence,
    ),
    Fix(
        module='chainer.distributions.categorical',
        broken='numpy.meshgrid returns a tuple, which log_prob adds to a list',
        since='NumPy 2.0',
        is_needed=lambda: is_at_least('2.0.0'),
        imports={'numpy': NumPyWith(meshgrid=_list_meshgrid)},
    ),
    Fix(
        module='chainer.variable',
        broken='arrays have a device, which debug_print shows as a GPU',
        since='NumPy 2.0',
        is_needed=lambda: is_at_least('2.0.0'),
        mend=_mend_variable,
    ),
)
