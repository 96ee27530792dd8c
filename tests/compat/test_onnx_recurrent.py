"""Recurrent layers in the models of Chainer's ONNX exporter."""

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import onnx
import onnx_chainer
import pytest

from tests.helpers import fill, run_onnx

pytestmark = pytest.mark.filterwarnings(
    'ignore:ONNX-Chainer has been tested only'
)
OPSETS = [7, 11, 13, 18]
IN, OUT, N = 3, 4, 2


class Model(chainer.Chain):
    """Calls a function with a link, if any, and Variables."""

    def __init__(self, function, link=None):
        super().__init__()
        self.function = function
        with self.init_scope():
            self.link = link
        fill(self)

    def forward(self, *args):
        args = map(chainer.as_variable, args)
        return self.function(*[self.link] * (self.link is not None), *args)


def check(model, args, others=(), shapes=None, opset=11):
    """Compares what onnxruntime and Chainer compute."""
    model(*args)  # A model that resets its state may have one.
    graph = onnx_chainer.export(
        model,
        [each.copy() for each in args],
        input_shapes=shapes,
        opset_version=opset,
    )
    onnx.checker.check_model(graph, full_check=opset > 8)
    for xs in (args, *others):
        with chainer.using_config('train', False):
            expected = model(*xs)
        outputs = run_onnx(graph, *xs)
        assert len(outputs) == len(expected)
        for output, variable in zip(outputs, expected):
            y = variable.array
            assert output.dtype == y.dtype
            # Both keep at least half of the digits.
            tolerance = numpy.sqrt(numpy.finfo(y.dtype).eps)
            numpy.testing.assert_allclose(
                output, y, rtol=tolerance, atol=tolerance
            )
    return graph


def refuse(model, args, message, **options):
    with pytest.raises(ValueError, match=message) as info:
        onnx_chainer.export(model, args, **options)
    assert str(info.value).startswith('export(): ')


@pytest.fixture
def draw(random):
    return lambda *shape: random.randn(*shape).astype('f')


def call_each(link, x):
    link.reset_state()
    return [link(step) for step in F.separate(x, 1)]


def call_lstm(link, x):
    c = h = None
    for step in F.separate(x, 1):
        c, h = link(c, h, step)
    return c, h


def call_gru(link, x):
    h = numpy.zeros((len(x), OUT), x.dtype)
    for step in F.separate(x, 1):
        h = link(h, step)
    return [h]


LINKS = {
    'LSTM': (L.LSTM, call_each),
    'StatelessLSTM': (L.StatelessLSTM, call_lstm),
    'StatefulGRU': (L.StatefulGRU, call_each),
    'GRU': (L.GRU, call_each),
    'StatelessGRU': (L.StatelessGRU, call_gru),
}
N_STEP = [
    f'NStep{direction}{name}'
    for direction in ('', 'Bi')
    for name in ('LSTM', 'GRU', 'RNNTanh', 'RNNReLU')
]


def make_n_step(name, call):
    """Makes a model of two layers, which are called with the states."""

    def function(link, *args):
        *hs, ys = call(link, *args)
        return [*hs, *ys]

    return Model(function, getattr(L, name)(2, IN, OUT, 0.5))


@pytest.mark.parametrize('opset', OPSETS)
class TestSizes:
    @pytest.mark.parametrize('n', [1, N])
    @pytest.mark.parametrize('name', LINKS)
    def test_links_of_a_step(self, draw, name, n, opset):
        make_link, call = LINKS[name]
        model = Model(call, make_link(IN, OUT))
        with chainer.using_config('common_num', n):
            check(
                model,
                [draw(1, 3, n * IN)],
                [[draw(size, 3, n * IN)] for size in (2, 5)],
                [('batch', 3, n * IN)],
                opset,
            )

    @pytest.mark.parametrize('name', N_STEP)
    def test_rows_of_an_array(self, draw, name, opset):
        def call(link, x):
            *hs, ys = link(*[None] * link.n_cells, F.separate(x))
            return *hs, [F.stack(ys, 1), F.concat(ys, 0)]

        check(
            make_n_step(name, call),
            [draw(1, 2, IN)],
            [[draw(3, 5, IN)], [draw(2, 1, IN)]],
            [('batch', 'time', IN)],
            opset,
        )

    @pytest.mark.parametrize('name', N_STEP)
    def test_list_of_sequences(self, draw, name, opset):
        def call(link, x, y, *hs):
            return link(*hs, [x, y])

        model = make_n_step(name, call)
        layers = 2 * model.link.direction
        states = [draw(layers, 2, OUT) for _ in range(model.link.n_cells)]
        check(
            model,
            [draw(2, IN), draw(2, IN), *states],
            [[draw(1, IN), draw(4, IN), *states]],
            [('a', IN), ('b', IN), *(h.shape for h in states)],
            opset,
        )

    @pytest.mark.parametrize('name', ['NStepGRU', 'NStepBiGRU'])
    def test_shared_layers_of_an_n_step_gru(self, draw, name, opset):
        def call(link, x, h):
            h, ys = link(h, list(x))
            return h, [F.stack(ys)]

        model = make_n_step(name, call)
        layers = 2 * model.link.direction
        with chainer.using_config('common_num', N):
            check(
                model,
                [draw(1, 2, N * IN), draw(layers, 1, OUT)],
                [[draw(3, 4, N * IN), draw(layers, 3, OUT)]],
                [('batch', 'time', N * IN), (layers, 'batch', OUT)],
                opset,
            )

    def test_lstm_of_images(self, draw, opset):
        check(
            Model(F.lstm),
            [draw(1, 2, 3, 4), draw(1, 8, 3, 4)],
            [[draw(3, 2, 5, 2), draw(3, 8, 5, 2)]],
            [('batch', each, 'height', 'width') for each in (2, 8)],
            opset,
        )

    def test_lstm_of_decreasing_batch_sizes(self, draw, opset):
        def call(link, x, y):
            link.reset_state()
            return link(x), link(y), link.c, link.h

        check(
            Model(call, L.LSTM(IN, OUT)),
            [draw(3, IN), draw(2, IN)],
            opset=opset,
        )


@pytest.mark.parametrize('dtype', ['e', 'd'])
def test_dtypes_of_an_lstm(draw, dtype):
    c, x = draw(2, OUT).astype(dtype), draw(2, 4 * OUT).astype(dtype)
    check(Model(F.lstm), [c, x])


@pytest.mark.parametrize(
    'pick',
    [
        lambda x: list(x)[::-1],
        lambda x: list(x)[:2],
        lambda x: [x[0], x[0], x[2]],
        lambda x: F.separate(x, 1),
        lambda x: F.separate(x)[:2],
        lambda x: [x[0], x[1, :1], x[2]],
    ],
)
def test_other_sequences_than_the_rows(draw, pick):
    model = make_n_step('NStepLSTM', lambda link, x: link(None, None, pick(x)))
    check(model, [draw(3, 3, IN)], [[draw(3, 3, IN)]])


def test_one_of_two_states(draw):
    def call(link, x, c):
        return link(None, c, F.separate(x))

    model = make_n_step('NStepLSTM', call)
    check(model, [draw(2, 3, IN), draw(2, 2, OUT)])


def test_function_with_sequences_that_end(draw):
    def call(link, *xs):
        h = chainer.Variable(numpy.ones((2, 3, OUT), 'f'))
        h, _ = F.n_step_gru(2, 0.5, h, link.ws, link.bs, xs)
        return [h]

    model = Model(call, L.NStepGRU(2, IN, OUT, 0.5))
    check(model, [draw(3, IN), draw(3, IN), draw(1, IN)])


class Doubling(L.NStepLSTM):
    """Has a function of its own."""

    def rnn(self, *args):
        hy, cy, ys = super().rnn(*args)
        return hy * 2, cy, ys


def test_own_function_of_an_n_step_link(draw):
    model = Model(
        lambda link, x: link(None, None, F.separate(x))[:2],
        Doubling(1, IN, OUT, 0.5),
    )
    check(model, [draw(2, 3, IN)])
    link = L.NStepLSTM(1, IN, OUT, 0.5)
    link.rnn = Doubling(1, IN, OUT, 0.5).rnn
    check(Model(model.function, link), [draw(2, 3, IN)])


@pytest.mark.parametrize('name', ['NStepLSTM', 'NStepBiGRU', 'NStepRNNTanh'])
def test_float64_that_no_operator_takes(draw, name):
    with chainer.using_config('dtype', 'd'):
        model = make_n_step(
            name, lambda link, x: link(*[None] * link.n_cells, list(x))
        )
    check(model, [draw(2, 3, IN).astype('d')])


def test_dropout_between_layers_in_train_mode(draw):
    model = make_n_step('NStepGRU', lambda link, x: link(None, F.separate(x)))
    for train in (False, True):
        graph = onnx_chainer.export(model, draw(2, 3, IN), train=train)
        operators = [node.op_type for node in graph.graph.node]
        assert operators.count('Dropout') == train


class TestStates:
    @pytest.mark.parametrize('enable_backprop', [True, False])
    @pytest.mark.parametrize('make_link', [L.LSTM, L.StatefulGRU])
    def test_of_earlier_calls_are_refused(
        self, draw, make_link, enable_backprop
    ):
        model = Model(lambda link, x: link(x), make_link(IN, OUT))
        x = draw(2, IN)
        with chainer.using_config('enable_backprop', enable_backprop):
            model(x)
        refuse(model, x, '/link has a state from an earlier call')
        model.link.reset_state()
        graph = onnx_chainer.export(model, x)
        model.link.reset_state()
        numpy.testing.assert_allclose(
            run_onnx(graph, x)[0], model(x).array, rtol=1e-4, atol=1e-4
        )

    def test_that_are_inputs(self, draw):
        def call(link, x, c, h):
            link.set_state(c, h)
            y = link(x)
            return y, link.c

        check(
            Model(call, L.LSTM(IN, OUT)),
            [draw(2, size) for size in (IN, OUT, OUT)],
            [[draw(5, size) for size in (IN, OUT, OUT)]],
            [('batch', size) for size in (IN, OUT, OUT)],
        )
