"""Which layers are shared."""

from chainer_shared_patch import SharedLinear, expand, share
from chainer_shared_patch.convert import grouping
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    MLP,
    OUT,
    paths_of,
    widen,
)
from tests.helpers import assert_same, fill

pytestmark = pytest.mark.arithmetic


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
