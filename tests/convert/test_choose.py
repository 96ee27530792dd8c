"""Which layers are shared, and what is no choice."""

from chainer_shared_patch import SharedLinear, share
from chainer_shared_patch.blocks import count_orders
from chainer_shared_patch.convert.grouping import group_columns
import chainer
from chainer import link_hooks
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
)
from tests.helpers import assert_same, params_of


@pytest.mark.parametrize(
    ('common_num', 'numbers'),
    [
        (2, {'/l1': 2, '/l2': 2, '/l3': 2}),
        (numpy.int64(2), {'/l1': 2, '/l2': 2, '/l3': 2}),
        ({'/l2': 4, '/l3': 1}, {'/l2': 4}),
        ({'*': 3, '/l1': 1}, {'/l2': 3, '/l3': 3}),
        ({'/l[23]': 6, '/l1': 2}, {'/l1': 2, '/l2': 6, '/l3': 6}),
        ({'/l2': 12, '*': 6}, {'/l1': 6, '/l2': 12, '/l3': 6}),
        (1, {}),
        ({}, {}),
    ],
)
def test_numbers_and_paths(common_num, numbers):
    model = MLP()
    links = dict(model.namedlinks())
    report = share(model, common_num)
    assert shared_numbers_of(model) == numbers
    assert [layer.path for layer in report.layers] == list(numbers)
    assert str(report).count('\n/') == len(numbers)
    for path, link in model.namedlinks():
        assert (link is links[path]) == (path not in numbers)


@pytest.mark.parametrize('order', ['contiguous', 'grouped', 'array'])
def test_which_inputs_share(random, order):
    grouped = [
        [
            group_columns(rows, 3, numpy.ones(HIDDEN))
            for rows in numpy.array_split(link.W.array, 2)
        ]
        for link in (MLP().l2, MLP().l3)
    ]
    if order == 'array':
        order = [random.permutation(HIDDEN) for _ in range(5)]
    model = MLP()
    report = share(model, {'/l2': 3, '/l3': 3}, order={'/l2': order}, orders=2)
    if isinstance(order, str):
        order = grouped[0] if order == 'grouped' else None
    numpy.testing.assert_array_equal(model.l2.order, order)
    assert report.layers[0].orders == (1 if order is None else len(order))
    # Where no path matches, it is grouped.
    numpy.testing.assert_array_equal(model.l3.order, grouped[1])


def numbers_of_orders(model):
    return {
        path: count_orders(link.order)
        for path, link in model.namedlinks()
        if isinstance(link, SharedLinear)
    }


@pytest.mark.parametrize(
    ('orders', 'numbers'),
    [
        (1, [1, 1, 1]),
        (numpy.uint8(3), [3, 3, 3]),
        (100, [HIDDEN, HIDDEN, OUT]),
        ({'/l[12]': 5, '/l1': 2, '/l3': None}, [2, 5, 4]),
    ],
)
def test_numbers_of_orders(orders, numbers):
    model = MLP()
    report = share(model, 2, orders=orders)
    assert list(numbers_of_orders(model).values()) == numbers
    assert [layer.orders for layer in report.layers] == numbers


class MyLSTM(L.LSTM):
    pass


@pytest.mark.parametrize(
    ('make', 'common_num', 'orders'),
    [
        (lambda: L.Linear(100, 200), 2, 4),
        (lambda: L.Linear(100, 3), 2, 3),
        (lambda: L.Linear(100, 600), 50, 20),
        # Those of more would be larger than W.
        (lambda: L.Linear(100, 200), 50, 8),
        (lambda: L.Linear(100, 20), 50, 1),
        (lambda: MyLSTM(32, 32), 2, 16),
        (lambda: L.StatefulGRU(32, 32), 2, 16),
    ],
)
def test_default_numbers_of_orders(make, common_num, orders):
    model = chainer.ChainList(make())
    share(model, common_num)
    assert set(numbers_of_orders(model).values()) == {orders}


def test_subclasses_stay():
    class Mine(L.Linear):
        pass

    model = chainer.ChainList(
        L.Linear(4, 4), Mine(4, 4), SharedLinear(4, 4, common_num=2)
    )
    before = list(model)
    report = share(model, 2)
    assert [layer.path for layer in report.layers] == ['/0']
    assert list(model)[1:] == before[1:]
    assert report.passed_over == ('/1',)
    assert str(report).endswith('subclass of Linear, and not shared: /1.')
    model = chainer.ChainList(L.Linear(4, 4), Mine(4, 4))
    assert share(model, {'/0': 2}).passed_over == ()


def make_lazy(model):
    with model.init_scope():
        del model.l2
        model.l2 = L.Linear(HIDDEN)


def make_subclass(model):
    class Mine(L.Linear):
        pass

    with model.init_scope():
        del model.l2
        model.l2 = Mine(HIDDEN, HIDDEN)


def tie_bias(model):
    model.l3.b = model.l2.b


def nothing(model):
    pass


@pytest.mark.parametrize(
    ('prepare', 'settings', 'message'),
    [
        (
            nothing,
            {'common_num': {'/l2': 5}},
            'common_num for /l2 must divide in_size, but in_size is 12 and '
            'common_num is 5; try 4 or 6$',
        ),
        (
            nothing,
            {'common_num': {'/l*': 2, '/l2': '10'}},
            "common_num for /l2 must be an integer of at least 1, .* '10'$",
        ),
        (
            nothing,
            {'common_num': {'/l2': 2, '/fc*': 2}},
            r'common_num names /fc\*, which matches none of the layers; the '
            'layers to choose from are /l1, /l2, /l3$',
        ),
        (
            nothing,
            {'common_num': {'/l*': 2, '*2': 2}},
            r'common_num has several patterns for /l2: /l\*, \*2$',
        ),
        (
            make_subclass,
            {},
            'common_num names /l2, which is of class Mine, not chainer.links',
        ),
        (
            nothing,
            {'order': {'/l3': 'grouped'}},
            'order names /l3, which is not being shared',
        ),
        (
            nothing,
            {'order': 'interleaved'},
            "order for /l2 must be 'grouped', 'contiguous' or a permutation "
            "of the integers below in_size, 12, .*, but it is 'interleaved'$",
        ),
        (nothing, {'order': [1, 0]}, r'order for /l2 must .* \(2,\)$'),
        (
            nothing,
            {'orders': {'/l3': 2}},
            'orders names /l3, which is not being grouped; .* are /l2$',
        ),
        (
            nothing,
            {'orders': {'/l2': 2}, 'order': 'contiguous'},
            'orders names /l2, which is not being grouped; .* are none$',
        ),
        *(
            (
                nothing,
                {'orders': number},
                f'orders for /l2 must be an integer .* least 1, .* {number}$',
            )
            for number in (0, 2.5, True)
        ),
        (make_lazy, {}, '/l2 has no weight yet'),
        (
            tie_bias,
            {},
            '/l2 cannot .* its b occurs in several places: /l2/b, /l3/b$',
        ),
        (
            lambda model: model.l2.b.array.fill(numpy.inf),
            {},
            '/l2/b contains NaN or inf',
        ),
        (
            lambda model: model.l2.add_hook(link_hooks.TimerHook()),
            {},
            r'/l2 cannot be changed, because it has link hooks \(TimerHook\)',
        ),
    ],
)
def test_errors_change_nothing(prepare, settings, message):
    model = MLP()
    prepare(model)
    before = state_of(model)
    with pytest.raises(ValueError, match=r'^share\(\): .*' + message):
        share(model, **{'common_num': {'/l2': 2}, **settings})
    assert state_of(model) == before


@pytest.mark.parametrize('setting', ['common_num', 'order', 'orders'])
def test_keys_that_are_neither_paths_nor_links(setting):
    settings = {'common_num': 2, setting: {1: 2}}
    message = rf'^share\(\): {setting} must have paths .* but one is 1$'
    with pytest.raises(TypeError, match=message):
        share(MLP(), **settings)


def test_links_as_keys(x):
    model, expected = MLP(), MLP()
    order = {'/l2': 'contiguous'}
    share(expected, {'/l2': 2, '/l3': 3}, order=order, fold={'/l3': '/l2'})
    l1, l2, l3 = model.l1, model.l2, model.l3
    share(
        model,
        {l2: 2, l3: 3, '/l1': 1},
        order={l2: 'contiguous'},
        orders={l3: 1},
        fold={l3: l2},
    )
    assert shared_numbers_of(model) == {'/l2': 2, '/l3': 3}
    assert_same(params_of(model), params_of(expected))
    assert model.l1 is l1


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            lambda model: {'common_num': {MLP().l2: 2}},
            'common_num names Linear.*, which is no link of the model',
        ),
        (
            lambda model: {'common_num': {model.l2: 2, '/l2': 2}},
            'common_num names /l2 twice',
        ),
        (
            lambda model: {'common_num': 2, 'fold': {'/l2': MLP().l1}},
            'fold names Linear.*, which is no link of the model',
        ),
    ],
)
def test_links_that_are_no_choice(settings, message):
    model = MLP()
    with pytest.raises(ValueError, match=r'^share\(\): ' + message):
        share(model, **settings(model))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: L.Linear(4, 4), 'but is one itself: put it into a chainer.S'),
        (lambda: chainer.Sequential(F.relu), 'this Sequential holds none'),
        (
            lambda: chainer.Sequential(SharedLinear(4, 4, common_num=2)),
            r'are shared already: /0 \(common_num 2\); .* call expand first',
        ),
    ],
)
def test_models_without_layers(make, message):
    with pytest.raises(ValueError, match=r'^share\(\): .*' + message):
        share(make(), 2)


def test_a_layer_that_is_shared_already():
    model = MLP()
    share(model, {'/l2': 3})
    message = 'names /l2, which is shared already, with common_num 3; .*/l3$'
    with pytest.raises(ValueError, match=message):
        share(model, {'/l2': 2})


@pytest.mark.parametrize(
    'settings',
    [
        {'common_num': {'/l2': 2}},
        {'common_num': 2, 'inputs': numpy.ones((3, IN))},
    ],
)
def test_a_classifier_has_a_predictor(settings):
    model = L.Classifier(MLP())
    with pytest.raises(ValueError, match='Classifier, pass its predictor$'):
        share(model, **settings)
    share(model.predictor, **settings)


def test_copies_that_share_their_arrays():
    link = L.Linear(4, 4)
    model = chainer.ChainList(link, link.copy())
    with pytest.raises(ValueError, match='several places: /0/W, /1/W'):
        share(model, 2)
