"""SharedLinear, the link of a shared layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import operator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, Union

from chainer_shared_patch import blocks, config, loading
from chainer_shared_patch.config import check_divides, check_order
from chainer_shared_patch.functions import VariableOrArray, apply_shared_linear
import chainer
from chainer import initializers
from chainer.backends.cuda import to_cpu
import chainer.functions as F
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.types import InitializerSpec, NdArray
from chainer.utils import size_of_shape
from chainer.variable import Parameter, Variable
import numpy

Initializer = Union[InitializerSpec, NdArray, float]
Permutation = Union[
    Sequence[Union[SupportsIndex, Sequence[SupportsIndex]]],
    numpy.ndarray,
    Variable,
]
_SCALED_BY_ROW = (
    initializers.LeCunNormal,
    initializers.LeCunUniform,
    initializers.Normal,
    initializers.Uniform,
)
# Which inputs share.
Order = Union[Literal['interleaved'], Permutation]


class _FirstBlock(chainer.initializer.Initializer):
    """Draws an ordinary layer's W, and keeps its first block.

    Each output adds up all inputs, so the fan-in to scale for is their
    number, not the width of W.
    """

    def __init__(
        self, initializer: Callable[[NdArray], None], common_num: int
    ) -> None:
        super().__init__(getattr(initializer, 'dtype', None))
        self.initializer = initializer
        self.common_num = common_num

    def __call__(self, array: Any) -> None:
        out_size, k = array.shape
        xp = chainer.backend.get_array_module(array)
        # A few rows at a time save memory, where the fan-out plays no part.
        by_row = type(self.initializer) in _SCALED_BY_ROW
        rows = 64 if by_row else max(1, out_size)
        for start in range(0, out_size, rows):
            part = array[start : start + rows]
            wide = xp.empty((len(part), k * self.common_num), array.dtype)
            self.initializer(wide)
            part[...] = wide[:, :k]


def _check_floats(name: str, param: Any, ndim: int) -> Any:
    array: Any = chainer.as_array(param)
    shape, dtype = getattr(array, 'shape', ()), getattr(array, 'dtype', None)
    if len(shape) != ndim or getattr(dtype, 'kind', None) != 'f':
        raise ValueError(
            f'SharedLinear.from_params(): {name} must be a float array of '
            f'{ndim} axes, but is '
            + (f'of shape {shape} and dtype {dtype}' if dtype else repr(param))
        )
    return array


def _is_interleaved(order: Any) -> bool:
    return isinstance(order, str) and order == 'interleaved'


class SharedLinear(Linear):
    """Linear layer that uses one weight for all blocks of its input.

    With :math:`n` = ``common_num``, :math:`k` = ``in_size / n`` and the order
    :math:`p` of the inputs, it computes

    .. math::
        y = W \\sum_{j=0}^{n-1} (x_{p_{jk}}, ..., x_{p_{jk+k-1}})^\\top + b,

    as an ordinary layer with the weight tiled :math:`n` times would. The idea
    is from the article "Tinkering with Chainer's connections to make a new
    layer" (masataka46, 2016).

    With several orders, the outputs are cut into as many slices, as even as
    they go, and each slice sums the inputs in an order of its own. ``W`` stays
    as large, and so does its product; only the sums are computed several
    times. With an order for each output, this is a HashedNet (Chen et al.,
    "Compressing Neural Networks with the Hashing Trick", 2015).

    The layer works with or without the patch, and whatever
    ``chainer.config.common_num`` is. Serializing it saves ``common_num`` and
    the order too. A link that loads them must have the same ``common_num``; it
    takes over the order.

    Args:
        in_size (int or None): The full width of the input, at least 1. If it
            is ``None``, or if ``out_size`` is omitted, the width is the length
            of ``order``, if given, or else that of the first input.
        out_size (int): The width of the output.
        nobias (bool): If ``True``, there is no bias.
        initialW (initializer): The initial weight: an initializer, a number,
            or an array of the shape of ``W``. An initializer draws as for an
            ordinary layer with ``in_size`` inputs. By default it is
            ``chainer.initializers.LeCunNormal`` (LeCun et al., "Efficient
            BackProp", 1998).
        initial_bias (initializer): The initial bias, zero by default.
        common_num (int): The number of blocks, which divides ``in_size``.
        order (str or array): Which inputs share: input ``order[j * k + i]`` is
            in block ``j`` and uses column ``i`` of ``W``. Either an integer
            permutation of shape ``(in_size,)``; or several, of shape
            ``(g, in_size)``, for ``g`` slices of the outputs, those of
            ``numpy.array_split``; or ``'interleaved'``, where each ``n``
            neighbours use the same column; or ``None``, where each block is
            contiguous.

    Raises:
        TypeError: If ``in_size`` or ``out_size`` is not an integer.
        ValueError: If ``common_num`` is not an integer of at least 1,
            ``in_size`` is less than 1, ``common_num`` does not divide it, or
            ``order`` is neither ``None`` nor ``'interleaved'`` nor
            permutations of the inputs.

    Attributes:
        W (chainer.Parameter): The weight, of shape
            ``(out_size, in_size / common_num)``.
        b (chainer.Parameter): The bias, of shape ``(out_size,)``, or ``None``.
        in_size (int): The full width of the input, or ``None`` before the
            first input.
        out_size (int): The width of the output.
        common_num (int): The number of blocks.
        order (array): The order of the inputs, an array of shape
            ``(in_size,)``, or ``(g, in_size)`` for several, in the smallest
            unsigned integer dtype that holds it; ``None`` where each block is
            contiguous; and ``'interleaved'`` as long as the width is not
            known.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> import numpy as np
        >>> layer = chainer_shared_patch.SharedLinear(1000, 900, common_num=10)
        >>> layer.W.shape
        (900, 100)
        >>> layer(np.ones((32, 1000), np.float32)).shape
        (32, 900)

        Here, every two neighbours share a column:

        >>> layer = chainer_shared_patch.SharedLinear(
        ...     6, 1, common_num=2, order='interleaved')
        >>> layer.order
        array([0, 2, 4, 1, 3, 5], dtype=uint8)

        Here, the first three outputs sum the inputs in one order, and the
        other two in another:

        >>> layer = chainer_shared_patch.SharedLinear(
        ...     4, 5, common_num=2, order=[[0, 1, 2, 3], [0, 2, 1, 3]])
        >>> layer.W.shape
        (5, 2)

    """

    W: Parameter
    b: Parameter | None
    _order: blocks.CurrentOrder

    def __init__(
        self,
        in_size: SupportsIndex | None,
        out_size: SupportsIndex | None = None,
        nobias: bool = False,
        initialW: Initializer | None = None,
        initial_bias: Initializer | None = None,
        *,
        common_num: SupportsIndex,
        order: Order | None = None,
    ) -> None:
        self.common_num = config.check_common_num(
            common_num, 'SharedLinear(): common_num'
        )
        if out_size is None:
            in_size, out_size = None, in_size
        in_size, out_size = (
            None if size is None else operator.index(size)
            for size in (in_size, out_size)
        )
        if in_size is not None:
            check_divides(
                self.common_num, in_size, 'SharedLinear(): common_num'
            )
        if order is not None and not _is_interleaved(order):
            order = check_order(
                order, in_size, setting='SharedLinear(): order'
            )
            in_size = int(order.shape[-1])
        self._order = blocks.CurrentOrder(order)
        # Chainer's types leave out floats and CuPy's arrays.
        W: Any = initialW
        b: Any = initial_bias
        W = initializers._get_initializer(W)
        if not isinstance(W, initializers.Constant):
            W = _FirstBlock(W, self.common_num)
        super().__init__(in_size, out_size, nobias, W, b)

    @property
    def order(self) -> Literal['interleaved'] | NdArray | None:
        return self._order.array

    @order.setter
    def order(self, order: Literal['interleaved'] | NdArray | None) -> None:
        # In the object that copies of the link hold with the same W.
        self._order.array = order

    def _initialize_params(self, in_size: int) -> None:
        check_divides(self.common_num, in_size, 'SharedLinear: common_num')
        k = in_size // self.common_num
        if self.W.array is None:
            super()._initialize_params(k)
        if _is_interleaved(self.order):
            order = numpy.arange(in_size).reshape(k, self.common_num).T.ravel()
            self.order = self.device.send(check_order(order, in_size))
        self.in_size = in_size

    def _follow_W(self) -> None:
        # A link that shares W may have initialized it.
        if self.in_size is None and self.W.array is not None:
            self._initialize_params(self.common_num * self.W.shape[1])

    @classmethod
    def from_params(  # type: ignore[override]  # common_num has no default
        cls,
        W: VariableOrArray,
        b: VariableOrArray | None = None,
        nobias: bool = False,
        *,
        common_num: SupportsIndex,
        order: Order | None = None,
    ) -> SharedLinear:
        """Makes a link with given parameters.

        Args:
            W (chainer.Variable or array): The weight, a float matrix of shape
                ``(out_size, in_size / common_num)``.
            b (chainer.Variable, array or None): The bias, a float vector of
                shape ``(out_size,)``. Without it, the bias is zero.
            nobias (bool): If ``True``, there is no bias, whatever ``b`` is.
            common_num (int): The number of blocks.
            order (str or array): Which inputs share, as in
                :class:`SharedLinear`.

        Returns:
            SharedLinear: The link, with copies of the parameters, in the
            dtype of ``W``.

        Raises:
            ValueError: If ``W`` is not a float matrix, ``b`` is not a float
                vector of ``out_size`` elements, either is not initialized, or
                ``common_num`` or ``order`` is invalid.

        .. admonition:: Example

            A layer that was trained under the patch becomes a link that does
            not need it:

            >>> from chainer_shared_patch import SharedLinear
            >>> import chainer.links as L
            >>> l2 = L.Linear(100, 900)
            >>> SharedLinear.from_params(l2.W, l2.b, common_num=10).in_size
            1000

        """
        n = config.check_common_num(common_num, 'SharedLinear(): common_num')
        array = _check_floats('W', W, 2)
        bias = None if b is None else _check_floats('b', b, 1)
        out_size, k = array.shape
        if bias is not None and len(bias) != out_size:
            raise ValueError(
                f'SharedLinear.from_params(): b must have {out_size} '
                f'elements, one for each row of W, but has {len(bias)}'
            )
        with chainer.using_config('dtype', array.dtype):
            link = cls(
                k * n, out_size, nobias, array, bias, common_num=n, order=order
            )
            # The arrays would be kept, and drawn again by copy('init').
            link.W.initializer = _FirstBlock(
                initializers.LeCunNormal(dtype=array.dtype), n
            )
        if link.b is not None:
            link.b.initializer = initializers.Constant(0, array.dtype)
        return link

    def __repr__(self) -> str:
        return str(self)

    @property
    def printable_specs(self) -> Iterator[tuple[str, Any]]:
        """Iterator of tuple: Names and values that ``str(link)`` shows."""
        yield from super().printable_specs
        yield 'common_num', self.common_num
        order: Any = self.order
        if blocks.count_orders(order) > 1:
            yield 'orders', len(order)
        elif isinstance(order, chainer.get_array_types()):
            yield 'order', numpy.array2string(to_cpu(order), threshold=8)
        elif order is not None:
            yield 'order', order

    def device_resident_accept(self, visitor: Any) -> None:
        """Lets a visitor, as of ``to_device``, move the order too."""
        super().device_resident_accept(visitor)
        # ChainerMN would average a persistent value over the ranks.
        if isinstance(self.order, chainer.get_array_types()):
            moved = visitor.visit_array(self.order)
            if moved is not self.order:
                self._order = blocks.CurrentOrder(moved)

    def copyparams(self, link: Link, copy_persistent: bool = True) -> None:
        """Copies another link's parameters and the order of its inputs.

        Args:
            link (SharedLinear): The other link, with the same ``common_num``
                and sizes.
            copy_persistent (bool): If ``True``, persistent values, which a
                subclass may have, are copied too.

        Raises:
            ValueError: If ``link`` is not a :class:`SharedLinear` with the
                same ``common_num`` and sizes, and a bias exactly if this link
                has one. Then nothing is copied.

        """
        if isinstance(link, SharedLinear):
            link._follow_W()
        if not isinstance(link, SharedLinear) or not (
            link.common_num == self.common_num
            and link.out_size == self.out_size
            and (link.b is None) == (self.b is None)
            and link.in_size in (None, self.in_size or link.in_size)
        ):
            raise ValueError(
                f'copyparams(): cannot copy the parameters of {link} to '
                f'{self}: both must be SharedLinear, with the same '
                'common_num and sizes, and both or neither with nobias=True'
            )
        super().copyparams(link, copy_persistent)
        link._follow_W()  # which Chainer may just have initialized
        self.in_size = link.in_size
        self.order = self._send_order(link.order)

    def addgrads(self, link: Link) -> None:
        """Adds the gradients of another link with the same order."""
        if not isinstance(link, SharedLinear) or not numpy.array_equal(
            *(to_cpu(each.order) for each in (self, link))
        ):
            raise ValueError(
                f'addgrads(): cannot add the gradients of {link} to those of '
                f'{self}: both must have the same order'
            )
        super().addgrads(link)

    def copy(self, mode: str = 'share') -> SharedLinear:
        """Copies the link, as ``Link.copy``, with an order of its own."""
        copied: SharedLinear = super().copy(mode)
        if mode != 'share':  # which shares the array of W, too
            copied._order = blocks.CurrentOrder(self.order)
        return copied

    def _send_order(self, order: Any) -> Any:
        return order if isinstance(order, str) else self.device.send(order)

    if TYPE_CHECKING:  # Chainer's own is typed as returning anything

        def __call__(
            self, x: VariableOrArray, n_batch_axes: int = 1
        ) -> Variable: ...

    def forward(self, x: VariableOrArray, n_batch_axes: int = 1) -> Variable:
        """Applies the layer. Call the link itself, which calls this.

        Args:
            x (chainer.Variable or array): Float array. Its axes from
                ``n_batch_axes`` on have ``in_size`` elements together.
            n_batch_axes (int): The number of batch axes, at least 1.

        Returns:
            chainer.Variable: Array of shape
            ``x.shape[:n_batch_axes] + (out_size,)``, with the dtype of ``x``.

        Raises:
            chainer.utils.type_check.InvalidType: If ``x`` does not have
                ``in_size`` columns, or is not of floats.
            ValueError: If ``n_batch_axes`` is less than 1, or if the width was
                not given and ``common_num`` does not divide that of ``x``.

        """
        if n_batch_axes < 1:
            raise ValueError(
                'SharedLinear: n_batch_axes must be at least 1, but is '
                f'{n_batch_axes}'
            )
        batch_shape = x.shape[:n_batch_axes]
        columns = size_of_shape(x.shape[n_batch_axes:])
        if n_batch_axes > 1 or x.ndim > 2:
            x = F.reshape(x, (size_of_shape(batch_shape), columns))
        self._follow_W()
        if self.in_size is None:
            self._initialize_params(columns)
        # A static graph looks the order up each time that it is repeated.
        is_recorded = chainer.config.schedule_func is not None
        order: Any = self._order if is_recorded else self.order
        y = apply_shared_linear(x, self.W, self.b, self.common_num, order)
        outputs: Variable = F.reshape(y, (*batch_shape, self.out_size))
        return outputs

    def serialize(self, serializer: Any) -> None:
        """Saves or loads the parameters, ``common_num`` and the order.

        Args:
            serializer (chainer.AbstractSerializer): A serializer or a
                deserializer.

        Raises:
            ValueError: If what is loaded is not a :class:`SharedLinear` with
                the same ``common_num``, the same shapes, and a bias only if
                this link has one.

        """
        if isinstance(serializer, chainer.Deserializer):
            in_size, order = loading.read_sharing(self, serializer)
            super().serialize(serializer)
            self.in_size, self.order = in_size, order
        else:
            self._follow_W()
            super().serialize(serializer)
            serializer('common_num', self.common_num)
            order = self.order
            if order is None or self.in_size is None:
                order = numpy.empty(0, numpy.int64)  # None would be pickled
            serializer('order', order)
