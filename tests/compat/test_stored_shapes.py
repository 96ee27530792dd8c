import chainer_shared_patch  # noqa: F401
import chainer
import chainer.links as L
from chainer.serializers import load_hdf5, load_npz, save_hdf5, save_npz
import numpy
import pytest

FORMATS = [(save_npz, load_npz), (save_hdf5, load_hdf5)]


@pytest.mark.parametrize(('save', 'load'), FORMATS)
@pytest.mark.parametrize('shape', [(), (1,), (3, 1, 1, 1), (1, 1, 2, 2)])
def test_array_that_would_be_broadcast_is_refused(tmp_path, save, load, shape):
    pytest.importorskip('h5py')
    path = str(tmp_path / 'file')
    source = chainer.Sequential(L.Convolution2D(1, 3, 2, nobias=True))
    target = source.copy('init')
    before = target[0].W.array.copy()
    source[0].W.array = numpy.ones(shape, 'f')
    save(path, source)
    with pytest.raises(ValueError) as info:
        load(path, target)
    message = str(info.value)
    assert '0/W of shape ' + str(shape) in message
    assert 'array of shape (3, 1, 2, 2)' in message
    numpy.testing.assert_array_equal(target[0].W.array, before)


@pytest.mark.parametrize(('save', 'load'), FORMATS)
def test_what_chainer_writes_is_loaded(tmp_path, save, load):
    pytest.importorskip('h5py')
    path = str(tmp_path / 'file')
    source, target = L.BatchNormalization(3), L.BatchNormalization(3)
    source(numpy.random.randn(4, 3).astype('f'))
    source.N = 7
    save(path, source)
    load(path, target)
    assert target.N == 7
    numpy.testing.assert_array_equal(target.avg_mean, source.avg_mean)
