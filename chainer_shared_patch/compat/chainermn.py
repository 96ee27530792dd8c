"""What is broken in ChainerMN, mostly by newer NumPy, CuPy and Python."""

from __future__ import annotations

from collections.abc import Callable
import copy
import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix
from chainer_shared_patch.compat.numpy_promotion import widen
import numpy


def _int(value: Any) -> int:
    return int(numpy.asarray(value).item())


def _fix_multi_node_iterator(module: Any) -> None:
    # The size of the data set arrives as an array of one element.
    module.int = _int


def _fix_observation_aggregator(module: Any) -> None:
    average = module._average_2d

    @functools.wraps(average)
    def average_widened(xs: list[list[Any]]) -> Any:
        return average([[widen(x) for x in row] for row in xs])

    module._average_2d = average_widened


def _fix_aggregated_variables(module: Any) -> None:
    aggregator = module.ObservationAggregator
    compute_summary = aggregator.compute_summary

    @functools.wraps(compute_summary)
    def compute_summary_of_arrays(self: Any, trainer: Any) -> Any:
        import chainer

        observation = trainer.observation
        value = observation.get(self.original_key)
        if isinstance(value, module.Variable):
            array = chainer.get_device('@numpy').send(value.array)
            trainer.observation = {**observation, self.original_key: array}
        try:
            return compute_summary(self, trainer)
        finally:
            trainer.observation = observation

    aggregator.compute_summary = compute_summary_of_arrays


def _fix_resuming(module: Any) -> None:
    is_changed = module._MultiNodeOptimizer.is_changed

    @functools.wraps(is_changed)
    def is_changed_or_new(self: Any, target: Any) -> Any:
        is_first = not self.target_params
        changed = is_changed(self, target)
        if is_first and changed:
            # Unless all have resumed, rank 0 has what the others lack.
            resumed = self.communicator.allreduce_obj(int(self.t > 0))
            return resumed < self.communicator.size
        return changed

    module._MultiNodeOptimizer.is_changed = is_changed_or_new


def _fix_memory_utility(module: Any) -> None:
    @functools.wraps(module.unpack_params)
    def unpack_params(
        params: list[Any],
        attr_name: str,
        buffer: Any,
        transfer_dtype: Any,
        zero_fill: bool,
        stream: Any = None,
    ) -> None:
        offset = 0
        for param in params:
            array = getattr(param, attr_name)
            if array is None and attr_name == 'grad' and zero_fill:
                array = param.xp.empty_like(param.data)
                setattr(param, attr_name, array)
            received = array.astype(transfer_dtype, copy=False)
            buffer.to_device(received, received.nbytes, offset, stream)
            offset += received.nbytes
            if received is not array:
                array[...] = received.astype(array.dtype)

    module.unpack_params = unpack_params


def _fix_batched_copies(module: Any) -> None:
    # NVRTC knows half from this header alone, which cupy/carray.cuh included.
    def include(make: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(make)
        def make_including() -> Any:
            kernel = make()
            code = '#include <cuda_fp16.h>\n' + kernel.code
            return module.chainer.cuda.raw(code, kernel.name)

        return make_including

    for name in ('_cupy_batched_pack_params', '_cupy_batched_unpack_params'):
        setattr(module, name, include(getattr(module, name)))


def _fix_batch_normalization(module: Any) -> None:
    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        memo[id(self.comm)] = self.comm
        copied = memo[id(self)] = copy.copy(self)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    module.MultiNodeBatchNormalization.__deepcopy__ = deepcopy


FIXES = (
    Fix(
        module='chainermn.iterators.multi_node_iterator',
        broken='int() of an array of one element is a TypeError',
        when='numpy >= 2.4',
        apply=_fix_multi_node_iterator,
    ),
    Fix(
        module='chainermn.extensions.observation_aggregator',
        broken='the average of float16 or float32 is not taken in float64',
        when='numpy >= 2',
        apply=_fix_observation_aggregator,
    ),
    Fix(
        module='chainermn.extensions.observation_aggregator',
        broken='observations that are variables need ChainerX',
        when=None,
        apply=_fix_aggregated_variables,
    ),
    Fix(
        module='chainermn.optimizers',
        broken='the first update after a resume only broadcasts the weights',
        when=None,
        apply=_fix_resuming,
    ),
    Fix(
        module='chainermn.communicators._memory_utility',
        broken='array(copy=False), with another dtype, is a ValueError',
        when='numpy >= 2',
        apply=_fix_memory_utility,
    ),
    Fix(
        module='chainermn.communicators._memory_utility',
        broken='the kernels that copy gradients use an unknown type, half',
        when='cupy >= 14',
        apply=_fix_batched_copies,
    ),
    Fix(
        module='chainermn.links.batch_normalization',
        broken='copy.deepcopy of super() recurses without end',
        when='python >= 3.14',
        apply=_fix_batch_normalization,
    ),
)
