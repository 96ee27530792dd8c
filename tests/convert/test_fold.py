"""Orders that are folded into the layer before."""

from chainer_shared_patch import share
from chainer import optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    OUT,
    state_of,
    train,
)
from tests.helpers import assert_same

pytestmark = pytest.mark.arithmetic


X = numpy.ones((3, IN))


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
