"""The table of a model's links."""

import contextlib
import re
import threading

from chainer_shared_patch import LinkSummary, SharedLinear, Summary, summary
import chainer
import chainer.functions as F
from chainer.link_hooks import SpectralNormalization
import chainer.links as L
import numpy
import pytest


def zeros(*shape):
    return numpy.zeros(shape, numpy.float32)


def rows_of(result):
    return {row.path: row for row in result.rows}


def get_links(result):
    return [(row.path, row.link) for row in result.rows]


class Model(chainer.Chain):
    """Links by name, and a function of the chain that calls them."""

    def __init__(self, function, **links):
        super().__init__()
        self.function = function
        with self.init_scope():
            for name, link in links.items():
                setattr(self, name, link)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def make_article(l2):
    return Model(
        lambda self, x: self.l3(F.relu(self.l2(F.relu(self.l1(x))))),
        l1=L.Linear(784, 1000),
        l2=l2,
        l3=L.Linear(900, 10),
    )


class TestArticle:
    @pytest.fixture(params=['patched', 'SharedLinear'])
    def result(self, request):
        x = zeros(100, 784)
        if request.param == 'patched':
            with chainer.using_config('common_num', 10):
                return summary(make_article(L.Linear(100, 900, True)), x)
        return summary(
            make_article(SharedLinear(1000, 900, True, common_num=10)), x
        )

    def test_rows_and_totals(self, result):
        _, l1, l2, l3 = result.rows
        assert l1[2:] == ((100, 1000), 1, 785_000, 785_000, 78_400_000)
        assert l2[2:] == ((100, 900), 10, 90_000, 900_000, 9_000_000)
        assert l3[2:] == ((100, 10), 1, 9_010, 9_010, 900_000)
        parameters, dense = 884_010, 1_694_010
        multiply_adds = 100 * (784_000 + 90_000 + 9_000)
        sizes = (parameters, dense, 4 * parameters, 4 * dense)
        assert result[1:6] == (*sizes, multiply_adds)

    def test_tile_multiplies_with_the_wide_weight(self, algorithm):
        link = SharedLinear(1000, 900, common_num=10)
        columns = {'sum': 100, 'tile': 1000}[algorithm]
        assert summary(link, zeros(3, 1000)).multiply_adds == 3 * 900 * columns

    def test_table_without_shared_layers(self):
        text = str(summary(make_article(L.Linear(1000, 900)), zeros(1, 784)))
        assert 'dense' not in text
        assert 'common' not in text


def test_a_column_has_one_unit():
    model = chainer.Sequential(L.Linear(1024, 1536), L.Linear(1536, 512))
    text = str(summary(model, (1, 1024)))
    assert '1.573 M' in text and '0.786 M' in text and '2.359 M' in text


def test_integers_of_orders():
    order = [numpy.roll(numpy.arange(300), 7 * i) for i in range(4)]
    link = SharedLinear(300, 8, common_num=3, order=order)
    first = SharedLinear(6, 300, common_num=2, order='interleaved')
    # The copy has the same order.
    model = chainer.Sequential(
        first, link, lambda y: F.concat([y] * 38)[:, :300], link.copy()
    )
    result = summary(model, (1, 6))
    assert result.order_integers == 6 + 4 * 300
    assert result.order_nbytes == 6 + 4 * 300 * 2
    lines = str(result).split('\n')
    assert lines[-1] == 'Size of the orders: 2,406 bytes (1,206 integers)'
    assert '<br>Size of the orders: 2,406 bytes' in result._repr_html_()


def test_html():
    link = SharedLinear(6, 4, common_num=3)
    html = summary(link, zeros(2, 6))._repr_html_()
    for cell in ('output shape', 'SharedLinear', '2x4', '12', 'total'):
        assert re.search(rf'>\s*{cell}\s*<', html)
    assert '<p>Size of the parameters: 48 bytes (dense: 112 bytes)</p>' in html


class TestShapes:
    def test_a_shape_stands_for_an_array(self):
        link = L.Convolution2D(3, 4, 3)
        shape = (2, 3, 8, 8)
        assert summary(link, shape) == summary(link, zeros(*shape))

    def test_dtype(self, double):
        dtypes = []
        model = Model(lambda self, x: dtypes.append(x.dtype))
        summary(model, (1, 2))
        assert dtypes == [numpy.float64]

    def test_arguments_are_no_shape(self):
        model = Model(lambda self, x, n: F.sum(x) * n)
        assert summary(model, (zeros(2), 3)).rows[0].output_shape == ()
        model = Model(lambda self: zeros(3))
        assert summary(model, ()).rows[0].output_shape == (3,)


def test_the_table_of_a_large_network_fits_in_80_columns():
    # The largest numbers of VGG-16 with a batch of 32, its fc6 shared by 7.
    row = LinkSummary(
        '/conv1_2',
        'Convolution2D',
        (32, 64, 224, 224),
        7,
        16_781_312,
        102_764_544,
        32 * 1_849_688_064,
    )
    total = 32 * 15_470_264_320
    text = str(Summary([row], 52_374_312, 138_357_544, 0, 0, total))
    assert ' 59.2 G' in text and '495.0 G' in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ('function', 'shapes', 'settings'),
    [
        (F.linear, [(4, 6), (5, 6)], {}),
        (F.linear, [(2, 3, 6), (5, 6)], {'n_batch_axes': 2}),
        (F.matmul, [(2, 3), (3, 4)], {}),
        (F.matmul, [(3,), (3, 4)], {}),
        (F.matmul, [(5, 2, 3), (3,)], {}),
        (F.matmul, [(5, 1, 2, 3), (6, 3, 4)], {}),
        (F.matmul, [(5, 3, 2), (5, 4, 3)], {'transa': True, 'transb': True}),
        (F.convolution_1d, [(2, 3, 9), (4, 3, 3)], {}),
        (F.convolution_2d, [(2, 3, 9, 8), (4, 3, 3, 2)], {'stride': (1, 2)}),
        (
            F.convolution_2d,
            [(2, 4, 9, 8), (6, 2, 3, 3)],
            {'dilate': 2, 'groups': 2},
        ),
        (
            F.convolution_3d,
            [(2, 3, 5, 6, 7), (3, 1, 2, 2, 2)],
            {'stride': 2, 'groups': 3},
        ),
        (F.depthwise_convolution_2d, [(2, 3, 6, 6), (2, 3, 3, 3)], {}),
        (F.deconvolution_1d, [(2, 3, 9), (3, 4, 3)], {}),
        (F.deconvolution_2d, [(2, 3, 4, 5), (3, 4, 3, 3)], {'stride': 2}),
        (F.deconvolution_2d, [(2, 3, 4, 5), (3, 2, 3, 3)], {'groups': 3}),
        (F.local_convolution_2d, [(2, 3, 4, 4), (5, 2, 2, 3, 3, 3)], {}),
    ],
)
def test_multiply_adds_of_functions(function, shapes, settings):
    ones = tuple(numpy.ones(shape, 'f') for shape in shapes)
    model = Model(lambda self, *args: function(*args, **settings))
    # Each element of the output is the number of products that it is of.
    expected = int(F.sum(model(*ones)).array)
    assert summary(model, ones).multiply_adds == expected


@pytest.mark.parametrize('cover_all', [False, True])
@pytest.mark.parametrize(
    'function, ndim', [(F.convolution_2d, 2), (F.convolution_nd, 3)]
)
def test_multiply_adds_with_padding(function, ndim, cover_all):
    shapes = []

    def forward(self, x, W):
        y = function(x, W, stride=3, pad=2, cover_all=cover_all)
        shapes.append(y.shape)
        return y

    sizes = [8, 9, 10][:ndim]
    x, W = zeros(2, 3, *sizes), zeros(4, 3, *[3] * ndim)
    result = summary(Model(forward), (x, W))
    (shape,) = shapes
    assert result.multiply_adds == numpy.prod(shape) * 3 * 3**ndim


class TestLinks:
    def test_bare_link(self):
        (row,) = summary(L.EmbedID(7, 5), numpy.zeros((2, 3), 'i')).rows
        assert row == ('/', 'EmbedID', (2, 3, 5), 1, 35, 35, 0)

    def test_lstm(self):
        model = Model(lambda self, xs: [self.l(x) for x in xs], l=L.LSTM(3, 4))
        result = summary(model, [zeros(2, 3)] * 5)
        _, lstm, upward, lateral = result.rows
        assert lstm[:2] == ('/l', 'LSTM')
        assert upward[4:] == (64, 64, 5 * 2 * 48)
        assert lateral[4:] == (64, 64, 4 * 2 * 64)
        assert result.rows[0].output_shape == ((2, 4),) * 5

    def test_shared_child_of_a_link(self):
        link = L.StatelessLSTM(6, 4)
        with chainer.using_config('common_num', 2):
            result = summary(link, (None, None, zeros(2, 12)))
        row = rows_of(result)['/upward']
        assert row.common_num == 2
        assert row.dense_parameters == 12 * 16 + 16

    def test_uncalled_link_comes_after_its_parent(self):
        xs = [zeros(3, 4), zeros(2, 4)]
        model = Model(
            lambda self, xs: self.a(F.concat(self.b(None, None, xs)[2], 0)),
            a=L.Linear(5, 6),
            b=L.NStepLSTM(1, 4, 5, 0),
            c=L.Linear(7, 8),
        )
        result = summary(model, xs)
        assert get_links(result) == [
            ('/', 'Model'),
            ('/b', 'NStepLSTM'),
            ('/b/0', 'Link'),
            ('/a', 'Linear'),
            ('/c', 'Linear'),
        ]
        assert rows_of(result)['/c'].output_shape is None
        assert result.rows[2].parameters == 4 * (4 * 5 + 5 * 5 + 2 * 5)
        # Five steps, of four gates each.
        assert result.rows[1].multiply_adds == 5 * 4 * (4 * 5 + 5 * 5)

    def test_order_and_containers(self):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.before(x)

        layers = chainer.ChainList(*(L.Linear(4, 4) for _ in range(11)))
        model = Model(forward, layers=layers, before=L.Linear(4, 2))
        paths = [row.path for row in summary(model, zeros(1, 4)).rows]
        expected = [f'/layers/{i}' for i in range(11)]
        assert paths == ['/', *expected, '/before']

    def test_link_called_three_times(self):
        def forward(self, x):
            return F.matmul(self.l(self.l(self.l(x))), x, transb=True)

        model = Model(forward, l=L.Linear(4, 4), same=L.Linear(4, 4))
        model.same.W = model.l.W
        result = summary(model, zeros(2, 4))
        root, link, same = result.rows
        assert root.multiply_adds == 2 * 2 * 4
        assert link.multiply_adds == 3 * 2 * 4 * 4
        assert link.parameters == same.parameters == 20
        assert result.parameters == 24  # W counts once

    def test_link_of_two_names(self):
        link = L.Linear(4, 4)
        model = Model(lambda self, x: self.b(self.a(x)), a=link, b=link)
        result = summary(model, zeros(2, 4))
        assert get_links(result)[1:] == [('/a', 'Linear')]
        assert result.multiply_adds == 2 * 2 * 16

    def test_outputs_and_arguments(self):
        def forward(self, x, scale):
            return {'y': (x, [x[0] * scale]), 'loss': F.sum(x), 'none': None}

        model = Model(forward)
        shape = {'y': ((2, 3), ((3,),)), 'loss': (), 'none': None}
        x = zeros(2, 3)
        for arguments in ((x, 2), {'x': x, 'scale': 2}):
            result = summary(model, arguments)
            assert result.rows[0].output_shape == shape
            assert '2x3, 3, (), -' in str(result)

    def test_class_with_call(self):
        class Old(chainer.Chain):
            def __call__(self, x):
                return F.matmul(x, x, transb=True)

        (row,) = summary(Old(), zeros(2, 3)).rows
        assert row[2:] == ((2, 2), 1, 0, 0, 12)

    def test_links_that_deepcopy_refuses(self):
        model = chainer.Sequential(lambda x: x[:, :3], L.Linear(3, 4))
        model.lock = threading.Lock()
        result = summary(model, zeros(2, 5))
        assert get_links(result) == [('/', 'Sequential'), ('/0', 'Linear')]
        assert result.multiply_adds == 2 * 3 * 4

    def test_hook_that_replaces_the_weight(self):
        link = SharedLinear(6, 4, common_num=3)
        link.add_hook(SpectralNormalization())
        assert summary(link, zeros(2, 6)).dense_parameters == 6 * 4 + 4

    def test_static_graph(self):
        class Static(chainer.Chain):
            @chainer.static_graph(force_test_define_by_run=False)
            def forward(self, x):
                return F.matmul(x, x, transb=True)

        model = Static()
        x = zeros(2, 3)
        with chainer.using_config('use_static_graph', True):
            for _ in range(2):
                with chainer.using_config('train', False):
                    model(x)
                assert summary(model, x).multiply_adds == 12


def make_stateful():
    model = Model(
        lambda self, x: F.dropout(self.lazy(self.lstm(self.bn(x)))),
        bn=L.BatchNormalization(3),
        lstm=L.LSTM(3, 4),
        lazy=L.Linear(5),
    )
    chainer.optimizers.Adam().setup(model)
    return model


class TestModelStays:
    def test_uninitialized_link(self):
        model = make_stateful()
        x = zeros(2, 3)
        numpy.random.seed(0)
        expected = numpy.random.rand()
        numpy.random.seed(0)
        result = summary(model, x)
        assert rows_of(result)['/lazy'].parameters == 25
        assert model.lazy.W.array is None
        assert model.lstm.h is None
        assert numpy.random.rand() == expected

    def test_trained_model(self, random):
        model = make_stateful()
        x = random.randn(2, 3).astype('f')
        F.sum(model(x)).backward()
        expected = [
            (p.array, p.array.copy(), p.grad, p.grad.copy())
            for p in model.params()
            if p.grad is not None
        ]
        h, c = model.lstm.h, model.lstm.c
        mean, N = model.bn.avg_mean.copy(), model.bn.N
        model.bn.add_persistent('count', numpy.zeros(1))
        function = model.function

        def count(self, x):
            self.bn.count += 1
            return function(self, x)

        model.function = count
        summary(model, x)
        assert model.bn.count == 0
        assert model.lstm.h is h and model.lstm.c is c
        numpy.testing.assert_array_equal(model.bn.avg_mean, mean)
        assert model.bn.N == N
        actual = [p for p in model.params() if p.grad is not None]
        assert len(actual) == len(expected) > 4
        for p, (array, old_array, grad, old_grad) in zip(actual, expected):
            assert p.array is array and p.grad is grad
            numpy.testing.assert_array_equal(array, old_array)
            numpy.testing.assert_array_equal(grad, old_grad)

    def test_it_runs_once_in_test_mode_on_the_same_parameters(self):
        seen = []

        def forward(self, x):
            config = chainer.config
            seen.append((config.train, config.enable_backprop, self.l.W.array))
            return self.l(x)

        model = Model(forward, l=L.Linear(3, 4))
        config = chainer.config.train, chainer.config.enable_backprop
        summary(model, zeros(1, 3))
        ((train, enable_backprop, W),) = seen
        assert train is enable_backprop is False
        assert W is model.l.W.array
        assert config == (True, True)
        assert (chainer.config.train, chainer.config.enable_backprop) == config


class TestErrors:
    def test_error_in_the_model(self):
        with pytest.raises(chainer.utils.type_check.InvalidType):
            summary(L.Linear(3, 4), zeros(1, 5))
        assert not chainer.get_function_hooks()
        assert not chainer._get_link_hooks()
        assert chainer.config.train

    def test_error_that_the_model_catches(self):
        def forward(self, x):
            with contextlib.suppress(chainer.utils.type_check.InvalidType):
                self.a(x)
            return self.b(x)

        model = Model(
            lambda self, x: F.matmul(self.c(x), x),
            c=Model(forward, a=L.Linear(2, 3), b=L.Linear(3, 3)),
        )
        rows = rows_of(summary(model, zeros(3, 3)))
        assert rows['/c'].output_shape == (3, 3)
        assert rows['/'].multiply_adds == rows['/c/b'].multiply_adds == 27

    def test_no_link(self):
        message = r'^summary\(\): model must be a chainer.Link, but is'
        with pytest.raises(TypeError, match=message):
            summary(F.relu, zeros(1))
