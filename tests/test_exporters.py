from chainer_shared_patch import SharedLinear, uninstall
import chainer
from chainer.exporters import caffe
import chainer.functions as F
import chainer.links as L
from chainer.utils.type_check import InvalidType
import numpy
import onnx
from onnx.reference import ReferenceEvaluator
import onnx_chainer
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    RuntimeException,
)
import pytest

from tests.helpers import (
    DTYPES,
    SEVERAL,
    SIZES,
    K,
    N,
    assert_layer_close,
    integers,
    make_arrays,
    run_onnx,
    run_python,
)

pytestmark = pytest.mark.arithmetic

BATCH, _, _, OUT = SIZES
OPSETS = range(
    onnx_chainer.MINIMUM_OPSET_VERSION, onnx_chainer.MAXIMUM_OPSET_VERSION + 1
)
ORDERS = {
    'contiguous': None,
    'interleaved': 'interleaved',
    'permutation': numpy.array([3, 0, 5, 1, 4, 2]),
    'several': SEVERAL,
    'one each': [numpy.roll(SEVERAL[0], each) for each in range(OUT)],
}


def export(model, args, **options):
    """Returns the ONNX model, and a function that runs it."""
    graph = onnx_chainer.export(model, args, **options)
    # Up to opset 8, a Constant of integers, which Chainer's exporter writes
    # for every Reshape, passes only without inference of the shapes.
    full_check = graph.opset_import[0].version > 8
    onnx.checker.check_model(graph, full_check=full_check)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=['CPUExecutionProvider']
    )
    names = [each.name for each in session.get_inputs()]
    return graph, lambda *xs: session.run(None, dict(zip(names, xs)))


def export_open(model, args, **options):
    """Exports for batches of any size."""
    shapes = [('batch', *each.shape[1:]) for each in args]
    return export(model, args, input_shapes=shapes, **options)


def operators(graph):
    return [n.op_type for n in graph.graph.node if n.op_type != 'Constant']


def shapes(graph):
    return sorted(tuple(each.dims) for each in graph.graph.initializer)


def make_layer(random, dtype, order=None, nobias=False):
    """Returns a link, and the x and the gy of a reference."""
    x, W, b, gy = (
        each.astype(dtype)
        for each in make_arrays(random.randn, BATCH, N, K, OUT)
    )
    with chainer.using_config('dtype', dtype):
        link = SharedLinear(
            N * K, OUT, nobias, W, b, common_num=N, order=order
        )
    return link, x, gy


def assert_exact(y, link, x, gy):
    b = None if link.b is None else link.b.array
    assert_layer_close([y], x, link.W.array, b, gy, N, link.order)


class TestSharedLinear:
    @pytest.mark.parametrize('order', ORDERS)
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize('opset', OPSETS)
    def test_every_opset(self, random, opset, dtype, order):
        # Up to opset 10, a layer without a bias is exported in another way.
        nobias = order == 'permutation'
        link, x, gy = make_layer(random, dtype, ORDERS[order], nobias)
        model = chainer.Sequential(link)
        graph, run = export_open(model, [x], opset_version=opset)
        assert graph.opset_import[0].version == opset
        for size in (BATCH, 0, 1, BATCH - 1):
            (y,) = run(x[:size])
            assert y.shape == (size, OUT)
            assert_exact(y, link, x[:size], gy[:size])

    @pytest.mark.parametrize('order', ORDERS)
    def test_input_of_another_width_is_refused(self, random, order):
        link, x, _ = make_layer(random, 'f', ORDERS[order])
        graph, _ = export_open(chainer.Sequential(link), [x])
        # As where a model was changed after the export.
        (dims,) = (
            each.type.tensor_type.shape.dim
            for each in graph.graph.input
            if each.name == 'Input_0'
        )
        dims[1].dim_param = 'width'
        for columns in (1, N * K - 1, N * K + 1, 2 * N * K):
            with pytest.raises((Fail, RuntimeException)):
                run_onnx(graph, numpy.ones((2, columns), 'f'))

    def test_weight_is_stored_once_and_narrow(self, random, algorithm):
        link, x, _ = make_layer(random, 'f')
        graph, _ = export(chainer.Sequential(link), x)
        assert operators(graph) == ['Reshape', 'ReduceSum', 'Gemm']
        assert shapes(graph) == [(OUT,), (OUT, K)]

    def test_sum_that_exceeds_float16(self, random):
        link, x, _ = make_layer(random, 'e', nobias=True)
        x[...] = 4e4
        link.W.array[...] = 2**-8
        graph, _ = export(chainer.Sequential(link), x)
        # onnxruntime computes all of float16 in float32 on some processors,
        # and this one does what is written.
        (y,) = ReferenceEvaluator(graph).run(None, {'Input_0': x})
        exact = N * K * x[0, 0].astype('d') / 2**8
        assert (y == numpy.float16(exact)).all()

    def test_mixed_dtypes(self, random):
        link, x, gy = make_layer(random, 'f', nobias=True)
        x = x.astype('e')
        _, run = export(chainer.Sequential(link), x)
        (y,) = run(x)
        assert y.dtype == 'e'
        assert_exact(y, link, x, gy)

    def test_without_the_patch(self, random):
        uninstall()
        link, x, gy = make_layer(random, 'f')
        _, run = export(chainer.Sequential(link), x)
        assert_exact(run(x)[0], link, x, gy)


class TestPatchedLayers:
    def make_layer(self, random):
        shared, x, gy = make_layer(random, 'f')
        return L.Linear(K, OUT, False, shared.W.array, shared.b.array), x, gy

    def test_layer(self, random, algorithm):
        link, x, gy = self.make_layer(random)
        with chainer.using_config('common_num', N):
            graph, run = export(chainer.Sequential(link), x)
        assert shapes(graph) == [(OUT,), (OUT, K)]
        assert_layer_close(run(x), x, link.W.array, link.b.array, gy, N)

    def test_ordinary_layer_is_written_as_ever(self, random):
        link, x, gy = self.make_layer(random)
        with chainer.using_config('common_num', N):
            graph, run = export(chainer.Sequential(link), x[:, :K])
        assert operators(graph) == ['Gemm']
        assert_layer_close(
            run(x[:, :K]), x[:, :K], link.W.array, link.b.array, gy, 1
        )

    def test_after_uninstall_chainer_refuses(self, random):
        link, x, _ = self.make_layer(random)
        uninstall()
        with chainer.using_config('common_num', N):
            with pytest.raises(InvalidType):
                onnx_chainer.export(chainer.Sequential(link), x)


class MLP(chainer.Chain):
    def __init__(self, l1, l2):
        super().__init__()
        with self.init_scope():
            self.l1 = l1
            self.l2 = l2

    def forward(self, x):
        return self.l2(F.relu(self.l1(x)))


class ConvNet(chainer.Chain):
    def __init__(self, head):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(1, 2, 3)
            self.head = head

    def forward(self, x):
        return self.head(F.max_pooling_2d(F.relu(self.conv(x)), 2))


class PositionWise(chainer.Chain):
    def __init__(self, head):
        super().__init__()
        with self.init_scope():
            self.head = head

    def forward(self, x):
        y = self.head(x.reshape(-1, x.shape[2]))
        return y.reshape(*x.shape[:2], -1)


# Of integers, the sums are exact.
MODELS = {
    'MLP': (
        lambda shared: MLP(shared(N * K, 2 * N), shared(2 * N, OUT)),
        (N * K,),
    ),
    # 2 channels of 3 x 3 pixels
    'ConvNet': (lambda shared: ConvNet(shared(18, OUT)), (1, 8, 8)),
    'ConvNet and reshape': (
        lambda shared: ConvNet(
            chainer.Sequential(
                lambda h: F.reshape(h, (len(h), -1)), shared(18, OUT)
            )
        ),
        (1, 8, 8),
    ),
    'position by position': (
        lambda shared: PositionWise(shared(N * K, OUT)),
        (BATCH, N * K),
    ),
}
LAYERS = {
    'patched': lambda in_size, out_size: L.Linear(in_size // N, out_size),
    'SharedLinear': lambda *sizes: SharedLinear(*sizes, common_num=N),
    'ordered': lambda *sizes: SharedLinear(
        *sizes, common_num=N, order='interleaved'
    ),
    'several orders': lambda in_size, out_size: SharedLinear(
        in_size,
        out_size,
        common_num=N,
        order=[range(in_size), range(in_size)[::-1]],
    ),
}


@pytest.mark.parametrize('size', [1, BATCH])
@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('name', MODELS)
def test_networks(random, name, layer, size):
    make, shape = MODELS[name]
    draw = integers(random)
    model = make(LAYERS[layer])
    for param in model.params():
        param.array[...] = draw(*param.shape)
    with chainer.using_config('common_num', N):
        _, run = export_open(model, [draw(size, *shape).astype('f')])
        for other in (2, 3, 7):
            x = draw(other, *shape).astype('f')
            expected = model(chainer.Variable(x)).array
            numpy.testing.assert_array_equal(run(x)[0], expected)


def test_onnx_is_not_imported():
    code = (
        'import sys, chainer_shared_patch\n'
        "assert not {'onnx', 'onnx_chainer'} & set(sys.modules)"
    )
    result = run_python('-c', code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('layer', LAYERS)
def test_caffe_is_refused(tmp_path, random, layer):
    model = chainer.Sequential(LAYERS[layer](N * K, OUT))
    x = chainer.Variable(random.randn(BATCH, N * K).astype('f'))
    with chainer.using_config('common_num', N):
        with pytest.raises(ValueError) as info:
            caffe.export(model, [x], str(tmp_path))
    message = str(info.value)
    assert f'shared by {N} blocks' in message
    assert str((OUT, K)) in message
    assert not list(tmp_path.iterdir())
