"""What the other tests compare with is itself compared."""

from chainer_shared_patch import uninstall
import numpy
import pytest

from tests.helpers import (
    SIZES,
    N,
    assert_close,
    integers,
    make_arrays,
    reference,
    run,
    tiled_linear,
)

pytestmark = pytest.mark.arithmetic


def test_reference_agrees_with_chainer(random):
    arrays = make_arrays(integers(random), *SIZES)
    uninstall()
    actual = run(*arrays, linear=tiled_linear())
    for a, e in zip(actual, reference(*arrays, N)):
        numpy.testing.assert_array_equal(a, e)
    x, W, b, gy = arrays
    narrow = x[:, : W.shape[1]]
    for a, e in zip(run(narrow, W, b, gy), reference(narrow, W, b, gy, 1)):
        numpy.testing.assert_array_equal(a, e)


@pytest.mark.parametrize('dtype', ['e', 'f'])
def test_bound_is_neither_too_narrow_nor_too_wide(dtype):
    # Every addition after the first loses all that it can: half a unit.
    m = 100
    info = numpy.finfo(dtype)
    terms = numpy.full((m, 1), info.eps / 2)
    terms[0] = 1
    exact = terms.sum(axis=0)
    actual = numpy.ones(1, dtype)
    assert_close(actual, exact, exact, (m - 1, dtype))
    with pytest.raises(AssertionError):
        assert_close(actual, exact, exact, (m // 2, dtype))
    for wrong in (numpy.nan, 2, numpy.inf):
        with pytest.raises(AssertionError):
            assert_close(actual * wrong, exact, exact, (m, dtype))
