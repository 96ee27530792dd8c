"""Functions in the models of Chainer's ONNX exporter."""

from pathlib import Path
import re

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import onnx
import onnx_chainer
from onnx_chainer import mapping
import pytest

from tests.helpers import DTYPES, fill, run_onnx


class Model(chainer.Chain):
    """Calls a function with Variables, or a link."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        if isinstance(function, chainer.Link):
            fill(function)
            self.add_link('link', function)

    def forward(self, *args):
        return self.function(*map(chainer.as_variable, args))


def check(function, x, opset=11, tolerance=0.0):
    """Compares what onnxruntime and Chainer compute, not only of x."""
    model = Model(function)
    graph = onnx_chainer.export(model, x.copy(), opset_version=opset)
    # Up to opset 8, inference refuses constants of integers.
    onnx.checker.check_model(graph, full_check=opset > 8)
    for each in (x, -2 * x):
        outputs = run_onnx(graph, each)
        with chainer.using_config('train', False):
            expected = model(each)
        if not isinstance(expected, (list, tuple)):
            expected = [expected]
        assert len(outputs) == len(expected)
        for output, variable in zip(outputs, expected):
            assert output.dtype == variable.dtype
            numpy.testing.assert_allclose(
                output, variable.array, rtol=tolerance, atol=tolerance
            )


def refuse(function, x, message):
    with pytest.raises(ValueError, match=message) as info:
        onnx_chainer.export(Model(function), x)
    assert str(info.value).startswith('export(): ')


def numbers(*shape, dtype='f'):
    """Returns different numbers, exact in every data type."""
    size = int(numpy.prod(shape))
    x = numpy.arange(size) - size // 2
    return x.reshape(shape).astype(dtype)


MASK = numpy.array([True, False, True])
INDICES = {
    'mask': MASK,
    'list of truth values': [True, False, True],
    'mask of the last axis': (
        Ellipsis,
        numpy.array([True, False, True, True]),
    ),
    'mask of the second axis': (slice(None), MASK),
    'mask of nothing': numpy.zeros(3, bool),
    'mask and integer': (MASK, 0),
    'NumPy integer': numpy.int64(1),
    'negative NumPy integer': (slice(None), numpy.int32(-1)),
    'array of no axis': numpy.array(-1),
    'slice of arrays': slice(numpy.array(1), numpy.int64(3)),
    'integers apart from an array': ([0, 2], slice(None), 1),
}
INDICES_SINCE_11 = {
    'mask of two axes': numpy.arange(9).reshape(3, 3) % 2 == 0,
    'mask of all axes': numpy.arange(36).reshape(3, 3, 4) % 5 == 0,
    'mask and array': (MASK, numpy.array([2, 0])),
    'arrays of different lengths': ([1], [0, 2]),
    'integer and arrays': (1, [0, 2], [1, 3]),
}


@pytest.mark.parametrize('opset', [7, 11, 13])
@pytest.mark.parametrize('name', INDICES)
def test_indices(name, opset):
    check(lambda x: x[INDICES[name]], numbers(3, 3, 4), opset)


@pytest.mark.parametrize('name', INDICES_SINCE_11)
def test_indices_of_several_axes(name):
    check(lambda x: x[INDICES_SINCE_11[name]], numbers(3, 3, 4))


@pytest.mark.parametrize(
    'indices',
    [
        True,
        numpy.array(False),
        # NumPy puts the axis of the array first.
        (0, slice(None), [1, 2]),
        (slice(None), [0, 1], slice(None), 0),
        # GatherND knows only the first axes.
        (slice(1, 3), [0, 1], [0, 1]),
        (Ellipsis, [0, 1], [0, 1]),
        (numpy.eye(2, dtype=int), numpy.eye(2, dtype=int)),
    ],
)
def test_other_indices_are_refused(indices):
    refuse(lambda x: x[indices], numbers(3, 3, 4, 2), 'GetItem: the indices')


@pytest.mark.parametrize('opset', [9, 11])
@pytest.mark.parametrize('as_variable', [False, True])
def test_constant_condition(as_variable, opset):
    x = numbers(3, 4)
    condition = x % 3 == 0
    if as_variable:
        condition = chainer.Variable(condition)
    # Twice, by one constant.
    check(lambda x: F.where(condition, x, F.where(condition, x, -x)), x, opset)


def test_condition_that_is_an_input():
    x = numbers(3, 4)
    model = Model(lambda condition, x: F.where(condition, x, -x))
    graph = onnx_chainer.export(model, [x > 0, x])
    (y,) = run_onnx(graph, x < 0, x)
    numpy.testing.assert_array_equal(y, -abs(x))


@pytest.mark.parametrize('opset', [9, 11])
@pytest.mark.parametrize('inv', [False, True])
def test_permutate(inv, opset):
    indices = numpy.array([2, 0, 3, 1], 'i')
    check(lambda x: F.permutate(x, indices, 1, inv), numbers(3, 4), opset)


@pytest.mark.parametrize(
    'make_link', [L.BatchNormalization, lambda n: L.GroupNormalization(2, n)]
)
@pytest.mark.parametrize('opset', [7, 11, 13, 18])
@pytest.mark.parametrize('dtype', [*DTYPES, 'mixed16'])
def test_normalization(random, dtype, opset, make_link):
    is_mixed = dtype == 'mixed16'
    config = chainer.mixed16 if is_mixed else numpy.dtype(dtype)
    with chainer.using_config('dtype', config):
        link = make_link(4)
    x = random.randn(2, 4, 6).astype('e' if is_mixed else dtype)
    # A handful of roundings of numbers below 8, and that of eps, 2e-5 or
    # less, which ONNX stores in float32, beside variances of about 1.
    tolerance = 64 * numpy.finfo(x.dtype).eps + 8 * 2e-5 * 2**-24
    check(link, x, opset, tolerance)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'function',
    [
        lambda x: F.clip(x, -1.3, 2.7),
        lambda x: F.clip(x, None, 2),
        lambda x: F.clipped_relu(x, 2.7),
        lambda x: F.pad(x, 1, 'constant', constant_values=0.3),
        lambda x: F.pad(x, 1, 'constant', constant_values=numpy.float32(2)),
    ],
)
def test_numbers_have_the_data_type_of_the_input(function, dtype):
    # Up to opset 11, onnxruntime clips no float64.
    check(function, numbers(2, 4, dtype=dtype), opset=12)


FUNCTIONS = {
    'rollaxis': (lambda x: F.rollaxis(x, 0, 2), (2, 3, 4)),
    'rollaxis of negative axes': (lambda x: F.rollaxis(x, -1, -2), (2, 3, 4)),
    'transpose': (lambda x: F.transpose(x, (0, -1, 1)), (2, 3, 4)),
    'tile': (lambda x: F.tile(x, 2), (2, 3)),
    'prelu': (lambda x: F.prelu(x, numbers(4)), (2, 4, 4)),
    'matmul of a vector': (
        lambda x: F.matmul(x, numbers(3), transa=True),
        (3, 4),
    ),
    'floor': (lambda x: x - F.floor(x / 4), (3, 4)),
    'ceil': (lambda x: x - F.ceil(x / 4), (3, 4)),
    'floor division': (lambda x: x - x // 4, (3, 4)),
    'convolution_2d': (
        lambda x: F.convolution_2d(
            x, numbers(2, 3, 2, 2), stride=2, cover_all=True
        ),
        (2, 3, 5, 4),
    ),
    'convolution_nd': (
        lambda x: F.convolution_nd(x, numbers(2, 3, 2), dilate=2),
        (2, 3, 6),
    ),
    'deconvolution_2d': (
        lambda x: F.deconvolution_2d(x, numbers(3, 2, 2, 2), dilate=2),
        (2, 3, 4, 4),
    ),
    'deconvolution_2d of a size': (
        lambda x: F.deconvolution_2d(
            x, numbers(3, 2, 3, 3), stride=3, pad=1, outsize=(12, 10)
        ),
        (2, 3, 4, 4),
    ),
    'deconvolution_nd': (
        lambda x: F.deconvolution_nd(x, numbers(3, 2, 2), dilate=2),
        (2, 3, 4),
    ),
    'average_pooling_1d': (
        lambda x: F.average_pooling_1d(x, 2, pad=1, pad_value=None),
        (2, 3, 4),
    ),
    'max_pooling_1d': (lambda x: F.max_pooling_1d(x, 3, 2, 1), (2, 3, 6)),
    'unpooling_2d': (lambda x: F.unpooling_2d(x, (2, 3)), (1, 2, 6, 5)),
    'unpooling_2d of all': (
        lambda x: F.unpooling_2d(x, 3, cover_all=False),
        (1, 2, 6, 5),
    ),
    'outputs in another order': (
        lambda x: [F.relu(F.relu(-x)), F.relu(-x), x + 1],
        (2, 3),
    ),
}


@pytest.mark.parametrize('opset', [8, 9, 10, 11, 18])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_functions(name, opset):
    function, shape = FUNCTIONS[name]
    check(function, numbers(*shape), opset)


def batch_normalization(x, axis):
    shape = [size for i, size in enumerate(x.shape) if i not in axis]
    gamma, beta = numbers(2, *shape, dtype=x.dtype)
    return F.batch_normalization(x, gamma, beta, axis=axis)


def fixed_batch_normalization(x, axis):
    gamma, beta, mean, var = numbers(4, 3, dtype=x.dtype) / 4
    return F.fixed_batch_normalization(
        x, gamma, beta, mean, abs(var), axis=axis
    )


BATCH_FUNCTIONS = {
    'layer_normalization': lambda x: F.layer_normalization(
        x.reshape(-1, 4), *numbers(2, 4, dtype=x.dtype), eps=0.01
    ),
    'swish': lambda x: F.swish(x, numbers(3, dtype=x.dtype) / 2),
    'batch_normalization': lambda x: batch_normalization(x, (0, 2)),
    'batch_normalization of images': lambda x: batch_normalization(x, (0,)),
    'fixed_batch_normalization': lambda x: fixed_batch_normalization(
        x, (0, 2)
    ),
    'fixed_batch_normalization of another axis': (
        lambda x: fixed_batch_normalization(x.transpose(0, 2, 1), (0, 1))
    ),
}


@pytest.mark.parametrize('opset', [7, 13, 18])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', BATCH_FUNCTIONS)
def test_every_batch(random, name, dtype, opset):
    model = Model(BATCH_FUNCTIONS[name])
    xs = [random.randn(size, 3, 4).astype(dtype) for size in (2, 5, 3)]
    graph = onnx_chainer.export(
        model,
        xs[0].copy(),
        opset_version=opset,
        input_shapes=('batch', 3, 4),
    )
    # A handful of roundings of numbers below 16, and that of eps.
    tolerance = 64 * numpy.finfo(dtype).eps + 8 * 2e-5 * 2**-24
    for x in xs:
        (y,) = run_onnx(graph, x)
        expected = model(x).array
        assert y.dtype == expected.dtype
        numpy.testing.assert_allclose(y, expected, tolerance, tolerance)


@pytest.mark.parametrize('opset', [9, 11, 13, 18])
def test_labels_of_another_batch_are_ignored(random, opset):
    model = Model(F.softmax_cross_entropy)
    x = random.randn(4, 3).astype('f')
    t = numpy.array([0, 2, 1, 0], 'i')
    graph = onnx_chainer.export(model, [x, t], opset_version=opset)
    for labels in ([2, 2, 1, 0], [-1, 0, 2, -1], [-1, -1, -1, -1]):
        t = numpy.array(labels, 'i')
        (y,) = run_onnx(graph, x, t)
        numpy.testing.assert_allclose(y, model(x, t).array, 1e-5)


@pytest.mark.parametrize('opset', [12, 18])
def test_dropout_in_train_mode(opset):
    x = numpy.ones((100, 100), 'f')
    graph = onnx_chainer.export(
        Model(F.dropout), x, opset_version=opset, train=True
    )
    (y,) = run_onnx(graph, x)
    assert set(y.ravel().tolist()) == {0, 2}


@pytest.mark.parametrize('opset', [7, 11, 13, 18])
@pytest.mark.parametrize('axis', [1, (0, 2)])
def test_normalize_numbers_as_small_as_eps(axis, opset):
    x = numbers(2, 3, 4) * numpy.float32(1e-6)
    eps = numpy.finfo('f').eps
    check(lambda x: F.normalize(x, axis=axis), x, opset, 16 * eps)


@pytest.mark.parametrize('align_corners', [False, True])
def test_resize_images(align_corners):
    with pytest.warns(UserWarning, match='bilinear'):
        check(
            lambda x: F.resize_images(x, (3, 7), align_corners=align_corners),
            numbers(1, 2, 4, 4),
            tolerance=1e-5,
        )


@pytest.mark.parametrize(
    'function, message',
    [
        (lambda x: F.softplus(x, 2.0), 'Softplus: beta is 2.0'),
        (lambda x: F.tile(x, (1, 1, 1, 1, 2)), 'Tile: reps=.* more than 4'),
        (
            lambda x: F.max_pooling_2d(x, 2, pad=1),
            'MaxPoolingND: .* in the padding',
        ),
        (
            lambda x: F.pad(x, 1, 'reflect', reflect_type='odd'),
            'Pad: the options .*odd',
        ),
        (F.erf, 'Erf is not supported'),
        (lambda x: F.repeat(x, (1, 2, 1), 1), 'Repeat: '),
        (lambda x: x - F.fix(x), 'Sub_0 depends on the values'),
        (lambda x: F.gumbel_softmax(x), 'gumbel_softmax is not supported'),
        (
            lambda x: F.softmax_cross_entropy(
                x[0, 0], numpy.array([0, 1, 2], 'i'), normalize=False
            ),
            'SoftmaxCrossEntropy: options',
        ),
        (
            lambda x: F.resize_images(x, (6, 6), mode='nearest'),
            "ResizeImages: mode is 'nearest'",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(function, message):
    refuse(function, numbers(1, 3, 3, 3), message)


def test_the_page_lists_what_cannot_be_exported():
    classes = [chainer.FunctionNode, chainer.Function]
    for each in classes:
        classes.extend(each.__subclasses__())
    missing = {
        each.__name__
        for each in classes
        if each.__module__.startswith('chainer.functions')
        # The n_step functions are written as wholes.
        and not each.__module__.startswith('chainer.functions.rnn.n_step')
        and each.__name__ not in mapping.converters
        and not re.search('^_|^Pooling2D$|Base|Grad', each.__name__)
    }
    page = Path(__file__).parents[2] / 'docs' / 'compatibility.md'
    text = page.read_text(encoding='utf-8').partition('have no converter:')[2]
    listed = text.partition('\n\n')[0]
    assert missing == set(re.findall('`(.*?)`', listed))


SINCE_13 = {
    'expand_dims': lambda x: F.expand_dims(x, 1),
    'squeeze': lambda x: F.squeeze(x[:, :1], 1),
    'sum': lambda x: F.sum(x, (0, -1)),
    'max': lambda x: F.max(x, 1, keepdims=True),
    'min': lambda x: F.min(x, 1),
    'mean': lambda x: F.mean(x, 1),
    'prod': lambda x: F.prod(x / 8, 1),
    'split_axis': lambda x: F.split_axis(x, [1], 1),
    'separate': lambda x: F.separate(x, 1),
    'stack': lambda x: F.stack([x, -x], 1),
}


@pytest.mark.parametrize('opset', [13, 18])
@pytest.mark.parametrize('name', SINCE_13)
def test_later_opsets(name, opset):
    check(SINCE_13[name], numbers(2, 4, 4), opset)


@pytest.mark.parametrize('opset', [11, 18])
def test_later_opsets_of_inexact_functions(opset):
    x = numbers(3, 4) / 8
    eps = numpy.finfo('f').eps
    check(lambda x: F.logsumexp(x, 1), x, opset, 16 * eps)
    check(lambda x: F.softmax(x, 0), x, opset, 16 * eps)
    check(lambda x: F.log_softmax(x, 1), x, opset, 16 * eps)
