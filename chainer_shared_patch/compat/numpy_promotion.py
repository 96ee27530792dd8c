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


def _fix_eps(class_name: str, module: Any) -> None:
    cls = getattr(module, class_name)
    update = cls.update_core_cpu

    @functools.wraps(update)
    def update_widened(self: Any, param: Any) -> None:
        widen_eps = numpy.float64 if param.array.ndim == 0 else float
        eps = widen_eps(self.hyperparam.eps)
        with lent(vars(self.hyperparam), 'eps', eps):
            update(self, param)

    cls.update_core_cpu = update_widened


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
    return Fix(
        module='chainer.' + module,
        broken=broken,
        when='numpy >= 2',
        apply=apply,
    )


FIXES = (
    _fix(
        'reporter',
        'means of float16 or float32 values are not taken in float64',
        _fix_reporter,
    ),
    _fix(
        'training.extensions.micro_average',
        'means of float16 or float32 values are not taken in float64',
        _fix_micro_average,
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
    *(
        _fix(
            'optimizers.' + name,
            'eps becomes 0 with a 0-dimensional float16 parameter, and the '
            'new value 0 / 0',
            functools.partial(_fix_eps, class_name),
        )
        for name, class_name in (
            ('ada_grad', 'AdaGradRule'),
            ('smorms3', 'SMORMS3Rule'),
        )
    ),
    *(
        _fix(
            'functions.pooling.' + name,
            'regions are scaled in their own data type, not in float64',
            functools.partial(_decorate, methods, _scale_in_float64),
        )
        for name, methods in (
            (
                'roi_average_align_2d',
                'ROIAverageAlign2D.forward_cpu ROIAverageAlign2D.backward_cpu',
            ),
            (
                'roi_average_pooling_2d',
                'ROIAveragePooling2D.forward_cpu '
                'ROIAveragePooling2D.backward_cpu',
            ),
            (
                'roi_max_align_2d',
                'ROIMaxAlign2D.forward_cpu ROIMaxAlign2D.backward_cpu',
            ),
            ('roi_max_pooling_2d', 'ROIMaxPooling2D.forward_cpu'),
            (
                'roi_pooling_2d',
                'ROIPooling2D.forward_cpu ROIPooling2DGrad.forward_cpu',
            ),
        )
    ),
    *(
        _fix(
            'functions.loss.' + name,
            'a batch of more than 65,504 makes float16 results 0 or NaN',
            _count_in_numpy,
        )
        for name in ('cross_covariance', 'ctc', 'decov', 'hinge')
    ),
    *(
        _fix(
            'functions.' + name,
            'a Python number beyond 65,504 becomes infinite in float16',
            functools.partial(_decorate, methods, _compute_in_float32),
        )
        for name, methods in (
            ('activation.elu', 'ELU.forward_cpu'),
            (
                'activation.leaky_relu',
                'LeakyReLU.forward_cpu _LeakyReLUGrad.forward_cpu',
            ),
            (
                'activation.softplus',
                'Softplus.forward_cpu SoftplusGrad.forward_cpu',
            ),
            ('loss.mean_squared_error', 'MeanSquaredError.forward_cpu'),
            ('loss.triplet', 'Triplet.forward'),
            (
                'pooling.average_pooling_2d',
                'AveragePooling2DGrad.forward_cpu',
            ),
            (
                'pooling.average_pooling_nd',
                'AveragePoolingNDGrad.forward_cpu',
            ),
        )
    ),
    *(
        _fix(
            'functions.normalization.' + name,
            'a NumPy scalar as a hyperparameter turns float32 into float64',
            functools.partial(_decorate, methods, _take_python_numbers),
        )
        for name, methods in (
            ('batch_normalization', 'FixedBatchNormalization.__init__'),
            ('batch_renormalization', 'BatchRenormalizationFunction.__init__'),
            ('layer_normalization', 'LayerNormalization.__init__'),
            (
                'local_response_normalization',
                'LocalResponseNormalization.__init__',
            ),
        )
    ),
    *(
        _fix(
            'functions.' + name,
            'the reciprocal of a NumPy scalar has the precision of that '
            'scalar',
            functools.partial(_decorate, methods, _take_python_numbers),
        )
        for name, methods in (
            ('activation.softplus', 'Softplus.__init__'),
            ('noise.dropout', 'Dropout.__init__'),
            ('noise.simplified_dropconnect', 'SimplifiedDropconnect.__init__'),
        )
    ),
)
