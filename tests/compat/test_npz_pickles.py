import datetime
import os
import pickle
import re
import types
import zipfile

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.links as L
from chainer.serializers import NpzDeserializer, load_npz, npz, save_npz
from chainer.training import extensions
import numpy
import pytest

reconstruct = numpy.array([0]).__reduce__()[0]
scalar = numpy.float32(0).__reduce__()[0]
RECURSIVE = []
RECURSIVE.append(RECURSIVE)


def pack(value):
    array = numpy.empty((), object)
    array[()] = value
    return array


def write(path, key, pickled):
    """Writes a file with an array of objects whose pickle is given."""
    header = {'descr': '|O', 'fortran_order': False, 'shape': ()}
    with zipfile.ZipFile(path, 'w') as archive:
        with archive.open(key + '.npy', 'w') as file:
            numpy.lib.format.write_array_header_1_0(file, header)
            file.write(pickled)


def read(path, key='x'):
    with numpy.load(path, allow_pickle=True) as file:
        return NpzDeserializer(file)(key, None)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Call:
    """Calls a function when it is unpickled, and sets a state."""

    def __init__(self, function, *args, state=None):
        self.reduced = function, args, state

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def trap(tmp_path):
    folder = tmp_path / 'ran'
    yield Trap(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    'value',
    [
        10**30,
        1.5 + 2j,
        b'bytes',
        [1, 'a', None, True, (2.5, {'key': [3]})],
        [numpy.float32(1.5), numpy.bool_(True), numpy.str_('ab')],
        {
            'F': numpy.arange(6.0).reshape(2, 3).T,
            'swapped': numpy.ones(2, '>i4'),
        },
        [numpy.array(['a', 'bc']), numpy.array([b'a'])],
        numpy.array([[None, 'a'], [numpy.arange(3), ()]], object),
        [numpy.zeros((2, 0)), numpy.empty(0, object), numpy.dtype('>f4')],
    ],
    ids=repr,
)
@pytest.mark.parametrize('protocol', [3, 4])
def test_numbers_strings_and_arrays(tmp_path, protocol, value):
    path = str(tmp_path / 'file.npz')
    write(path, 'x', pickle.dumps(pack(value), protocol))
    array = read(path)
    assert type(array) is numpy.ndarray
    # The same objects have the same pickle.
    expected = pickle.loads(pickle.dumps(pack(value), protocol))
    assert pickle.dumps(array) == pickle.dumps(expected)


@pytest.mark.parametrize(
    'package, protocol',
    [('numpy.core', 2), ('numpy.core', 3), ('numpy._core', 3)],
)
def test_files_of_numpy_1_and_2(tmp_path, package, protocol):
    path = str(tmp_path / 'file.npz')
    value = [numpy.arange(3), numpy.float32(1)]
    pickled = pickle.dumps(pack(value), protocol)
    pickled, n = re.subn(rb'numpy\._?core', package.encode(), pickled)
    assert n == 2  # _reconstruct and scalar
    write(path, 'x', pickled)
    array, number = read(path)[()]
    assert array.tolist() == [0, 1, 2]
    assert number == 1


def test_references_are_kept(tmp_path):
    path = str(tmp_path / 'file.npz')
    part = numpy.arange(3)
    numpy.savez(path, x=pack([part, part, RECURSIVE]))
    first, second, recursive = read(path)[()]
    assert first is second
    assert recursive[0] is recursive


def test_what_chainer_writes(tmp_path):
    class Persistent(chainer.Chain):
        def __init__(self, *values):
            super().__init__()
            self.add_link('conv', L.Convolution2D(1, 2, 3))
            self.add_link('lazy', L.Convolution2D(None, 2, 3))
            for name, value in zip(('none', 'text', 'big'), values):
                self.add_persistent(name, value)

    path = str(tmp_path / 'file.npz')
    source, target = Persistent(None, 'abc', 10**30), Persistent(1, '', 0)
    save_npz(path, source)
    load_npz(path, target)
    assert (target.none, target.text, target.big) == (None, 'abc', 10**30)
    assert target.lazy.W.array is None
    numpy.testing.assert_array_equal(target.conv.W.array, source.conv.W.array)


@pytest.mark.parametrize(
    'link, name',
    [
        (L.Convolution2D(1, 2, 3), 'W'),
        (L.BatchNormalization(2), 'avg_mean'),
        (L.Linear(2, 3), 'W'),
    ],
    ids=['Convolution2D', 'BatchNormalization', 'Linear'],
)
def test_links_run_no_code(tmp_path, trap, link, name):
    path = str(tmp_path / 'file.npz')
    chain = chainer.Chain(link=link.copy())
    save_npz(path, chain)
    with numpy.load(path, allow_pickle=True) as file:
        arrays = {**file, 'link/' + name: numpy.array([trap])}
    numpy.savez(path, **arrays)
    for allow_pickle in (False, True):
        with numpy.load(path, allow_pickle=allow_pickle) as file:
            with pytest.raises(ValueError, match='link/' + name):
                NpzDeserializer(file).load(chain)
    with pytest.raises(ValueError, match='link/' + name):
        load_npz(path, chain)


def test_snapshots_run_no_code(tmp_path, trap):
    link = L.Convolution2D(1, 2, 3)
    arrays = {**npz.serialize(link), 'W': pack(trap)}
    save_npz(str(tmp_path / 'snapshot_iter_1'), arrays)
    trainer = types.SimpleNamespace(out=str(tmp_path))
    with pytest.raises(ValueError, match='W: it needs'):
        extensions.snapshot(target=link, autoload=True).initialize(trainer)


def test_file_that_is_no_archive(tmp_path, trap):
    path = tmp_path / 'file.npz'
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match='allow_pickle'):
        load_npz(str(path), chainer.Chain())


POINTER = b'\1' * 8
OBJECT = numpy.dtype(object)


@pytest.mark.parametrize(
    'make',
    [
        lambda trap: Call(numpy.dtype, trap),
        lambda trap: Call(reconstruct, numpy.ndarray, (0,), trap),
        lambda trap: Call(scalar, OBJECT, trap),
        lambda trap: Call(numpy.dtype, 'O8', False, True, state=(3, trap)),
        lambda trap: numpy.array([None, [{'key': (trap,)}]], object),
        lambda trap: Call(numpy.ndarray, (1,), 'f8'),
        lambda trap: Call(numpy.load, trap.folder, None, True),
    ],
    ids=['dtype', 'array', 'scalar', 'state', 'nested', 'class', 'load'],
)
def test_code_within(tmp_path, trap, make):
    path = str(tmp_path / 'file.npz')
    write(path, 'x', pickle.dumps(make(trap), 4))
    with pytest.raises((ValueError, TypeError)):
        read(path)


def lying(*state):
    """Returns what is unpickled to an array with this state."""
    return Call(reconstruct, numpy.ndarray, (0,), b'b', state=(1, *state))


@pytest.mark.parametrize(
    'value',
    [
        Call(scalar, OBJECT, POINTER),
        Call(scalar, 'O', POINTER),
        Call(scalar, 'V8', numpy.zeros(1)),
        Call(scalar, numpy.dtype('S8'), numpy.zeros(1)),
        lying((1,), OBJECT, False, POINTER),
        lying((1,), 'O', False, POINTER),
        # Without these flags, NumPy's own makes pointers of bytes.
        lying(
            (1,),
            Call(
                numpy.dtype,
                'O8',
                False,
                True,
                state=(3, '|', None, None, None, -1, -1, 0),
            ),
            False,
            POINTER,
        ),
        lying((1,), Call(numpy.dtype, 'O,i8'), False, POINTER * 2),
        lying((1,), Call(numpy.dtype, [('a', 'O')]), False, POINTER),
        lying((-2, -2), numpy.dtype('f8'), False, POINTER * 4),
        lying((3,), numpy.dtype('f8'), False, POINTER),
        lying((3,), OBJECT, False, [None]),
    ],
)
def test_memory_is_what_numpy_says(tmp_path, value):
    path = str(tmp_path / 'file.npz')
    write(path, 'x', pickle.dumps(value, 4))
    with pytest.raises((ValueError, TypeError, AttributeError)):
        read(path)


def test_functions_keep_their_state(tmp_path):
    path = str(tmp_path / 'file.npz')
    write(path, 'x', b'c_codecs\nencode\n}b.')
    with pytest.raises(ValueError, match='cannot unpickle the state'):
        read(path)


def test_structured_array_of_objects(tmp_path, trap):
    path = str(tmp_path / 'file.npz')
    # The names are in Latin 1, or need version 3 of the format.
    for name in ('a', 'α'):
        numpy.savez(path, x=numpy.array([(trap,)], [(name, object)]))
        with pytest.raises(ValueError):
            read(path)


def test_setting_allows_pickles(tmp_path):
    path = str(tmp_path / 'file.npz')
    numpy.savez(path, x=pack(datetime.date(2016, 7, 1)))
    assert chainer.global_config.allow_pickle is False
    with pytest.raises(ValueError) as info:
        read(path)
    for words in ('x: it needs datetime.date', "('allow_pickle', True)"):
        assert words in str(info.value)
    with chainer.using_config('allow_pickle', True):
        assert read(path)[()] == datetime.date(2016, 7, 1)


@pytest.mark.parametrize('version', [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(tmp_path, version):
    path = str(tmp_path / 'file.npz')
    array = numpy.arange(6, dtype='f').reshape(2, 3).T
    with zipfile.ZipFile(path, 'w') as archive:
        with archive.open('x.npy', 'w') as file:
            numpy.lib.format.write_array(file, array, version)
    numpy.testing.assert_array_equal(read(path), array)


def test_every_array_is_read_once(tmp_path, monkeypatch):
    path = str(tmp_path / 'file.npz')
    link = L.Convolution2D(1, 2, 3)
    save_npz(path, link)
    shapes = []
    read_array = numpy.lib.format.read_array

    def counted(*args, **kwargs):
        array = read_array(*args, **kwargs)
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(numpy.lib.format, 'read_array', counted)
    load_npz(path, link)
    assert sorted(shapes) == [(2,), (2, 1, 3, 3)]


def test_missing_key(tmp_path):
    path = str(tmp_path / 'file.npz')
    numpy.savez(path, x=0)
    with pytest.raises(KeyError):
        read(path, 'y')
    with numpy.load(path) as file:
        assert NpzDeserializer(file, strict=False)('y', 1) == 1


@pytest.mark.parametrize('opcode', ['NEXT_BUFFER', 'READONLY_BUFFER'])
def test_buffers_are_refused(tmp_path, opcode):
    path = str(tmp_path / 'file.npz')
    write(path, 'x', b'\x80\x05K\x01' + getattr(pickle, opcode) + b'.')
    with pytest.raises(ValueError, match='x: a buffer'):
        read(path)
