from pathlib import Path

import numpy
import pytest

from . import train_layers

SCRIPT = Path(__file__).with_name('train_layers.py')


def train_one_process(n, W):
    """Trains by the definition, in float64, on the global batches."""
    W = W.astype('d')
    for x, t in train_layers.make_batches():
        gy = 2 / t.size * (x @ numpy.tile(W, (1, n)).T - t)
        gW = (gy.T @ x).reshape(len(W), n, -1).sum(axis=1)
        W -= 2**-2 * gW
    return W


@pytest.mark.parametrize('ranks', [2, 4])
def test_ranks_train_as_one_process_and_send_less(mpiexec, tmp_path, ranks):
    result = mpiexec(ranks, SCRIPT, tmp_path)
    assert result.returncode == 0, result.stderr
    sent = {}
    for rank in range(ranks):
        with numpy.load(tmp_path / f'{rank}.npz') as file:
            arrays = dict(file)
        for kind in train_layers.KINDS:
            W = train_layers.make_layer(kind).W.array
            n = 1 if kind == 'dense' else train_layers.N
            expected = train_one_process(n, W)
            assert arrays[kind].dtype == numpy.float32
            numpy.testing.assert_array_equal(arrays[kind], expected)
            assert (expected != W).any()
            (sent[kind],) = set(arrays[kind + ' sent'].tolist())
    print('bytes of gradients per rank and step:', sent)
    assert sent['patched'] * train_layers.N == sent['dense']
    assert sent['SharedLinear'] == sent['patched']
    assert sent['dense'] == 4 * train_layers.OUT_SIZE * 4 * train_layers.K
