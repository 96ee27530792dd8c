"""What takes the place of ``LinearFunction``'s methods.

With ``n = common_num``, ``k = in_size / n`` and the blocks
:math:`x_j = x_{:, jk:(j+1)k}` of the input, a shared layer computes

.. math::

    y &= x \\cdot \\mathrm{tile}(W^\\top, (n, 1)) + b
       = \\Bigl(\\sum_j x_j\\Bigr) W^\\top + b, \\\\
    g_x &= \\mathrm{tile}(g_y W, (1, n)), \\\\
    g_W &= g_y^\\top \\sum_j x_j.

The algorithm ``'sum'`` computes the right-hand sides, ``'tile'`` the
definition itself: it builds the wide weight and multiplies with that.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from chainer_shared_patch import blocks, config
import chainer
from chainer.functions.array.cast import Cast
from chainer.functions.connection import linear
from chainer.functions.math.sum import Sum
from chainer.graph_optimizations import static_code
from chainer.utils import type_check
import numpy

Method = Callable[..., Any]


class SharedLinearFunction(linear.LinearFunction):
    """``LinearFunction`` of a weight that the blocks of the input share.

    A ``LinearFunction`` becomes one when its forward pass finds its layer
    shared. From then on the node carries all that its passes need, whatever
    the configuration is by then and whether or not the patch is still
    installed; and hooks, graphs and exporters see what it is.

    Attributes:
        common_num (int): The number of blocks.
        shared_algorithm (str): ``'sum'`` or ``'tile'``.
        order (:ref:`ndarray`): The order in which the columns of the input
            make up the blocks, or ``None`` if they do as they lie.

    """

    common_num: int
    shared_algorithm: str
    order: Any = None
    _summed_x: Any

    @property
    def label(self) -> str:
        return 'SharedLinearFunction (common_num={})'.format(self.common_num)

    def check_type_forward(self, in_types: Any) -> None:
        x_type, W_type = in_types[:2]
        type_check._argname((x_type, W_type), ('x', 'W'))
        type_check.expect(
            x_type.dtype.kind == 'f',
            W_type.dtype.kind == 'f',
            x_type.ndim == 2,
            W_type.ndim == 2,
        )
        x_shape, W_shape = _shapes(in_types)
        if x_shape[1] != self.common_num * W_shape[1]:
            raise type_check.InvalidType(
                'x.shape[1] == {} * W.shape[1]'.format(self.common_num),
                '{} != {} * {} (x.shape is {}, W.shape is {})'.format(
                    x_shape[1], self.common_num, W_shape[1], x_shape, W_shape
                ),
            )
        type_check.expect(in_types.size() <= 3)
        if len(in_types) == 3:
            b_type = in_types[2]
            type_check._argname((b_type,), ('b',))
            type_check.expect(
                b_type.dtype == x_type.dtype,
                b_type.ndim == 1,
                b_type.shape[0] == W_type.shape[0],
            )

    def forward_chainerx(self, inputs: tuple) -> Any:
        return chainer.Fallback

    def forward(self, inputs: tuple) -> tuple:
        if not chainer.config.type_check:
            with type_check.get_function_check_context(self):
                self.check_type_forward(
                    type_check.get_types(inputs, 'in_types', False)
                )
        x, W = inputs[:2]
        if self.shared_algorithm == 'sum':
            (x,) = _static_sum_blocks(
                self.common_num, W.dtype, self.order, inputs=[x]
            )
            self._summed_x = x
        else:
            (W,) = _static_tile_blocks(self.common_num, self.order, inputs=[W])
        # x and W now fit each other, and Chainer's own method takes over. The
        # indexes that it retains are those of the full x and the narrow W.
        (y,) = super().forward((x, W) + inputs[2:])
        if y.dtype != inputs[0].dtype:
            (y,) = _static_cast(inputs[0].dtype, inputs=[y])
        return (y,)

    def backward(self, indexes: tuple, grad_outputs: tuple) -> list:
        x, W = self.get_retained_inputs()
        gy = chainer.as_variable(grad_outputs[0])
        # Otherwise arrays are enough: nobody looks at the functions.
        if (
            chainer.config.enable_backprop
            or chainer.config.schedule_func is not None  # a static graph
            or chainer.is_debug()
        ):
            return self._backward(indexes, x, W, gy, _apply)
        arrays = x.array, W.array, gy.array
        return [
            chainer.as_variable(gradient)
            for gradient in self._backward(indexes, *arrays, _forward)
        ]

    def _backward(
        self, indexes: tuple, x: Any, W: Any, gy: Any, run: Method
    ) -> list:
        n, order = self.common_num, self.order
        summing = self.shared_algorithm == 'sum'

        def cast(x: Any, dtype: numpy.dtype) -> Any:
            return x if x.dtype == dtype else run(Cast(dtype), x)

        ret = []
        with chainer.using_config('use_ideep', self._config_use_ideep):
            if 0 in indexes:
                if summing:
                    # The gradient of this is a sum of blocks.
                    wide_gy = cast(gy, blocks.sum_dtype(gy))
                    gx = run(linear.LinearGradData(), W, wide_gy)
                    gx = run(blocks.TileBlocks(n, order), gx)
                else:
                    tiled_W = run(blocks.TileBlocks(n, order), W)
                    gx = run(linear.LinearGradData(), tiled_W, gy)
                ret.append(cast(gx, x.dtype))
            if 1 in indexes:
                if summing and chainer.config.enable_backprop:
                    # What forward has kept is no part of the graph of x.
                    x = run(blocks.SumBlocks(n, W.dtype, order), x)
                elif summing:
                    x = self._summed_x
                gW = run(linear.LinearGradWeight(W.dtype), x, gy)
                if not summing:
                    gW = run(blocks.SumBlocks(n, W.dtype, order), gW)
                ret.append(cast(gW, W.dtype))
            if 2 in indexes:
                ret.append(run(Sum(axis=0), gy))
        return ret


def _apply(function: chainer.FunctionNode, *inputs: Any) -> Any:
    return function.apply(inputs)[0]


def _forward(function: chainer.FunctionNode, *inputs: Any) -> Any:
    return function.forward(inputs)[0]


def shared_linear(
    x: Any, W: Any, b: Any, common_num: int, order: Any = None
) -> chainer.Variable:
    """Applies a shared layer, whether or not the patch is installed.

    Args:
        x (:class:`~chainer.Variable` or :ref:`ndarray`): Float matrix of
            shape ``(B, common_num * k)``.
        W (:class:`~chainer.Variable` or :ref:`ndarray`): Float matrix of
            shape ``(out_size, k)``.
        b (:class:`~chainer.Variable`, :ref:`ndarray` or None): Float vector
            of shape ``(out_size,)``.
        common_num (int): The number of blocks.
        order (:ref:`ndarray`): The order in which the columns of the input
            make up the blocks, or ``None`` if they do as they lie.

    Returns:
        ~chainer.Variable: Matrix of shape ``(B, out_size)``.

    """
    node = SharedLinearFunction()
    node.common_num = common_num
    node.shared_algorithm = config.get_shared_algorithm()
    node.order = order
    (y,) = node.apply((x, W) if b is None else (x, W, b))
    return y


# A static graph runs again only what it has seen as static code, and follows
# only the arrays that are inputs or outputs of such.


@static_code
def _static_sum_blocks(
    common_num: int, dtype: numpy.dtype, order: Any, inputs: list
) -> tuple:
    return (blocks.sum_blocks(inputs[0], common_num, dtype, order),)


@static_code
def _static_tile_blocks(common_num: int, order: Any, inputs: list) -> tuple:
    return (blocks.tile_blocks(inputs[0], common_num, order),)


@static_code
def _static_cast(dtype: numpy.dtype, inputs: list) -> tuple:
    return (inputs[0].astype(dtype),)


def _shapes(in_types: Any) -> tuple[tuple, tuple]:
    x_type, W_type = in_types[:2]
    return type_check.eval(x_type.shape), type_check.eval(W_type.shape)


def _is_shared(
    node: linear.LinearFunction, x_shape: tuple, W_shape: tuple
) -> bool:
    """Returns whether a layer is shared, and makes its node say so."""
    if x_shape[1:] == W_shape[1:]:
        return False
    if isinstance(node, SharedLinearFunction):
        return True
    common_num = config.get_common_num()
    # Arrays that are no matrices are Chainer's own to refuse.
    if common_num == 1 or len(x_shape) != 2 or len(W_shape) != 2:
        return False
    node.shared_algorithm = config.get_shared_algorithm()
    node.common_num = common_num
    cls: Any = type(node)
    node.__class__ = _shared_class(cls)
    return True


@functools.cache
def _shared_class(cls: Any) -> Any:
    if cls is linear.LinearFunction:
        return SharedLinearFunction
    return type(cls.__name__, (cls, SharedLinearFunction), {})


# What takes the place of LinearFunction's methods decides whether a layer is
# shared, and leaves it to the class above if it is. A subclass may call any of
# them by name.


def make_check_type_forward(original: Method) -> Method:
    """Makes the method that also lets the shapes of shared layers pass."""

    @functools.wraps(original)
    def check_type_forward(self: linear.LinearFunction, in_types: Any) -> None:
        try:
            return original(self, in_types)
        except type_check.InvalidType:
            if len(in_types) < 2 or not _is_shared(self, *_shapes(in_types)):
                raise
        SharedLinearFunction.check_type_forward(self, in_types)

    return check_type_forward


def make_forward(original: Method) -> Method:
    """Makes the method that computes shared layers too."""

    @functools.wraps(original)
    def forward(self: linear.LinearFunction, inputs: tuple) -> tuple:
        if _is_shared(self, inputs[0].shape, inputs[1].shape):
            return SharedLinearFunction.forward(self, inputs)
        return original(self, inputs)

    return forward


def make_forward_chainerx(original: Method) -> Method:
    """Makes the method that leaves shared layers to NumPy and CuPy."""

    @functools.wraps(original)
    def forward_chainerx(self: linear.LinearFunction, inputs: tuple) -> Any:
        if _is_shared(self, inputs[0].shape, inputs[1].shape):
            return SharedLinearFunction.forward_chainerx(self, inputs)
        return original(self, inputs)

    return forward_chainerx


def make_backward(original: Method) -> Method:
    """Makes the method that takes shared layers back the way they came."""

    @functools.wraps(original)
    def backward(
        self: linear.LinearFunction, indexes: tuple, grad_outputs: tuple
    ) -> Any:
        if isinstance(self, SharedLinearFunction):
            return SharedLinearFunction.backward(self, indexes, grad_outputs)
        return original(self, indexes, grad_outputs)

    return backward


FACTORIES: dict[str, Callable[[Method], Method]] = {
    'backward': make_backward,
    'forward_chainerx': make_forward_chainerx,
    'forward': make_forward,
    'check_type_forward': make_check_type_forward,
}
