import chainer_shared_patch  # noqa: F401
from chainer.serializers import HDF5Deserializer
import numpy
import pytest

h5py = pytest.importorskip('h5py')


@pytest.fixture
def group(tmp_path):
    with h5py.File(tmp_path / 'file.h5', 'w') as file:
        yield file


def test_string(group):
    group.create_dataset('name', data='blå')
    deserialize = HDF5Deserializer(group)
    assert deserialize('name', '') == 'blå'
    array = deserialize('name', None)
    assert array.dtype == object
    assert array.shape == ()
    assert array.item() == 'blå'


def test_array_of_strings(group):
    group.create_dataset('names', data=['a', 'bc'])
    deserialize = HDF5Deserializer(group)
    assert deserialize('names', None).tolist() == ['a', 'bc']
    array = numpy.array(['', ''], object)
    assert deserialize('names', array) is array
    assert array.tolist() == ['a', 'bc']


def test_bytes_of_fixed_length_stay_bytes(group):
    group.create_dataset('name', data=numpy.bytes_('abc'))
    array = HDF5Deserializer(group)('name', None)
    assert array.dtype == 'S3'
    assert array.item() == b'abc'


def test_what_is_no_string(group):
    group.create_dataset('array', data=numpy.arange(3.0))
    group.create_dataset('empty', data=h5py.Empty('f'))
    group.create_dataset('empty_string', data=h5py.Empty(h5py.string_dtype()))
    group.create_dataset('number', data=5)
    deserialize = HDF5Deserializer(group)
    assert deserialize('array', None).tolist() == [0, 1, 2]
    assert deserialize('number', 0) == 5
    assert deserialize('number', '') == '5'
    assert deserialize('empty', None) is None
    assert deserialize('empty_string', '') is None


def test_what_is_missing(group):
    with pytest.raises(KeyError):
        HDF5Deserializer(group)('name', '')
    assert HDF5Deserializer(group, strict=False)('name', 'a') == 'a'
    with pytest.raises(ValueError, match='Inexistent group'):
        HDF5Deserializer(None)('name', '')
