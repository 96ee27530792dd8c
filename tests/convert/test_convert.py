"""Turning linear layers of a trained model into shared ones, and back."""

import copy
import os
import re
import subprocess
import sys
import tracemalloc

from chainer_shared_patch import (
    SharedLinear,
    convert,
    expand,
    share,
    uninstall,
)
from chainer_shared_patch.convert import grouping
import chainer
from chainer import link_hooks, optimizer_hooks, optimizers, training
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
        arrays = [param.array]
        if param.array is not None:
            arrays.append(param.grad)
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
        rows = 2 * grouping._ROWS + 3
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
        with numpy.errstate(divide='raise', over='raise', invalid='raise'):
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
        rows = grouping._ROWS * n * k
        assert averaged < 3 * narrow + rows * (4 + 8 + 8) + n * k * out_size


class TestKept:
    def test_names_biases_and_parameters(self, x):
        model = MLP()
        before = dict(model.namedparams())
        biases = {p: b.array.copy() for p, b in before.items() if '/b' in p}
        links = dict(model.namedlinks())
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
        model = MLP(nobias=True).to_device(device)
        assert model.l2.device is device
        share(model, {'/l2': 2}, inputs=X, add_bias=True)
        assert model.l2.device is device
        assert model.l2.W.device is device
        assert model.l2.b.device is device
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
        assert 'was reset for /l2/W.' in str(report)

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
        for change in (share, expand):
            for pair in pairs:
                train(*pair, x)
            settings = {'common_num': 2, 'inputs': x if inputs else None}
            for pair in pairs:
                change(pair[0], **(settings if change is share else {}))
            for _ in range(3):
                x = random.randn(5, IN)
                for pair in pairs:
                    train(*pair, x, 1)
                assert_same(params_of(model), params_of(reference))


def ridge_regression(S, y, W, has_bias):
    """The refitted W and bias, as augmented least squares."""
    rows, columns = S.shape
    centred = S - S.mean(axis=0) if has_bias else S
    ridge = RIDGE * (centred**2).sum() / min(rows, columns) or 1.0
    one = numpy.ones((rows, 1)), numpy.zeros((columns, 1))
    if not has_bias:
        one = numpy.empty((rows, 0)), numpy.empty((columns, 0))
    A = numpy.block([[S, one[0]], [ridge**0.5 * numpy.eye(columns), one[1]]])
    target = numpy.zeros((rows + columns, len(W)))
    target[:rows] = y - S @ W.T
    solution = numpy.linalg.lstsq(A, target, rcond=None)[0]
    return W + solution[:columns].T, solution[columns] if has_bias else None


def weights_of(x):
    squares = (x**2).sum(axis=0)
    return squares / squares.mean() + 0.01


def sum_in_order(x, n, order):
    columns = in_order(order, x.shape[1]).reshape(n, -1)
    return x[:, columns].sum(axis=1)


class OneLayer(chainer.Chain):
    """Calls its only layer as a function says."""

    def __init__(self, call, in_size=IN, nobias=False):
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(in_size, 5, nobias)
        fill(self)
        self.call = call

    def forward(self, *args):
        return self.call(self.fc, *args)


class TestInputs:
    @pytest.mark.parametrize('rows', [40, 3, 1])
    @pytest.mark.parametrize(
        ('nobias', 'add_bias'),
        [(False, False), (True, False), (True, True)],
    )
    @pytest.mark.parametrize('order', ['grouped', 'contiguous'])
    def test_refitted_layer_by_layer(
        self, random, rows, nobias, add_bias, order
    ):
        x = random.randn(rows, IN)
        model = MLP(nobias=nobias)
        dense = model.copy('copy')
        share(model, 2, inputs=x, order=order, add_bias=add_bias)
        has_bias = add_bias or not nobias
        was = now = x
        for name in ('l1', 'l2', 'l3'):
            before, after = getattr(dense, name), getattr(model, name)
            weights = weights_of(was)
            if order == 'grouped':
                expected = grouping.group_columns(before.W.array, 2, weights)
                numpy.testing.assert_array_equal(after.order, expected)
            y = before(was).array
            W, b = ridge_regression(
                sum_in_order(now, 2, after.order),
                y,
                mean_weight(before.W.array, 2, after.order, weights),
                has_bias,
            )
            assert_same([after.W.array], [W])
            assert (after.b is None) == (b is None)
            if b is not None:
                assert_same([after.b.array], [b])
                assert after.b.name == 'b'
            was, now = relu(y), relu(after(now).array)

    def test_errors_of_outputs(self, x):
        model = MLP()
        dense = model.copy('copy')
        report = share(model, {'/l1': 2, '/l2': 3}, inputs=[x[:7], x[7:]])
        expected, actual = [], []
        for m, ys in ((dense, expected), (model, actual)):
            ys.append(m.l1(x).array)
            ys.append(m.l2(F.relu(ys[0])).array)
        errors = [
            numpy.linalg.norm(a - b) / numpy.linalg.norm(b)
            for a, b in zip(actual, expected)
        ]
        assert all(errors)
        for layer, error in zip(report.layers, errors):
            assert layer.output_error == pytest.approx(error, rel=1e-6)

    @pytest.mark.parametrize(
        'form',
        [
            lambda x: [x],
            lambda x: chainer.Variable(x),
            lambda x: [(x,)],
            lambda x: [x[:3], x[3:4], x[4:]],
            lambda x: (x[:3], x[3:]),
            lambda x: [x[:0], x[:3], x[:0], x[3:]],
            lambda x: (x[i : i + 5] for i in range(0, len(x), 5)),
            lambda x: [chainer.Variable(x[:3]), x[3:]],
            lambda x: [x[:9].reshape(9, 2, 3), x[9:]],
            lambda x: [numpy.asfortranarray(x)],
        ],
    )
    def test_forms(self, x, form):
        model, expected = MLP(), MLP()
        share(expected, 2, inputs=x)
        share(model, 2, inputs=form(x))
        assert_same(params_of(model), params_of(expected))

    def test_several_arguments(self, random):
        model = OneLayer(lambda fc, a, b: fc(a + b))
        expected = OneLayer(lambda fc, a: fc(a))
        a, b = random.randn(2, 20, IN)
        share(model, 2, inputs=[(a[:5], b[:5]), (a[5:], b[5:])])
        share(expected, 2, inputs=a + b)
        assert_same(params_of(model), params_of(expected))

    @pytest.mark.parametrize(
        ('call', 'shape'),
        [
            (lambda fc, x: fc(x, n_batch_axes=2), (4, 5, IN)),
            (lambda fc, x: fc(x, 2), (4, 5, IN)),
            (lambda fc, x: fc(x=x), (20, IN)),
            (lambda fc, x: fc(x), (20, 3, 1, 2)),
            (lambda fc, x: (fc(x[:9]), fc(x[9:])), (20, IN)),
        ],
    )
    def test_ways_to_call_a_layer(self, x, call, shape):
        model = OneLayer(call)
        expected = OneLayer(lambda fc, x: fc(x))
        share(model, 3, inputs=x.reshape(shape))
        share(expected, 3, inputs=x)
        assert_same(params_of(model), params_of(expected))

    def test_recurrent(self, random):
        model = OneLayer(
            lambda fc, x: fc(F.pad(fc(x), ((0, 0), (0, 1)), 'constant'))
        )
        dense = model.copy('copy')
        x = random.randn(20, IN)
        share(model, 2, inputs=x)
        y = dense.fc(x).array
        second = numpy.pad(y, ((0, 0), (0, 1)))
        inputs = numpy.concatenate([x, second])
        expected = OneLayer(lambda fc, x: fc(x))
        share(expected, 2, inputs=inputs)
        assert_same(params_of(model), params_of(expected))

    def test_stateful_links_are_reset_before_and_after(self, random):
        x = random.randn(3, 20, 8)

        class Recurrent(chainer.Chain):
            def __init__(self):
                super().__init__()
                with self.init_scope():
                    self.lstm = L.LSTM(8, 8)

            def forward(self, x):
                return self.lstm(x)

        models = Recurrent(), Recurrent()
        for model in models:
            fill(model)
        models[0](random.randn(20, 8))  # leaves a state
        for model in models:
            share(model, 2, inputs=iter(x))
            assert model.lstm.c is None
            assert model.lstm.h is None
        assert_same(*map(params_of, models))
        # Inputs of the lateral layer are the outputs of the step before.
        layers = share(Recurrent(), {'*lateral': 2}, inputs=list(x)).layers
        assert layers[0].output_error > 0

    def test_statistics_and_dropout(self, random):
        def make():
            model = chainer.Sequential(
                L.Linear(IN, 8),
                L.BatchNormalization(8),
                F.dropout,
                L.Linear(8, 4),
            )
            fill(model)
            return model

        models = make(), make()
        bn = models[0][1]
        bn.avg_mean[...] = random.randn(8)
        models[1][1].avg_mean[...] = bn.avg_mean
        before = bn.avg_mean.copy(), bn.avg_var.copy(), bn.N
        x = random.randn(20, IN)
        for model in models:
            share(model, 2, inputs=x)
        numpy.testing.assert_array_equal(bn.avg_mean, before[0])
        numpy.testing.assert_array_equal(bn.avg_var, before[1])
        assert before[2] == bn.N
        assert_same(*map(params_of, models))
        assert chainer.config.train
        assert chainer.config.enable_backprop

    def test_order_of_execution(self, x):
        class Backwards(MLP):
            def forward(self, x):
                return self.l1(F.relu(self.l2(F.relu(self.l3(x)))))

        model = Backwards()
        with model.init_scope():
            del model.l1, model.l3
            model.l1 = L.Linear(HIDDEN, OUT)
            model.l3 = L.Linear(IN, HIDDEN)
        fill(model)
        report = share(model, 2, inputs=x)
        assert [layer.path for layer in report.layers] == ['/l3', '/l2', '/l1']

    @pytest.mark.parametrize('seed', range(3))
    def test_held_out_errors_shrink(self, seed):
        """Groups of units that nearly agree, as after training."""
        random = numpy.random.RandomState(seed)
        n, k = 4, 10
        centres = random.randn(8, k)
        W = numpy.tile(centres, (1, n)) + 0.3 * random.randn(8, n * k)
        latent = random.randn(400, 6) @ random.randn(6, n * k)
        x = relu(latent + 0.1 * random.randn(*latent.shape))
        errors = []
        for inputs in (None, x[:200]):
            model = chainer.Sequential(L.Linear(n * k, 8))
            model[0].W.array[...] = W
            y = model(x[200:]).array
            share(model, n, inputs=inputs)
            errors.append(numpy.linalg.norm(model(x[200:]).array - y))
        assert errors[1] < 0.8 * errors[0]

    def test_inputs_that_are_all_zero(self):
        model = MLP()
        with numpy.errstate(divide='raise', over='raise', invalid='raise'):
            report = share(model, 2, inputs=numpy.zeros((5, IN)))
        assert report.layers[0].output_error == pytest.approx(0, abs=1e-12)
        assert all(numpy.isfinite(a).all() for a in params_of(model))

    def test_outputs_that_are_all_zero(self, random):
        """There is nothing that their error could be relative to."""
        model = chainer.Sequential(L.Linear(4, 1, nobias=True))
        model[0].W.array[...] = [[1, -1, 0, 0]]
        x = random.randn(5, 1) * numpy.array([1, 1, 1, 0])
        (layer,) = share(model, 2, inputs=x, order='contiguous').layers
        error = numpy.linalg.norm(model(x).array)
        assert error > 0
        assert layer.output_error == pytest.approx(error, rel=1e-6)

    def test_a_new_bias_has_an_update_rule_of_its_own(self, random, x):
        model = MLP(nobias=True)
        optimizer = optimizers.Adam().setup(model)
        optimizer.use_fp32_update()
        model.l2.W.update_rule.hyperparam.alpha = 0.5
        model.l2.W.update_rule.add_hook(optimizer_hooks.WeightDecay(0.1))
        model.l3.disable_update()
        train(model, optimizer, x)
        report = share(model, 2, inputs=x, add_bias=True)
        assert report.restarted == ('/l1/W', '/l2/W')
        rule = model.l2.b.update_rule
        assert rule.hyperparam.parent is optimizer.hyperparam
        assert rule.hyperparam.alpha == optimizer.alpha
        assert rule._use_fp32_update
        assert not rule._hookable._pre_update_hooks
        rule.hyperparam.alpha = 0.25
        assert model.l2.W.update_rule.hyperparam.alpha == 0.5
        assert not model.l3.b.update_rule.enabled
        b = model.l2.b.array.copy()
        train(model, optimizer, x)
        assert (model.l2.b.array != b).any()


class TestFold:
    @pytest.mark.parametrize('inputs', [False, True])
    @pytest.mark.parametrize('nobias', [False, True])
    def test_outputs_stay(self, random, x, inputs, nobias):
        calibration = x if inputs else None
        unfolded, model = MLP(nobias=nobias), MLP(nobias=nobias)
        order = {'/l2': random.permutation(HIDDEN)}
        numbers = {'/l2': 2, '/l3': 3}
        share(unfolded, numbers, order=order, inputs=calibration)
        dense = model.l1.W.array.copy()
        report = share(
            model,
            numbers,
            order=order,
            inputs=calibration,
            fold={'/l3': '/l2', '/l2': '/l1'},
        )
        assert model.l2.order is None
        assert model.l3.order is None
        assert type(model.l1) is L.Linear
        assert_same([model(x).array], [unfolded(x).array])
        numpy.testing.assert_array_equal(
            model.l1.W.array, dense[unfolded.l2.order]
        )
        numpy.testing.assert_array_equal(
            model.l2.W.array, unfolded.l2.W.array[unfolded.l3.order]
        )
        folded = [layer.folded_into for layer in report.layers]
        assert folded == ['/l1', '/l2']
        assert str(report).count('/l1') == 1

    def test_into_a_layer_shared_before(self, x):
        model = MLP()
        share(model, {'/l1': 2, '/l2': 2})
        unfolded = model.copy('copy')
        share(unfolded, {'/l3': 2})
        share(model, {'/l3': 2}, fold={'/l3': '/l2'}, inputs=None)
        assert model.l2.order is not None
        assert model.l3.order is None
        assert_same([model(x).array], [unfolded(x).array])

    def test_state_of_the_optimizer_starts_anew(self, x):
        model = MLP()
        optimizer = optimizers.Adam().setup(model)
        train(model, optimizer, x)
        report = share(model, {'/l2': 2}, fold={'/l2': '/l1'})
        assert report.restarted == ('/l2/W', '/l1/W', '/l1/b')
        assert model.l1.W.update_rule.state is None
        assert model.l1.W.grad is None
        assert model.l3.W.update_rule.state is not None
        train(model, optimizer, x)

    @pytest.mark.parametrize(
        'wrap',
        [
            lambda y: {'y': y, 'count': 3},
            lambda y: (None, [y.array]),
            lambda y: F.sum(y),
            lambda y: F.cast(y, 'float16') * 1e-4,
            lambda y: y * numpy.nan,
        ],
    )
    def test_a_skip_connection_is_found(self, x, wrap):
        class Skip(MLP):
            def forward(self, x):
                h = F.relu(self.l1(x))
                return wrap(self.l3(F.relu(self.l2(h)) + h))

        model = Skip()
        before = state_of(model)
        with pytest.raises(
            ValueError,
            match='cannot fold /l2 into /l1: that changes the outputs',
        ):
            share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
        assert state_of(model) == before
        # Where nothing shows it, the user's word counts.
        share(model, {'/l2': 2}, fold={'/l2': '/l1'})

    def test_roundings_do_not_matter(self, x):
        class Rounding(MLP):
            def forward(self, x):
                h = F.relu(self.l1(x))
                return self.l3(F.relu(self.l2(h))) + 1e-12 * h[:, :OUT]

        model = Rounding()
        share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
        assert model.l2.order is None

    def test_outputs_that_are_all_zero(self):
        model = MLP(nobias=True)
        share(model, {'/l2': 2}, inputs=0 * X, fold={'/l2': '/l1'})
        assert model.l2.order is None

    def test_outputs_that_are_no_floats(self, x):
        class Labels(MLP):
            def forward(self, x):
                y = super().forward(x)
                return y, y.array.argmax(axis=1), 'labels'

        model = Labels()
        share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
        assert model.l2.order is None

    def test_outputs_that_cannot_be_compared(self, x):
        class Silent(MLP):
            def forward(self, x):
                super().forward(x)
                return len(x)

        model = Silent()
        before = state_of(model)
        with pytest.raises(ValueError, match='returns no arrays: 5$'):
            share(
                model,
                {'/l2': 2},
                inputs=[x[:5], x[5:]],
                fold={'/l2': '/l1'},
            )
        assert state_of(model) == before


class TestReport:
    def test_sizes(self, x):
        model = MLP()
        layers = share(model, {'/l2': 4, '/l3': 2}, inputs=x).layers
        assert [tuple(layer)[:4] for layer in layers] == [
            ('/l2', 4, HIDDEN * 3 + HIDDEN, HIDDEN * HIDDEN + HIDDEN),
            ('/l3', 2, OUT * 6 + OUT, OUT * HIDDEN + OUT),
        ]

    def test_table(self):
        report = convert.ShareReport(
            (
                convert.SharedLayer('/a', 2, 1234, 5678, 0.5, None, None),
                convert.SharedLayer('/b', 10, 1, 2, 0.0, None, '/a'),
            ),
            ('/a/W', '/b/W'),
        )
        header, line, *rows = str(report).splitlines()
        assert set(line) == {'-', ' '}
        assert [' '.join(row.split()) for row in (header, *rows)] == [
            'layer common_num parameters parameters before weight error '
            'order folded into',
            '/a 2 1,234 5,678 50.00%',
            '/b 10 1 2 0.00% /a',
            'The state of the optimizer was reset for /a/W, /b/W.',
        ]

    def test_paths_start_and_numbers_end_in_line(self):
        report = convert.ShareReport(
            (
                convert.SharedLayer('/a', 2, 1234, 5678, 0.5, 0.125, '/b/c'),
                convert.SharedLayer('/b', 10, 1, 2, 0.0, 0.0, '/a'),
            ),
            (),
        )
        _, line, *rows = str(report).splitlines()
        columns = [match.span() for match in re.finditer('-+', line)]
        for row in rows:
            path, *numbers, target = (
                row.ljust(len(line))[slice(*column)] for column in columns
            )
            assert len(numbers) == 5
            assert path[0] == target[0] == '/'
            assert not any(number[-1].isspace() for number in numbers)


def make_lazy(model):
    with model.init_scope():
        del model.l2
        model.l2 = L.Linear(HIDDEN)


def tie(model):
    model.l2.W = model.l3.W


def tie_bias(model):
    model.l3.b = model.l2.b


def set_array(path, value):
    def change(model):
        dict(model.namedparams())[path].array.flat[1] = value

    return change


def subclass(model):
    class Mine(L.Linear):
        pass

    with model.init_scope():
        del model.l2
        model.l2 = Mine(HIDDEN, HIDDEN)


def add_hook(model):
    model.l2.add_hook(link_hooks.SpectralNormalization())


def share_before(model):
    share(model, {'/l2': 2})


def same_link_twice(model):
    with model.init_scope():
        model.again = model.l2


def nothing(model):
    pass


X = numpy.ones((3, IN))
PERMUTATION = numpy.arange(HIDDEN)[::-1]
ERRORS = {
    'width': (nothing, {'common_num': {'/l2': 5}},
              'for /l2 must .* in_size is 12 and common_num is 5; .* 4 or 6$'),
    'width of one': (nothing, {'common_num': 4}, '/l1 .* in_size is 6'),
    'zero': (nothing, {'common_num': 0}, 'common_num for /l1 must .* 0$'),
    'bool': (nothing, {'common_num': True}, 'common_num for /l1 .* True'),
    'text': (nothing, {'common_num': {'/l2': '10'}}, "for /l2 .* '10'"),
    'fraction': (nothing, {'common_num': 2.5}, 'common_num for /l1 .* 2.5'),
    'None': (nothing, {'common_num': None}, 'common_num for /l1 .* None'),
    'path': (nothing, {'common_num': {'/l2': 2, '/l4': 2}},
             'names /l4, which matches none .* are /l1, /l2, /l3'),
    'no slash': (nothing, {'common_num': {'l2': 2}}, ' l2, .* none .* /l2'),
    'pattern': (nothing, {'common_num': {'/fc*': 2}}, r'/fc\*, .* /l1'),
    'two patterns': (nothing, {'common_num': {'/l*': 2, '*2': 2}},
                     r'several patterns for /l2: /l\*, \*2'),
    'not initialized': (make_lazy, {}, '/l2 has no weight yet'),
    'tied': (tie, {}, r'/l2 .* its W occurs in several places: /l2/W, /l3/W'),
    'tied bias': (tie_bias, {}, r'/l2 .* its b occurs in .*: /l2/b, /l3/b'),
    'link twice': (same_link_twice, {},
                   '/again/W, /l2/W'),
    'nan in W': (set_array('/l2/W', numpy.nan), {}, '/l2/W contains NaN'),
    'inf in b': (set_array('/l2/b', numpy.inf), {}, '/l2/b contains NaN'),
    'subclass': (subclass, {}, '/l2, which is of class Mine, not'),
    'hook': (add_hook, {}, '/l2 .* link hooks .SpectralNormalization'),
    'shared': (share_before, {}, '/l2, which is of class SharedLinear'),
    'order': (nothing, {'order': 'interleaved'}, "/l2 must .* 'interleaved'"),
    'allowed orders': (nothing, {'order': [1, 0]},
                       "must be 'grouped', 'contiguous' or a permutation"),
    'no order': (nothing, {'order': None}, '/l2 must .* it is None'),
    'length of order': (nothing, {'order': [1, 0]}, r'/l2 must .* \(2,\)'),
    'order of floats': (nothing, {'order': PERMUTATION * 1.0}, 'float64'),
    'no permutation': (nothing, {'order': PERMUTATION // 2 * 2}, 'is missing'),
    'order of another': (nothing, {'order': {'/l3': 'grouped'}},
                         'order names /l3, which is not being'),
    'no batch': (nothing, {'inputs': []}, 'must hold at least one batch'),
    'empty batch': (nothing, {'inputs': X[:0]}, 'never reach /l2'),
    'bias without inputs': (nothing, {'add_bias': True}, 'without inputs'),
    'nan in inputs': (nothing, {'inputs': X * numpy.nan}, '/l2 .* not finite'),
    'inf in inputs': (nothing, {'inputs': X * numpy.inf}, '/l2 .* not finite'),
    'iterator': (nothing, {'inputs': chainer.iterators.SerialIterator(X, 2)},
                 'not a SerialIterator'),
    'examples with labels': (nothing, {'inputs': [(X[0], 1), (X[0],)]},
                             'batches of ndarray, int, it raises TypeError'),
    'inputs too large': (nothing, {'inputs': X * 1e200}, '/l2 .* too large'),
    'fold of another': (nothing, {'fold': {'/l3': '/l2'}},
                        'fold /l3 into /l2: /l3 is not being shared'),
    'fold into nothing': (nothing, {'fold': {'/l2': '/l4'}},
                          'cannot fold /l2 into /l4: /l4 is not a linear'),
    'fold into a subclass': (subclass, {'common_num': {'/l3': 2},
                                        'fold': {'/l3': '/l2'}},
                             'fold /l3 into /l2: /l2 is not a linear'),
    'fold into itself': (nothing, {'fold': {'/l2': '/l2'}},
                         'fold /l2 into /l2: they are the same layer'),
    'fold twice': (nothing, {'common_num': {'/l2': 2, '/l3': 2},
                             'fold': {'/l2': '/l1', '/l3': '/l1'}},
                   '/l1 can take over only one order'),
    'fold of sizes': (nothing, {'fold': {'/l2': '/l3'}},
                      'cannot fold /l2 into /l3: .* 12 inputs.* 4 outputs'),
    'fold of other sizes': (nothing, {'common_num': {'/l1': 2},
                                      'fold': {'/l1': '/l2'}},
                            '/l1 into /l2: .* 6 inputs.* 12 outputs'),
    'outputs too large': (
        lambda m: m.l2.W.array.fill(1e308),
        {'inputs': X},
        'inputs, an input or output of /l2 is too large or not finite',
    ),
    'fold contiguous': (nothing, {'fold': {'/l2': '/l1'},
                                  'order': 'contiguous'}, '/l2 is contiguous'),
    'fold into tied': (
        lambda m: setattr(m.l3, 'b', m.l1.b),
        {'fold': {'/l2': '/l1'}},
        '/l1 .* its b occurs in several places: /l1/b, /l3/b',
    ),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize('name', ERRORS)
    def test_before_anything_is_changed(self, name):
        prepare, settings, message = ERRORS[name]
        model = MLP()
        prepare(model)
        before = state_of(model)
        with pytest.raises(ValueError, match=r'^share\(\): .*' + message):
            share(model, **{'common_num': {'/l2': 2}, **settings})
        assert state_of(model) == before

    @pytest.mark.parametrize('setting', ['common_num', 'order'])
    def test_paths_that_are_no_strings(self, setting):
        settings = {'common_num': 2, setting: {1: 2}}
        message = rf'^share\(\): {setting} must have paths .* 1$'
        with pytest.raises(TypeError, match=message):
            share(MLP(), **settings)

    @pytest.mark.parametrize('fold', ['/l2', ['/l2'], {'/l2': ['/l1']}, 0])
    def test_fold_of_another_type(self, fold):
        message = r'^share\(\): fold must be .* but is ' + re.escape(
            repr(fold)
        )
        with pytest.raises(TypeError, match=message):
            share(MLP(), 2, fold=fold)

    def test_inputs_that_are_no_iterable(self):
        with pytest.raises(TypeError, match='inputs must .* but are 3'):
            share(MLP(), 2, inputs=3)

    @pytest.mark.parametrize(
        'model', [L.Linear(4, 4), chainer.Sequential(F.relu), L.LSTM]
    )
    def test_models_without_layers(self, model):
        if model is L.LSTM:
            model = SharedLinear(4, 4, common_num=2)
        with pytest.raises(
            ValueError, match=f'this {type(model).__name__} holds none'
        ):
            share(model, 2)

    def test_copies_that_share_their_arrays(self):
        link = L.Linear(4, 4)
        model = chainer.ChainList(link, link.copy())
        with pytest.raises(ValueError, match='several places: /0/W, /1/W'):
            share(model, 2)

    def test_layers_that_inputs_do_not_reach(self, x):
        class Part(MLP):
            def forward(self, x):
                return self.l3(self.l1(x))

        model = Part()
        before = state_of(model)
        with pytest.raises(ValueError, match='never reach /l2'):
            share(model, 2, inputs=x)
        assert state_of(model) == before

    def test_layers_that_the_patch_shares(self, x):
        model = MLP()
        before = state_of(model)
        with chainer.using_config('common_num', 2):
            with pytest.raises(
                ValueError,
                match=r'/l1 is already .* \(12, 6\) is used for 12 columns',
            ):
                share(model, {'/l1': 2}, inputs=numpy.tile(x, 2))
        assert state_of(model) == before

    @pytest.mark.parametrize('call', range(2, 9))
    @pytest.mark.parametrize(
        'error', [KeyboardInterrupt, MemoryError, ZeroDivisionError]
    )
    def test_failures_on_the_way_change_nothing(self, x, call, error):
        class Failing(MLP):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls == call:
                    raise error
                return super().forward(x)

        model = Failing()
        optimizer = optimizers.Adam().setup(model)
        model.cleargrads()
        F.sum(MLP.forward(model, x)).backward()
        optimizer.update()
        before = state_of(model)

        def attempt():
            share(
                model,
                {'/l2': 2, '/l3': 2},
                inputs=x,
                fold={'/l3': '/l2', '/l2': '/l1'},
            )

        # One for all outputs, one for each layer, two for each pair.
        if call <= 7:
            with pytest.raises(error):
                attempt()
            assert state_of(model) == before
        else:
            attempt()
            assert state_of(model) != before

    def test_a_model_that_overflows_when_it_is_shared(self, random):
        """Two columns cancel, until they share with others."""

        class Overflowing(MLP):
            def forward(self, x):
                return self.l2(F.exp(1e9 * self.l1(x)))

        model = Overflowing(nobias=True)
        model.l1.W.array[...] = numpy.array([1, -1, 0, 0, 0, 0])
        x = random.randn(5, IN)
        x[:, 1] = x[:, 0]
        before = state_of(model)
        with numpy.errstate(over='ignore'):
            with pytest.raises(
                ValueError, match='/l2 .* inputs are not finite'
            ):
                share(model, {'/l1': 2, '/l2': 2}, inputs=x)
        assert state_of(model) == before

    def test_weights_that_float16_cannot_hold(self):
        with chainer.using_config('dtype', 'float16'):
            model = chainer.Sequential(L.Linear(2, 1, nobias=True))
        model[0].W.array[...] = [[6e4, 2e4]]
        before = state_of(model)
        # y is 5e4 x_0 and the sum x_0 / 2, so that W is to be near 1e5.
        x = numpy.array([[0.5, -0.25], [0.25, -0.125]], 'e')
        with pytest.raises(ValueError, match='/0 .* range of float16'):
            share(model, 2, inputs=x)
        assert state_of(model) == before

    def test_a_model_that_calls_a_layer_a_varying_number_of_times(self, x):
        class Varying(MLP):
            calls = 0

            def forward(self, x):
                self.calls += 1
                for _ in range(self.calls):
                    y = self.l1(x)
                return y

        model = Varying()
        before = state_of(model)
        with pytest.raises(ValueError, match='/l1 .* no longer calls it'):
            share(model, {'/l1': 2}, inputs=x)
        assert state_of(model) == before


class TestExpand:
    @pytest.mark.parametrize('nobias', [False, True])
    @pytest.mark.parametrize('order', ['interleaved', 'contiguous', 'grouped'])
    @pytest.mark.parametrize('dtype', DTYPES)
    def test_outputs_stay(self, random, dtype, order, nobias):
        model = MLP(dtype, nobias)
        if order == 'interleaved':
            with model.init_scope(), chainer.using_config('dtype', dtype):
                del model.l2
                model.l2 = SharedLinear(
                    HIDDEN, HIDDEN, nobias, common_num=4, order=order
                )
            fill(model)
        else:
            share(model, {'/l2': 4}, order=order)
        link, b = model.l2, model.l2.b
        wide = widen(link)
        links = dict(model.namedlinks())
        expand(model)
        assert type(model.l2) is L.Linear
        numpy.testing.assert_array_equal(model.l2.W.array, wide)
        assert model.l2.W.dtype == numpy.dtype(dtype)
        assert model.l2.b is b
        assert model.l2.name == 'l2'
        assert (model.l2.in_size, model.l2.out_size) == (HIDDEN, HIDDEN)
        for path in ('/l1', '/l3'):
            assert getattr(model, path[1:]) is links[path]
        x = random.randn(5, HIDDEN).astype(dtype)
        exact = x.astype('d') @ wide.T.astype('d')
        scale = abs(x).astype('d') @ abs(wide).T.astype('d')
        if not nobias:
            exact = exact + b.array
            scale = scale + abs(b.array)
        wider = numpy.promote_types(dtype, 'f')
        for linear in (link, model.l2):
            assert_close(
                linear(x).array, exact, scale, (HIDDEN + 1, wider), (2, dtype)
            )

    def test_files_load_without_the_plugin(self, x, tmp_path):
        model = chainer.Sequential(MLP().l2, F.relu, MLP().l3)
        share(model, {'/0': 2, '/1': 3})
        x = numpy.tile(x, 2)
        y = model(x).array
        expand(model)
        path = tmp_path / 'model.npz'
        save_npz(str(path), model)
        with numpy.load(str(path)) as file:
            assert sorted(file) == ['0/W', '0/b', '1/W', '1/b']
        code = """
import sys
import numpy
import chainer_shared_patch
import chainer
import chainer.functions as F
import chainer.links as L
assert not chainer_shared_patch.is_installed()
chainer.global_config.dtype = 'd'
model = chainer.Sequential(L.Linear(12), F.relu, L.Linear(4))
chainer.serializers.load_npz(sys.argv[1], model)
numpy.save(sys.argv[2], model(numpy.load(sys.argv[2])).array)
"""
        numpy.save(str(tmp_path / 'x.npy'), x)
        subprocess.run(
            [sys.executable, '-c', code, str(path), str(tmp_path / 'x.npy')],
            check=True,
            env={**os.environ, 'CHAINER_SHARED_PATCH': '0'},
        )
        assert_same([numpy.load(str(tmp_path / 'x.npy'))], [y])

    def test_there_and_back(self):
        model = MLP()
        share(model, {'/l2': 4, '/l3': 2})
        W = model.l2.W.array.copy(), model.l3.W.array.copy()
        orders = {'/l2': model.l2.order, '/l3': model.l3.order}
        expand(model)
        report = share(model, {'/l2': 4, '/l3': 2}, order=orders)
        assert_same([model.l2.W.array, model.l3.W.array], W)
        for layer in report.layers:
            # The mean of 4 equal numbers is off by a few roundings.
            assert layer.weight_error < 8 * numpy.finfo('d').eps

    def test_optimizer(self, x):
        model = MLP()
        share(model, {'/l2': 2})
        optimizer = optimizers.Adam().setup(model)
        train(model, optimizer, x)
        state = copy.deepcopy(model.l1.W.update_rule.state)
        expand(model)
        assert model.l2.W.update_rule.state is None
        for key, value in state.items():
            actual = model.l1.W.update_rule.state[key]
            numpy.testing.assert_array_equal(actual, value)
        train(model, optimizer, x)

    def test_nothing_to_expand(self):
        model = MLP()
        before = state_of(model)
        expand(model)
        assert state_of(model) == before

    def test_weights_that_are_not_finite(self):
        model = chainer.Sequential(SharedLinear(4, 3, common_num=2))
        model[0].W.array[...] = numpy.nan
        expand(model)
        assert numpy.isnan(model[0].W.array).all()

    def test_errors(self):
        class Mine(SharedLinear):
            pass

        def make(*links):
            return chainer.ChainList(SharedLinear(4, 4, common_num=2), *links)

        link = SharedLinear(4, 4, common_num=2)
        hooked = SharedLinear(4, 4, common_num=2)
        hooked.add_hook(link_hooks.TimerHook())
        for model, message in [
            (make(SharedLinear(None, 4, common_num=2)), '/1 has no weight'),
            (make(link, link), '/1 .* several places: /1/W, /2/W'),
            (make(Mine(4, 4, common_num=2)), '/1 is of class Mine'),
            (make(hooked), '/1 .* link hooks .TimerHook'),
            (SharedLinear(4, 4, common_num=2), 'but is one itself'),
        ]:
            before = state_of(model)
            with pytest.raises(ValueError, match=r'^expand\(\): .*' + message):
                expand(model)
            assert state_of(model) == before


@pytest.mark.parametrize(
    'convert', [lambda model: share(model, 2), expand], ids=['share', 'expand']
)
def test_no_link(convert):
    with pytest.raises(
        TypeError, match=r'\(\): model must be a chainer.Link, but'
    ):
        convert('a model')
