"""Shared layers on the GPU: the tests of the CPU, computed there."""

import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType
import pytest

from tests.functions.test_arithmetic import (  # noqa: F401
    test_ordinary_layer_is_bit_identical,
    test_shared_layer,
)
from tests.functions.test_double_backward import (  # noqa: F401
    test_double_backward,
    test_double_backward_of_dtypes,
    test_gradient_penalty,
    test_third_order,
)
from tests.functions.test_dtypes import (  # noqa: F401
    test_backward_through_gradients,
    test_mixed16_with_fp32_update,
)
from tests.functions.test_graph import test_static_graph  # noqa: F401
from tests.helpers import SIZES, make_arrays
from tests.patch.test_chainer_links import TestLinksOfFullyConnectedLayers  # noqa: F401
from tests.patch.test_training import (  # noqa: F401
    test_settings_of_chainer,
    test_two_numbers_in_one_model,
)


def test_wrong_shape(random, device):
    x, W, *_ = device.send(make_arrays(random.randn, *SIZES))
    for type_check in (True, False):
        with chainer.using_config('type_check', type_check):
            with chainer.using_config('common_num', 2):
                with pytest.raises(InvalidType, match='2 [*] W.shape'):
                    F.linear(x, W)
