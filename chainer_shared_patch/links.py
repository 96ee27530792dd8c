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
            _check_stored_shape(self, serializer)
        original(self, serializer)

    return serialize


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


def check_order(order: Any, in_size: int) -> numpy.ndarray:
    """Returns a copy of the order, or raises an error if it is none."""
    array = numpy.array(chainer.backends.cuda.to_cpu(order))
    if (
        array.dtype.kind not in 'iu'
        or array.shape != (in_size,)
        or (numpy.sort(array) != numpy.arange(in_size)).any()
    ):
        raise ValueError(
            "order must be 'interleaved', None or a permutation of the "
            'integers below in_size, {}, but it is {!r}'.format(in_size, order)
        )
    return array.astype(numpy.int64)


class SharedLinear(L.Linear):
    """Linear layer whose weight the blocks of its input share.

    With :math:`n` = ``common_num``, :math:`k` = ``in_size / n`` and the order
    :math:`p` of the inputs, it computes

    .. math::
        y = W \\sum_{j=0}^{n-1} (x_{p_{jk}}, ..., x_{p_{jk+k-1}})^\\top + b

    It works whether or not the patch is installed, and whatever
    ``chainer.config.common_num`` is.

    Args:
        in_size (int or None): The full width of the input. If ``None``, or if
            ``out_size`` is left out, the first input decides.
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
            ``order`` is no permutation of so many inputs.

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
        common_num = config.check_common_num(
            common_num, 'common_num of SharedLinear'
        )
        if initialW is None or callable(initialW):
            initialW = _FirstBlock(
                initializers._get_initializer(initialW), common_num
            )
        self.common_num = common_num
        self.order = order
        super().__init__(in_size, out_size, nobias, initialW, initial_bias)
        self.register_persistent('common_num')
        self.register_persistent('order')

    def _initialize_params(self, in_size: int) -> None:
        if in_size % self.common_num:
            raise ValueError(
                'common_num must divide in_size, but in_size is {} and '
                'common_num is {}'.format(in_size, self.common_num)
            )
        k = in_size // self.common_num
        if isinstance(self.order, str) and self.order == 'interleaved':
            order = numpy.arange(in_size).reshape(k, self.common_num).T.ravel()
            self.order = self.device.send(order)
        elif self.order is not None:
            self.order = self.device.send(check_order(self.order, in_size))
        self.in_size = in_size
        super()._initialize_params(k)

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

    @property
    def printable_specs(self) -> Iterator[tuple]:
        yield from super().printable_specs
        yield 'common_num', self.common_num
        if self.order is not None:
            yield 'order', self.order if isinstance(self.order, str) else '...'

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
        columns = size_of_shape(x.shape[n_batch_axes:])
        if self.W.array is None:
            self._initialize_params(columns)
        batch_shape = x.shape[:n_batch_axes]
        if x.ndim != 2:
            x = F.reshape(x, (size_of_shape(batch_shape), columns))
        y = shared_linear(x, self.W, self.b, self.common_num, self.order)
        if n_batch_axes > 1:
            y = F.reshape(y, (*batch_shape, self.out_size))
        return y

    def serialize(self, serializer: Any) -> None:
        serializer = _refuse_pickles(serializer)
        order = self.order
        if loading := isinstance(serializer, chainer.Deserializer):
            order = self._read_order(serializer)
            _check_stored_shape(self, serializer)
            self.order = None  # what is stored need not have its shape
        elif order is None:
            self.order = numpy.empty(0, numpy.int64)  # None would be pickled
        try:
            chainer.Link.serialize(self, serializer)
        finally:
            self.order = order
        if loading and self.W.array is not None:
            self.in_size = self.common_num * self.W.shape[1]

    def _read_order(self, serializer: Any) -> Any:
        common_num = serializer('common_num', None)
        if common_num is not None and common_num != self.common_num:
            raise ValueError(
                'cannot load a SharedLinear of common_num {} into one of '
                'common_num {}'.format(common_num, self.common_num)
            )
        order = serializer('order', None)
        if order is None:  # it is not in the file, and need not be
            return self.order
        if not order.size:
            return None
        return self.device.send(check_order(order, order.size))


FACTORIES: dict[str, Callable[[Method], Method]] = {
    'serialize': make_serialize
}
