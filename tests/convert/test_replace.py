"""What stays of the links and parameters that are replaced."""

import copy

from chainer_shared_patch import (
    expand,
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

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    OUT,
    train,
)
from tests.helpers import (
    assert_same,
    params_of,
)

pytestmark = pytest.mark.arithmetic


X = numpy.ones((3, IN))


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
