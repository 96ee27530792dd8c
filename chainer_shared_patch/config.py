"""The settings: environment variables, Chainer's configuration, validation.

================================ ========================== =======
 configuration                    environment                default
================================ ========================== =======
 ``chainer.config.common_num``    ``CHAINER_COMMON_NUM``     1
 ``chainer.config.shared_algorithm`` ``CHAINER_SHARED_ALGORITHM`` ``sum``
 (whether importing installs)     ``CHAINER_SHARED_PATCH``   1
================================ ========================== =======

As with every setting of Chainer, ``chainer.global_config`` holds the value
for all threads and ``chainer.config`` that of the current one.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import chainer
import numpy

ALGORITHMS = ('sum', 'tile')


def check_common_num(value: Any, setting: str) -> int:
    """Returns ``value`` as an int, or raises an error naming ``setting``."""
    if type(value) is int and value >= 1:  # as fast as every layer wants it
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
    """Returns the number in ``text``, or raises an error as above."""
    value: Any = text
    if text.isascii() and text.isdigit():
        with contextlib.suppress(ValueError):  # of thousands of digits
            value = int(text)
    return check_common_num(value, setting)


def check_shared_algorithm(value: Any, setting: str) -> str:
    """Returns ``value``, or raises an error that names ``setting``."""
    if isinstance(value, str) and value in ALGORITHMS:
        return value
    raise ValueError(
        "{} must be 'sum' or 'tile', but it is {!r}".format(setting, value)
    )


def get_common_num() -> int:
    """Returns the current thread's number, or raises a ``ValueError``."""
    return check_common_num(
        chainer.config.common_num, 'chainer.config.common_num'
    )


def get_shared_algorithm() -> str:
    """Returns the current thread's algorithm, or raises a ``ValueError``."""
    return check_shared_algorithm(
        chainer.config.shared_algorithm, 'chainer.config.shared_algorithm'
    )


def read_environment() -> bool:
    """Gives Chainer's configuration the settings of the environment.

    A setting that the program has already made in ``chainer.global_config``
    stays.

    Returns:
        bool: Whether importing installs the patch.

    Raises:
        ValueError: If a variable has a value that makes no sense.

    """
    name = 'CHAINER_COMMON_NUM'
    common_num = parse_common_num(os.environ.get(name, '1'), name)
    if not hasattr(chainer.global_config, 'common_num'):
        chainer.global_config.common_num = common_num

    name = 'CHAINER_SHARED_ALGORITHM'
    algorithm = check_shared_algorithm(os.environ.get(name, 'sum'), name)
    if not hasattr(chainer.global_config, 'shared_algorithm'):
        chainer.global_config.shared_algorithm = algorithm

    text = os.environ.get('CHAINER_SHARED_PATCH', '1')
    if text not in ('0', '1'):
        raise ValueError(
            'CHAINER_SHARED_PATCH must be 0 (off) or 1 (on), but it is '
            '{!r}'.format(text)
        )
    return text == '1'
