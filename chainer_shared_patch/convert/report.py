"""What ``share`` did, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tabulate import tabulate


class SharedLayer(NamedTuple):
    """What :func:`share` did to a layer.

    Attributes:
        path (str): The layer's path in the model.
        common_num (int): The number of blocks that share its weight.
        orders (int): The number of orders of its inputs.
        size (int): The number of elements of its parameters.
        dense_size (int): The same, before it was shared.
        weight_error (float): The Frobenius norm of the difference between
            the weight's columns and the means that replace them, relative to
            the norm of the weight.
        output_error (float): The Frobenius norm of the difference between the
            layer's outputs for the calibration inputs, before it was shared
            and after it was refitted, relative to the norm of the outputs
            before. ``None`` without calibration inputs.
        folded_into (str): The path of the layer whose outputs have been
            reordered instead of this layer's inputs, or ``None``.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import share
        >>> model = chainer.Sequential(L.Linear(20, 5))
        >>> (layer,) = share(model, 10).layers
        >>> layer.path, layer.common_num, layer.size, layer.dense_size
        ('/0', 10, 15, 105)

    """

    path: str
    common_num: int
    orders: int
    size: int
    dense_size: int
    weight_error: float
    output_error: float | None
    folded_into: str | None


class ShareReport(NamedTuple):
    """What :func:`share` did. It prints as a table.

    Attributes:
        layers (tuple of SharedLayer): The layers, in the order in which they
            were shared.
        restarted (tuple of str): The paths of the parameters whose optimizer
            state was reset.
        passed_over (tuple of str): The paths of links of subclasses of
            ``chainer.links.Linear``, which stay as they are.
        tuned (tuple of float): The error of the model's outputs for the
            calibration inputs, before ``tune_steps`` and after. It is the root
            mean square of the errors of the arrays, each relative to the root
            mean square of its elements before the model was shared. ``None``
            without ``tune_steps``.

    .. admonition:: Example

        >>> import chainer
        >>> import chainer.links as L
        >>> from chainer_shared_patch import share
        >>> import numpy as np
        >>> model = chainer.Sequential(
        ...     L.Linear(4, 1, initialW=np.array([[1., 2., 1., 1.]])))
        >>> print(share(model, 2, order='contiguous'))
        layer      common_num    parameters    parameters before    weight error
        -------  ------------  ------------  -------------------  --------------
        /0                  2             3                    5          26.73%

    """  # noqa: E501

    layers: tuple[SharedLayer, ...]
    restarted: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    tuned: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return '\n'.join([self._tabulate('simple'), *self._make_notes()])

    def _repr_html_(self) -> str:
        notes = (f'<p>{note}</p>' for note in self._make_notes())
        return '\n'.join([self._tabulate('html'), *notes])

    def _make_notes(self) -> list[str]:
        notes = []
        if self.restarted:
            paths = ', '.join(self.restarted)
            notes.append(f'The state of the optimizer was reset for {paths}.')
        if self.passed_over:
            paths = ', '.join(self.passed_over)
            notes.append(f'Of a subclass of Linear, and not shared: {paths}.')
        if self.tuned:
            before, after = self.tuned
            notes.append(
                'Tuning brought the error of the outputs from '
                f'{before:.2%} to {after:.2%}.'
            )
        return notes

    def _tabulate(self, style: str) -> str:
        def percent(errors: Iterable[float | None]) -> list[str]:
            return ['' if each is None else f'{each:.2%}' for each in errors]

        layers = self.layers
        sizes = [each.size for each in layers]
        dense_sizes = [each.dense_size for each in layers]
        numbers = [each.orders for each in layers]
        columns: dict[str, list[Any]] = {
            'layer': [each.path for each in layers],
            'common_num': [each.common_num for each in layers],
            'orders': numbers if max(numbers, default=1) > 1 else [],
            'parameters': [f'{size:,}' for size in sizes],
            'parameters before': [f'{size:,}' for size in dense_sizes],
            'weight error': percent(each.weight_error for each in layers),
            'output error': percent(each.output_error for each in layers),
            'order folded into': [each.folded_into or '' for each in layers],
        }
        columns = {
            header: cells for header, cells in columns.items() if any(cells)
        }
        if len(layers) > 1:
            totals = {
                'layer': 'total',
                'parameters': f'{sum(sizes):,}',
                'parameters before': f'{sum(dense_sizes):,}',
            }
            for header, cells in columns.items():
                cells.append(totals.get(header, ''))
        return tabulate_layers(columns, style)


def tabulate_layers(columns: dict[str, list[Any]], style: str) -> str:
    """Returns a table, whose columns of paths are aligned to the left."""
    align = [
        'left' if header in ('layer', 'order folded into') else 'right'
        for header in columns
    ]
    text: str = tabulate(
        columns,
        headers='keys',
        tablefmt=style,
        disable_numparse=True,
        # Older releases of tabulate align no table without rows.
        colalign=align if any(columns.values()) else None,
    )
    return text
