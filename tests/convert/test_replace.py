"""What stays of the links and parameters that are replaced."""

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


# The first call is for all outputs, then there is one for each layer, and two
# for each pair.
@pytest.mark.parametrize('call', range(2, 8))
def test_a_failure_on_the_way_changes_nothing(x, call):
    class Failing(MLP):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == call:
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
        )
    assert state_of(model) == before
