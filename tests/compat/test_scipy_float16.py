import chainer_shared_patch  # noqa: F401
import chainer.functions as F
from chainer.utils import CooMatrix
import numpy
import pytest

from tests.helpers import assert_close


@pytest.mark.parametrize('dtypes', ['ee', 'ef', 'fe', 'ff', 'dd'])
@pytest.mark.parametrize('batch', [(), (2,)])
def test_sparse_matmul(random, dtypes, batch):
    pytest.importorskip('scipy')
    a = random.randn(*batch, 3, 4).astype(dtypes[0])
    b = random.randn(*batch, 4, 5).astype(dtypes[1])
    rows, columns = numpy.indices((3, 4)).astype('i').reshape(2, 12)
    shape = (*batch, 12)
    sparse = CooMatrix(
        a.reshape(shape),
        numpy.broadcast_to(rows, shape),
        numpy.broadcast_to(columns, shape),
        (3, 4),
    )
    y = F.sparse_matmul(sparse, b)
    assert y.dtype == numpy.result_type(a, b)
    a, b = a.astype('d'), b.astype('d')
    accumulator = numpy.promote_types(y.dtype, 'f')
    assert_close(y.array, a @ b, abs(a) @ abs(b), (4, accumulator))
