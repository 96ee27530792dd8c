"""Kernels that add to float16, which CuPy 14 takes more literally."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix

# A template, because float16 is incomplete in kernels that do not use it.
_ADD_FLOAT = """
template<typename T, typename = typename cupy::type_traits::enable_if<
    cupy::type_traits::is_same<T, float16>::value>::type>
__device__ T atomicAdd(T* address, float value) {
  return atomicAdd(address, T(value));
}
"""


def _fix_elementwise(cuda: Any) -> None:
    elementwise = cuda.elementwise

    @functools.wraps(elementwise)
    def elementwise_adding(
        in_params: str,
        out_params: str,
        operation: str,
        name: str,
        **kwargs: Any,
    ) -> Any:
        if 'atomicAdd' in operation:
            kwargs['preamble'] = _ADD_FLOAT + kwargs.get('preamble', '')
        return elementwise(in_params, out_params, operation, name, **kwargs)

    cuda.elementwise = elementwise_adding


FIXES = (
    Fix(
        module='chainer.backends.cuda',
        broken='atomicAdd no longer converts what it adds to a float16',
        when='cupy >= 14',
        apply=_fix_elementwise,
    ),
)
