"""Adam on a CPU, block by block."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

from chainer_shared_patch.compat.importing import Fix
import numpy

# With float32, what an update reads and writes of a block fits into a cache.
BLOCK_SIZE = 2**16


def _fix_adam(module: Any) -> None:
    update_core_cpu = module.AdamRule.update_core_cpu

    @functools.wraps(update_core_cpu)
    def update_blocks(self: Any, param: Any) -> None:
        # Arrays of iDeep, and those that reshape would copy, are not split.
        if param.grad is None or not all(
            isinstance(array, numpy.ndarray)
            and array.size > BLOCK_SIZE
            and array.flags.c_contiguous
            and array.shape == param.grad.shape
            for array in (param.data, *self.state.values())
        ):
            update_core_cpu(self, param)
            return
        data, grad = param.data.reshape(-1), param.grad.reshape(-1)
        state = {key: array.reshape(-1) for key, array in self.state.items()}
        rule = copy.copy(self)
        for start in range(0, data.size, BLOCK_SIZE):
            block = slice(start, start + BLOCK_SIZE)
            rule._state = {key: array[block] for key, array in state.items()}
            update_core_cpu(
                rule,
                SimpleNamespace(
                    data=data[block], grad=grad[block], dtype=param.dtype
                ),
            )

    module.AdamRule.update_core_cpu = update_blocks


FIXES = (
    Fix(
        module='chainer.optimizers.adam',
        broken='a dozen passes over the memory of each parameter per update',
        when=None,
        apply=_fix_adam,
    ),
)
