"""Loads a file of shared layers into a dense model."""

from __future__ import annotations

from typing import Any

from chainer_shared_patch.config import (
    check_common_num,
    check_divides,
    check_model,
)
from chainer_shared_patch.convert.choose import check_replaceable
from chainer_shared_patch.convert.replace import Changes
from chainer_shared_patch.links import SharedLinear
import chainer
from chainer.link import Link
from chainer.links.connection.linear import Linear
from chainer.serializers import NpzDeserializer
import numpy


def load_npz(
    file: Any,
    obj: Link,
    path: str = '',
    strict: bool = True,
    ignore_names: Any = None,
) -> None:
    """Loads a file, and shares the layers that are shared in the file.

    Each ``chainer.links.Linear`` whose path is that of a
    :class:`SharedLinear` in the file becomes one, with the ``common_num``, the
    order and the bias, or without one, that the file says. Then
    ``chainer.serializers.load_npz`` loads the file. A model that is a
    :class:`SharedLinear` in those places already is loaded as it is.

    Args:
        file (str or object): The path of a file, or a file object, as
            ``chainer.serializers.save_npz`` writes it.
        obj (chainer.Link): The model, dense or shared. It is changed in place.
        path (str): The path of the model in the file, such as
            ``'updater/model:main/'`` in a snapshot of a trainer.
        strict (bool): If ``True``, it is an error if the file lacks a value.
        ignore_names (str, callable or list): The names of values that are not
            loaded, as for ``chainer.serializers.load_npz``. A layer whose
            ``W`` is not loaded stays as it is.

    Raises:
        TypeError: If ``obj`` is not a link.
        ValueError: If what the file holds does not fit the model, or a layer
            cannot be replaced. Then no layer is replaced.

    .. admonition:: Example

        >>> import io
        >>> import chainer_shared_patch
        >>> import chainer
        >>> import chainer.links as L
        >>> model = chainer.Sequential(L.Linear(20, 5))
        >>> report = chainer_shared_patch.share(model, 10)
        >>> file = io.BytesIO()  # or a path
        >>> chainer.serializers.save_npz(file, model)
        >>> position = file.seek(0)
        >>> model = chainer.Sequential(L.Linear(20, 5))
        >>> chainer_shared_patch.load_npz(file, model)
        >>> model[0].common_num
        10

    """
    check_model('load_npz', obj)
    with numpy.load(file, allow_pickle=False) as npz:
        deserializer = NpzDeserializer(npz, path, strict, ignore_names)
        with Changes(obj) as changes:
            for link_path, link in list(obj.namedlinks(skipself=True)):
                if type(link) is Linear:
                    key = f'{path}{link_path[1:]}/'
                    stored = NpzDeserializer(npz, key, False, ignore_names)
                    common_num = stored('common_num', None)
                    # What the file lacks or is not to be loaded is None.
                    if common_num is None or stored('W', None) is None:
                        continue
                    check_replaceable('load_npz', obj, link_path, link)
                    shared = _make_shared(
                        link_path, link, common_num[()], key + 'b' in npz
                    )
                    changes.replace(link_path, link, shared)
            deserializer.load(obj)


def _make_shared(
    path: str, link: Any, common_num: Any, has_bias: bool
) -> SharedLinear:
    """Makes a layer as one in a file, and of the size of one in a model."""
    setting = f'load_npz(): common_num of {path}'
    common_num = check_common_num(common_num, setting)
    in_size = dtype = None
    if link.W.array is not None:
        in_size, dtype = link.W.shape[1], link.W.dtype
        check_divides(common_num, in_size, setting)
    with chainer.using_config('dtype', dtype or chainer.config.dtype):
        return SharedLinear(
            in_size, link.out_size, not has_bias, common_num=common_num
        )
