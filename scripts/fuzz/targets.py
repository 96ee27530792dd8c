"""The targets of the fuzz.

Each target turns arbitrary bytes into an input, and tries it in an empty
directory. It returns the outcome: ``'accepted'`` or the name of a documented
error. If an input is accepted or refused contrary to the documentation, it
raises an AssertionError; any other error is also a finding.
"""

import argparse
import contextlib
import functools
import gzip
import io
import math
import os
from pathlib import Path
import re
import struct
import sys
import unittest.mock
import warnings
import zipfile
import zlib

import chainer_shared_patch
from chainer_shared_patch import SharedLinear, config, runner
from chainer_shared_patch.compat import mnist
import chainer
import chainer.functions as F
import chainer.links as L
from chainer.training import extensions
from chainer.utils.type_check import InvalidType
import numpy

sys.path.append(str(Path(__file__).resolve().parents[1]))
import train_mnist


class Choices:
    """Makes choices from bytes, and the first choice once they run out."""

    def __init__(self, data):
        self.data = data

    def take(self, size):
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def below(self, limit):
        size = (limit - 1).bit_length() + 7 >> 3
        return int.from_bytes(self.take(size), 'little') % limit

    def of(self, *options):
        return options[self.below(len(options))]


def check(condition, *values):
    """Asserts, unlike an assert statement also with ``python -O``."""
    if not condition:
        raise AssertionError(', '.join(map(repr, values)))


# ------------------------------------------------------------- IDX files


def read_idx(data, directory):
    """Reads two files of any content, and compares with another reader."""
    choices = Choices(data)
    kind = choices.of('train', 't10k')
    expected = {}
    for name in mnist.SHA256:
        path = os.path.join(directory, name)
        for each in (path, path + '.gz'):
            with contextlib.suppress(FileNotFoundError):
                os.remove(each)
        if not name.startswith(kind):
            continue
        suffixes = choices.of([''], ['.gz'], [], ['', '.gz'])
        content = _make_idx(choices, 3 if 'images' in name else 1)
        # The first of two files counts.
        for suffix in suffixes:
            with open(path + suffix, 'wb') as file:
                file.write(content)
            content = b'not read'
        if suffixes:
            with open(path + suffixes[0], 'rb') as file:
                expected[name] = _parse_idx(file.read())
    try:
        actual = mnist.read_directory(directory, kind)
    except (OSError, ValueError) as error:
        actual = error
        check(directory in str(error) and '\n' not in str(error), error)
    images, labels = (
        expected.get(name, FileNotFoundError)
        for name in mnist.SHA256
        if name.startswith(kind)
    )
    if images is FileNotFoundError or labels is FileNotFoundError:
        # Unless the other file is found to be damaged first.
        check(isinstance(actual, (FileNotFoundError, ValueError)), actual)
    elif (
        images is None
        or labels is None
        or images.ndim != 3
        or images.shape[:1] != labels.shape
    ):
        check(isinstance(actual, ValueError), actual)
    else:
        check(isinstance(actual, dict), actual)
        for array, other in (('x', images.reshape(-1, 784)), ('y', labels)):
            array = actual.pop(array)
            check(array.dtype == other.dtype and array.shape == other.shape)
            check((array == other).all())
        check(not actual, actual)
        return 'accepted'
    return type(actual).__name__


def _make_idx(choices, ndim):
    if choices.of(False, False, False, True):
        return choices.take(choices.below(2**16))
    number = choices.of(2, 1, 3, 0, 4)
    header = b'\0\0\x08' + bytes([choices.of(ndim, ndim, ndim, 4 - ndim)])
    header = choices.of(header, header, header, choices.take(4))
    claims = (number, number, number, 10**6, 10**6 + 1, 2**32 - 1, 2**31)
    claim = choices.of(*claims)
    header += struct.pack('>I', claim)
    if header[3] == 3:
        other = choices.take(8)
        header += choices.of(*[b'\0\0\0\x1c' * 2] * 3, other)
    size = number * (784 if header[3] == 3 else 1)
    size += choices.of(0, 0, 0, 1, -1, choices.below(256))
    pattern = choices.take(choices.below(16)) or bytes(range(10))
    if choices.of(True, True, False):
        pattern = bytes(byte % 10 for byte in pattern)
    content = header + (pattern * max(size, 1))[: max(size, 0)]
    content = content[: len(content) - choices.of(*[0] * 5, size // 2, size)]
    zipped = gzip.compress(content, choices.of(9, 1, 0), mtime=0)
    half = len(content) // 2
    encoded = choices.of(
        content,
        zipped,
        gzip.compress(content[:half], mtime=0)
        + gzip.compress(content[half:], mtime=0),
        zipped + b'\0' * 9,
        zipped + choices.take(2),
        gzip.compress(zipped, mtime=0),
    )
    if choices.of(False, False, True):
        encoded = _damage(choices, encoded)
    return encoded


def _damage(choices, content):
    position = choices.below(len(content) + 1)
    new = choices.take(choices.below(4))
    old = choices.of(len(new), 0, 1, len(content))
    return content[:position] + new + content[position + old :]


def _parse_idx(content):
    """Returns the array of an IDX file, or None if it is not allowed."""
    try:
        if content[:2] == b'\x1f\x8b':
            content = gzip.decompress(content)
        magic, number = struct.unpack_from('>2I', content)
        shape = {0x803: (number, 28, 28), 0x801: (number,)}[magic]
        if magic == 0x803:
            check(struct.unpack_from('>2I', content, 8) == (28, 28))
        check(1 <= number <= 10**6)
        array = numpy.frombuffer(content, 'u1', offset=4 + 4 * len(shape))
        check(array.size == math.prod(shape))
        check(magic == 0x803 or set(array.tolist()) <= set(range(10)))
    except (
        *(AssertionError, KeyError, struct.error, ValueError),
        *(EOFError, OSError, zlib.error),
    ):
        return None
    return array.reshape(shape)


# ------------------------------------------------------------- snapshots

TRAIN_ARGS = argparse.Namespace(
    unit=4,
    out_units=3,
    common_num=2,
    bias=True,
    blockwise_adam=False,
    batchsize=4,
    epoch=3,
    frequency=1,
    seed=0,
)
WEIGHTS = 'updater/model:main'


class _Plot(extensions.PlotReport):
    def __call__(self, trainer):
        for key in self._y_keys:
            self._data[key].append((trainer.updater.epoch, 0.5))
            numpy.array(self._data[key], 'd')[:, :2]


class _Graph(extensions.DumpGraph):
    def __call__(self, trainer):
        pass


def _make_trainer(directory, epoch=TRAIN_ARGS.epoch):
    random = numpy.random.RandomState(0)
    train, test = (
        chainer.datasets.TupleDataset(
            random.rand(n, 784).astype('f'), random.randint(0, 10, n, 'i')
        )
        for n in (10, 4)
    )
    args = argparse.Namespace(**vars(TRAIN_ARGS))
    args.epoch, args.out = epoch, os.path.join(directory, 'out')
    device = chainer.get_device('@numpy')
    trainer = train_mnist.make_trainer(args, device, train, test, '')
    for entry in trainer._extensions.values():
        # Drawing takes a while.
        if isinstance(entry.extension, extensions.PlotReport):
            entry.extension.__class__ = _Plot
        elif isinstance(entry.extension, extensions.DumpGraph):
            entry.extension.__class__ = _Graph
    return trainer


@functools.lru_cache(maxsize=1)
def _members(directory):
    """The members of a real snapshot, as .npy files by name."""
    trainer = _make_trainer(directory, epoch=1)
    with _training(trainer):
        trainer.run(show_loop_exception_msg=False)
    path = os.path.join(directory, 'out', 'snapshot_epoch_1')
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@contextlib.contextmanager
def _training(trainer):
    with chainer.using_config('common_num', TRAIN_ARGS.common_num):
        with contextlib.redirect_stdout(io.StringIO()):
            yield


class Attack:
    """An object that leaves evidence if it is unpickled."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (self.evidence,)


def load_snapshot(data, directory):
    """Loads a damaged snapshot, and continues the training if that works."""
    choices = Choices(data)
    evidence = os.path.join(directory, 'evidence')
    members = dict(_members(directory))
    number = choices.of(1, 2, 3, 0)
    for _ in range(number):
        _edit(choices, members, evidence)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of names that occur twice
        with zipfile.ZipFile(content, 'w', choices.of(0, 8)) as file:
            for name, member in members.items():
                file.writestr(zipfile.ZipInfo(name), member)
            if choices.of(False, False, False, True):
                file.writestr(*choices.of(*members.items()))
                number += 1
    content = content.getvalue()
    damage = choices.of(0, 0, 0, 1, 2, 3)
    if damage == 1:
        content = _damage(choices, content)
    elif damage == 2:
        content = choices.of(*members.values(), b'')
    elif damage == 3:
        content = choices.data
    path = os.path.join(directory, 'snapshot')
    with open(path, 'wb') as file:
        file.write(content)

    trainer = _make_trainer(directory)
    try:
        with _training(trainer):
            train_mnist.load_snapshot(path, trainer)
    except ValueError as error:
        check(str(error).startswith('cannot resume from ' + path), error)
        check('\n' not in str(error), error)
        check(number or damage, error)
        return 'ValueError'
    finally:
        check(not os.path.exists(evidence), 'a pickle was executed')
    network = trainer.updater.get_optimizer('main').target
    with numpy.load(path) as file:
        for name, parameter in network.namedparams():
            check(numpy.isfinite(parameter.array).all(), name)
            check((parameter.array == file[WEIGHTS + name]).all(), name)
    # As main does.
    iteration, epoch = trainer.updater.iteration, trainer.updater.epoch
    with _training(trainer), numpy.errstate(all='ignore'):
        trainer.run(show_loop_exception_msg=False)
        train_mnist.print_summary(
            network.predictor, TRAIN_ARGS.common_num, trainer, 0
        )
    # Ten images in batches of four.
    steps = trainer.updater.iteration - iteration
    check(steps > 0 or epoch >= TRAIN_ARGS.epoch, steps, epoch)
    check(steps <= 3 * TRAIN_ARGS.epoch, steps)
    return 'accepted'


def _edit(choices, members, evidence):
    if not members:
        return
    name = choices.of(*members)
    content = members[name]
    try:
        array = numpy.load(io.BytesIO(content))
    except Exception:  # an earlier edit has damaged it
        array = numpy.zeros(3)
    edit = choices.below(9)
    if edit == 0:
        members[name] = _npy(_change_values(choices, array))
    elif edit == 1:
        dtype = choices.of(*'fdeilqLBb?FDgUSO', '>f4', '>i8', 'M8[s]', 'f,f')
        with numpy.errstate(all='ignore'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with contextlib.suppress(TypeError, ValueError):
                members[name] = _npy(array.astype(dtype))
    elif edit == 2:
        members[name] = _npy(_change_shape(choices, array))
    elif edit == 3:
        text = choices.of(
            *('[]', '{}', '[{}]', '5', 'null', '[', '', '[1]', '"a"', '[[1]]'),
            *('1', '-1', '1e9', '9' * 400, 'nan', 'True', '["a"]', '{"a": 1}'),
            '[' * 10**5,
            choices.take(8).decode('latin1'),
        )
        members[name] = _npy(numpy.array(text))
    elif edit == 4:
        del members[name]
    elif edit == 5:
        other = choices.of(*members)
        members[other] = content
    elif edit == 6:
        new = choices.of(
            name + '/a',
            '/' + name,
            name[:-4],
            name.replace('/l2', '/l4'),
            name.replace('main', 'other'),
            choices.take(8).decode('latin1'),
        )
        members[new] = content
    elif edit == 7:
        members[name] = _damage(choices, content)
    elif edit == 8:
        attack = numpy.array([Attack(evidence)], dtype=object)
        attack = choices.of(attack, attack.reshape(()))
        name = choices.of(name, name + '/a', 'a.npy')
        members[name] = _npy(attack)


def _npy(array):
    content = io.BytesIO()
    numpy.save(content, array)
    return content.getvalue()


def _change_values(choices, array):
    value = choices.of(
        *(0, -1, 1, 2, 3, 4, 9, 10, 11, 2.5, -0.0, 1e-30, -1e-30, 3e38, 1e30),
        *(math.nan, math.inf, -math.inf, 10**15, 2**63 - 1, -(2**63)),
        choices.below(2**32) - 2**31,
    )
    position = choices.of(slice(None), choices.below(2**16))
    array = array.copy()
    flat = array.reshape(-1)
    if isinstance(position, int):
        position %= max(1, flat.size)
    with numpy.errstate(all='ignore'):
        with (
            warnings.catch_warnings(),
            contextlib.suppress(IndexError, OverflowError, ValueError),
        ):
            warnings.simplefilter('ignore')
            flat[position] = value
    return array


def _change_shape(choices, array):
    return choices.of(
        lambda: array.reshape(-1),
        lambda: array[None],
        lambda: array[..., None],
        lambda: array.T,
        lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
        lambda: array.reshape(-1)[:1],
        lambda: array.reshape(-1)[:0],
        lambda: array[:-1] if array.ndim else array,
        lambda: numpy.repeat(array, 2),
        lambda: numpy.broadcast_to(array, (10, *array.shape)),
        lambda: array[::-1] if array.ndim else array,
    )()


# -------------------------------------------- environment and command line

NAMES = (
    'CHAINER_COMMON_NUM',
    'CHAINER_SHARED_ALGORITHM',
    'CHAINER_SHARED_PATCH',
)


def read_environment(data, directory):
    """Reads the three variables, and the number by itself."""
    values = [os.fsdecode(value) for value in data.split(b'\0')]
    number = values[0]
    # Python may read only so many digits.
    limit = getattr(sys, 'get_int_max_str_digits', lambda: 0)() or math.inf
    is_number = (
        re.fullmatch('[0-9]+', number)
        and set(number) != {'0'}
        and len(number) <= limit
    )
    try:
        check(config.parse_common_num(number, 'x') == int(number), number)
        check(is_number, number)
    except ValueError as error:
        check(not is_number, number)
        check('x must be an integer of at least 1' in str(error), error)
        check(repr(number) in str(error) or set(number) == {'0'}, error)

    # For the first two, an empty value is the same as no variable.
    environment = {
        name: value
        for name, value in zip(NAMES, values)
        if value or name == NAMES[2]
    }
    settings = chainer.global_config
    before = settings.common_num, settings.shared_algorithm
    del settings.common_num, settings.shared_algorithm
    mistakes = [
        'CHAINER_COMMON_NUM' in environment and not is_number,
        environment.get(NAMES[1], 'sum') not in ('sum', 'tile'),
        environment.get(NAMES[2], '1') not in ('0', '1'),
    ]
    try:
        with unittest.mock.patch.dict(os.environ, environment, clear=True):
            is_on = config.read_environment()
        check(not any(mistakes), environment)
        check(settings.common_num == int(environment.get(NAMES[0], 1)))
        check(settings.shared_algorithm == environment.get(NAMES[1], 'sum'))
        check(is_on is (environment.get(NAMES[2], '1') == '1'), is_on)
        return 'accepted'
    except ValueError as error:
        check(any(mistakes), environment, error)
        check(str(error).startswith(NAMES[mistakes.index(True)]), error)
        return 'ValueError'
    finally:
        settings.common_num, settings.shared_algorithm = before


OPTIONS = (
    *('--common-num', '--algorithm', '--info', '-m', '-c', '-', '--', 'tile'),
    *('--common-num=', '--algorithm=sum', '--help', 'train.py', '10', '-mc'),
)


def parse_options(data, directory):
    """Parses the runner's options, apart from those of the program."""
    choices = Choices(data)
    argv = []
    while choices.data and len(argv) < 12:
        if choices.of(True, True, True, False):
            argv.append(choices.of(*OPTIONS))
        else:
            argv.append(os.fsdecode(choices.take(choices.below(8))))
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            with contextlib.redirect_stdout(output):
                args = runner._make_parser().parse_args(argv)
    except SystemExit as error:
        check(error.code in (0, 2), error)
        check(output.getvalue().startswith('usage: '), output.getvalue())
        check(error.code == 2 or {'-h', '--help'} & set(argv), argv)
        return f'SystemExit({error.code})'
    check(not output.getvalue(), output.getvalue())
    # What precedes the program, parsed in another way.
    position = 0
    expected = argparse.Namespace(
        common_num=None, algorithm=None, info=False, m=False
    )
    while position < len(argv):
        name, equals, value = argv[position].partition('=')
        if name in ('--common-num', '--algorithm'):
            if not equals:
                position += 1
                value = argv[position]
            setattr(expected, name[2:].replace('-', '_'), value)
        elif argv[position] in ('-m', '--info'):
            setattr(expected, name.strip('-'), True)
        else:
            break
        position += 1
    expected.program = argv[position:]
    check(args == expected, args, expected)
    check(args.algorithm in (None, 'sum', 'tile'), args)
    return 'accepted'


# ------------------------------------------------------------- public API

NUMBERS = (
    *(2, 1, 3, 4, 5, 6, 0, -1, -2, True, False, 2.0, 2.5, math.nan, None, ''),
    *('2', 'ten', b'2', 2**70, -(2**70), [2], (), {}, 2j, object, math.inf),
    *(numpy.int8(2), numpy.uint64(3), numpy.float32(2), numpy.bool_(True)),
    *(numpy.array(2), numpy.array([2]), chainer.Variable(numpy.ones(1))),
)


def _is_number(value):
    is_integer = type(value) is int or isinstance(value, numpy.integer)
    return is_integer and value >= 1


def _integers(shape, dtype, choices):
    """Returns integers so small that no sum below is rounded."""
    random = numpy.random.RandomState(choices.below(256))
    return random.randint(-3, 4, shape).astype(dtype)


def _lay(choices, array):
    return choices.of(
        lambda: array,
        lambda: array.T.copy().T,
        lambda: array[::-1].copy()[::-1],
        lambda: array.repeat(2, array.ndim - 1)[..., ::2],
    )()


def _reference(x, W, b, number, order=None):
    """The definition: an ordinary layer with the wide weight."""
    if order is not None:
        x = x[:, order]
    y = x.astype('d') @ numpy.tile(W.astype('d').T, (number, 1))
    return y if b is None else y + b


def apply_linear(data, directory):
    """Calls F.linear under the patch, with any shapes, dtypes, settings."""
    choices = Choices(data)
    rows, k, out_size = (choices.of(2, 1, 3, 0, 4) for _ in range(3))
    number = choices.of(*NUMBERS)
    blocks = choices.of(number, number, 1, 2, 3)
    blocks = min(int(blocks), 6) if _is_number(blocks) else 2
    dtypes = 'ffedilF?'
    x = _integers((rows, blocks * k), choices.of(*dtypes), choices)
    W = _integers((out_size, k), choices.of(*dtypes), choices)
    b = None
    if choices.of(False, True):
        dtype = choices.of(x.dtype, x.dtype, *dtypes)
        length = choices.of(out_size, out_size, out_size, 1, 0)
        b = _integers((length,), dtype, choices)
    x, W = (_lay(choices, array) for array in (x, W))
    change = choices.below(12)
    if change == 1:
        W = W[:, :-1]
    elif change == 2:
        x = x[:, :-1]
    elif change == 3:
        W = W[None]
    elif change == 4:
        x = x[None]
    elif change == 5 and b is not None:
        b = b[None]
    columns = math.prod(x.shape[1:])
    fits = (
        W.ndim == 2
        and x.dtype.kind == W.dtype.kind == 'f'
        and (b is None or (b.dtype == x.dtype and b.shape == W.shape[:1]))
    )
    ordinary = fits and columns == W.shape[1]
    # Ordinary layers do not use the number.
    shared = fits and not ordinary and _is_number(number) and number > 1
    shared = shared and columns == number * W.shape[1]
    algorithm = choices.of(*config.ALGORITHMS)
    # Without it, Chainer's own layers accept whatever NumPy accepts.
    type_check = choices.of(True, not shared)
    try:
        with chainer.using_config('common_num', number):
            with chainer.using_config('shared_algorithm', algorithm):
                with chainer.using_config('type_check', type_check):
                    y = F.linear(x, W, b).array
    except InvalidType:
        check(not ordinary and not shared, x.shape, W.shape, number)
        return 'InvalidType'
    except ValueError as error:
        check(not _is_number(number) and not ordinary, error)
        check('chainer.config.common_num must be' in str(error), error)
        return 'ValueError'
    check(ordinary or shared, x.shape, W.shape, number)
    x = x.reshape(len(x), columns)
    expected = _reference(x, W, b, number if shared else 1)
    check(y.dtype == x.dtype and y.shape == expected.shape, y, expected)
    check((y == expected).all(), y, expected)
    return 'accepted'


def make_shared_linear(data, directory):
    """Makes a SharedLinear with any arguments, and checks its outputs."""
    choices = Choices(data)
    number = choices.of(*NUMBERS)
    # Chainer cannot draw an initial weight without columns.
    in_size = choices.of(6, 4, 2, 1, 12, 5, None)
    out_size = choices.of(3, 1, 0)
    nobias = choices.of(False, True)
    width = 6 if in_size is None else in_size
    permutation = numpy.random.RandomState(choices.below(256)).permutation(
        width
    )
    order = choices.of(
        *(None, None, 'interleaved', permutation, permutation),
        *(permutation.tolist(), permutation.astype('i1')),
        *(permutation.astype('f'), permutation + 1, permutation[:-1]),
        *(permutation[None], numpy.zeros(width, 'i'), permutation * -1),
        *('grouped', '', 0, 2.5, math.nan, b'interleaved', object),
        *(permutation.astype(str), permutation > 0, permutation.astype('O')),
        *(chainer.Variable(permutation), chainer.Variable(numpy.ones(width))),
        [choices.below(256) for _ in range(width)],
    )
    plain = chainer.as_array(order)
    is_order = plain is None or plain is permutation
    is_order = is_order or (isinstance(order, str) and order == 'interleaved')
    if isinstance(plain, (list, numpy.ndarray)) and not is_order:
        is_order = sorted(numpy.array(plain).ravel().tolist()) == list(
            range(width)
        )
        is_order &= numpy.array(plain).dtype.kind in 'iu'
        is_order &= numpy.ndim(plain) == 1
    valid = _is_number(number) and width % number == 0 and is_order
    # Chainer wants the bias in the dtype of the input.
    dtype = choices.of(*'fed') if nobias else 'f'
    x = _integers((choices.of(2, 1, 0), width), dtype, choices)
    try:
        layer = SharedLinear(
            in_size, out_size, nobias, common_num=number, order=order
        )
        layer(x)
    except ValueError as error:
        check(not valid, number, in_size, order, error)
        words = r'common_num (of SharedLinear must be|must divide)|order must'
        check(re.match(words, str(error)), error)
        return 'ValueError'
    check(valid, number, in_size, order)
    check(layer.W.shape == (out_size, width // number), layer.W.shape)
    layer.W.array[...] = _integers(layer.W.shape, 'f', choices)
    if layer.b is not None:
        layer.b.array[...] = _integers(layer.b.shape, 'f', choices)
    if isinstance(order, str):
        plain = numpy.arange(width).reshape(-1, number).T.ravel()
    y = layer(x).array
    b = None if layer.b is None else layer.b.array
    expected = _reference(x, layer.W.array, b, number, plain)
    check(y.dtype == x.dtype and y.shape == expected.shape, y, expected)
    check((y == expected).all(), y, expected)
    return 'accepted'


def share_model(data, directory):
    """Calls share with any numbers and orders."""
    choices = Choices(data)
    model = chainer.Sequential(L.Linear(6, 4), F.relu, L.Linear(4, 2))
    paths = ('/0', '/1', '/*', '', '/', '/2', '/[', 'l1', '/?')
    number = choices.of(*NUMBERS)
    if choices.of(False, True):
        number = {
            choices.of(*paths): choices.of(*NUMBERS)
            for _ in range(choices.below(4))
        }
    order = choices.of(
        *('grouped', 'contiguous', 'interleaved', None, numpy.arange(6), 2.5),
        *({}, {'/0': numpy.arange(6)[::-1]}, {'/0': [0]}, {'/7': 'grouped'}),
    )
    before = [p.array.copy() for _, p in sorted(model.namedparams())]
    x = numpy.random.RandomState(0).rand(3, 6).astype('f')
    try:
        report = chainer_shared_patch.share(model, number, order=order)
    except ValueError as error:
        check(re.search('common_num|order', str(error)), error)
        after = [p.array for _, p in sorted(model.namedparams())]
        check(all(map(numpy.array_equal, before, after)), 'it is changed')
        check(type(model[0]) is type(model[2]) is L.Linear, model)
        return 'ValueError'
    for layer in report.layers:
        check(_is_number(layer.common_num), layer)
    shared = {layer.path: layer.common_num for layer in report.layers}
    narrow = [shared.get(path, 1) for path in ('/0', '/1')]
    links = dict(model.namedlinks())
    for path, n in zip(('/0', '/1'), narrow):
        in_size = {4: 6, 2: 4}[links[path].out_size]
        check(links[path].W.shape[1] == in_size // n, path, number)
        if not isinstance(number, dict):
            check(n == number, number)
    y = model(x).array
    chainer_shared_patch.expand(model)
    check(type(model[0]) is type(model[2]) is L.Linear, model)
    # A sum of at most 6 products, rounded in float32 in another order.
    check(numpy.allclose(y, model(x).array, rtol=1e-4, atol=1e-4), y)
    return 'accepted'


TARGETS = {
    'idx': read_idx,
    'snapshot': load_snapshot,
    'environment': read_environment,
    'options': parse_options,
    'linear': apply_linear,
    'shared-linear': make_shared_linear,
    'share': share_model,
}
