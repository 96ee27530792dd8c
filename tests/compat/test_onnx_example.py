"""What depends on the example in the models of Chainer's ONNX exporter."""

import concurrent.futures
import itertools

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
from chainer.functions import floor
import chainer.links as L
import numpy
import onnx
import onnx_chainer
import pytest

from tests.helpers import integers, run_onnx

# As long as the larger of the examples, to be mistaken for it.
SHAPE = 4, 6


def linear(x, **options):
    size = 4 * 6 // x.shape[1] if options else 4 * 6
    return F.linear(x, numpy.ones((3, size), x.dtype), **options)


class Reused(chainer.Chain):
    """A model that uses a reshaped parameter twice."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.bias = L.Bias(1, (4,))
            self.scale = L.Scale(1, (4,))

    def forward(self, x):
        return self.scale(self.bias(x)) + self.bias(x)


MODELS = {
    'len': lambda x: F.reshape(x, (len(x), -1)),
    'shape': lambda x: x.reshape(x.shape[0], 24),
    'flatten': F.flatten,
    'linear': linear,
    'linear with two batch axes': lambda x: linear(x, n_batch_axes=2),
    'merged and split': lambda x: F.relu(x.reshape(len(x) * 4, 6)).reshape(
        len(x), 2, 2, 6
    ),
    'second axis': lambda x: x.transpose(1, 0, 2).reshape(4, len(x) * 6),
    'kept as the second axis': lambda x: x.transpose(1, 0, 2).reshape(
        4, len(x), 3, 2
    ),
    'two open sizes': lambda x: F.relu(x.reshape(len(x) * 4, 6)).reshape(
        2, len(x), 2, 6
    ),
    'broadcast_to': lambda x: (
        x
        + F.broadcast_to(chainer.Variable(numpy.arange(6, dtype='f')), x.shape)
    ),
    'links': Reused(),
    'tile': lambda x: F.tile(F.sum(x, 0, keepdims=True), (len(x), 1, 1)),
    'slice': lambda x: x[1 : len(x)],
    'channel shuffle': lambda x: (
        x.reshape(len(x), 2, 2, 6).transpose(0, 2, 1, 3).reshape(x.shape)
    ),
    'attention': lambda x: F.matmul(F.matmul(x, x, transb=True), x).reshape(
        len(x), 2, 12
    ),
    'zeros': lambda x: F.concat([x, numpy.zeros((len(x), 1, 6), 'f')], 1),
    'maxout': lambda x: F.maxout(x.reshape(len(x), 24), 3),
}


def make_model(function):
    if isinstance(function, chainer.Link):
        return function
    return chainer.Sequential(function)


@pytest.mark.parametrize('opset', [10, 13])
@pytest.mark.parametrize('size', [1, 4])
@pytest.mark.parametrize('name', MODELS)
def test_every_batch_size(random, name, size, opset):
    model = make_model(MODELS[name])
    draw = integers(random)
    graph = onnx_chainer.export(
        model,
        draw(size, *SHAPE).astype('f'),
        opset_version=opset,
        input_shapes=('batch', *SHAPE),
    )
    onnx.checker.check_model(graph, full_check=True)
    for other in (2, 3, 7):
        x = draw(other, *SHAPE).astype('f')
        (y,) = run_onnx(graph, x)
        numpy.testing.assert_array_equal(y, model(chainer.Variable(x)).array)


def test_reshape_needs_no_other_operator():
    model = chainer.Sequential(
        L.Convolution2D(4, 2, 1), lambda h: F.reshape(h, (len(h), -1))
    )
    x = numpy.ones((1, 4, 3, 3), 'f')
    graph = onnx_chainer.export(model, x, input_shapes=('batch', *x.shape[1:]))
    operators = [node.op_type for node in graph.graph.node]
    assert operators == ['Conv', 'Constant', 'Reshape']
    (output,) = graph.graph.output
    dims = output.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', 18]
    assert run_onnx(graph, x[:0])[0].shape == (0, 18)


def swap_outputs(x):
    y = F.relu(x)
    outputs = y, F.relu(y)
    return outputs if len(x) in (1, 4) else outputs[::-1]


REFUSED = {
    'half': (lambda x: x[: len(x) // 2], 'GetItem_0'),
    'mask': (lambda x: x[numpy.arange(len(x)) % 2 == 0], 'GetItem_0'),
    'parts': (lambda x: F.split_axis(x, [len(x) // 2], 0), 'SplitAxis_0'),
    'array': (
        lambda x: F.concat([x, numpy.ones((len(x), 1, 6), 'f')], 1),
        'Concat_0',
    ),
    'number': (lambda x: F.sum(x, 0) / len(x), 'MulConstant_0'),
    'condition': (
        lambda x: F.where(numpy.ones(x.shape, bool), x, -x),
        'Where_0',
    ),
    'indices': (
        lambda x: F.permutate(x, numpy.arange(len(x))),
        'Permutate_0',
    ),
    'loop': (lambda x: sum(x[i] for i in range(len(x))), 'which functions'),
    'outputs': (swap_outputs, 'what the model returns'),
    'one size': (
        lambda x: F.linear(x.reshape(1, -1), numpy.ones((2, 24 * 4), 'f')),
        'the model fails with 12 for',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_follow_is_refused(name):
    function, message = REFUSED[name]
    x = numpy.ones((4, *SHAPE), 'f')
    with pytest.raises(ValueError, match=message) as info:
        onnx_chainer.export(
            make_model(function), x, input_shapes=('batch', *SHAPE)
        )
    assert "'batch'" in str(info.value)


@pytest.mark.parametrize('names', [('b', 'h', 'w'), (None, None, None)])
def test_several_open_axes(random, names):
    model = chainer.Sequential(
        lambda x: F.relu(x.reshape(len(x), 2, -1)).reshape(x.shape)
    )
    x = random.randn(2, 2, 2, 2).astype('f')
    shape = (names[0], 2, *names[1:])
    graph = onnx_chainer.export(model, x, input_shapes=shape)
    x = random.randn(3, 2, 5, 4).astype('f')
    (y,) = run_onnx(graph, x)
    numpy.testing.assert_array_equal(y, model(chainer.Variable(x)).array)


class TwoInputs(chainer.Chain):
    def forward(self, a, b):
        return F.concat([a.reshape(len(a), -1), b.reshape(len(b), -1)])


@pytest.mark.parametrize('as_dict', [False, True])
def test_several_inputs(random, as_dict):
    model = TwoInputs()
    a, b = random.randn(1, 2, 3), random.randn(1, 4)
    shapes = [('batch', 2, 3), ('batch', 4)]
    example = {'a': a, 'b': b} if as_dict else [a, b]
    graph = onnx_chainer.export(model, example, input_shapes=shapes)
    a, b = random.randn(5, 2, 3), random.randn(5, 4)
    (y,) = run_onnx(graph, a, b)
    expected = model(*map(chainer.Variable, (a, b))).array
    numpy.testing.assert_array_equal(y, expected)


def test_another_size_than_that_of_the_example(random):
    model = make_model(MODELS['len'])
    x = random.randn(5, *SHAPE).astype('f')
    graph = onnx_chainer.export(model, x[:2], input_shapes=x.shape)
    assert run_onnx(graph, x)[0].shape == (5, 24)


def test_sizes_of_the_example_stay_constants():
    x = numpy.ones((2, *SHAPE), 'f')
    model = make_model(MODELS['len'])
    graphs = [
        onnx_chainer.export(model, x, input_shapes=shape)
        for shape in (None, x.shape)
    ]
    for graph in graphs:
        (constant, _) = graph.graph.node
        shape = onnx.numpy_helper.to_array(constant.attribute[0].t)
        assert shape.tolist() == [2, -1]


class Stateful(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.l = L.Linear(24, 3)
        self.count = numpy.zeros(1)
        self.last = None
        self.seen = []

    def forward(self, x):
        self.count += 1
        self.last = x if self.last is None else self.last + x
        self.seen.append(x)
        return self.l(x) * numpy.random.rand(3).astype('f')


@pytest.mark.parametrize('export_params', [True, False])
@pytest.mark.parametrize('shape', [None, ('batch', *SHAPE)])
def test_further_runs_leave_no_trace(random, shape, export_params):
    model, x = Stateful(), random.randn(2, *SHAPE).astype('f')
    numpy.random.seed(0)
    graph = onnx_chainer.export(
        model, x, input_shapes=shape, export_params=export_params
    )
    drawn = numpy.random.rand()
    numpy.random.seed(0)
    assert drawn == numpy.random.rand(4)[3]
    numpy.testing.assert_array_equal(model.last.array, x)
    assert [*model.count, len(model.seen)] == [1, 1]
    assert bool(graph.graph.initializer) == export_params


class Function(chainer.Chain):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


DEPENDENT = {
    'condition': (lambda x, ids: F.where(x.array > 0, x, -x), 'Where_0'),
    'zeros': (lambda x, ids: x + numpy.minimum(x.array, 0), 'Add_0'),
    'function imported before': (lambda x, ids: x - floor(x), 'Sub_0'),
    'variable': (
        lambda x, ids: F.relu(chainer.Variable(x.array / 2)),
        'ReLU_0',
    ),
    'mean': (lambda x, ids: x / float(x.array.mean() + 9), 'MulConstant_0'),
    'mask': (
        lambda x, ids: x * (ids.array != 2).astype('f'),
        'Mul_0',
    ),
    'order': (
        lambda x, ids: F.permutate(x, ids.array.argsort()[::-1].copy()),
        'Permutate_0',
    ),
    'length': (lambda x, ids: x[: ids.array.max()], 'GetItem_0'),
    'reshape': (lambda x, ids: x.reshape(ids.array.max(), -1), 'Reshape_0'),
    'axis': (
        lambda x, ids: F.sum(x.reshape(2, 3), int(ids.array.max()) % 2),
        'Sum_0',
    ),
    'loop': (
        lambda x, ids: sum(x[i] for i in range(ids.array.max())),
        'which functions',
    ),
}


@pytest.mark.parametrize('value', [0, 1])
@pytest.mark.parametrize('name', DEPENDENT)
def test_what_depends_on_the_values_is_refused(name, value):
    function, message = DEPENDENT[name]
    args = numpy.full(6, value, 'f'), numpy.array([2, 3, 1, 0, 2, 2])
    match = f'{message}.* depends on the values of the example'
    with pytest.raises(ValueError, match=match):
        onnx_chainer.export(Function(function), args)


def sort_first(x, lengths):
    if (numpy.diff(lengths.array) > 0).any():
        raise ValueError
    return x * (lengths.array > 2).astype('f')


def test_sequences_that_must_be_sorted():
    args = numpy.ones(3, 'f'), numpy.array([5, 3, 2])
    with pytest.raises(ValueError, match='Mul_0 depends on the values'):
        onnx_chainer.export(Function(sort_first), args)


def take_only_the_example(x):
    if (x.array != 1).any():
        raise ValueError
    return F.relu(x)


counts = itertools.count()


@pytest.mark.parametrize(
    ('function', 'words'),
    [
        (take_only_the_example, 'fails with other values'),
        (lambda x: F.relu(x) * next(counts), 'something else each time'),
        (lambda x: F.relu(x) * numpy.random.rand(), 'something else each'),
    ],
)
def test_what_cannot_be_told_is_exported_with_a_warning(function, words):
    with pytest.warns(UserWarning, match=words) as warnings:
        graph = onnx_chainer.export(Function(function), [numpy.ones(3, 'f')])
    assert warnings[0].filename == __file__
    assert graph.graph.node[0].op_type == 'Relu'


def test_exports_in_threads():
    original = onnx_chainer.export.__globals__['check_onnx_model']
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        graphs = list(
            pool.map(
                lambda size: onnx_chainer.export(
                    Function(F.relu), [numpy.ones(size, 'f')]
                ),
                range(1, 17),
            )
        )
    sizes = [
        graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        for graph in graphs
    ]
    assert sizes == list(range(1, 17))
    assert onnx_chainer.export.__globals__['check_onnx_model'] is original
