"""A table of a model's links and of what each of them costs."""

from __future__ import annotations

import collections
from collections.abc import Iterator
import itertools
import textwrap
from typing import Any, NamedTuple, Union

from chainer_shared_patch.config import check_model
from chainer_shared_patch.functions import SharedLinearFunction
from chainer_shared_patch.links import SharedLinear
from chainer_shared_patch.trial import trial
import chainer
from chainer.function_node import FunctionNode
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.convolution_nd import ConvolutionND
from chainer.functions.connection.deconvolution_2d import (
    Deconvolution2DFunction,
)
from chainer.functions.connection.deconvolution_nd import DeconvolutionND
from chainer.functions.connection.linear import LinearFunction
from chainer.functions.connection.local_convolution_2d import (
    LocalConvolution2DFunction,
)
from chainer.functions.math.matmul import MatMul
from chainer.link import Link
from chainer.types import NdArray
from chainer.utils import size_of_shape
from chainer.utils.conv import get_conv_outsize
import numpy
from tabulate import SEPARATING_LINE, tabulate

_DECONVOLUTIONS = Deconvolution2DFunction, DeconvolutionND
_USING_W = (
    LinearFunction,
    Convolution2DFunction,
    ConvolutionND,
    LocalConvolution2DFunction,
    *_DECONVOLUTIONS,
)
# A shape; a tuple or dict of these where a link returns several arrays; and
# None where it returns none.
OutputShape = Union[
    tuple[int, ...], tuple['OutputShape', ...], dict[Any, 'OutputShape'], None
]


class LinkSummary(NamedTuple):
    """A row of the table: a link without its children.

    Attributes:
        path (str): The path of the link, as in ``chainer.Link.namedlinks``.
        link (str): The name of its class.
        output_shape (tuple): The shape of its last output; a tuple or a dict
            of shapes if it returned more than one array; and ``None`` if it
            was not called or returned no array.
        common_num (int): The number of blocks that share its weight, or 1.
        parameters (int): The number of elements of its parameters.
        dense_parameters (int): The same if no weight were shared.
        multiply_adds (int): The multiply-adds of all its calls.

    .. admonition:: Example

        >>> from chainer_shared_patch import SharedLinear, summary
        >>> import chainer
        >>> import numpy as np
        >>> model = chainer.Sequential(SharedLinear(20, 5, common_num=10))
        >>> row = summary(model, np.zeros((1, 20), np.float32)).rows[1]
        >>> row.path, row.output_shape, row.multiply_adds
        ('/0', (1, 5), 10)

    """

    path: str
    link: str
    output_shape: OutputShape
    common_num: int
    parameters: int
    dense_parameters: int
    multiply_adds: int


class Summary(NamedTuple):
    """What :func:`summary` returns. It prints as a table.

    Attributes:
        rows (list of LinkSummary): The links, in the order of their calls.
        parameters (int): The number of elements of all parameters. A
            parameter that occurs in several links counts once.
        dense_parameters (int): The same if no blocks shared a weight.
        nbytes (int): The size of all parameters in bytes.
        dense_nbytes (int): The same if no blocks shared a weight.
        multiply_adds (int): The sum of the rows' multiply-adds.
        order_integers (int): The number of integers in the orders of all
            :class:`SharedLinear`. Parameters do not include them.
        order_nbytes (int): The size of these in bytes.

    .. admonition:: Example

        >>> from chainer_shared_patch import SharedLinear, summary
        >>> import chainer
        >>> import numpy as np
        >>> model = chainer.Sequential(SharedLinear(20, 5, common_num=10))
        >>> result = summary(model, np.zeros((1, 20), np.float32))
        >>> result.parameters, result.dense_parameters
        (15, 105)

    """

    rows: list[LinkSummary]
    parameters: int
    dense_parameters: int
    nbytes: int
    dense_nbytes: int
    multiply_adds: int
    order_integers: int = 0
    order_nbytes: int = 0

    def __repr__(self) -> str:
        header, *table = self._make_table()
        # As a row, and not as headers, the header is not padded.
        table[-1:] = [SEPARATING_LINE, table[-1]]
        text: str = tabulate(
            [header, SEPARATING_LINE, *table],
            colalign=_align(header),
            disable_numparse=True,
        )
        return f'{text}\n{self._describe_size()}'

    def _repr_html_(self) -> str:
        header, *table = self._make_table()
        text: str = tabulate(
            table,
            [cell.replace('\n', ' ') for cell in header],
            'html',
            colalign=_align(header),
            disable_numparse=True,
        )
        size = self._describe_size().replace('\n', '<br>')
        return f'{text}\n<p>{size}</p>'

    def _is_shared(self) -> bool:
        return any(row.common_num > 1 for row in self.rows)

    def _describe_size(self) -> str:
        size = f'Size of the parameters: {self.nbytes:,} bytes'
        if self._is_shared():
            size += f' (dense: {self.dense_nbytes:,} bytes)'
        if self.order_integers:
            size += (
                f'\nSize of the orders: {self.order_nbytes:,} bytes '
                f'({self.order_integers:,} integers)'
            )
        return size

    def _make_table(self) -> list[Any]:
        """Returns the header, the rows and the total."""
        header = [
            'path',
            'link',
            'output\nshape',
            'common\n_num',
            'parameters',
            'dense',
            'mult-\nadds',
        ]
        multiply_adds = _format_all(
            [*(row.multiply_adds for row in self.rows), self.multiply_adds]
        )
        table: list[list[Any]] = [
            [
                row.path,
                row.link,
                _format_shape(row.output_shape),
                row.common_num if row.common_num > 1 else '',
                f'{row.parameters:,}',
                f'{row.dense_parameters:,}',
                cell,
            ]
            for row, cell in zip(self.rows, multiply_adds)
        ]
        total = [
            'total',
            '',
            '',
            '',
            f'{self.parameters:,}',
            f'{self.dense_parameters:,}',
            multiply_adds[-1],
        ]
        table = [header, *table, total]
        if not self._is_shared():
            for cells in table:
                del cells[5], cells[3]
        return table


def _align(header: list[str]) -> list[str]:
    return ['left'] * 3 + ['right'] * (len(header) - 3)


def summary(model: Link, x: Any) -> Summary:
    """Runs a model once and returns the size and cost of each of its links.

    What runs is a copy of the model on the model's own parameters, in test
    mode and without a graph. The model stays as it is, including its
    uninitialized parameters, persistent values and recurrent states. So do the
    gradients, the configuration and the random states of Python, NumPy and
    CuPy. Objects that closures refer to, or that ``deepcopy`` cannot copy, are
    shared with the model.

    The multiply-adds are those for the whole of ``x``, of ``linear``,
    ``matmul``, convolutions and deconvolutions of any number of dimensions,
    and ``local_convolution_2d``. Only what runs counts: a link that is called
    three times counts three times, and with the algorithm ``'sum'`` a shared
    layer multiplies by its narrow weight. Multiply-adds are attributed to the
    innermost link whose ``__call__`` they run in. Biases, sums of blocks and
    all other functions do not count, nor do recurrent networks that cuDNN runs
    as a whole.

    A weight counts as shared if a shared layer used it, unchanged, in this
    run. Uninitialized parameters count if the run initializes them.

    Args:
        model (chainer.Link): The model.
        x (object): What to call the model with: one argument, a tuple of
            arguments, or a dict of keyword arguments. A tuple of integers is
            the shape of one argument, an array of zeros in Chainer's dtype.

    Returns:
        Summary: The rows and totals of the table. It prints as the table.

    Raises:
        TypeError: If ``model`` is not a ``chainer.Link``.

    .. admonition:: Example

        >>> from chainer_shared_patch import SharedLinear
        >>> from chainer_shared_patch.summary import summary
        >>> import chainer
        >>> import chainer.functions as F
        >>> import chainer.links as L
        >>> import numpy as np
        >>> class MLP(chainer.Chain):
        ...     def __init__(self):
        ...         super().__init__()
        ...         with self.init_scope():
        ...             self.l1 = L.Linear(784, 1000)
        ...             self.l2 = SharedLinear(1000, 900, common_num=10)
        ...             self.l3 = L.Linear(900, 10)
        ...
        ...     def forward(self, x):
        ...         return self.l3(F.relu(self.l2(F.relu(self.l1(x)))))
        >>> print(summary(MLP(), np.zeros((100, 784), np.float32)))
        -----  ------------  --------  ------  ----------  ---------  -------
        path   link          output    common  parameters      dense    mult-
                             shape       _num                            adds
        -----  ------------  --------  ------  ----------  ---------  -------
        /      MLP           100x10                     0          0   0.00 M
        /l1    Linear        100x1000             785,000    785,000  78.40 M
        /l2    SharedLinear  100x900       10      90,900    900,900   9.00 M
        /l3    Linear        100x10                 9,010      9,010   0.90 M
        -----  ------------  --------  ------  ----------  ---------  -------
        total                                     884,910  1,694,910  88.30 M
        -----  ------------  --------  ------  ----------  ---------  -------
        Size of the parameters: 3,539,640 bytes (dense: 6,779,640 bytes)

    """
    check_model('summary', model)
    if isinstance(x, tuple) and x and all(type(size) is int for size in x):
        x = model.device.send(numpy.zeros(x, chainer.get_dtype()))
    with trial(model, same_arrays=True) as copied:
        calls = _Calls(copied)
        with calls, _FunctionCalls(calls):
            calls.run(x)
    return calls.summarize()


class _Calls(chainer.LinkHook):
    """Records the calls of a model's links, by their paths."""

    name = 'chainer_shared_patch.summary'

    def __init__(self, model: Link) -> None:
        self.model = model
        self.paths: dict[Link, str] = {}  # of several, the first
        for path, link in model.namedlinks():
            self.paths.setdefault(link, path.rstrip('/'))
        self.order: dict[str, int] = {}
        self.output_shapes: dict[str, OutputShape] = {}
        self.multiply_adds: collections.Counter[str] = collections.Counter()
        self.common_nums: dict[str, int] = {}  # of links and of parameters
        self.running = ['']

    def run(self, x: Any) -> None:
        if isinstance(x, dict):
            y = self.model(**x)
        else:
            y = self.model(*(x if isinstance(x, tuple) else (x,)))
        # A class with its own __call__ calls no hooks.
        self.output_shapes[''] = _get_shape(y)

    def forward_preprocess(self, args: Any) -> None:
        path = self.paths.get(args.link)
        if path is not None:
            self.running.append(path)
            for parent in _parents(path):
                self.order.setdefault(parent, len(self.order))

    def forward_postprocess(self, args: Any) -> None:
        path = self.paths.get(args.link)
        if path is not None:
            # The model may have caught an error in another link.
            while self.running.pop() != path:
                pass
            self.output_shapes[path] = _get_shape(args.out)

    def record(
        self, function: FunctionNode, in_data: tuple[NdArray, ...]
    ) -> None:
        path = self.running[-1]
        self.multiply_adds[path] += _count_multiply_adds(function, in_data)
        if isinstance(function, SharedLinearFunction):
            self.common_nums[path] = function.common_num
            for name, param in self.model.namedparams():
                if param.array is in_data[1]:
                    self.common_nums[name] = function.common_num

    def summarize(self) -> Summary:
        def get_order(item: tuple[Link, str]) -> list[int]:
            last = len(self.order)
            return [self.order.get(each, last) for each in _parents(item[1])]

        rows = []
        arrays: dict[int, tuple[Any, int]] = {}  # each parameter's, once
        for link, path in sorted(self.paths.items(), key=get_order):
            own: dict[int, tuple[Any, int]] = {
                id(param): (param.array, self.common_nums.get(path + name, 1))
                for name, param in link.namedparams(include_uninit=False)
                if name.count('/') == 1  # it is not a child's
            }
            arrays.update(own)
            if own or path in self.output_shapes:
                rows.append(
                    LinkSummary(
                        path or '/',
                        type(link).__name__,
                        self.output_shapes.get(path),
                        self.common_nums.get(path, 1),
                        sum(array.size for array, _ in own.values()),
                        sum(n * array.size for array, n in own.values()),
                        self.multiply_adds[path],
                    )
                )
        orders = {
            id(link.order): link.order
            for link in self.paths
            if isinstance(link, SharedLinear)
            and isinstance(link.order, chainer.get_array_types())
        }.values()
        return Summary(
            rows,
            sum(array.size for array, _ in arrays.values()),
            sum(n * array.size for array, n in arrays.values()),
            sum(array.nbytes for array, _ in arrays.values()),
            sum(n * array.nbytes for array, n in arrays.values()),
            sum(self.multiply_adds.values()),
            sum(order.size for order in orders),
            sum(order.nbytes for order in orders),
        )


class _FunctionCalls(chainer.FunctionHook):
    name = _Calls.name

    def __init__(self, calls: _Calls) -> None:
        self.calls = calls

    # Only once a layer has run is it known to be shared.
    def forward_postprocess(
        self, function: FunctionNode, in_data: tuple[NdArray, ...]
    ) -> None:
        self.calls.record(function, in_data)


def _parents(path: str) -> Iterator[str]:
    """Yields the paths of a link's ancestors, and its own."""
    return itertools.accumulate(path.split('/'), '{}/{}'.format)


def _count_multiply_adds(
    function: FunctionNode, in_data: tuple[Any, ...]
) -> int:
    if isinstance(function, MatMul):
        a, b = in_data
        batch = numpy.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        k = a.shape[-2 if function.transa and a.ndim > 1 else -1]
        areas = size_of_shape(a.shape[-2:]) * size_of_shape(b.shape[-2:])
        return int(size_of_shape(batch) * areas // max(k, 1))
    if isinstance(function, _USING_W):
        x, W = in_data[:2]
        return int(len(x) * _count_places(function, x, W) * W.size)
    return 0


def _count_places(function: Any, x: Any, W: Any) -> Any:
    """Counts the places where a sample uses every element of W."""
    if isinstance(function, SharedLinearFunction):
        tiled = function.shared_algorithm == 'tile'
        return function.common_num if tiled else 1
    if isinstance(function, _DECONVOLUTIONS):
        return size_of_shape(x.shape[2:])
    if isinstance(function, Convolution2DFunction):
        geometry: Any = (
            (function.sy, function.ph, function.dy),
            (function.sx, function.pw, function.dx),
        )
    elif isinstance(function, ConvolutionND):
        geometry = zip(function.stride, function.pad, function.dilate)
    else:
        return 1
    return size_of_shape(
        get_conv_outsize(size, k, stride, pad, function.cover_all, dilate)
        for size, k, (stride, pad, dilate) in zip(
            x.shape[2:], W.shape[2:], geometry
        )
    )


def _get_shape(y: Any) -> OutputShape:
    if isinstance(y, dict):
        return {key: _get_shape(each) for key, each in y.items()}
    if isinstance(y, (tuple, list)):
        return tuple(_get_shape(each) for each in y)
    return getattr(y, 'shape', None)


def _format_shape(shape: Any) -> str:
    if shape is None:
        return '-'
    if isinstance(shape, dict):
        shape = tuple(shape.values())
    if all(isinstance(each, int) for each in shape):
        return 'x'.join(map(str, shape)) or '()'
    text = ', '.join(map(_format_shape, shape))
    return textwrap.shorten(text, 24, placeholder=' ...')


def _format_all(numbers: list[int]) -> list[str]:
    """Formats numbers, the last the largest; from a million on with a unit."""
    if numbers[-1] < 10**6:
        return [f'{number:,}' for number in numbers]
    # The largest with four digits, of which one to three are before the point.
    thousands, digits = divmod(len(str(numbers[-1])) - 1, 3)
    unit = ' kMGTPE'[thousands]
    return [
        f'{number / 1000**thousands:.{3 - digits}f} {unit}'
        for number in numbers
    ]
