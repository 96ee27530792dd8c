"""Turning shared layers into ordinary ones."""

import copy
import os
import subprocess
import sys

from chainer_shared_patch import (
    SharedLinear,
    expand,
    share,
)
import chainer
from chainer import link_hooks, optimizers
import chainer.functions as F
import chainer.links as L
from chainer.serializers import save_npz
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    MLP,
    state_of,
    train,
    widen,
)
from tests.helpers import (
    DTYPES,
    assert_close,
    assert_same,
    fill,
)

pytestmark = pytest.mark.arithmetic


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
