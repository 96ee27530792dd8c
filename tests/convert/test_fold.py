"""Orders that are folded into the layer before."""

import re

from chainer_shared_patch import share
import chainer
from chainer import optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import HIDDEN, IN, MLP, state_of, train
from tests.helpers import assert_same

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize('inputs', [False, True])
@pytest.mark.parametrize('nobias', [False, True])
def test_outputs_stay(random, x, inputs, nobias):
    unfolded, model = MLP(nobias=nobias), MLP(nobias=nobias)
    dense = model.l1.W.array.copy()
    settings = {
        'common_num': {'/l2': 2, '/l3': 3},
        'order': {'/l2': random.permutation(HIDDEN)},
        'inputs': x if inputs else None,
    }
    share(unfolded, **settings, orders=1)
    report = share(model, **settings, fold={'/l3': '/l2', '/l2': '/l1'})
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


def test_into_a_layer_shared_before(x):
    model = MLP()
    share(model, {'/l1': 2, '/l2': 2}, orders={'/l2': 1})
    unfolded = model.copy('copy')
    share(unfolded, {'/l3': 2}, orders=1)
    share(model, {'/l3': 2}, fold={'/l3': '/l2'})
    assert model.l2.order is not None
    assert model.l3.order is None
    assert_same([model(x).array], [unfolded(x).array])


def test_into_a_layer_that_has_several_orders():
    model = MLP()
    share(model, {'/l2': 2}, orders=3)
    before = state_of(model)
    message = 'cannot fold /l3 into /l2: /l2 has 3 orders'
    with pytest.raises(ValueError, match=message):
        share(model, {'/l3': 2}, fold={'/l3': '/l2'})
    assert state_of(model) == before


def test_state_of_the_optimizer_starts_anew(x):
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
def test_a_skip_connection_is_found(x, wrap):
    class Skip(MLP):
        def forward(self, x):
            h = F.relu(self.l1(x))
            return wrap(self.l3(F.relu(self.l2(h)) + h))

    model = Skip()
    before = state_of(model)
    with pytest.raises(
        ValueError,
        match=r'^share\(\): cannot fold /l2 into /l1: that changes the outp',
    ):
        share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
    assert state_of(model) == before
    # Where nothing shows it, the user's word counts.
    share(model, {'/l2': 2}, fold={'/l2': '/l1'})


class Zeros(MLP):
    def forward(self, x):
        return 0 * super().forward(x)


class Labels(MLP):
    def forward(self, x):
        y = super().forward(x)
        return y, y.array.argmax(axis=1), 'labels'


@pytest.mark.parametrize('make', [Zeros, Labels])
def test_outputs_that_count_as_the_same(x, make):
    model = make()
    share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
    assert model.l2.order is None


class Normalizing(MLP):
    """A BatchNormalization stands in between, whose units differ a little."""

    def __init__(self, dtype):
        super().__init__(dtype)
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.bn = L.BatchNormalization(HIDDEN)
        difference = 3e-4 if dtype == 'f' else 0.05
        self.bn.avg_var[:] = 1 + difference * numpy.arange(HIDDEN) / HIDDEN

    def forward(self, x):
        return self.l3(F.relu(self.l2(self.bn(self.l1(x)))))


@pytest.mark.parametrize('dtype', ['e', 'f'])
@pytest.mark.parametrize('scale', [1, 1e-3])
def test_units_that_differ_a_little_are_found(random, dtype, scale):
    model = Normalizing(dtype)
    model.l3.W.array *= scale
    before = state_of(model)
    x = random.randn(20, IN).astype(dtype)
    with pytest.raises(ValueError, match='that changes the outputs'):
        share(model, {'/l2': 2}, inputs=x, fold={'/l2': '/l1'})
    assert state_of(model) == before


@pytest.mark.parametrize('dtype', ['e', 'f'])
def test_elementwise_functions_are_no_hindrance(random, dtype):
    class Elementwise(MLP):
        def forward(self, x):
            h = F.sigmoid(F.elu(self.l1(x)) * 3)
            # What flattens to the same columns is as good.
            return self.l3(F.relu(self.l2(F.reshape(h, (-1, 3, 4)))))

    model = Elementwise(dtype)
    unfolded = model.copy('copy')
    x = random.randn(7, IN).astype(dtype)
    share(model, {'/l2': 3}, inputs=x, fold={'/l2': '/l1'})
    share(unfolded, {'/l2': 3}, inputs=x, orders=1)
    assert model.l2.order is None
    y, expected = (each(x).array.astype('d') for each in (model, unfolded))
    # A row of l1 may be summed in another order elsewhere in the matrix.
    atol = 64 * numpy.finfo(dtype).eps * abs(expected).max()
    numpy.testing.assert_allclose(y, expected, rtol=0, atol=atol)


def test_layers_that_a_closure_runs_are_not_folded(x):
    model = MLP()
    outer = chainer.Chain()
    with outer.init_scope():
        outer.mlp = model
    outer.forward = lambda x: model(x)
    before = state_of(outer)
    with pytest.raises(ValueError, match='that changes the outputs'):
        share(outer, {model.l2: 2}, inputs=x, fold={model.l2: model.l1})
    assert state_of(outer) == before


def test_outputs_that_cannot_be_compared(x):
    class Silent(MLP):
        def forward(self, x):
            super().forward(x)
            return len(x)

    model = Silent()
    before = state_of(model)
    message = r'^share\(\): cannot check fold, .* returns no arrays: 5$'
    with pytest.raises(ValueError, match=message):
        share(model, {'/l2': 2}, inputs=[x[:5], x[5:]], fold={'/l2': '/l1'})
    assert state_of(model) == before


@pytest.mark.parametrize(
    ('fold', 'settings', 'reason'),
    [
        ({'/l2': '/l2'}, {}, 'they are the same layer'),
        ({'/l3': '/l2'}, {}, '/l3 is not being shared'),
        ({'/l2': '/l1'}, {'order': 'contiguous'}, '/l2 is contiguous'),
        (
            {'/l2': '/l1'},
            {'orders': 3},
            '/l2 has 3 orders, but both may have only one',
        ),
        (
            {'/l2': '/l1'},
            {'common_num': 2, 'orders': {'/l1': 3}},
            '/l1 has 3 orders',
        ),
        (
            {'/l2': '/l1'},
            {'order': [numpy.arange(HIDDEN)] * 2},
            '/l2 has 2 orders',
        ),
        ({'/l2': '/l4'}, {}, '/l4 is not a linear layer of the model'),
        ({'/l2': '/mine'}, {}, '/mine is not a linear layer of the model'),
        (
            {'/l2': '/l1', '/l3': '/l1'},
            {'common_num': 2},
            '/l1 can take over only one order',
        ),
        (
            {'/l2': '/l3'},
            {},
            'the former has 12 inputs, the latter 4 outputs',
        ),
    ],
)
def test_pairs_that_cannot_be_folded(fold, settings, reason):
    class Mine(L.Linear):
        pass

    model = MLP()
    with model.init_scope():
        model.mine = Mine(HIDDEN, HIDDEN)
    before = state_of(model)
    (pair, *_) = fold.items()
    message = 'share(): cannot fold {} into {}: '.format(*pair) + reason
    with pytest.raises(ValueError, match='^' + re.escape(message)):
        share(model, fold=fold, **{'common_num': {'/l2': 2}, **settings})
    assert state_of(model) == before


def test_into_a_layer_whose_bias_another_one_has():
    model = MLP()
    model.l3.b = model.l1.b
    with pytest.raises(ValueError, match='/l1 cannot be changed, because its'):
        share(model, {'/l2': 2}, fold={'/l2': '/l1'})


@pytest.mark.parametrize('fold', ['/l2', {'/l2': ['/l1']}])
def test_folds_that_are_no_dict_of_paths(fold):
    message = r'^share\(\): fold must be .* but is ' + re.escape(repr(fold))
    with pytest.raises(TypeError, match=message):
        share(MLP(), 2, fold=fold)
