"""The link of a shared layer, and what replaces ``Linear``'s methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import copy
import functools
import operator
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    SupportsIndex,
    Union,
)

from chainer_shared_patch import config
from chainer_shared_patch.config import check_divides, check_order
from chainer_shared_patch.functions import (
    Method,
    VariableOrArray,
    apply_shared_linear,
)
import chainer
from chainer import initializers
import chainer.functions as F
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.serializers import HDF5Deserializer, NpzDeserializer
from chainer.types import InitializerSpec, NdArray
from chainer.utils import size_of_shape
from chainer.variable import Parameter, Variable
import numpy

Initializer = Union[InitializerSpec, NdArray, float]


class Array(Protocol):
    """An array, for mypy. Chainer's ``NdArray`` lets everything pass."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def ndim(self) -> int: ...


Permutation = Union[Sequence[SupportsIndex], Array]
# Which inputs share.
Order = Union[Literal['interleaved'], Permutation]


class _ArraysWithoutPickles(dict[str, numpy.ndarray]):
    """The arrays of an npz file by name, each read once and none unpickled.

    Unpickling an array of objects can run any code that its author wants.
    """

    def __init__(self, npz: Any) -> None:
        self.npz = npz

    def __contains__(self, name: object) -> bool:
        return name in self.npz.files

    def __missing__(self, name: str) -> numpy.ndarray:
        if name not in self:
            raise KeyError(f'{name} is not in the file')
        with self.npz.zip.open(name + '.npy') as file:
            version = numpy.lib.format.read_magic(file)
            read_header = {
                (1, 0): numpy.lib.format.read_array_header_1_0,
                (2, 0): numpy.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            self[name] = self.npz[name]
        elif shape == ():
            # This is how Chainer writes None.
            self[name] = numpy.asarray(None)
        else:
            raise ValueError(
                f'{name} is an array of objects, of shape {shape}, which is '
                'not unpickled; a link has arrays of numbers only'
            )
        return self[name]


def _refuse_pickles(serializer: Any) -> Any:
    if isinstance(serializer, NpzDeserializer) and isinstance(
        serializer.npz, numpy.lib.npyio.NpzFile
    ):
        serializer = copy.copy(serializer)
        serializer.npz = _ArraysWithoutPickles(serializer.npz)
    return serializer


def _make_serialize(original: Method) -> Method:
    """Makes the method that refuses a W of another shape.

    Chainer itself broadcasts what it can, so a shared layer's W of shape
    ``(out_size, 1)`` would be loaded into an ordinary layer.
    """

    @functools.wraps(original)
    def serialize(self: Linear, serializer: Any) -> None:
        serializer = _refuse_pickles(serializer)
        if isinstance(serializer, chainer.Deserializer):
            _refuse_order(self, serializer)
            _check_stored_shape(self, serializer)
        original(self, serializer)

    return serialize


def _read(serializer: Any, name: str) -> Any:
    try:
        return serializer(name, None)
    except KeyError:
        return None


def _refuse_order(link: Linear, serializer: Any) -> None:
    if 'order' in vars(link):  # a subclass has its own
        return
    if getattr(_read(serializer, 'order'), 'size', 0):
        raise ValueError(
            'cannot load a SharedLinear with common_num {} and an order of '
            'its inputs into a Linear, which has no order. Load it into a '
            'SharedLinear, then call chainer_shared_patch.expand'.format(
                _read(serializer, 'common_num')
            )
        )


def _check_stored_shape(link: Linear, serializer: Any) -> None:
    W = getattr(link, 'W', None)
    if not isinstance(W, Parameter) or W.array is None:
        return
    try:
        if isinstance(serializer, HDF5Deserializer):
            stored = (serializer.group or {})['W']  # which is not read yet
        else:
            stored = serializer('W', None)
    except KeyError:  # the original has the better message
        return
    here, there = W.shape, getattr(stored, 'shape', None) or W.shape
    if here == there:
        return
    message = (
        f'cannot load a W of shape {there} into a Linear whose W has the '
        f'shape {here}'
    )
    if len(there) == len(here) == 2 and there[0] == here[0]:
        narrow, wide = sorted((here, there))
        if narrow[1] and wide[1] % narrow[1] == 0:
            message += (
                f': {wide} is the shape in an ordinary layer, and {narrow} '
                f'that in a layer shared by {wide[1] // narrow[1]} blocks of '
                f'its input. Load this file into a Linear({there[1]}, '
                f'{there[0]}), or load a file of the other kind'
            )
    raise ValueError(message)


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
        wide = xp.empty((out_size, k * self.common_num), array.dtype)
        self.initializer(wide)
        array[...] = wide[:, :k]


def _fit(here: Any, there: Any) -> bool:
    """Tells whether shapes are equal, where the sizes are known."""
    if here is None or there is None:
        return here is there
    return len(here) == len(there) and all(
        a == b or a is None or b is None for a, b in zip(here, there)
    )


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
            permutation of shape ``(in_size,)``, or ``'interleaved'``, where
            each ``n`` neighbours use the same column, or ``None``, where each
            block is contiguous.

    Raises:
        TypeError: If ``in_size`` or ``out_size`` is not an integer.
        ValueError: If ``common_num`` is not an integer of at least 1,
            ``in_size`` is less than 1, ``common_num`` does not divide it, or
            ``order`` is neither ``None`` nor ``'interleaved'`` nor a
            permutation of the inputs.

    Attributes:
        W (chainer.Parameter): The weight, of shape
            ``(out_size, in_size / common_num)``.
        b (chainer.Parameter): The bias, of shape ``(out_size,)``, or ``None``.
        in_size (int): The full width of the input, or ``None`` before the
            first input.
        out_size (int): The width of the output.
        common_num (int): The number of blocks.
        order (array): The order of the inputs, an int64 array of shape
            ``(in_size,)``; ``None`` where each block is contiguous; and
            ``'interleaved'`` as long as the width is not known.

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
        array([0, 2, 4, 1, 3, 5])

    """

    W: Parameter
    b: Parameter | None
    order: Literal['interleaved'] | NdArray | None

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
            common_num, 'common_num of SharedLinear'
        )
        if out_size is None:
            in_size, out_size = None, in_size
        in_size, out_size = (
            None if size is None else operator.index(size)
            for size in (in_size, out_size)
        )
        if in_size is not None:
            check_divides(self.common_num, in_size)
        if order is not None and not _is_interleaved(order):
            order = check_order(order, in_size)
            in_size = len(order)
        self.order = order
        # Chainer's types leave out floats and CuPy's arrays.
        W: Any = initialW
        b: Any = initial_bias
        W = initializers._get_initializer(W)
        if not isinstance(W, initializers.Constant):
            W = _FirstBlock(W, self.common_num)
        super().__init__(in_size, out_size, nobias, W, b)

    def _initialize_params(self, in_size: int) -> None:
        check_divides(self.common_num, in_size)
        k = in_size // self.common_num
        if self.W.array is None:
            super()._initialize_params(k)
        if _is_interleaved(self.order):
            order = numpy.arange(in_size).reshape(k, self.common_num).T.ravel()
            self.order = self.device.send(order)
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
            ValueError: If ``W`` is not a float matrix or is not initialized,
                ``b`` does not have ``out_size`` elements, or ``common_num``
                or ``order`` is invalid.

        .. admonition:: Example

            A layer that was trained under the patch becomes a link that does
            not need it:

            >>> from chainer_shared_patch import SharedLinear
            >>> import chainer.links as L
            >>> l2 = L.Linear(100, 900)
            >>> SharedLinear.from_params(l2.W, l2.b, common_num=10).in_size
            1000

        """
        n = config.check_common_num(common_num, 'common_num of SharedLinear')
        array: Any = chainer.as_array(W)
        if array is None:
            raise ValueError('W must be initialized, but it is not')
        if array.ndim != 2 or array.dtype.kind != 'f':
            raise ValueError(
                f'W must be a float matrix, but its shape is {array.shape} '
                f'and its dtype is {array.dtype}'
            )
        out_size, k = array.shape
        if b is not None and b.size != out_size:
            raise ValueError(
                f'b must have {out_size} elements, one for each row of W, but '
                f'has {b.size}'
            )
        with chainer.using_config('dtype', array.dtype):
            return cls(
                k * n,
                out_size,
                nobias,
                array,
                chainer.as_array(b),
                common_num=n,
                order=order,
            )

    def __repr__(self) -> str:
        return str(self)

    @property
    def printable_specs(self) -> Iterator[tuple[str, Any]]:
        """Iterator of tuple: Names and values that ``str(link)`` shows."""
        yield from super().printable_specs
        yield 'common_num', self.common_num
        order = self.order
        if isinstance(order, chainer.get_array_types()):
            order = numpy.array2string(
                chainer.backends.cuda.to_cpu(order), threshold=8
            )
        if order is not None:
            yield 'order', order

    def device_resident_accept(self, visitor: Any) -> None:
        """Lets a visitor move the arrays, the order included.

        ``to_device`` and the like call it.

        Args:
            visitor (chainer.device_resident.DeviceResidentsVisitor): The
                visitor.

        """
        super().device_resident_accept(visitor)
        # ChainerMN would average a persistent value over the ranks.
        if isinstance(self.order, chainer.get_array_types()):
            self.order = visitor.visit_array(self.order)

    def copyparams(self, link: Link, copy_persistent: bool = True) -> None:
        """Copies another link's parameters and the order of its inputs.

        Args:
            link (SharedLinear): The other link, with the same ``common_num``.
            copy_persistent (bool): If ``True``, persistent values, which a
                subclass may have, are copied too.

        Raises:
            ValueError: If ``link`` is not a :class:`SharedLinear` with the
                same ``common_num``, the same shapes, and a bias exactly if
                this link has one. Then nothing is copied.

        .. admonition:: Example

            >>> from chainer_shared_patch import SharedLinear
            >>> trained, copy = (
            ...     SharedLinear(20, 5, common_num=10) for _ in range(2))
            >>> copy.copyparams(trained)
            >>> (copy.W.array == trained.W.array).all().item()
            True

        """
        if (
            not isinstance(link, SharedLinear)
            or link.common_num != self.common_num
        ):
            raise ValueError(
                f'cannot copy the parameters of {link} to {self}: both must '
                'be SharedLinear, with the same common_num'
            )
        link._follow_W()
        for name, here, there in zip('Wb', self._shapes(), link._shapes()):
            if not _fit(here, there):
                raise ValueError(
                    f'cannot copy the parameters of {link} to {self}: {name} '
                    f'has the shape {there} there, but {here} here'
                )
        super().copyparams(link, copy_persistent)
        if link.in_size is not None:
            self.in_size = link.in_size
            self.order = self.device.send(link.order)

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

        .. admonition:: Example

            >>> from chainer_shared_patch import SharedLinear
            >>> import numpy as np
            >>> layer = SharedLinear(20, 5, common_num=10)
            >>> layer(np.ones((2, 7, 20), np.float32), n_batch_axes=2).shape
            (2, 7, 5)

        """
        if n_batch_axes < 1:
            raise ValueError(
                f'n_batch_axes must be at least 1, but is {n_batch_axes}'
            )
        batch_shape = x.shape[:n_batch_axes]
        columns = size_of_shape(x.shape[n_batch_axes:])
        if n_batch_axes > 1 or x.ndim > 2:
            x = F.reshape(x, (size_of_shape(batch_shape), columns))
        self._follow_W()
        if self.in_size is None:
            self._initialize_params(columns)
        y = apply_shared_linear(x, self.W, self.b, self.common_num, self.order)
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
                this link has one; or if it holds an array of objects.

        .. admonition:: Example

            >>> from chainer_shared_patch import SharedLinear
            >>> import chainer.serializers
            >>> import io
            >>> file = io.BytesIO()
            >>> trained, loaded = (
            ...     SharedLinear(20, 5, common_num=10) for _ in range(2))
            >>> chainer.serializers.save_npz(file, trained)
            >>> _ = file.seek(0)
            >>> chainer.serializers.load_npz(file, loaded)
            >>> (loaded.W.array == trained.W.array).all().item()
            True

        """
        serializer = _refuse_pickles(serializer)
        if isinstance(serializer, chainer.Deserializer):
            in_size, order = self._read_inputs(serializer)
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

    def _shapes(self) -> tuple[Any, Any]:
        """Returns the shapes of W, as far as it is known, and of b."""
        W, b = self.W, self.b
        return (
            (self.out_size, None) if W.array is None else W.shape,
            None if b is None else b.shape,
        )

    def _read_inputs(self, serializer: Any) -> tuple[int | None, Any]:
        """Returns in_size and order, or raises an error if W does not fit."""
        W = serializer('W', None)
        b = None if self.b is None else serializer('b', None)
        if W is None:  # it is skipped, or was saved before it had a width
            return self.in_size, self.order
        common_num = _read(serializer, 'common_num')
        order = _read(serializer, 'order')
        if common_num is None or order is None:
            raise ValueError(
                f'cannot load a Linear, whose W has the shape {W.shape}, into '
                'a SharedLinear. Load it into a Linear, then convert that: an '
                'ordinary layer with chainer_shared_patch.share, one that the '
                'patch shares with SharedLinear.from_params'
            )
        if not numpy.array_equal(common_num, self.common_num):
            raise ValueError(
                f'cannot load a SharedLinear with common_num {common_num} '
                f'into one with common_num {self.common_num}'
            )
        here, _ = self._shapes()
        if not _fit(here, W.shape):
            raise ValueError(
                f'cannot load a W of shape {W.shape} into a SharedLinear '
                f'whose W has the shape {here}'
            )
        if self.b is None and _read(serializer, 'b') is not None:
            raise ValueError(
                'cannot load a SharedLinear with a bias into one without; '
                'make this one with nobias=False'
            )
        if self.b is not None and b is not None and b.shape != self.b.shape:
            raise ValueError(
                f'cannot load a b of shape {b.shape} into a SharedLinear '
                f'whose b has the shape {self.b.shape}'
            )
        in_size = self.common_num * W.shape[1]
        if not order.size:
            return in_size, None
        return in_size, self.device.send(check_order(order, in_size))


FACTORIES: dict[str, Callable[[Method], Method]] = {
    'serialize': _make_serialize
}
