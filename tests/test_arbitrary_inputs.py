"""Arbitrary inputs give the right result or a documented error, no other.

What is accepted is compared with something independent: the
definition of a shared layer, or the model before it was shared.
"""

import math
import os
import re
from unittest import mock

import chainer_shared_patch
from chainer_shared_patch import SharedLinear, config
import chainer
import chainer.functions as F
import chainer.links as L
from chainer.utils.type_check import InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy
from numpy.testing import assert_array_equal

many = settings(max_examples=400)
texts = st.text(st.characters(codec='utf-8', exclude_characters='\0'))
seeds = st.integers(0, 255)
numbers = st.integers(-2, 6) | st.sampled_from(
    [
        *(2**70, True, 2.0, 2.5, math.nan, math.inf, 2j, None, object),
        *('', '2', 'ten', b'2', [2], (), {}),
        *(numpy.int8(2), numpy.uint64(3), numpy.float32(2), numpy.True_),
        *(numpy.array(2), numpy.array([2]), chainer.Variable(numpy.ones(1))),
    ]
)


def is_number(value):
    """Returns whether a value may be a common_num."""
    is_integer = type(value) is int or isinstance(value, numpy.integer)
    return is_integer and value >= 1


def integers(seed, shape, dtype='f'):
    """Returns integers so small that no sum of their products is rounded."""
    random = numpy.random.RandomState(seed)
    return random.randint(-3, 4, shape).astype(dtype)


def shared(x, W, b, n):
    """Returns the output of a shared layer by its definition, in float64."""
    y = x.astype('d') @ numpy.tile(W.astype('d').T, (int(n), 1))
    return y if b is None else y + b


# ------------------------------------------------------------ environment


@many
@given(
    st.integers(0, 20).map(str)
    | st.sampled_from(['007', '+1', '1_0', ' 1', '１', '٣'])
    | texts,
    st.sampled_from(['sum', 'tile', 'SUM', '']) | texts,
    st.sampled_from(['0', '1', 'yes', '']) | texts,
)
def test_environment(number, algorithm, switch):
    mistakes = {
        'CHAINER_COMMON_NUM': not re.fullmatch('0*[1-9][0-9]*', number),
        'CHAINER_SHARED_ALGORITHM': algorithm not in ('sum', 'tile'),
        'CHAINER_SHARED_PATCH': switch not in ('0', '1'),
    }
    values = zip(mistakes, (number, algorithm, switch))
    del chainer.global_config.common_num
    del chainer.global_config.shared_algorithm
    try:
        with mock.patch.dict(os.environ, values):
            is_on = config.read_environment()
    except ValueError as error:
        assert mistakes[str(error).split()[0]]
    else:
        assert not any(mistakes.values())
        assert chainer.global_config.common_num == int(number)
        assert chainer.global_config.shared_algorithm == algorithm
        assert is_on == (switch == '1')
    finally:
        chainer.global_config.common_num = 1
        chainer.global_config.shared_algorithm = 'sum'


# -------------------------------------------------------------- layers


@many
@given(st.data(), numbers, st.sampled_from(config.ALGORITHMS))
def test_linear_under_the_patch(data, number, algorithm):
    draw = data.draw
    rows, k, out_size = draw(st.tuples(*[st.integers(0, 4)] * 3))
    fitting = min(int(number), 6) if is_number(number) else 2
    blocks = draw(st.sampled_from([fitting, fitting, 1, 3]))
    dtypes = st.sampled_from('fffedilF?')
    x = integers(draw(seeds), (rows, blocks * k), draw(dtypes))
    W = integers(draw(seeds), (out_size, k), draw(dtypes))
    b = None
    if draw(st.booleans()):
        length = draw(st.sampled_from([out_size, out_size, 1]))
        dtype = draw(st.sampled_from([x.dtype, x.dtype, 'f', 'i']))
        b = integers(draw(seeds), length, dtype)
    x, W = draw(
        st.sampled_from([(x, W)] * 5 + [(x[:, :-1], W), (x, W[:, :-1])])
        | st.sampled_from([(x[None], W), (x, W[None]), (x.T.copy().T, W)])
    )
    columns = math.prod(x.shape[1:])
    fits = (
        x.dtype.kind == W.dtype.kind == 'f'
        and W.ndim == 2
        and (b is None or (b.dtype == x.dtype and b.shape == W.shape[:1]))
    )
    ordinary = fits and columns == W.shape[1]
    is_shared = fits and not ordinary and is_number(number)
    is_shared = is_shared and columns == number * W.shape[1]
    # Without type checks, Chainer's own layers take whatever NumPy takes.
    type_check = not (is_shared and draw(st.booleans()))
    try:
        with chainer.using_config('common_num', number):
            with chainer.using_config('shared_algorithm', algorithm):
                with chainer.using_config('type_check', type_check):
                    y = F.linear(x, W, b).array
    except InvalidType:
        assert not ordinary and not is_shared
    except ValueError as error:
        assert not ordinary and not is_number(number)
        assert 'common_num must be' in str(error)
    else:
        assert ordinary or is_shared
        x = x.reshape(len(x), columns)
        assert y.dtype == x.dtype
        assert_array_equal(y, shared(x, W, b, number if is_shared else 1))


def list_orders(width, seed):
    """Returns pairs of an order and the permutation that it means, if any."""
    p = numpy.random.RandomState(seed).permutation(width)
    identity = numpy.arange(width)
    good = [(None, identity), (p, p), (p.tolist(), p), (p.astype('i1'), p)]
    good += [('interleaved', 'interleaved'), (chainer.Variable(p), p)]
    good.append((p[None], p))
    bad = [
        p.astype('f'),
        p + 1,
        p[:-1],
        [p, 0 * p],
        p * -1,
        p > 0,
        '',
        'grouped',
    ]
    bad += [p.astype(str), p.astype('O'), 0, 2.5, math.nan, object, b'1']
    return good * 3 + [(order, None) for order in bad]


@many
@given(
    st.data(),
    numbers,
    st.sampled_from([1, 2, 5, 6, 12, None]),
    st.integers(0, 3),
    st.booleans(),
)
def test_shared_linear(data, number, in_size, out_size, nobias):
    width = in_size or 6
    orders = list_orders(width, data.draw(seeds))
    order, permutation = data.draw(st.sampled_from(orders))
    valid = is_number(number) and width % number == 0
    # One column in a row of its own is a permutation in any direction.
    if width == 1 and permutation is None:
        order = permutation = [0]
    x = integers(data.draw(seeds), (data.draw(st.integers(0, 2)), width))
    try:
        link = SharedLinear(
            in_size, out_size, nobias, common_num=number, order=order
        )
        link(x)
    except ValueError as error:
        assert not valid or permutation is None
        assert 'common_num' in str(error) or 'order' in str(error)
        return
    assert valid and permutation is not None
    assert link.W.shape == (out_size, width // number)
    if isinstance(permutation, str):
        permutation = numpy.arange(width).reshape(-1, number).T.ravel()
    for seed, parameter in enumerate(link.params()):
        parameter.array[...] = integers(seed, parameter.shape)
    b = None if nobias else link.b.array
    expected = shared(x[:, permutation], link.W.array, b, number)
    assert_array_equal(link(x).array, expected)


paths = st.sampled_from(['/0', '/1', '/*', '', '/', '/2', '/[', 'l1', '/?'])
orders = st.sampled_from(
    [
        *('grouped', 'contiguous', 'interleaved', None, 2.5, numpy.arange(6)),
        *({}, {'/0': numpy.arange(6)[::-1]}, {'/0': [0]}, {'/7': 'grouped'}),
    ]
)


@given(numbers | st.dictionaries(paths, numbers, max_size=3), orders)
def test_share_and_expand(number, order):
    model = chainer.Sequential(L.Linear(6, 4), F.relu, L.Linear(4, 2))
    x = numpy.random.RandomState(0).rand(3, 6).astype('f')
    before = model(x).array
    try:
        report = chainer_shared_patch.share(model, number, order=order)
    except ValueError as error:
        assert 'common_num' in str(error) or 'order' in str(error)
        assert type(model[0]) is type(model[2]) is L.Linear
        assert_array_equal(model(x).array, before)
        return
    narrowed = {layer.path: layer.common_num for layer in report.layers}
    assert all(map(is_number, narrowed.values()))
    if not isinstance(number, dict):
        assert set(narrowed.values()) <= {number}
    assert model[0].W.shape == (4, 6 // narrowed.get('/0', 1))
    assert model[2].W.shape == (2, 4 // narrowed.get('/1', 1))
    y = model(x).array
    chainer_shared_patch.expand(model)
    assert type(model[0]) is type(model[2]) is L.Linear
    # Two layers of at most 7 products and sums, each below 2**5, rounded in
    # float32 in another order.
    bound = 2 * 14 * 2**5 * numpy.finfo('f').eps
    numpy.testing.assert_allclose(model(x).array, y, 0, bound)
