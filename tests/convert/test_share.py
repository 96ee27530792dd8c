"""share and expand: the model before and after."""

import tracemalloc

from chainer_shared_patch import SharedLinear, expand, share
from chainer_shared_patch.convert import grouping
import chainer
from chainer import link_hooks
import chainer.functions as F
import chainer.links as L
from chainer.serializers import save_npz
import numpy
import pytest

from tests.convert.helpers import HIDDEN, MLP, average, state_of, widen
from tests.helpers import assert_same, fill, run_python

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize('order', ['contiguous', 'grouped'])
@pytest.mark.parametrize('nobias', [False, True])
def test_a_shared_layer_computes_what_tiling_its_means_would(
    random, order, nobias
):
    model = chainer.Sequential(L.Linear(40, 7, nobias))
    fill(model)
    W = model[0].W.array.copy()
    (layer,) = share(model, 5, order=order).layers
    link = model[0]
    assert_same([link.W.array], [average(W, 5, link.order)])
    x = random.randn(3, 40)
    b = 0 if nobias else link.b.array
    assert_same([model(x).array], [x @ widen(link).T + b])
    error = numpy.linalg.norm(W - widen(link)) / numpy.linalg.norm(W)
    assert layer.weight_error == pytest.approx(error, rel=2**-30)
    assert layer.output_error is None
    assert layer.folded_into is None


@pytest.mark.parametrize('inputs', [False, True])
def test_sharing_an_expanded_model_anew_loses_nothing(random, inputs):
    model = chainer.Sequential(L.Linear(100, 10))
    x = random.randn(30, 100)
    share(model, 20, inputs=x if inputs else None)
    y = model(x).array
    expand(model)
    (layer,) = share(model, 20).layers
    # The mean of equal numbers is rounded once or twice.
    assert layer.weight_error < 2**-50
    assert_same([model(x).array], [y])


def test_memory_of_share():
    """There is no second dense weight, and no matrix of all columns."""
    n, k, out_size = 2, 3000, 400
    with chainer.using_config('dtype', 'f'):
        model = chainer.Sequential(L.Linear(n * k, out_size))
    narrow = 4 * k * out_size
    tracemalloc.start()
    share(model, n, order='contiguous')
    averaged = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The mean, its copy in the link and its gradient; a few rows, once as
    # they are and twice in float64; whether each element is finite.
    rows = grouping._ROWS * n * k
    assert averaged < 3 * narrow + rows * (4 + 8 + 8) + n * k * out_size


@pytest.mark.parametrize('nobias', [False, True])
@pytest.mark.parametrize('order', ['interleaved', 'contiguous', 'grouped'])
def test_an_expanded_layer_computes_what_it_did(random, order, nobias):
    model = MLP(nobias=nobias)
    if order == 'interleaved':
        with model.init_scope():
            del model.l2
            model.l2 = SharedLinear(
                HIDDEN, HIDDEN, nobias, common_num=4, order=order
            )
        fill(model)
    else:
        share(model, {'/l2': 4}, order=order)
    x = random.randn(5, HIDDEN)
    y, wide, b = model.l2(x).array, widen(model.l2), model.l2.b
    links = dict(model.namedlinks())
    expand(model)
    assert type(model.l2) is L.Linear
    assert_same([model.l2(x).array], [y])
    numpy.testing.assert_array_equal(model.l2.W.array, wide)
    assert model.l2.b is b
    assert model.l2.name == 'l2'
    assert (model.l2.in_size, model.l2.out_size) == (HIDDEN, HIDDEN)
    for path, link in model.namedlinks():
        assert (link is links[path]) == (path != '/l2')


def test_files_of_an_expanded_model_load_without_the_plugin(random, tmp_path):
    model = chainer.Sequential(MLP().l2, F.relu, MLP().l3)
    share(model, {'/0': 2, '/1': 3})
    x = random.randn(5, HIDDEN)
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
    result = run_python(
        *('-c', code, path, tmp_path / 'x.npy'), CHAINER_SHARED_PATCH='0'
    )
    assert result.returncode == 0, result.stderr
    assert_same([numpy.load(str(tmp_path / 'x.npy'))], [y])


class Mine(SharedLinear):
    pass


def make_shared(kind=SharedLinear, in_size=4):
    return kind(in_size, 4, common_num=2)


def make_hooked():
    link = make_shared()
    link.add_hook(link_hooks.TimerHook())
    return link


@pytest.mark.parametrize(
    ('links', 'message'),
    [
        ([make_shared(in_size=None)], '/1 has no weight yet'),
        ([make_shared()] * 2, '/1 .* several places: /1/W, /2/W'),
        ([make_shared(Mine)], '/1 is of class Mine'),
        ([make_hooked()], r'/1 .* link hooks \(TimerHook\)'),
    ],
)
def test_errors_of_expand_change_nothing(links, message):
    model = chainer.ChainList(make_shared(), *links)
    before = state_of(model)
    with pytest.raises(ValueError, match=r'^expand\(\): ' + message):
        expand(model)
    assert state_of(model) == before


def test_nothing_to_expand():
    model = MLP()
    before = state_of(model)
    expand(model)
    assert state_of(model) == before


def test_a_shared_layer_alone_cannot_be_expanded():
    with pytest.raises(ValueError, match='but is one itself: put it into a'):
        expand(make_shared())


@pytest.mark.parametrize(
    ('call', 'convert'),
    [('share', lambda model: share(model, 2)), ('expand', expand)],
)
def test_no_link(call, convert):
    message = rf'^{call}\(\): model must be a chainer.Link, but'
    with pytest.raises(TypeError, match=message):
        convert('a model')
