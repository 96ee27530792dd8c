import chainer_shared_patch  # noqa: F401
import chainer
import chainer.links as L
from chainer.serializers import HDF5Deserializer, load_hdf5, save_hdf5
from chainer.training import extensions
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


@pytest.mark.parametrize(
    'value',
    [
        'abc',
        '',
        'blå',
        numpy.array(['a', 'bcd']),
        numpy.array(['a', 'bcd'], object),
        numpy.array('abc', object),
        numpy.array([['a'], ['bcd']]),
    ],
    ids=repr,
)
def test_text_that_is_saved_can_be_loaded(tmp_path, value):
    link, other = chainer.Link(), chainer.Link()
    link.add_persistent('text', value)
    other.add_persistent(
        'text', '' if isinstance(value, str) else numpy.full_like(value, '')
    )
    save_hdf5(tmp_path / 'link.h5', link)
    load_hdf5(tmp_path / 'link.h5', other)
    assert type(other.text) is type(value)
    numpy.testing.assert_array_equal(other.text, value)


def make_trainer(out):
    iterator = chainer.iterators.SerialIterator(
        [(numpy.ones(2, 'f'), numpy.int32(0))] * 4, 2
    )
    optimizer = chainer.optimizers.SGD().setup(L.Classifier(L.Linear(2, 2)))
    trainer = chainer.training.Trainer(
        chainer.training.StandardUpdater(iterator, optimizer),
        (2, 'epoch'),
        str(out),
    )
    trainer.extend(extensions.LogReport(), name='log')
    return trainer


def test_snapshot_of_a_trainer(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.extend(
        extensions.snapshot(savefun=save_hdf5, filename='snapshot.h5')
    )
    trainer.run()
    other = make_trainer(tmp_path)
    load_hdf5(tmp_path / 'snapshot.h5', other)
    assert other.updater.epoch == 2
    log = trainer.get_extension('log').log
    assert other.get_extension('log').log == log
    assert len(log) == 2


@pytest.mark.parametrize('as_dict', [False, True])
def test_what_cannot_be_saved_is_named(tmp_path, as_dict):
    link = chainer.Link()
    link.add_persistent('dates', numpy.array(['2016-07-01'], 'M8[D]'))
    target = {'dates': link.dates} if as_dict else link
    with pytest.raises(TypeError, match='cannot save /dates as HDF5: '):
        save_hdf5(tmp_path / 'link.h5', target)
