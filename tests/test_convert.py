"""Turning linear layers of a trained model into shared ones, and back."""

import copy
import tracemalloc

from chainer_shared_patch import (
    SharedLinear,
    convert,
    expand,
    grouping,
    share,
    uninstall,
)
import chainer
from chainer import optimizer_hooks, optimizers, training
import chainer.functions as F
import chainer.links as L
from chainer.serializers import load_npz, save_npz
from chainer.training import extensions
import numpy
import pytest

from tests.helpers import (
    DTYPES,
    assert_close,
    assert_same,
    fill,
    params_of,
    to_cpu,
)

pytestmark = pytest.mark.arithmetic

IN, HIDDEN, OUT = 6, 12, 4
RIDGE = 0.03  # of the mean eigenvalue


class MLP(chainer.Chain):
    def __init__(self, dtype='d', nobias=False, seed=0):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.l1 = L.Linear(IN, HIDDEN, nobias)
            self.l2 = L.Linear(HIDDEN, HIDDEN, nobias)
            self.l3 = L.Linear(HIDDEN, OUT, nobias)
        fill(self, seed)

    def forward(self, x):
        return self.l3(F.relu(self.l2(F.relu(self.l1(x)))))


@pytest.fixture(autouse=True)
def double():
    with chainer.using_config('dtype', 'd'):
        yield


@pytest.fixture
def x(random):
    return random.randn(20, IN)


def in_order(order, columns):
    return numpy.arange(columns) if order is None else to_cpu(order)


def widen(link):
    """The weight of the dense layer that computes what a shared one does."""
    W = to_cpu(link.W.array)
    wide = numpy.tile(W, (1, link.common_num))
    order = in_order(link.order, wide.shape[1])
    result = numpy.empty_like(wide)
    result[:, order] = wide
    return result


def mean_weight(W, n, order, weights=None):
    """The weight whose columns are the means of those that share."""
    W = W.astype('d')
    if weights is None:
        weights = numpy.ones(W.shape[1])
    groups = in_order(order, W.shape[1]).reshape(n, -1).T
    columns = [
        numpy.average(W[:, group], axis=1, weights=weights[group])
        for group in groups
    ]
    return numpy.transpose(columns)


def relu(x):
    return numpy.maximum(x, 0)


def paths_of(model, kind=SharedLinear):
    return [path for path, link in model.namedlinks() if type(link) is kind]


def state_of(model):
    """Everything of a model that a failure must not change, bit for bit."""
    links = [(path, link, link.name) for path, link in model.namedlinks()]
    params = []
    for path, param in model.namedparams():
        rule = param.update_rule
        arrays = [param.array, param.grad]
        if rule is not None and rule.state:
            arrays += [rule.state[key] for key in sorted(rule.state)]
        copies = [None if a is None else a.tobytes() for a in arrays]
        t = None if rule is None else rule.t
        params.append((path, param, rule, t, copies))
    orders = [getattr(link, 'order', None) for _, link, _ in links]
    return links, params, [None if o is None else list(o) for o in orders]


def train(model, optimizer, x, steps=2):
    for _ in range(steps):
        model.cleargrads()
        F.sum(model(x) ** 2).backward()
        optimizer.update()


class TestWhichLayers:
    @pytest.mark.parametrize(
        ('common_num', 'numbers'),
        [
            (2, {'/l1': 2, '/l2': 2, '/l3': 2}),
            (numpy.int64(2), {'/l1': 2, '/l2': 2, '/l3': 2}),
            ({'/l2': 4}, {'/l2': 4}),
            ({'/l2': 4, '/l3': 1}, {'/l2': 4}),
            ({'*': 3}, {'/l1': 3, '/l2': 3, '/l3': 3}),
            ({'*': 3, '/l1': 1}, {'/l2': 3, '/l3': 3}),
            ({'/l[23]': 6, '/l1': 2}, {'/l1': 2, '/l2': 6, '/l3': 6}),
            ({'/l2': 12, '*': 6}, {'/l1': 6, '/l2': 12, '/l3': 6}),
            ({'*': 1}, {}),
            (1, {}),
            ({}, {}),
        ],
    )
    def test_numbers_and_paths(self, common_num, numbers):
        model = MLP()
        dense = model.copy('copy')
        report = share(model, common_num)
        assert {
            path: link.common_num
            for path, link in model.namedlinks()
            if type(link) is SharedLinear
        } == numbers
        assert [layer.path for layer in report.layers] == list(numbers)
        assert str(report).count('\n/') == max(0, len(numbers))
        for path, link in dense.namedlinks(skipself=True):
            if path not in numbers:
                actual = getattr(model, path[1:])
                assert type(actual) is L.Linear
                numpy.testing.assert_array_equal(actual.W.array, link.W.array)

    @pytest.mark.parametrize('order', ['contiguous', 'grouped', 'array'])
    def test_orders(self, random, order):
        if order == 'array':
            order = random.permutation(HIDDEN)
        model = MLP()
        share(model, {'/l2': 3, '/l3': 3}, order={'/l2': order})
        if isinstance(order, str) and order == 'contiguous':
            assert model.l2.order is None
        elif isinstance(order, str):
            expected = grouping.group_columns(
                MLP().l2.W.array, 3, numpy.ones(HIDDEN)
            )
            numpy.testing.assert_array_equal(model.l2.order, expected)
        else:
            numpy.testing.assert_array_equal(model.l2.order, order)
        # Where no path matches, it is grouped.
        expected = grouping.group_columns(
            MLP().l3.W.array, 3, numpy.ones(HIDDEN)
        )
        numpy.testing.assert_array_equal(model.l3.order, expected)

    def test_chains_in_chains_and_lists(self, random):
        class Inner(chainer.Chain):
            def __init__(self):
                super().__init__()
                with self.init_scope():
                    self.fc = L.Linear(8, 8)
                    self.list = chainer.ChainList(
                        L.Linear(8, 8), L.Linear(8, 8, nobias=True)
                    )

            def forward(self, x):
                return self.list[1](self.list[0](self.fc(x)))

        model = chainer.Sequential(Inner(), F.tanh, Inner())
        fill(model)
        x = random.randn(5, 8)
        names = [path for path, _ in model.namedparams()]
        share(model, {'/1/*': 2, '/0/list/1': 4})
        assert paths_of(model) == [
            '/0/list/1',
            '/1/fc',
            '/1/list/0',
            '/1/list/1',
        ]
        assert [path for path, _ in model.namedparams()] == names
        y = x
        for inner in (model[0], model[2]):
            for link in (inner.fc, inner.list[0], inner.list[1]):
                shared = type(link) is SharedLinear
                W = widen(link) if shared else link.W.array
                y = y @ W.T
                if link.b is not None:
                    y = y + link.b.array
            y = numpy.tanh(y) if inner is model[0] else y
        assert_same([model(x).array], [y])

    @pytest.mark.parametrize('path', ['/0', '/1', '/2', '/3'])
    def test_layers_of_a_sequential_keep_their_numbers(self, random, path):
        layers = [L.Linear(8, 8) for _ in range(4)]
        functions = [F.relu, F.tanh, F.sigmoid]
        model = chainer.Sequential(
            layers[0], functions[0], layers[1], functions[1],
            layers[2], functions[2], layers[3],
        )  # fmt: skip
        fill(model)
        # Chainer does not number them in the order of the layers.
        before = dict(model.namedlinks())
        position = list(model).index(before[path])
        share(model, {path: 2})
        assert paths_of(model) == [path]
        for other, link in model.namedlinks(skipself=True):
            assert link.name == other[1:]
            if other != path:
                assert link is before[other]
        assert [layer for layer in model if layer in functions] == functions
        assert model[position] is dict(model.namedlinks())[path]
        x = y = random.randn(5, 8)
        for layer in model:
            y = layer(y)
        numpy.testing.assert_array_equal(model(x).array, y.array)

    @pytest.mark.parametrize(
        ('make', 'count'),
        [
            (lambda: L.LSTM(8, 8), 2),
            (lambda: L.StatelessLSTM(8, 8), 2),
            (lambda: L.StatelessGRU(8, 8), 6),
            (lambda: L.StatefulGRU(8, 8), 6),
            (lambda: L.Maxout(8, 8, 2), 1),
            (lambda: L.Highway(8), 2),
        ],
    )
    def test_children_of_chainers_links(self, random, make, count):
        model = chainer.Sequential(make())
        fill(model)
        share(model, 2)
        assert len(paths_of(model)) == count
        dense = model.copy('copy')
        expand(dense)
        x = random.randn(5, 8)
        state = [None, None] if type(model[0]) is L.StatelessLSTM else []
        if type(model[0]) is L.StatelessGRU:
            x, state = random.randn(5, 8), [x]
        for _ in range(2):
            actual, expected = (m[0](*state, x) for m in (model, dense))
            actual, expected = (
                [v.array for v in (y if isinstance(y, tuple) else [y])]
                for y in (actual, expected)
            )
            assert_same(actual, expected)

    def test_a_link_whose_name_another_model_has_changed(self, x):
        model = MLP()
        other = chainer.Chain()
        with other.init_scope():
            other.fc = model.l2
        share(model, {'/l2': 2})
        assert type(model.l2) is SharedLinear
        assert not hasattr(model, 'fc')
        assert model(x).shape == (20, OUT)

    def test_subclasses_stay(self):
        class Mine(L.Linear):
            pass

        model = chainer.ChainList(
            L.Linear(4, 4), Mine(4, 4), SharedLinear(4, 4, common_num=2)
        )
        before = list(model)
        report = share(model, 2)
        assert [layer.path for layer in report.layers] == ['/0']
        assert list(model)[1:] == before[1:]


class TestWeights:
    @pytest.mark.parametrize('order', ['contiguous', 'grouped'])
    @pytest.mark.parametrize('nobias', [False, True])
    @pytest.mark.parametrize('dtype', DTYPES)
    def test_outputs_are_those_of_the_tiled_mean(
        self, random, dtype, nobias, order
    ):
        n, k, out_size = 5, 8, 7
        with chainer.using_config('dtype', dtype):
            model = chainer.Sequential(L.Linear(n * k, out_size, nobias))
        fill(model)
        W = model[0].W.array.copy()
        b = 0 if nobias else model[0].b.array.astype('d')
        (layer,) = share(model, n, order=order).layers
        link = model[0]
        assert link.W.dtype == W.dtype == numpy.dtype(dtype)
        mean = mean_weight(W, n, link.order)
        scale = mean_weight(abs(W), n, link.order)
        # n weighted columns are added up.
        assert_close(link.W.array, mean, scale, (2 * n + 2, 'd'))
        wide, wide_scale = numpy.empty((2, *W.shape))
        order = in_order(link.order, n * k)
        wide[:, order] = numpy.tile(mean, (1, n))
        wide_scale[:, order] = numpy.tile(scale, (1, n))
        x = random.randn(3, n * k).astype(dtype)
        # And then W is rounded, x summed and multiplied, and b added.
        assert_close(
            link(x).array,
            x.astype('d') @ wide.T + b,
            abs(x.astype('d')) @ wide_scale.T + abs(b),
            (2 * n + 2 + n * k + 1, numpy.promote_types(dtype, 'f')),
            (2, dtype),
        )
        error = numpy.linalg.norm(W - wide) / numpy.linalg.norm(W.astype('d'))
        assert layer.weight_error == pytest.approx(error, rel=1e-9)
        assert layer.output_error is None
        assert layer.folded_into is None

    def test_many_rows(self, random):
        """They are averaged a few at a time."""
        rows = 2 * convert._ROWS + 3
        model = chainer.Sequential(L.Linear(6, rows))
        fill(model)
        W = model[0].W.array.copy()
        (layer,) = share(model, 2, order='contiguous').layers
        assert_same([model[0].W.array], [(W[:, :3] + W[:, 3:]) / 2])
        error = numpy.linalg.norm(W[:, :3] - W[:, 3:]) / 2**0.5
        assert layer.weight_error == pytest.approx(
            error / numpy.linalg.norm(W), rel=1e-9
        )

    @pytest.mark.parametrize(('dtype', 'scale'), [
        ('e', 3e4), ('f', 1e30), ('f', 1e-30)
    ])  # fmt: skip
    def test_errors_of_extreme_weights(self, random, dtype, scale):
        with chainer.using_config('dtype', dtype):
            model = chainer.Sequential(L.Linear(40, 40))
        W = (random.uniform(-1, 1, (40, 40)) * scale).astype(dtype)
        model[0].W.array[...] = W
        (layer,) = share(model, 4).layers
        wide = widen(model[0]).astype('d') / scale
        W = W.astype('d') / scale
        error = numpy.linalg.norm(W - wide) / numpy.linalg.norm(W)
        assert layer.weight_error == pytest.approx(
            error, rel=4 * float(numpy.finfo(dtype).eps)
        )

    def test_zero_weights(self):
        model = MLP()
        model.l2.W.array[...] = 0
        with numpy.errstate(all='raise'):
            (layer,) = share(model, {'/l2': 3}).layers
        assert layer.weight_error == 0
        assert not model.l2.W.array.any()

    def test_memory(self, random):
        """There is no second dense weight, and no matrix of all columns."""
        n, k, out_size = 2, 3000, 400
        with chainer.using_config('dtype', 'f'):
            model = chainer.Sequential(L.Linear(n * k, out_size))
        narrow = 4 * k * out_size
        tracemalloc.start()
        share(model, n, order='contiguous')
        averaged = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The mean, its copy in the link and its gradient; a few rows, once as
        # they are and twice in float64; whether each element is finite.
        rows = convert._ROWS * n * k
        assert averaged < 3 * narrow + rows * (4 + 8 + 8) + n * k * out_size


class TestKept:
    def test_names_biases_and_parameters(self, x):
        model = MLP()
        before = {path: param for path, param in model.namedparams()}
        biases = {p: b.array.copy() for p, b in before.items() if '/b' in p}
        links = {path: link for path, link in model.namedlinks()}
        model.l2.b.grad = numpy.ones_like(model.l2.b.array)
        grad = model.l2.b.grad
        share(model, {'/l2': 2})
        after = dict(model.namedparams())
        assert list(after) == list(before)
        for path, param in after.items():
            assert (param is before[path]) == (path != '/l2/W')
            assert param.name == before[path].name
        for path, bias in biases.items():
            numpy.testing.assert_array_equal(after[path].array, bias)
        assert model.l2.b.grad is grad
        for path, link in model.namedlinks():
            assert link.name == links[path].name
        assert model.l2.in_size == HIDDEN
        assert model.l2.out_size == HIDDEN

    @pytest.mark.parametrize(
        'dtype', ['float16', 'float32', 'float64', chainer.mixed16]
    )
    @pytest.mark.parametrize('outside', ['float32', 'float64'])
    def test_dtype(self, random, dtype, outside):
        model = MLP(dtype)
        dtypes = {path: p.dtype for path, p in model.namedparams()}
        x = random.randn(5, IN).astype(model.l1.W.dtype)
        with chainer.using_config('dtype', outside):
            share(model, 2, inputs=x)
            assert {p: a.dtype for p, a in model.namedparams()} == dtypes
            assert model(x).dtype == x.dtype
            expand(model)
        assert {p: a.dtype for p, a in model.namedparams()} == dtypes
        assert model(x).dtype == x.dtype

    def test_device(self):
        class Device(chainer.backend.CpuDevice):
            """Stands in for one that is not the default."""

        device = Device()
        model = MLP().to_device(device)
        assert model.l2.device is device
        share(model, {'/l2': 2}, add_bias=True)
        assert model.l2.device is device
        assert model.l2.W.device is device
        expand(model)
        assert model.l2.device is device

    def test_update_rules(self, x):
        model = MLP()
        optimizer = optimizers.Adam().setup(model)
        model.l2.W.update_rule.hyperparam.alpha = 0.5
        model.l2.W.update_rule.add_hook(optimizer_hooks.WeightDecay(0.1))
        model.l3.disable_update()
        train(model, optimizer, x)
        rules = {p: a.update_rule for p, a in model.namedparams()}
        report = share(model, {'/l2': 2, '/l3': 2})
        # What is disabled had no state.
        assert report.restarted == ('/l2/W',)
        rule = model.l2.W.update_rule
        assert type(rule) is type(rules['/l2/W'])
        assert rule.hyperparam.alpha == 0.5
        assert rule.hyperparam.parent is optimizer.hyperparam
        assert 'WeightDecay' in rule._hookable._pre_update_hooks
        assert rule.state is None
        assert rule.t == 0
        assert not model.l3.W.update_rule.enabled
        for path, param in model.namedparams():
            if path not in ('/l2/W', '/l3/W'):
                assert param.update_rule is rules[path]
        W = model.l3.W.array.copy()
        train(model, optimizer, x)
        numpy.testing.assert_array_equal(model.l3.W.array, W)
        assert rule.t == 2
        expand(model)
        assert model.l2.W.update_rule.hyperparam.alpha == 0.5
        assert model.l2.W.update_rule.state is None

    @pytest.mark.parametrize('make', [optimizers.Adam, optimizers.MomentumSGD])
    def test_training_goes_on(self, x, make):
        model = MLP()
        optimizer = make().setup(model)
        train(model, optimizer, x)
        report = share(model, {'/l2': 3})
        assert report.restarted == ('/l2/W',)
        assert 'starts anew for /l2/W.' in str(report)

        class Tiled(L.Linear):
            def forward(self, x):
                wide = F.concat([self.W] * 3)
                return F.linear(x, F.matmul(wide, to_columns), self.b)

        # The same model by hand, with the same state, but for that of W.
        to_columns = numpy.eye(HIDDEN)[model.l2.order]
        reference = MLP()
        with reference.init_scope():
            del reference.l2
            reference.l2 = Tiled(HIDDEN // 3, HIDDEN)
        reference_optimizer = make().setup(reference)
        params = dict(model.namedparams())
        reference_optimizer.t = optimizer.t
        for path, param in reference.namedparams():
            param.array[...] = params[path].array
            rule = params[path].update_rule
            if path != '/l2/W':
                param.update_rule._state = copy.deepcopy(rule.state)
                param.update_rule.t = rule.t
        assert optimizer.target is model
        train(model, optimizer, x, 3)
        train(reference, reference_optimizer, x, 3)
        assert_same(params_of(model), params_of(reference))

    def test_sgd_has_no_state_to_start_anew(self, x):
        model = MLP()
        train(model, optimizers.SGD().setup(model), x)
        assert share(model, 2).restarted == ()

    def test_float32_copies_of_float16_start_anew(self, random):
        model = MLP('float16')
        optimizer = optimizers.SGD().setup(model)
        optimizer.use_fp32_update()
        x = 0.01 * random.randn(4, IN).astype('e')
        train(model, optimizer, x)
        share(model, 2)
        W = model.l2.W.array.copy()
        optimizer.hyperparam.lr = 0
        train(model, optimizer, x)
        numpy.testing.assert_array_equal(model.l2.W.array, W)

    def test_files_of_model_and_optimizer(self, x, tmp_path):
        def prepare():
            model = MLP()
            optimizer = optimizers.Adam().setup(model)
            train(model, optimizer, x)
            share(model, {'/l2': 2, '/l3': 3})
            return model, optimizer

        model, optimizer = prepare()
        train(model, optimizer, x)
        save_npz(str(tmp_path / 'model'), model)
        save_npz(str(tmp_path / 'optimizer'), optimizer)
        loaded, other = prepare()
        load_npz(str(tmp_path / 'model'), loaded)
        load_npz(str(tmp_path / 'optimizer'), other)
        assert_same(params_of(loaded), params_of(model))
        train(model, optimizer, x)
        train(loaded, other, x)
        assert_same(params_of(loaded), params_of(model))

    def test_snapshots_of_a_trainer(self, random, tmp_path):
        data = chainer.datasets.TupleDataset(
            random.randn(8, IN), random.randint(OUT, size=8)
        )

        def prepare():
            model = L.Classifier(MLP())
            optimizer = optimizers.Adam().setup(model)
            share(model, {'/predictor/l2': 2})
            iterator = chainer.iterators.SerialIterator(data, 4)
            updater = training.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, (2, 'epoch'), str(tmp_path))

        trainer = prepare()
        trainer.extend(extensions.snapshot(filename='snapshot'))
        trainer.run()
        other = prepare()
        load_npz(str(tmp_path / 'snapshot'), other)
        models = [
            t.updater.get_optimizer('main').target for t in (trainer, other)
        ]
        assert_same(*map(params_of, models))

    @pytest.mark.parametrize('patch', [None, 1, 2, 10])
    def test_with_and_without_the_patch(self, x, patch):
        expected = MLP()
        share(expected, {'/l2': 2, '/l3': 3}, inputs=x, fold={'/l3': '/l2'})
        if patch is None:
            uninstall()
            patch = 1
        with chainer.using_config('common_num', patch):
            model = MLP()
            share(model, {'/l2': 2, '/l3': 3}, inputs=x, fold={'/l3': '/l2'})
            y = model(x)
            assert_same(params_of(model), params_of(expected))
            expand(model)
            assert_same([model(x).array], [y.array])

    @pytest.mark.parametrize('inputs', [False, True])
    def test_static_graphs(self, random, inputs):
        class Static(MLP):
            @chainer.static_graph(verbosity_level=0)
            def __call__(self, x):
                return self.forward(x)

        x = random.randn(5, IN)
        model, reference = Static(), MLP()
        pairs = [
            (m, optimizers.SGD(0.01).setup(m)) for m in (model, reference)
        ]
        for change in (
            lambda m: share(m, 2, inputs=x if inputs else None),
            expand,
        ):
            for pair in pairs:
                train(*pair, x)
            for pair in pairs:
                change(pair[0])
            for _ in range(3):
                x = random.randn(5, IN)
                for pair in pairs:
                    train(*pair, x, 1)
                assert_same(params_of(model), params_of(reference))
