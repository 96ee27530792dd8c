import tracemalloc

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat.adam import BLOCK_SIZE
import chainer
from chainer.optimizers.adam import AdamRule
import numpy
import pytest

CHAINERS_OWN = AdamRule.update_core_cpu.__wrapped__


def update(arrays, gradients, **hyperparams):
    """Returns parameters, and their states, after an update per gradient."""
    link = chainer.Link()
    with link.init_scope():
        for name, array in arrays.items():
            setattr(link, name, chainer.Parameter())
            getattr(link, name).array = array.copy('K')
    optimizer = chainer.optimizers.Adam(**hyperparams).setup(link)
    for step in gradients:
        for name, gradient in step.items():
            getattr(link, name).grad = gradient
        optimizer.update()
    return [
        array
        for param in link.params()
        for array in (param.array, *param.update_rule.state.values())
    ]


@pytest.mark.parametrize(
    ('dtype', 'hyperparams'),
    [
        ('f', {}),
        ('f', {'alpha': 0.1, 'beta1': 0.5, 'beta2': 0.9, 'eps': 1e-3}),
        ('f', {'eta': 0.5, 'weight_decay_rate': 0.1}),
        ('f', {'amsgrad': True}),
        ('f', {'adabound': True}),
        ('f', {'alpha': numpy.float64(0.001), 'beta1': numpy.float64(0.9)}),
        ('d', {}),
        ('e', {}),
    ],
)
def test_blocks_get_chainers_own_bits(random, monkeypatch, dtype, hyperparams):
    shapes = {
        'one_block': (BLOCK_SIZE,),
        'one_more': (BLOCK_SIZE + 1,),
        'whole_blocks': (2, BLOCK_SIZE),
        'transposed': (300, 300),
        'scalar': (),
    }
    draw = {
        name: lambda shape=shape: numpy.asarray(
            random.randn(*shape), dtype, order='F'
        )
        for name, shape in shapes.items()
    }
    arrays = {name: each() for name, each in draw.items()}
    gradients = [{name: each() for name, each in draw.items()}] * 2
    gradients.append({name: each() for name, each in draw.items()})
    arrays['whole_blocks'] = arrays['whole_blocks'].copy('C')
    actual = update(arrays, gradients, **hyperparams)
    monkeypatch.setattr(AdamRule, 'update_core_cpu', CHAINERS_OWN)
    expected = update(arrays, gradients, **hyperparams)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert a.tobytes() == e.tobytes()


def test_no_temporary_array_is_larger_than_a_block(random):
    arrays = {'W': random.randn(64 * BLOCK_SIZE).astype('f')}
    param = chainer.Parameter(arrays['W'])
    param.grad = arrays['W']
    rule = chainer.optimizers.Adam().create_update_rule()
    rule.update(param)
    tracemalloc.start()
    try:
        rule.update(param)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 4 * BLOCK_SIZE


def test_state_of_another_shape_is_refused():
    # As of a wider layer in a file, in which both are whole blocks.
    param = chainer.Parameter(numpy.zeros((2, BLOCK_SIZE), 'f'))
    rule = AdamRule(chainer.optimizers.Adam().hyperparam)
    param.grad = numpy.zeros_like(param.array)
    rule.update(param)
    rule.state['m'] = numpy.ones((4, BLOCK_SIZE), 'f')
    param.grad[...] = 1
    with pytest.raises(ValueError):
        rule.update(param)
    assert (param.array == 0).all()
