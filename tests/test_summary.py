"""The table of a model's links."""

import contextlib
import threading

from chainer_shared_patch import SharedLinear
from chainer_shared_patch.summary import summary
import chainer
from chainer.function_hooks import TimerHook
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

    def test_totals(self, result):
        assert result.parameters == 884_010
        assert result.dense_parameters == 1_694_010
        assert result.nbytes == 4 * 884_010
        assert result.dense_nbytes == 4 * 1_694_010
        assert result.multiply_adds == 100 * (784_000 + 90_000 + 9_000)

    def test_rows(self, result):
        _, l1, l2, l3 = result.rows
        assert l1[2:] == ((100, 1000), 1, 785_000, 785_000, 78_400_000)
        assert l2[2:] == ((100, 900), 10, 90_000, 900_000, 9_000_000)
        assert l3[2:] == ((100, 10), 1, 9_010, 9_010, 900_000)

    def test_table(self, result):
        lines = str(result).splitlines()
        assert max(map(len, lines)) <= 80
        (line,) = (line for line in lines if line.startswith('/l2'))
        name = result.rows[2].link
        assert line.split() == (
            ['/l2', name, '100x900', '10', '90,000', '900,000', '9.000', 'M']
        )
        (line,) = (line for line in lines if line.startswith('total'))
        assert line.split() == ['total', '884,010', '1,694,010', '88.30', 'M']
        assert lines[-1] == (
            'Size of the parameters: 3,536,040 bytes (dense: 6,776,040 bytes)'
        )

    def test_tile_multiplies_with_the_wide_weight(self, algorithm):
        link = SharedLinear(1000, 900, common_num=10)
        columns = {'sum': 100, 'tile': 1000}[algorithm]
        assert summary(link, zeros(3, 1000)).multiply_adds == 3 * 900 * columns

    def test_table_without_shared_layers(self):
        text = str(summary(make_article(L.Linear(1000, 900)), zeros(1, 784)))
        assert 'dense' not in text
        assert 'common' not in text


def test_network_like_vgg():
    """Three convolutions of VGG-16 and its head, the first layer shared."""

    def forward(self, x):
        x = F.max_pooling_2d(F.relu(self.conv1_1(x)), 2)
        x = F.max_pooling_2d(F.relu(self.conv1_2(x)), 2)
        x = F.relu(self.conv5_3(x))
        return self.fc8(F.relu(self.fc6(x)))

    model = Model(
        forward,
        conv1_1=L.Convolution2D(3, 64, 3, pad=1),
        conv1_2=L.Convolution2D(64, 64, 3, pad=1),
        conv5_3=L.Convolution2D(64, 512, 3, pad=1),
        fc6=SharedLinear(512 * 7 * 7, 512, common_num=7),
        fc8=L.Linear(512, 1000),
    )
    result = summary(model, zeros(10, 3, 28, 28))
    expected = [
        (10, 3 * 64 * 9 + 64, 28 * 28 * 9 * 3 * 64),
        (10, 64 * 64 * 9 + 64, 14 * 14 * 9 * 64 * 64),
        (10, 64 * 512 * 9 + 512, 7 * 7 * 9 * 64 * 512),
        (10, 3584 * 512 + 512, 3584 * 512),
        (10, 512 * 1000 + 1000, 512 * 1000),
    ]
    for row, (batch, parameters, multiply_adds) in zip(
        result.rows[1:], expected
    ):
        assert row.parameters == parameters
        assert row.multiply_adds == batch * multiply_adds
    assert rows_of(result)['/fc6'].dense_parameters == 25088 * 512 + 512
    assert max(map(len, str(result).splitlines())) <= 80
    # The largest numbers of VGG-16 itself, with fc6 shared by 7.
    row = result.rows[2]._replace(
        output_shape=(32, 64, 224, 224),
        parameters=16_781_312,
        dense_parameters=102_764_544,
        multiply_adds=32 * 1_849_688_064,
    )
    vgg = result._replace(rows=[*result.rows, row])
    assert max(map(len, str(vgg).splitlines())) <= 80


def reference_multiply_adds(function, *arrays):
    """Counts products by what a linear function of ones adds up to.

    With ones for x and W, each element of y is the number of products that
    it is the sum of.
    """
    y = function(*(numpy.ones_like(array) for array in arrays))
    return int(F.sum(y).array)


@pytest.mark.parametrize(
    'function, shapes',
    [
        (F.linear, [(4, 6), (5, 6)]),
        (lambda x, W: F.linear(x, W, n_batch_axes=2), [(2, 3, 6), (5, 6)]),
        (F.matmul, [(2, 3), (3, 4)]),
        (F.matmul, [(3,), (3, 4)]),
        (F.matmul, [(5, 2, 3), (3,)]),
        (F.matmul, [(3,), (3,)]),
        (F.matmul, [(5, 1, 2, 3), (6, 3, 4)]),
        (lambda a, b: F.matmul(a, b, True, True), [(5, 3, 2), (5, 4, 3)]),
        (
            lambda x, W: F.convolution_2d(x, W, stride=2),
            [(2, 3, 9, 8), (4, 3, 3, 2)],
        ),
        (
            lambda x, W: F.convolution_2d(x, W, stride=(1, 2)),
            [(2, 3, 9, 8), (4, 3, 3, 3)],
        ),
        (
            lambda x, W: F.convolution_2d(x, W, dilate=2, groups=2),
            [(2, 4, 9, 8), (6, 2, 3, 3)],
        ),
        (F.depthwise_convolution_2d, [(2, 3, 6, 6), (2, 3, 3, 3)]),
        (F.convolution_1d, [(2, 3, 9), (4, 3, 3)]),
        (
            lambda x, W: F.convolution_3d(x, W, stride=2, groups=3),
            [(2, 3, 5, 6, 7), (3, 1, 2, 2, 2)],
        ),
        (
            lambda x, W: F.deconvolution_2d(x, W, stride=2),
            [(2, 3, 4, 5), (3, 4, 3, 3)],
        ),
        (
            lambda x, W: F.deconvolution_2d(x, W, groups=3),
            [(2, 3, 4, 5), (3, 2, 3, 3)],
        ),
        (F.deconvolution_1d, [(2, 3, 9), (3, 4, 3)]),
        (F.local_convolution_2d, [(2, 3, 4, 4), (5, 2, 2, 3, 3, 3)]),
    ],
)
def test_multiply_adds_of_functions(function, shapes):
    arrays = [zeros(*shape) for shape in shapes]
    model = Model(lambda self, *args: function(*args))
    result = summary(model, tuple(arrays))
    assert result.multiply_adds == reference_multiply_adds(function, *arrays)
    assert result.parameters == 0


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

    @pytest.mark.parametrize(
        'make, path, wide_size',
        [
            (L.StatelessLSTM, '/upward', 12 * 16 + 16),
            (L.StatelessGRU, '/W_r', 12 * 4 + 4),
            (lambda *sizes: L.Maxout(*sizes, 3), '/linear', 12 * 12 + 12),
        ],
    )
    def test_shared_child_of_a_link(self, make, path, wide_size):
        x = zeros(2, 12)
        link = make(6, 4)
        args = {
            L.StatelessLSTM: (None, None, x),
            L.StatelessGRU: (zeros(2, 4), x),
        }.get(make, x)
        with chainer.using_config('common_num', 2):
            row = rows_of(summary(link, args))[path]
        assert row.common_num == 2
        assert row.dense_parameters == wide_size

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
            with contextlib.suppress(ValueError):
                self.a(x)
            return self.b(F.matmul(x, x))

        def fail(self, x):
            raise ValueError

        model = Model(
            lambda self, x: self.c(F.matmul(self.d(x), x)),
            c=L.Linear(3, 2),
            d=Model(forward, a=Model(fail), b=L.Linear(3, 3)),
        )
        rows = rows_of(summary(model, zeros(3, 3)))
        assert rows['/c'].output_shape == (3, 2)
        assert rows['/d'].output_shape == (3, 3)
        assert rows['/'].multiply_adds == 27
        assert rows['/c'].multiply_adds == 18

    def test_no_link(self):
        with pytest.raises(TypeError, match='must be a chainer.Link, but is'):
            summary(F.relu, zeros(1))


def test_threads():
    """A summary sees the calls of its own thread alone."""
    barrier = threading.Barrier(2, timeout=60)
    results = {}

    def run(size):
        def forward(self, x):
            barrier.wait()
            y = self.l(x)
            barrier.wait()
            return y

        model = Model(forward, l=L.Linear(size, size))
        results[size] = summary(model, zeros(1, size)).multiply_adds

    threads = [threading.Thread(target=run, args=(size,)) for size in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {3: 9, 5: 25}


def test_other_hooks_stay():
    with TimerHook() as hook:
        summary(L.Linear(3, 4), zeros(1, 3))
        assert list(chainer.get_function_hooks().values()) == [hook]
