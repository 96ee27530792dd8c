"""The settings: environment variables, Chainer's configuration, validation.

=================================== ============================ =======
configuration                       environment                  default
=================================== ============================ =======
``chainer.config.common_num``       ``CHAINER_COMMON_NUM``       1
``chainer.config.shared_algorithm`` ``CHAINER_SHARED_ALGORITHM`` sum
(whether importing installs)        ``CHAINER_SHARED_PATCH``     1
(whether to give back what is gone) ``CHAINER_LEGACY``           0
=================================== ============================ =======

As with all of Chainer's settings, ``chainer.global_config`` holds the value
for all threads and ``chainer.config`` that of the current thread.
"""

from __future__ import annotations

import bisect
import os
from typing import Any, Literal

import chainer
import numpy

Algorithm = Literal['sum', 'tile']
ALGORITHMS: tuple[Algorithm, ...] = ('sum', 'tile')


def check_common_num(value: Any, setting: str) -> int:
    """Returns a ``common_num``, or raises an error that names its setting."""
    if type(value) is int and value >= 1:  # fast, since every layer asks
        return value
    meaning = ', the number of input blocks that share a weight'
    return check_integer(value, setting, 1, meaning)


def check_integer(
    value: Any, setting: str, least: int, meaning: str = ''
) -> int:
    """Returns an integer, or raises an error that names its setting."""
    if (
        isinstance(value, (int, numpy.integer))
        and not isinstance(value, bool)
        and value >= least
    ):
        return int(value)
    raise ValueError(
        f'{setting} must be an integer of at least {least}{meaning}, but it '
        f'is {value!r}'
    )


def check_divides(
    common_num: int, in_size: int, setting: str = 'common_num'
) -> None:
    """Raises an error unless ``in_size`` can be cut into equal blocks."""
    if in_size < 1:
        raise ValueError(f'in_size must be at least 1, but is {in_size}')
    if in_size % common_num:
        divisors = [n for n in range(1, in_size + 1) if in_size % n == 0]
        above = bisect.bisect(divisors, common_num)
        nearby = divisors[above - 1 : above + 1]
        raise ValueError(
            f'{setting} must divide in_size, but in_size is {in_size} and '
            f'common_num is {common_num}; try ' + ' or '.join(map(str, nearby))
        )


def check_order(
    order: Any,
    in_size: int | None,
    others: str = "None, 'interleaved'",
    setting: str = 'order',
) -> numpy.ndarray:
    """Returns a copy of one or several orders, or raises an error.

    Each must be a permutation, of any length if ``in_size`` is ``None``. The
    error message names what else may be given instead. The dtype of the copy
    is the smallest that holds all of them.
    """
    order = chainer.as_array(order)
    if isinstance(order, chainer.backends.cuda.ndarray):
        order = order.get()
    array = numpy.array(order)
    if array.ndim == 0:
        mistake = f'it is {order!r}'
    elif array.dtype.kind not in 'iu':
        mistake = f'its dtype is {array.dtype}'
    elif (
        array.ndim > 2
        or array.size == 0
        or in_size not in (None, array.shape[-1])
    ):
        mistake = f'its shape is {array.shape}'
    else:
        everything = numpy.arange(array.shape[-1])
        for row, each in enumerate(numpy.atleast_2d(array)):
            missing = numpy.setdiff1d(everything, each)
            if len(missing):
                mistake = f'{missing[0]} is missing'
                mistake += f' in row {row}' * (array.ndim > 1)
                break
        else:
            array = array.astype(numpy.min_scalar_type(everything[-1]))
            return array[0] if array.shape[:-1] == (1,) else array
    below = 'in_size' if in_size is None else f'in_size, {in_size}'
    raise ValueError(
        f'{setting} must be {others} or a permutation of the integers below '
        f'{below}, or several as the rows of a matrix, but {mistake}'
    )


def check_model(call: str, model: Any) -> None:
    """Raises an error if a model is not a link."""
    if not isinstance(model, chainer.Link):
        raise TypeError(
            f'{call}(): model must be a chainer.Link, but is {model!r}'
        )


def parse_common_num(text: str, setting: str) -> int:
    """Returns the ``common_num`` that a string of ASCII digits holds."""
    is_number = text.isascii() and text.isdigit()
    return check_common_num(int(text) if is_number else text, setting)


def check_shared_algorithm(value: Any, setting: str) -> Algorithm:
    """Returns an algorithm's name, or raises an error."""
    if isinstance(value, str) and value in ALGORITHMS:
        return value
    raise ValueError(f"{setting} must be 'sum' or 'tile', but it is {value!r}")


def get_common_num() -> int:
    """Returns the current thread's ``chainer.config.common_num``."""
    return check_common_num(
        chainer.config.common_num, 'chainer.config.common_num'
    )


def get_shared_algorithm() -> Algorithm:
    """Returns the current thread's ``chainer.config.shared_algorithm``."""
    return check_shared_algorithm(
        chainer.config.shared_algorithm, 'chainer.config.shared_algorithm'
    )


def read_environment() -> bool:
    """Copies the settings of the environment to ``chainer.global_config``.

    A setting that the program has already made there stays.

    Returns:
        bool: Whether importing the plugin installs the patch.

    """
    # Chainer's GlobalConfig declares its own settings only.
    settings: Any = chainer.global_config
    name = 'CHAINER_COMMON_NUM'
    common_num = parse_common_num(os.environ.get(name, '1'), name)
    if not hasattr(settings, 'common_num'):
        settings.common_num = common_num

    name = 'CHAINER_SHARED_ALGORITHM'
    algorithm = check_shared_algorithm(os.environ.get(name, 'sum'), name)
    if not hasattr(settings, 'shared_algorithm'):
        settings.shared_algorithm = algorithm

    return read_switch('CHAINER_SHARED_PATCH', '1')


def read_switch(name: str, default: str) -> bool:
    """Tells whether a variable of the environment is 1, and not 0."""
    text = os.environ.get(name, default)
    if text not in ('0', '1'):
        raise ValueError(
            f'{name} must be 0 (off) or 1 (on), but it is {text!r}'
        )
    return text == '1'
