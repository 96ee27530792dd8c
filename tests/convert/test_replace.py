"""What stays of the links and parameters that are replaced."""

import itertools
import pickle

from chainer_shared_patch import SharedLinear, expand, share
import chainer
from chainer import optimizer_hooks, optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    OUT,
    shared_numbers_of,
    state_of,
    train,
    widen,
)
from tests.helpers import assert_same, fill, params_of

pytestmark = pytest.mark.arithmetic


class TestPlaces:
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
        dense = model.copy('copy')
        share(model, {'/1/*': 2, '/0/list/1': 4})
        assert shared_numbers_of(model) == {
            '/0/list/1': 4,
            '/1/fc': 2,
            '/1/list/0': 2,
            '/1/list/1': 2,
        }
        links = dict(model.namedlinks())
        for path, link in dense.namedlinks():
            if type(links[path]) is SharedLinear:
                link.W.array = widen(links[path])
        x = random.randn(5, 8)
        assert_same([model(x).array], [dense(x).array])

    @pytest.mark.parametrize('path', ['/0', '/1', '/2', '/3'])
    def test_layers_of_a_sequential_keep_their_numbers(self, random, path):
        layers = [L.Linear(8, 8) for _ in range(4)]
        model = chainer.Sequential(layers[0])
        for function, layer in zip([F.relu, F.tanh, F.sigmoid], layers[1:]):
            model.append(function)
            model.append(layer)
        fill(model)
        before, layers = dict(model.namedlinks()), list(model)
        # Chainer does not number them in the order of the layers.
        position = layers.index(before[path])
        share(model, {path: 2})
        for other, link in model.namedlinks(skipself=True):
            assert link.name == other[1:]
            assert (link is before[other]) == (other != path)
        layers[position] = dict(model.namedlinks())[path]
        assert list(model) == layers
        x = y = random.randn(5, 8)
        for layer in layers:
            y = layer(y)
        numpy.testing.assert_array_equal(model(x).array, y.array)

    def test_a_link_whose_name_another_model_has_changed(self, x):
        model = MLP()
        other = chainer.Chain()
        with other.init_scope():
            other.fc = model.l2
        share(model, {'/l2': 2})
        assert type(model.l2) is SharedLinear
        assert not hasattr(model, 'fc')
        assert model(x).shape == (20, OUT)


class TestKept:
    def test_names_biases_and_parameters(self):
        model = MLP()
        params = dict(model.namedparams())
        links = dict(model.namedlinks())
        arrays = {p: param.array.copy() for p, param in params.items()}
        grad = model.l2.b.grad = numpy.ones(HIDDEN)
        share(model, {'/l2': 2})
        after = dict(model.namedparams())
        assert list(after) == list(params)
        for path, param in after.items():
            assert (param is params[path]) == (path != '/l2/W')
            assert param.name == params[path].name
            if path != '/l2/W':
                numpy.testing.assert_array_equal(param.array, arrays[path])
        assert model.l2.b.grad is grad
        for path, link in model.namedlinks():
            assert link.name == links[path].name
        assert (model.l2.in_size, model.l2.out_size) == (HIDDEN, HIDDEN)

    @pytest.mark.parametrize(
        ('dtype', 'outside'),
        [
            ('float16', 'float32'),
            ('float32', 'float64'),
            ('float64', 'float32'),
            (chainer.mixed16, 'float64'),
        ],
    )
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

    def test_device(self, x):
        class Device(chainer.backend.CpuDevice):
            """Stands in for one that is not the default."""

        device = Device()
        model = MLP(nobias=True).to_device(device)
        share(model, {'/l2': 2}, inputs=x, add_bias=True)
        assert model.l2.device is device
        assert model.l2.W.device is device
        assert model.l2.b.device is device
        expand(model)
        assert model.l2.device is device


@pytest.mark.parametrize('inputs', [False, True])
def test_names_that_hold_a_slash_or_brackets(x, inputs):
    class Both(chainer.Chain):
        def __init__(self):
            super().__init__(inner=MLP())
            self.add_link('loss3/fc[0]', L.Linear(OUT, HIDDEN))

        def forward(self, x):
            return self['loss3/fc[0]'](self.inner(x))

    common_num = {'/loss3/fc[0]': 2, '/inner/l?': 2}
    model = Both()
    share(model, common_num, inputs=x if inputs else None)
    assert set(shared_numbers_of(model)) == {
        '/loss3/fc[0]',
        '/inner/l1',
        '/inner/l2',
        '/inner/l3',
    }
    expand(model)
    assert not shared_numbers_of(model)


class TestOthers:
    """What else holds a link that is replaced goes on as before."""

    @pytest.mark.parametrize('fold', [None, {'/2': '/0'}])
    def test_models_that_hold_the_same_links(self, random, fold):
        first, second = L.Linear(8, 12), L.Linear(12, 12)
        models = [
            chainer.Sequential(first, F.relu, second, L.Linear(12, 4))
            for _ in range(2)
        ]
        for model in models:
            fill(model)
        optimizer = optimizers.Adam().setup(models[1])
        x = random.randn(5, 8)
        train(models[1], optimizer, x)
        before, y = state_of(models[1]), models[1](x).array
        fold = fold and {second: first}
        share(
            models[0],
            {second: 3, first: 2},
            inputs=x,
            fold=fold,
            tune_steps=2,
        )
        assert state_of(models[1]) == before
        numpy.testing.assert_array_equal(models[1](x).array, y)
        train(models[1], optimizer, x)

    def test_copies_that_share_their_arrays(self, x):
        model = chainer.Sequential(MLP(), lambda y: 2 * y, L.Linear(OUT, 2))
        fill(model)
        y, before = model(x).array, state_of(model)
        for n in (2, 4):
            copied = model.copy()
            share(copied, {'/0/l2': n, '/1': n}, inputs=x)
            assert shared_numbers_of(copied) == {'/0/l2': n, '/1': n}
        assert state_of(model) == before
        numpy.testing.assert_array_equal(model(x).array, y)

    def test_new_parameters_are_trained(self, x):
        model = MLP()
        optimizer = optimizers.Adam().setup(L.Classifier(model))
        train(model, optimizer, x)
        report = share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
        assert report.restarted == ('/l2/W', '/l2/b', '/l1/W', '/l1/b')
        before = params_of(model)
        train(model, optimizer, x)
        for a, b in zip(params_of(model), before):
            assert (a != b).any()
        assert model.l1.b.name == model.l2.b.name == 'b'

    def test_what_was_added_to_a_link(self, x):
        model = MLP()
        link = model.l2
        with link.init_scope():
            link.scale = chainer.Parameter(numpy.ones(3))
        link.add_persistent('count', numpy.array(7))
        link.tag = 'mine'
        (layer,) = share(
            model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'}
        ).layers
        for _ in range(2):
            assert model.l2 is not link
            assert model.l2.scale is link.scale
            assert model.l2.count is link.count
            assert model.l2.tag == 'mine'
            assert '/l2/scale' in dict(model.namedparams())
            assert 'count' in model.l2._persistent
            expand(model)
        assert layer.size == HIDDEN * HIDDEN // 2 + HIDDEN + 3
        assert not hasattr(model.l2, 'common_num')
        assert not hasattr(model.l2, 'order')

    def test_a_forward_of_its_own(self):
        model = MLP()
        model.l2.forward = F.relu
        with pytest.raises(ValueError, match='/l2 .* has a forward of its'):
            share(model, {'/l2': 2})


@pytest.mark.parametrize('inputs', [False, True])
@pytest.mark.parametrize('back', [False, True])
def test_new_parameters_forget_the_arrays_they_were_made_of(x, inputs, back):
    model = MLP()
    for link in model.children():
        link.W.initializer = link.b.initializer = None
    share(
        model,
        {'/l2': 2},
        inputs=x if inputs else None,
        fold={'/l2': '/l1'},
    )
    if back:
        expand(model)
    W, b = model.l2.W, model.l2.b
    dtype = W.dtype
    for param in (W, b):
        held = getattr(param.initializer, 'fill_value', None)
        assert not isinstance(held, numpy.ndarray)
    assert model.l1.W.initializer is None
    with chainer.using_config('dtype', 'f'):
        copied = model.l2.copy('init')
    assert copied.W.dtype == dtype
    assert (copied.W.array != W.array).any()
    assert len(pickle.dumps(model.l2)) < W.array.nbytes + 4096


class TestOptimizers:
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
        assert (rule.state, rule.t) == (None, 0)
        assert rule.hyperparam.alpha == 0.5
        assert rule.hyperparam.parent is optimizer.hyperparam
        assert 'WeightDecay' in rule._hookable._pre_update_hooks
        assert not model.l3.W.update_rule.enabled
        for path, param in model.namedparams():
            if path not in ('/l2/W', '/l3/W'):
                assert param.update_rule is rules[path]
        train(model, optimizer, x)
        expand(model)
        assert model.l2.W.update_rule.hyperparam.alpha == 0.5
        assert model.l2.W.update_rule.state is None
        assert model.l1.W.update_rule.state is not None

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

    def test_a_new_bias_has_an_update_rule_of_its_own(self, x):
        model = MLP(nobias=True)
        optimizer = optimizers.Adam().setup(model)
        optimizer.use_fp32_update()
        model.l2.W.update_rule.hyperparam.alpha = 0.5
        model.l2.W.update_rule.add_hook(optimizer_hooks.WeightDecay(0.1))
        model.l3.disable_update()
        share(model, 2, inputs=x, add_bias=True)
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

    def test_static_graphs(self, random):
        class Static(MLP):
            @chainer.static_graph(verbosity_level=0)
            def __call__(self, x):
                return self.forward(x)

        x = random.randn(5, IN)
        pairs = [
            (model, optimizers.SGD(0.01).setup(model))
            for model in (Static(), MLP())
        ]
        for change in (lambda model: share(model, 2, inputs=x), expand):
            for model, optimizer in pairs:
                train(model, optimizer, x)
                change(model)
            for _ in range(3):
                batch = random.randn(5, IN)
                for model, optimizer in pairs:
                    train(model, optimizer, batch, 1)
                assert_same(*(params_of(model) for model, _ in pairs))


# The first two calls are for all outputs, then there is one for each layer,
# one for the model as it is then, four to tune it, and two for each pair.
@pytest.mark.parametrize('call', range(2, 14))
def test_a_failure_on_the_way_changes_nothing(x, call):
    calls = itertools.count(1)

    class Failing(MLP):
        def forward(self, x):
            if next(calls) == call:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Failing()
    optimizer = optimizers.Adam().setup(model)
    model.cleargrads()
    F.sum(MLP.forward(model, x)).backward()
    optimizer.update()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        share(
            model,
            {'/l2': 2, '/l3': 2},
            inputs=x,
            fold={'/l3': '/l2', '/l2': '/l1'},
            tune_steps=2,
        )
    assert state_of(model) == before
