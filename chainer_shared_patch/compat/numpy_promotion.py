"""What NumPy 2 silently computes in another data type than NumPy 1.

A Python number takes the type of the NumPy scalar or array that it is combined
with. So it does not widen a float16 or float32 scalar to float64, and a count
beyond 65,504 becomes infinite when combined with float16. Conversely, a
float64 scalar now widens a float32 array.
"""

from __future__ import annotations

from collections.abc import Callable
import copy
import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix, lent
import numpy


def widen(value: Any) -> Any:
    """Widens a NumPy scalar as NumPy 1 did when it added an int."""
    if isinstance(value, (numpy.generic, numpy.ndarray)) and value.ndim == 0:
        return value.astype(numpy.promote_types(value.dtype, numpy.int64))
    return value


def _fix_reporter(module: Any) -> None:
    add = module.Summary.add

    @functools.wraps(add)
    def add_widened(self: Any, value: Any, weight: Any = 1) -> None:
        add(self, widen(value), widen(weight))

    module.Summary.add = add_widened


def _fix_micro_average(module: Any) -> None:
    call = module.MicroAverage.__call__

    @functools.wraps(call)
    def call_widened(self: Any, trainer: Any) -> None:
        if isinstance(self._numerator, int):
            self._numerator = numpy.float64(self._numerator)
        if isinstance(self._denominator, int):
            self._denominator = numpy.float64(self._denominator)
        call(self, trainer)

    module.MicroAverage.__call__ = call_widened


def _fix_basic_math(module: Any) -> None:
    div = module.div
    variable = module.variable.Variable

    @functools.wraps(div)
    def div_by_number(self: Any, rhs: Any) -> Any:
        # Chainer takes the reciprocal, and that of a Python zero is an error.
        if isinstance(rhs, (numpy.integer, numpy.floating)):
            rhs = rhs.astype(numpy.promote_types(rhs.dtype, numpy.float64))
        return div(self, rhs)

    module.div = div_by_number
    # Already there if Chainer was imported before.
    for name in ('__div__', '__truediv__'):
        if getattr(variable, name, None) is div:
            setattr(variable, name, div_by_number)


def _fix_gradient_clipping(module: Any) -> None:
    module.sum = lambda values: sum(map(widen, values))


def _fix_gradient_lars(module: Any) -> None:
    call = module.GradientLARS.__call__

    @functools.wraps(call)
    def call_widened(self: Any, rule: Any, param: Any) -> None:
        if param.device.xp is numpy:
            self = copy.copy(self)
            self.eps = numpy.float64(self.eps)
        call(self, rule, param)

    module.GradientLARS.__call__ = call_widened


def _widen_eps(update: Any) -> Any:
    @functools.wraps(update)
    def update_widened(self: Any, param: Any) -> None:
        widen_eps = numpy.float64 if param.array.ndim == 0 else float
        eps = widen_eps(self.hyperparam.eps)
        with lent(vars(self.hyperparam), 'eps', eps):
            update(self, param)

    return update_widened


def _count_in_numpy(module: Any) -> None:
    module.len = lambda x: numpy.int64(len(x))


def _decorate(
    methods: str, decorator: Callable[[Any], Any], module: Any
) -> None:
    for name in methods.split():
        cls_name, method = name.split('.')
        cls = getattr(module, cls_name)
        setattr(cls, method, decorator(getattr(cls, method)))


def _scale_in_float64(method: Any) -> Any:
    @functools.wraps(method)
    def scaled_in_float64(self: Any, *args: Any) -> Any:
        if isinstance(self.spatial_scale, (int, float)):
            self.spatial_scale = numpy.float64(self.spatial_scale)
        return method(self, *args)

    return scaled_in_float64


def _compute_in_float32(method: Any) -> Any:
    from chainer.utils import precision

    return precision._fp16_mixed_precision_helper(method)


def _to_python(value: Any) -> Any:
    if isinstance(value, (numpy.generic, numpy.ndarray)) and value.ndim == 0:
        return value.item()
    return value


def _take_python_numbers(init: Any) -> Any:
    @functools.wraps(init)
    def init_with_python_numbers(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = {name: _to_python(value) for name, value in kwargs.items()}
        init(self, *map(_to_python, args), **kwargs)

    return init_with_python_numbers


def _fix(module: str, broken: str, apply: Any) -> Fix:
    return Fix('chainer.' + module, broken, 'numpy >= 2', apply)


def _fix_methods(
    broken: str, decorator: Callable[[Any], Any], methods: dict[str, str]
) -> list[Fix]:
    """Makes a fix for each module, which decorates its methods."""
    return [
        _fix(module, broken, functools.partial(_decorate, names, decorator))
        for module, names in methods.items()
    ]


FIXES = (
    *(
        _fix(
            module,
            'means of float16 or float32 values are not taken in float64',
            apply,
        )
        for module, apply in (
            ('reporter', _fix_reporter),
            ('training.extensions.micro_average', _fix_micro_average),
        )
    ),
    _fix(
        'functions.math.basic_math',
        'division by a NumPy scalar has the precision of that scalar',
        _fix_basic_math,
    ),
    _fix(
        'optimizer_hooks.gradient_clipping',
        'the norm of float16 gradients overflows at 256',
        _fix_gradient_clipping,
    ),
    _fix(
        'optimizer_hooks.gradient_lars',
        'eps becomes 0 in float16, and the new gradient 0 / 0',
        _fix_gradient_lars,
    ),
    *_fix_methods(
        'eps becomes 0 with a 0-dimensional float16 parameter, and the new '
        'value 0 / 0',
        _widen_eps,
        {
            'optimizers.ada_grad': 'AdaGradRule.update_core_cpu',
            'optimizers.smorms3': 'SMORMS3Rule.update_core_cpu',
        },
    ),
    *_fix_methods(
        'regions are scaled in their own data type, not in float64',
        _scale_in_float64,
        {
            'functions.pooling.roi_average_align_2d': (
                'ROIAverageAlign2D.forward_cpu ROIAverageAlign2D.backward_cpu'
            ),
            'functions.pooling.roi_average_pooling_2d': (
                'ROIAveragePooling2D.forward_cpu '
                'ROIAveragePooling2D.backward_cpu'
            ),
            'functions.pooling.roi_max_align_2d': (
                'ROIMaxAlign2D.forward_cpu ROIMaxAlign2D.backward_cpu'
            ),
            'functions.pooling.roi_max_pooling_2d': (
                'ROIMaxPooling2D.forward_cpu'
            ),
            'functions.pooling.roi_pooling_2d': (
                'ROIPooling2D.forward_cpu ROIPooling2DGrad.forward_cpu'
            ),
        },
    ),
    *(
        _fix(
            'functions.loss.' + name,
            'a batch of more than 65,504 makes float16 results 0 or NaN',
            _count_in_numpy,
        )
        for name in ('cross_covariance', 'ctc', 'decov', 'hinge')
    ),
    *_fix_methods(
        'a Python number beyond 65,504 becomes infinite in float16',
        _compute_in_float32,
        {
            'functions.activation.elu': 'ELU.forward_cpu',
            'functions.activation.leaky_relu': (
                'LeakyReLU.forward_cpu _LeakyReLUGrad.forward_cpu'
            ),
            'functions.activation.softplus': (
                'Softplus.forward_cpu SoftplusGrad.forward_cpu'
            ),
            'functions.loss.mean_squared_error': (
                'MeanSquaredError.forward_cpu'
            ),
            'functions.loss.triplet': 'Triplet.forward',
            'functions.pooling.average_pooling_2d': (
                'AveragePooling2DGrad.forward_cpu'
            ),
            'functions.pooling.average_pooling_nd': (
                'AveragePoolingNDGrad.forward_cpu'
            ),
        },
    ),
    *_fix_methods(
        'a NumPy scalar as a hyperparameter turns float32 into float64',
        _take_python_numbers,
        {
            'functions.normalization.batch_normalization': (
                'FixedBatchNormalization.__init__'
            ),
            'functions.normalization.batch_renormalization': (
                'BatchRenormalizationFunction.__init__'
            ),
            'functions.normalization.layer_normalization': (
                'LayerNormalization.__init__'
            ),
            'functions.normalization.local_response_normalization': (
                'LocalResponseNormalization.__init__'
            ),
        },
    ),
    *_fix_methods(
        'the reciprocal of a NumPy scalar has the precision of that scalar',
        _take_python_numbers,
        {
            'functions.activation.softplus': 'Softplus.__init__',
            'functions.noise.dropout': 'Dropout.__init__',
            'functions.noise.simplified_dropconnect': (
                'SimplifiedDropconnect.__init__'
            ),
        },
    ),
)
