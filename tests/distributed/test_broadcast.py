from pathlib import Path

import numpy
import pytest

SCRIPT = Path(__file__).with_name('broadcast_orders.py')


@pytest.mark.parametrize('how', ['bcast_data', 'first update'])
def test_ranks_compute_what_rank_0_does(mpiexec, tmp_path, how):
    result = mpiexec(2, SCRIPT, tmp_path, how)
    assert result.returncode == 0, result.stderr
    (before, after), (other_before, other_after) = (
        numpy.load(tmp_path / f'{rank}.npz').values() for rank in range(2)
    )
    assert (before != other_before).all()
    numpy.testing.assert_array_equal(after, before)
    numpy.testing.assert_array_equal(other_after, before)
