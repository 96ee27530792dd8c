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
        '{} must be an integer of at least 1, the number of input blocks '
        'that share a weight, but it is {!r}'.format(setting, value)
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
    raise ValueError(
        "{} must be 'sum' or 'tile', but it is {!r}".format(setting, value)
    )


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
        bool: Whether importing the package installs the patch.

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
            '{!r}'.format(text)
        )
    return text == '1'
