"""The settings: environment variables, Chainer's configuration, validation.

=================================== ============================ =======
configuration                       environment                  default
=================================== ============================ =======
``chainer.config.common_num``       ``CHAINER_COMMON_NUM``       1
``chainer.config.shared_algorithm`` ``CHAINER_SHARED_ALGORITHM`` sum
(whether importing installs)        ``CHAINER_SHARED_PATCH``     1
=================================== ============================ =======

As with all of Chainer's settings, ``chainer.global_config`` holds the value
for all threads and ``chainer.config`` that of the current thread.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal

import chainer
import numpy

Algorithm = Literal['sum', 'tile']
ALGORITHMS: tuple[Algorithm, ...] = ('sum', 'tile')


def check_common_num(value: Any, setting: str) -> int:
    """Checks that a value can be a ``common_num``.

    Args:
        value (object): The value.
        setting (str): Its name in the error message.

    Returns:
        int: The value.

    Raises:
        ValueError: If the value is not an integer of at least 1, Python's or
            NumPy's.

    .. admonition:: Example

        >>> from chainer_shared_patch.config import check_common_num
        >>> check_common_num(10, 'common_num of my_function')
        10

    """
    if type(value) is int and value >= 1:  # fast, since every layer asks
        return value
    if (
        isinstance(value, (int, numpy.integer))
        and not isinstance(value, bool)
        and value >= 1
    ):
        return int(value)
    raise ValueError(
        f'{setting} must be an integer of at least 1, the number of input '
        f'blocks that share a weight, but it is {value!r}'
    )


def check_divides(
    common_num: int, in_size: int, setting: str = 'common_num'
) -> None:
    """Checks that a layer's input can be cut into equal blocks.

    Args:
        common_num (int): The number of blocks, at least 1.
        in_size (int): The width of the input.
        setting (str): The number's name in the error message.

    Raises:
        ValueError: If ``in_size`` is less than 1, or ``common_num`` does not
            divide it. The message names the nearest divisors.

    .. admonition:: Example

        >>> from chainer_shared_patch.config import check_divides
        >>> check_divides(10, 1000)

    """
    if in_size < 1:
        raise ValueError(f'in_size must be at least 1, but is {in_size}')
    if in_size % common_num:
        divisors = [n for n in range(1, in_size + 1) if in_size % n == 0]
        nearby = [n for n in divisors if n < common_num][-1:]
        nearby += [n for n in divisors if n > common_num][:1]
        raise ValueError(
            '{} must divide in_size, but in_size is {} and '
            'common_num is {}; try {}'.format(
                setting,
                in_size,
                common_num,
                '{} or {}'.format(*nearby)
                if len(nearby) == 2
                else '{}'.format(*nearby),
            )
        )


def check_order(
    order: Any,
    in_size: int | None,
    others: str = "None, 'interleaved'",
    setting: str = 'order',
) -> numpy.ndarray:
    """Checks that a value is a permutation.

    Args:
        order (object): The value.
        in_size (int): The length that it must have. If ``None``, it may have
            any.
        others (str): What else may be given instead, for the error message.
        setting (str): The value's name in the error message.

    Returns:
        numpy.ndarray: A copy, of shape ``(in_size,)`` and dtype int64.

    Raises:
        ValueError: If the value is not a permutation of the integers below
            its length.

    .. admonition:: Example

        >>> from chainer_shared_patch.config import check_order
        >>> check_order([2, 0, 1], 3)
        array([2, 0, 1])

    """
    order = chainer.as_array(order)
    if isinstance(order, chainer.backends.cuda.ndarray):
        order = order.get()
    array = numpy.array(order)
    if array.ndim == 0:
        mistake = f'it is {order!r}'
    elif array.dtype.kind not in 'iu':
        mistake = f'its dtype is {array.dtype}'
    elif array.shape != (in_size or array.size,):
        mistake = f'its shape is {array.shape}'
    else:
        everything = numpy.arange(len(array))
        if numpy.array_equal(numpy.sort(array), everything):
            return array.astype(numpy.int64)
        missing = numpy.setdiff1d(everything, array)
        mistake = f'{missing[0]} is missing'
    raise ValueError(
        '{} must be {} or a permutation of the integers below in_size{}, '
        'but {}'.format(
            setting,
            others,
            '' if in_size is None else f', {in_size}',
            mistake,
        )
    )


def check_model(call: str, model: Any) -> None:
    """Raises an error if a model is not a link."""
    if not isinstance(model, chainer.Link):
        raise TypeError(
            f'{call}(): model must be a chainer.Link, but is {model!r}'
        )


def parse_common_num(text: str, setting: str) -> int:
    """Reads a ``common_num`` from a string.

    Args:
        text (str): The string.
        setting (str): Its name in the error message.

    Returns:
        int: The number.

    Raises:
        ValueError: If the string is not an integer of at least 1, in ASCII
            digits alone.

    .. admonition:: Example

        >>> from chainer_shared_patch.config import parse_common_num
        >>> parse_common_num('10', '--common-num')
        10

    """
    value: Any = text
    if text.isascii() and text.isdigit():
        with contextlib.suppress(ValueError):  # for thousands of digits
            value = int(text)
    return check_common_num(value, setting)


def check_shared_algorithm(value: Any, setting: str) -> Algorithm:
    """Checks that a value is the name of an algorithm.

    Args:
        value (object): The value.
        setting (str): Its name in the error message.

    Returns:
        str: The value.

    Raises:
        ValueError: If the value is neither ``'sum'`` nor ``'tile'``.

    .. admonition:: Example

        >>> from chainer_shared_patch.config import check_shared_algorithm
        >>> check_shared_algorithm('tile', '--algorithm')
        'tile'

    """
    if isinstance(value, str) and value in ALGORITHMS:
        return value
    raise ValueError(f"{setting} must be 'sum' or 'tile', but it is {value!r}")


def get_common_num() -> int:
    """Returns the current thread's ``chainer.config.common_num``.

    Returns:
        int: The number of input blocks that share a weight.

    Raises:
        ValueError: If it is not an integer of at least 1.

    .. admonition:: Example

        >>> import chainer
        >>> from chainer_shared_patch.config import get_common_num
        >>> with chainer.using_config('common_num', 10):
        ...     get_common_num()
        10

    """
    return check_common_num(
        chainer.config.common_num, 'chainer.config.common_num'
    )


def get_shared_algorithm() -> Algorithm:
    """Returns the current thread's ``chainer.config.shared_algorithm``.

    Returns:
        str: ``'sum'`` or ``'tile'``.

    Raises:
        ValueError: If it is neither.

    .. admonition:: Example

        >>> import chainer
        >>> from chainer_shared_patch.config import get_shared_algorithm
        >>> with chainer.using_config('shared_algorithm', 'tile'):
        ...     get_shared_algorithm()
        'tile'

    """
    return check_shared_algorithm(
        chainer.config.shared_algorithm, 'chainer.config.shared_algorithm'
    )


def read_environment() -> bool:
    """Copies the settings of the environment to ``chainer.global_config``.

    A setting that the program has already made there stays.

    Returns:
        bool: Whether importing the plugin installs the patch.

    Raises:
        ValueError: If a variable has an invalid value. The message names the
            variable and the allowed values.

    .. admonition:: Example

        >>> import os
        >>> from chainer_shared_patch.config import read_environment
        >>> before = os.environ.pop('CHAINER_SHARED_PATCH', None)
        >>> read_environment()
        True
        >>> if before is not None:
        ...     os.environ['CHAINER_SHARED_PATCH'] = before

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

    text = os.environ.get('CHAINER_SHARED_PATCH', '1')
    if text not in ('0', '1'):
        raise ValueError(
            'CHAINER_SHARED_PATCH must be 0 (off) or 1 (on), but it is '
            f'{text!r}'
        )
    return text == '1'
