"""What ``share`` did, as a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from tabulate import tabulate


class SharedLayer(NamedTuple):
    """What :func:`share` did to a layer.

    Attributes:
        path (str): The layer's path in the model.
        common_num (int): The number of blocks that share its weight.
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

    def __str__(self) -> str:
        def percent(error: float | None) -> str:
            return '' if error is None else f'{error:.2%}'

        rows: list[tuple[Any, ...]] = [
            (
                layer.path,
                layer.common_num,
                f'{layer.size:,}',
                f'{layer.dense_size:,}',
                percent(layer.weight_error),
                percent(layer.output_error),
                layer.folded_into or '',
            )
            for layer in self.layers
        ]
        headers = (
            'layer',
            'common_num',
            'parameters',
            'parameters before',
            'weight error',
            'output error',
            'order folded into',
        )
        used = [i for i, cells in enumerate(zip(*rows)) if any(cells)]
        text: str = tabulate(
            [[row[i] for i in used] for row in rows],
            [headers[i] for i in used],
            disable_numparse=True,
            colalign=['left' if i in (0, 6) else 'right' for i in used],
        )
        if self.restarted:
            text += '\nThe state of the optimizer was reset for {}.'.format(
                ', '.join(self.restarted)
            )
        return text
