"""The arithmetic of a shared layer.

With ``n = common_num``, ``k = in_size / n`` and the blocks
:math:`x_j = x_{:, jk:(j+1)k}` of the input, a shared layer computes

.. math::

    y &= x \\cdot \\mathrm{tile}(W^\\top, (n, 1)) + b
       = \\Bigl(\\sum_j x_j\\Bigr) W^\\top + b, \\\\
    g_x &= \\mathrm{tile}(g_y W, (1, n)), \\\\
    g_W &= g_y^\\top \\sum_j x_j.

The first form of :math:`y` is that of the article "Tinkering with Chainer's
connections to make a new layer" (masataka46, 2016). The second follows from
it because the product is linear; the gradients follow from the chain rule.

The algorithm ``'sum'`` computes the right-hand sides. ``'tile'`` follows the
definition: it builds the wide weight and multiplies by it.

With :math:`g` orders of the inputs, the outputs are cut into as many slices,
and each slice :math:`y_s` is the output of such a layer of its own, with the
rows :math:`W_s` of the weight and the order :math:`p_s` of the inputs.
"""

from __future__ import annotations

from typing import Any, Union

from chainer_shared_patch import blocks, config
import chainer
from chainer.function_node import FunctionNode
from chainer.functions.array.cast import Cast
from chainer.functions.connection import linear
from chainer.functions.math.sum import Sum
from chainer.graph_optimizations import static_code
from chainer.types import NdArray
from chainer.utils import type_check
from chainer.variable import Variable
import numpy

# What Chainer's functions take.
VariableOrArray = Union[Variable, NdArray]


# Of what has been shared in this process, in order: the shape of W, and n.
shared_weights: dict[tuple[tuple[int, ...], int], None] = {}


class SharedLinearFunction(linear.LinearFunction):
    """A ``LinearFunction`` whose weight the blocks of the input share.

    Under the patch, the ``LinearFunction`` of a shared layer becomes one
    before it runs. Its backward pass then depends neither on the configuration
    nor on the patch, and hooks, graphs and exporters see a shared layer.

    Args:
        common_num (int): The number of blocks.
        shared_algorithm (str): ``'sum'`` or ``'tile'``.
        order (array): The orders in which the columns of the input form the
            blocks: an integer array of shape ``(in_size,)`` or
            ``(g, in_size)``. If ``None``, each block is contiguous.

    .. admonition:: Example

        >>> from chainer_shared_patch import patched
        >>> import chainer.functions as F
        >>> import numpy as np
        >>> x = np.ones((2, 20), np.float32)
        >>> W = np.ones((3, 2), np.float32)
        >>> with patched(common_num=10):
        ...     y = F.linear(x, W)
        >>> y.creator.label
        'SharedLinearFunction (common_num=10)'

    """

    _summed_x: NdArray

    def __init__(
        self,
        common_num: int,
        shared_algorithm: config.Algorithm,
        order: NdArray | None = None,
    ) -> None:
        self.common_num = common_num
        self.shared_algorithm = shared_algorithm
        self.order = order

    @property
    def label(self) -> str:
        """str: What hooks, graphs and error messages call the function."""
        orders = blocks.count_orders(self.order)
        return f'SharedLinearFunction (common_num={self.common_num}' + (
            f', orders={orders})' if orders > 1 else ')'
        )

    def check_type_forward(self, in_types: Any) -> None:
        n_in = in_types.size()
        type_check.expect(n_in >= 2, n_in <= 3)
        x_type, W_type = in_types[:2]
        type_check._argname((x_type, W_type), ('x', 'W'))
        type_check.expect(
            x_type.dtype.kind == 'f',
            W_type.dtype.kind == 'f',
            x_type.ndim == 2,
            W_type.ndim == 2,
        )
        n = self.common_num
        x_shape = type_check.eval(x_type.shape)
        W_shape = type_check.eval(W_type.shape)
        if x_shape[1] != n * W_shape[1]:
            how = compare_widths(x_shape, W_shape)
            raise type_check.InvalidType(
                f'x.shape[1] == {n} * W.shape[1]',
                f'{x_shape[1]} != {n} * {W_shape[1]} '
                f'(x.shape is {x_shape}, W.shape is {W_shape}'
                + (f'; {how})' if how else ')'),
            )
        if type_check.eval(n_in) == 3:
            b_type = in_types[2]
            type_check._argname((b_type,), ('b',))
            type_check.expect(
                b_type.dtype == x_type.dtype,
                b_type.ndim == 1,
                b_type.shape[0] == W_type.shape[0],
            )

    def forward_chainerx(self, inputs: tuple[NdArray, ...]) -> Any:
        return chainer.Fallback

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        if not chainer.config.type_check:
            # Of other widths, it would compute something else.
            self._check_data_type_forward(inputs)
        x, W, *b = inputs
        shared_weights[W.shape, self.common_num] = None
        if self.shared_algorithm == 'sum':
            (x,) = _static_sum_blocks(
                self.common_num, W.dtype, self.order, inputs=[x]
            )
            self._summed_x = x
        else:
            (W,) = _static_tile_blocks(self.common_num, self.order, inputs=[W])
        if x.shape[1] == W.shape[1]:
            # So Chainer's own method takes over. The indexes that it retains
            # are those of the whole x and the narrow W.
            (y,) = super().forward((x, W, *b))
        else:
            (y,) = _static_multiply_slices(self.order, inputs=[x, W, *b])
            self._config_use_ideep = chainer.config.use_ideep
            self.retain_inputs((0, 1))
        if y.dtype != inputs[0].dtype:
            (y,) = _static_cast(inputs[0].dtype, inputs=[y])
        return (y,)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> list[Variable]:
        n, order = self.common_num, self.order
        orders = blocks.count_orders(order)
        x: Any
        W: Any
        x, W = self.get_retained_inputs()
        gy: Any = chainer.as_variable(grad_outputs[0])
        run = _apply
        if not (
            chainer.config.enable_backprop
            or chainer.config.schedule_func is not None  # a static graph
            or chainer.is_debug()
        ):
            # Without a graph, arrays suffice, which takes less time.
            x, W, gy = x.array, W.array, gy.array
            run = _forward

        def cast(array: Any, dtype: numpy.dtype[Any]) -> Any:
            return array if array.dtype == dtype else run(Cast(dtype), array)

        to_data: FunctionNode = linear.LinearGradData()
        to_weight: FunctionNode = linear.LinearGradWeight(W.dtype)
        if orders > 1 and self.shared_algorithm == 'sum':
            to_data = SlicedProduct('x', orders)
            to_weight = SlicedProduct('W', orders)
        grads = []
        with chainer.using_config('use_ideep', self._config_use_ideep):
            if self.shared_algorithm == 'sum':
                if 0 in indexes:
                    # The gradient of this is a sum of blocks.
                    wide_gy = cast(gy, blocks.sum_dtype(gy))
                    gx = run(to_data, W, wide_gy)
                    gx = run(blocks.TileBlocks(n, order), gx)
                    grads.append(cast(gx, x.dtype))
                if 1 in indexes:
                    summed_x = self._summed_x
                    if chainer.config.enable_backprop:
                        # What forward kept is not part of the graph of x.
                        summed_x = run(blocks.SumBlocks(n, W.dtype, order), x)
                    gW = run(to_weight, summed_x, gy)
                    grads.append(cast(gW, W.dtype))
            else:
                if 0 in indexes:
                    tiled_W = run(blocks.TileBlocks(n, order, True), W)
                    gx = run(to_data, tiled_W, gy)
                    grads.append(cast(gx, x.dtype))
                if 1 in indexes:
                    tiled_gW = run(to_weight, x, gy)
                    to_sum = blocks.SumBlocks(n, W.dtype, order, True)
                    gW = run(to_sum, tiled_gW)
                    grads.append(cast(gW, W.dtype))
            if 2 in indexes:
                grads.append(run(Sum(axis=0), gy))
        return [chainer.as_variable(grad) for grad in grads]


class SlicedProduct(FunctionNode):
    """One of the three arrays in the products of all slices.

    Of :math:`x` with ``orders * k`` columns, the sums in each order; of
    :math:`W` of shape ``(out_size, k)``; and of :math:`y` with ``out_size``
    columns, it computes one from the other two:

    .. math::

        y_s = x_s W_s^\\top, \\quad x_s = y_s W_s, \\quad
        W_s = y_s^\\top x_s.

    Each is what the third array is multiplied by in
    :math:`\\sum_s \\mathrm{tr}(y_s^\\top x_s W_s^\\top)`, so the derivatives
    of each are the other two.

    Args:
        wanted (str): The array to compute: ``'x'``, ``'W'`` or ``'y'``. The
            inputs are the other two, in this order.
        orders (int): The number of slices.

    """

    def __init__(self, wanted: str, orders: int) -> None:
        self.wanted = wanted
        self.given = [name for name in 'xWy' if name != wanted]
        self.orders = orders

    def forward(self, inputs: tuple[NdArray, ...]) -> tuple[NdArray, ...]:
        self.retain_inputs((0, 1))
        xp: Any = chainer.backend.get_array_module(*inputs)
        dtype = numpy.result_type(*inputs)
        x: Any
        W: Any
        y: Any
        x, W, y = map(dict(zip(self.given, inputs)).get, 'xWy')
        out_size = len(W) if y is None else y.shape[1]
        k = x.shape[1] // self.orders if W is None else W.shape[1]
        slices = blocks.slice_evenly(out_size, self.orders)
        columns = blocks.slice_evenly(self.orders * k, self.orders)
        if self.wanted == 'y':
            result = y = xp.empty((len(x), out_size), dtype)
            for s, c in zip(slices, columns):
                xp.matmul(x[:, c], W[s].T, out=y[:, s])
        elif self.wanted == 'x':
            # Transposed, because that is what tile_blocks gathers from.
            result = xp.empty((self.orders * k, len(y)), dtype).T
            for s, c in zip(slices, columns):
                xp.matmul(W[s].T, y[:, s].T, out=result.T[c])
        else:
            result = xp.empty((out_size, k), dtype)
            for s, c in zip(slices, columns):
                xp.matmul(y[:, s].T, x[:, c], out=result[s])
        return (result,)

    def backward(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Variable, ...]
    ) -> tuple[Variable, ...]:
        arrays = dict(zip(self.given, self.get_retained_inputs()))
        arrays[self.wanted] = grad_outputs[0]
        grads = []
        for i in indexes:
            product = SlicedProduct(self.given[i], self.orders)
            grad = _apply(product, *(arrays[each] for each in product.given))
            dtype = arrays[self.given[i]].dtype
            grads.append(chainer.functions.cast(grad, dtype))
        return tuple(grads)


def compare_widths(x_shape: Any, W_shape: Any) -> str:
    """Says how many times as wide as ``W`` a matrix is, if evenly."""
    if not len(x_shape) == len(W_shape) == 2 or W_shape[1] == 0:
        return ''
    times, rest = divmod(x_shape[1], W_shape[1])
    return '' if rest or times < 2 else f'x is {times} times as wide as W'


def _apply(function: FunctionNode, *inputs: VariableOrArray) -> Any:
    return function.apply(inputs)[0]


def _forward(function: FunctionNode, *inputs: NdArray) -> Any:
    return function.forward(inputs)[0]


# A static graph reruns only static code, and follows only the arrays that are
# inputs or outputs of static code.


@static_code
def _static_sum_blocks(
    common_num: int,
    dtype: numpy.dtype[Any],
    order: NdArray | None,
    inputs: list[NdArray],
) -> tuple[NdArray]:
    return (blocks.sum_blocks(inputs[0], common_num, dtype, order),)


@static_code
def _static_tile_blocks(
    common_num: int, order: NdArray | None, inputs: list[NdArray]
) -> tuple[NdArray]:
    return (blocks.tile_blocks(inputs[0], common_num, order, True),)


@static_code
def _static_multiply_slices(
    order: NdArray, inputs: list[NdArray]
) -> tuple[NdArray]:
    x, W, *b = inputs
    (y,) = SlicedProduct('y', blocks.count_orders(order)).forward((x, W))
    for each in b:
        y += each
    return (y,)


@static_code
def _static_cast(
    dtype: numpy.dtype[Any], inputs: list[NdArray]
) -> tuple[NdArray]:
    return (inputs[0].astype(dtype),)


def shared_linear(
    x: VariableOrArray,
    W: VariableOrArray,
    b: VariableOrArray | None,
    common_num: int,
    order: NdArray | None = None,
) -> Variable:
    """Applies a shared layer, whether or not the patch is installed.

    .. math::
        y_{bo} = \\sum_i W_{oi} \\sum_{j=0}^{n-1} x_{b, p_{s(o), jk+i}} + b_o

    With :math:`n` = ``common_num``, this is an ordinary layer with the weight
    tiled :math:`n` times, as in "Tinkering with Chainer's connections to make
    a new layer" (masataka46, 2016), where the outputs of slice :math:`s` take
    the inputs in the order :math:`p_s`.

    Args:
        x (chainer.Variable or array): Float matrix of shape
            ``(B, common_num * k)``.
        W (chainer.Variable or array): Float matrix of shape
            ``(out_size, k)``.
        b (chainer.Variable, array or None): Vector of shape ``(out_size,)``,
            with the dtype of ``x``.
        common_num (int): The number of blocks.
        order (array): The orders :math:`p` in which the columns of ``x`` form
            the blocks: an integer permutation of shape ``(common_num * k,)``,
            or several, of shape ``(g, common_num * k)``, one for each of ``g``
            slices of the outputs, those of ``numpy.array_split``. If ``None``,
            each block is contiguous.

    Returns:
        chainer.Variable: Matrix of shape ``(B, out_size)``, with the dtype of
        ``x``.

    Raises:
        chainer.utils.type_check.InvalidType: If the shapes or dtypes do not
            fit each other.
        ValueError: If ``common_num`` is not an integer of at least 1,
            ``order`` is neither ``None`` nor permutations of the columns of
            ``x``, or ``chainer.config.shared_algorithm`` is neither ``'sum'``
            nor ``'tile'``.

    .. admonition:: Example

        >>> import numpy as np
        >>> from chainer_shared_patch.functions import shared_linear
        >>> x = np.array([[1., 2., 10., 20.]])
        >>> W = np.array([[1., 0.], [1., 1.]])
        >>> shared_linear(x, W, None, common_num=2).array
        array([[11., 33.]])

    """
    common_num = config.check_common_num(
        common_num, 'shared_linear(): common_num'
    )
    if order is not None:
        in_size = x.shape[1] if x.ndim == 2 else None
        config.check_order(order, in_size, 'None', 'shared_linear(): order')
    return apply_shared_linear(x, W, b, common_num, order)


def apply_shared_linear(
    x: VariableOrArray,
    W: VariableOrArray,
    b: VariableOrArray | None,
    common_num: int,
    order: NdArray | None,
) -> Variable:
    """Does what :func:`shared_linear` does, which checks the last two."""
    node = SharedLinearFunction(
        common_num, config.get_shared_algorithm(), order
    )
    y: Variable
    (y,) = node.apply((x, W) if b is None else (x, W, b))
    return y
