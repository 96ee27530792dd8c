"""The link of a shared layer, and what replaces ``Linear``'s methods."""

from __future__ import annotations

from collections.abc import Iterator
import copy
import functools
from typing import Any, Callable, Optional

from chainer_shared_patch import config
import chainer
from chainer import initializers
import chainer.functions as F
import chainer.links as L
from chainer.serializers import HDF5Deserializer, NpzDeserializer
from chainer.utils import size_of_shape
from chainer_shared_patch.functions import Method, shared_linear
import numpy


class _ArraysWithoutPickles(dict):
    """The arrays of an npz file by name, each read once and none unpickled.

    Unpickling an array of objects can run any code that its author wants.
    """

    def __init__(self, npz: Any) -> None:
        self.npz = npz

    def __contains__(self, name: object) -> bool:
        return name in self.npz.files

    def __missing__(self, name: str) -> numpy.ndarray:
        if name not in self:
            raise KeyError('{} is not in the file'.format(name))
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
                '{} is an array of objects, of shape {}, which is not '
                'unpickled; a link has arrays of numbers'.format(name, shape)
            )
        return self[name]


def _refuse_pickles(serializer: Any) -> Any:
    if isinstance(serializer, NpzDeserializer) and isinstance(
        serializer.npz, numpy.lib.npyio.NpzFile
    ):
        serializer = copy.copy(serializer)
        serializer.npz = _ArraysWithoutPickles(serializer.npz)
    return serializer


def make_serialize(original: Method) -> Method:
    """Makes the method that does not take a W of another shape for its own.

    Chainer itself broadcasts what can be broadcast, so that a file of a
    shared layer with ``(out_size, 1)`` passes for one of a dense layer.
    """

    @functools.wraps(original)
    def serialize(self: L.Linear, serializer: Any) -> None:
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


def _refuse_order(link: L.Linear, serializer: Any) -> None:
    if 'order' in vars(link):  # a subclass has its own
        return
    if getattr(_read(serializer, 'order'), 'size', 0):
        raise ValueError(
            'cannot load a SharedLinear of common_num {} that has an order '
            'of its inputs into a Linear, which has none. Load it into a '
            'SharedLinear, then call chainer_shared_patch.expand'.format(
                _read(serializer, 'common_num')
            )
        )


def _check_stored_shape(link: L.Linear, serializer: Any) -> None:
    W = getattr(link, 'W', None)
    if not isinstance(W, chainer.Parameter) or W.array is None:
        return
    try:
        if isinstance(serializer, HDF5Deserializer):
            stored = (serializer.group or {})['W']  # which is not read yet
        else:
            stored = serializer('W', None)
    except KeyError:  # which the original says better
        return
    here, there = W.shape, getattr(stored, 'shape', None) or W.shape
    if here == there:
        return
    message = (
        'cannot load a W of shape {} into a Linear whose W has the shape {}'
    ).format(there, here)
    if len(there) == len(here) == 2 and there[0] == here[0]:
        narrow, wide = sorted((here, there))
        if narrow[1] and wide[1] % narrow[1] == 0:
            message += (
                ': {} is that of an ordinary layer, and {} that of one whose '
                'input is shared by {} blocks. Load this file into a '
                'Linear({}, {}), or a file of the other kind'.format(
                    wide, narrow, wide[1] // narrow[1], there[1], there[0]
                )
            )
    raise ValueError(message)


class _FirstBlock(chainer.initializer.Initializer):
    """Draws an ordinary layer's W, and keeps its first block.

    The layer adds up all of its inputs, so that their number, and not the
    width of W, is the fan-in to scale for.
    """

    def __init__(self, initializer: Any, common_num: int) -> None:
        super().__init__(getattr(initializer, 'dtype', None))
        self.initializer = initializer
        self.common_num = common_num

    def __call__(self, array: Any) -> None:
        out_size, k = array.shape
        xp = chainer.backend.get_array_module(array)
        wide = xp.empty((out_size, k * self.common_num), array.dtype)
        self.initializer(wide)
        array[...] = wide[:, :k]


def check_divides(common_num: int, in_size: int) -> None:
    """Raises an error that names the divisors nearby if it does not."""
    if in_size % common_num:
        divisors = [n for n in range(1, in_size + 1) if in_size % n == 0]
        nearby = [n for n in divisors if n < common_num][-1:]
        nearby += [n for n in divisors if n > common_num][:1]
        raise ValueError(
            'common_num must divide in_size, but in_size is {} and '
            'common_num is {}; try {}'.format(
                in_size,
                common_num,
                '{} or {}'.format(*nearby)
                if len(nearby) == 2
                else '{}'.format(*nearby),
            )
        )


def check_order(order: Any, in_size: Optional[int]) -> numpy.ndarray:
    """Returns a copy of the order, or raises an error if it is none.

    If ``in_size`` is ``None``, the order may have any length.
    """
    order = chainer.as_array(order)
    if isinstance(order, chainer.backends.cuda.ndarray):
        order = order.get()
    array = numpy.array(order)
    if array.ndim == 0:
        mistake = 'it is {!r}'.format(order)
    elif array.dtype.kind not in 'iu':
        mistake = 'its dtype is {}'.format(array.dtype)
    elif array.shape != (in_size or array.size,):
        mistake = 'its shape is {}'.format(array.shape)
    else:
        missing = numpy.setdiff1d(numpy.arange(len(array)), array)
        if not missing.size:
            return array.astype(numpy.int64)
        mistake = '{} is missing'.format(missing[0])
    raise ValueError(
        "order must be None, 'interleaved' or a permutation of the integers "
        'below in_size{}, but {}'.format(
            '' if in_size is None else ', {}'.format(in_size), mistake
        )
    )


def _is_interleaved(order: Any) -> bool:
    return isinstance(order, str) and order == 'interleaved'


class SharedLinear(L.Linear):
    """Linear layer that uses one weight for all blocks of its input.

    With :math:`n` = ``common_num``, :math:`k` = ``in_size / n`` and the order
    :math:`p` of the inputs, it computes

    .. math::
        y = W \\sum_{j=0}^{n-1} (x_{p_{jk}}, ..., x_{p_{jk+k-1}})^\\top + b

    It works whether or not the patch is installed, and whatever
    ``chainer.config.common_num`` is. A file of it holds ``common_num``, which
    has to be that of the link to load it, and the order, which that link
    takes.

    Args:
        in_size (int or None): The full width of the input. If ``None``, or if
            ``out_size`` is left out, the length of ``order`` or else the
            first input decides.
        out_size (int): The width of the output.
        nobias (bool): If ``True``, there is no bias.
        initialW (:ref:`initializer <initializer>`): The initial weight. What
            it draws is scaled as for an ordinary layer of ``in_size`` inputs.
            An array has the shape of ``W``.
        initial_bias (:ref:`initializer <initializer>`): The initial bias,
            zero by default.
        common_num (int): The number of blocks, which divides ``in_size``.
        order (str or :ref:`ndarray`): Which inputs share: input
            ``order[j * k + i]`` is in block ``j`` and uses column ``i`` of
            ``W``. An integer permutation of the inputs, or
            ``'interleaved'``, where ``n`` neighbours use the same column, or
            ``None``, where each block is contiguous.

    Raises:
        ValueError: If ``common_num`` does not divide ``in_size``, or
            ``order`` is not a permutation of the inputs.

    Attributes:
        W (~chainer.Parameter): Weight of shape
            ``(out_size, in_size / common_num)``.
        b (~chainer.Parameter): Bias of shape ``(out_size,)``, or ``None``.
        common_num (int): The number of blocks.
        order (:ref:`ndarray`): The order of the inputs, or ``None``.

    .. admonition:: Example

        >>> import chainer_shared_patch
        >>> import numpy as np
        >>> layer = chainer_shared_patch.SharedLinear(1000, 900, common_num=10)
        >>> layer.W.shape
        (900, 100)
        >>> layer(np.ones((32, 1000), np.float32)).shape
        (32, 900)

        Neighbours share, here the pixels of a row in twos:

        >>> layer = chainer_shared_patch.SharedLinear(
        ...     6, 1, common_num=2, order='interleaved')
        >>> layer.order
        array([0, 2, 4, 1, 3, 5])

    """

    def __init__(
        self,
        in_size: Optional[int],
        out_size: Optional[int] = None,
        nobias: bool = False,
        initialW: Any = None,
        initial_bias: Any = None,
        *,
        common_num: int,
        order: Any = None,
    ) -> None:
        self.common_num = config.check_common_num(
            common_num, 'common_num of SharedLinear'
        )
        if out_size is None:
            in_size, out_size = None, in_size
        if order is not None and not _is_interleaved(order):
            order = check_order(order, in_size)
            in_size = len(order)
        self.order = order
        initialW = initializers._get_initializer(initialW)
        if not isinstance(initialW, initializers.Constant):
            initialW = _FirstBlock(initialW, self.common_num)
        super().__init__(in_size, out_size, nobias, initialW, initial_bias)

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
    def from_params(
        cls,
        W: Any,
        b: Any = None,
        nobias: bool = False,
        *,
        common_num: int,
        order: Any = None,
    ) -> SharedLinear:
        """Makes a link of given parameters.

        Args:
            W (:class:`~chainer.Variable` or :ref:`ndarray`): The weight, of
                shape ``(out_size, in_size / common_num)``.
            b (:class:`~chainer.Variable`, :ref:`ndarray` or None): The bias.
            nobias (bool): If ``True``, ``b`` is ignored.
            common_num (int): The number of blocks.
            order (str or :ref:`ndarray`): Which inputs share; see above.

        Returns:
            SharedLinear: The link, with copies of the parameters.

        """
        common_num = config.check_common_num(
            common_num, 'common_num of SharedLinear'
        )
        out_size, k = W.shape
        if b is not None and b.size != out_size:
            raise ValueError(
                'b must have {} elements, the rows of W, but has {}'.format(
                    out_size, b.size
                )
            )
        return cls(
            k * common_num,
            out_size,
            nobias,
            chainer.as_array(W),
            chainer.as_array(b),
            common_num=common_num,
            order=order,
        )

    def __repr__(self) -> str:
        return str(self)

    @property
    def printable_specs(self) -> Iterator[tuple]:
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
        super().device_resident_accept(visitor)
        # As a persistent value it would be averaged over ChainerMN's workers.
        if isinstance(self.order, chainer.get_array_types()):
            self.order = visitor.visit_array(self.order)

    def copyparams(self, link: L.Linear, copy_persistent: bool = True) -> None:
        """Copies the parameters, and the order of the inputs, of a link.

        Args:
            link (SharedLinear): The link, of the same ``common_num``.
            copy_persistent (bool): If ``True``, also copies the persistent
                values that a subclass may have.

        """
        if (
            not isinstance(link, SharedLinear)
            or link.common_num != self.common_num
        ):
            raise ValueError(
                'cannot copy the parameters of {} to {}'.format(link, self)
            )
        link._follow_W()
        super().copyparams(link, copy_persistent)
        if link.in_size is not None:
            self.in_size = link.in_size
            self.order = self.device.send(link.order)

    def forward(self, x: Any, n_batch_axes: int = 1) -> chainer.Variable:
        """Applies the layer.

        Args:
            x (:class:`~chainer.Variable` or :ref:`ndarray`): Float array, the
                product of whose shape from axis ``n_batch_axes`` on is
                ``in_size``.
            n_batch_axes (int): The number of batch axes, at least 1.

        Returns:
            ~chainer.Variable: Array of shape
            ``x.shape[:n_batch_axes] + (out_size,)`` and the dtype of ``x``.

        """
        if n_batch_axes < 1:
            raise ValueError(
                'n_batch_axes must be at least 1, but is {}'.format(
                    n_batch_axes
                )
            )
        batch_shape = x.shape[:n_batch_axes]
        columns = size_of_shape(x.shape[n_batch_axes:])
        if n_batch_axes > 1 or x.ndim > 2:
            x = F.reshape(x, (size_of_shape(batch_shape), columns))
        self._follow_W()
        if self.in_size is None:
            self._initialize_params(columns)
        y = shared_linear(x, self.W, self.b, self.common_num, self.order)
        return F.reshape(y, (*batch_shape, self.out_size))

    def serialize(self, serializer: Any) -> None:
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

    def _read_inputs(self, serializer: Any) -> tuple:
        """Returns in_size and order, or raises an error if W does not fit."""
        W = serializer('W', None)
        b = None if self.b is None else serializer('b', None)
        if W is None:  # it is skipped, or the link saved had no width yet
            return self.in_size, self.order
        common_num = _read(serializer, 'common_num')
        order = _read(serializer, 'order')
        if common_num is None or order is None:
            raise ValueError(
                'cannot load a Linear, whose W has the shape {}, into a '
                'SharedLinear. Load it into a Linear, and convert that: an '
                'ordinary layer with chainer_shared_patch.share, one that '
                'the patch shares with SharedLinear.from_params'.format(
                    W.shape
                )
            )
        if not numpy.array_equal(common_num, self.common_num):
            raise ValueError(
                'cannot load a SharedLinear of common_num {} into one of '
                'common_num {}'.format(common_num, self.common_num)
            )
        lazy = self.W.array is None
        here = (self.out_size, None) if lazy else self.W.shape
        if W.ndim != 2 or W.shape != (here[0], here[1] or W.shape[1]):
            raise ValueError(
                'cannot load a W of shape {} into a SharedLinear whose W has '
                'the shape {}'.format(W.shape, here)
            )
        if self.b is None and _read(serializer, 'b') is not None:
            raise ValueError(
                'cannot load a SharedLinear with a bias into one without: '
                'make it with nobias=False'
            )
        if b is not None and b.shape != self.b.shape:
            raise ValueError(
                'cannot load a b of shape {} into a SharedLinear whose b has '
                'the shape {}'.format(b.shape, self.b.shape)
            )
        in_size = self.common_num * W.shape[1]
        if not order.size:
            return in_size, None
        return in_size, self.device.send(check_order(order, in_size))


FACTORIES: dict[str, Callable[[Method], Method]] = {
    'serialize': make_serialize
}
