"""Turning linear layers of a trained model into shared ones."""

import re
import tracemalloc

from chainer_shared_patch import SharedLinear, share
from chainer_shared_patch.convert import grouping
import chainer
from chainer import link_hooks, optimizers
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.convert.helpers import (
    HIDDEN,
    IN,
    MLP,
    in_order,
    mean_weight,
    state_of,
    widen,
)
from tests.helpers import DTYPES, assert_close, assert_same, fill

pytestmark = pytest.mark.arithmetic


class TestWeights:
    @pytest.mark.parametrize('order', ['contiguous', 'grouped'])
    @pytest.mark.parametrize('nobias', [False, True])
    @pytest.mark.parametrize('dtype', DTYPES)
    def test_outputs_are_those_of_the_tiled_mean(
        self, random, dtype, nobias, order
    ):
        n, k, out_size = 5, 8, 7
        with chainer.using_config('dtype', dtype):
            model = chainer.Sequential(L.Linear(n * k, out_size, nobias))
        fill(model)
        W = model[0].W.array.copy()
        b = 0 if nobias else model[0].b.array.astype('d')
        (layer,) = share(model, n, order=order).layers
        link = model[0]
        assert link.W.dtype == W.dtype == numpy.dtype(dtype)
        mean = mean_weight(W, n, link.order)
        scale = mean_weight(abs(W), n, link.order)
        # n weighted columns are added up.
        assert_close(link.W.array, mean, scale, (2 * n + 2, 'd'))
        wide, wide_scale = numpy.empty((2, *W.shape))
        order = in_order(link.order, n * k)
        wide[:, order] = numpy.tile(mean, (1, n))
        wide_scale[:, order] = numpy.tile(scale, (1, n))
        x = random.randn(3, n * k).astype(dtype)
        # And then W is rounded, x summed and multiplied, and b added.
        assert_close(
            link(x).array,
            x.astype('d') @ wide.T + b,
            abs(x.astype('d')) @ wide_scale.T + abs(b),
            (2 * n + 2 + n * k + 1, numpy.promote_types(dtype, 'f')),
            (2, dtype),
        )
        error = numpy.linalg.norm(W - wide) / numpy.linalg.norm(W.astype('d'))
        assert layer.weight_error == pytest.approx(error, rel=1e-9)
        assert layer.output_error is None
        assert layer.folded_into is None

    def test_many_rows(self, random):
        """They are averaged a few at a time."""
        rows = 2 * grouping._ROWS + 3
        model = chainer.Sequential(L.Linear(6, rows))
        fill(model)
        W = model[0].W.array.copy()
        (layer,) = share(model, 2, order='contiguous').layers
        assert_same([model[0].W.array], [(W[:, :3] + W[:, 3:]) / 2])
        error = numpy.linalg.norm(W[:, :3] - W[:, 3:]) / 2**0.5
        assert layer.weight_error == pytest.approx(
            error / numpy.linalg.norm(W), rel=1e-9
        )

    @pytest.mark.parametrize(('dtype', 'scale'), [
        ('e', 3e4), ('f', 1e30), ('f', 1e-30)
    ])  # fmt: skip
    def test_errors_of_extreme_weights(self, random, dtype, scale):
        with chainer.using_config('dtype', dtype):
            model = chainer.Sequential(L.Linear(40, 40))
        W = (random.uniform(-1, 1, (40, 40)) * scale).astype(dtype)
        model[0].W.array[...] = W
        (layer,) = share(model, 4).layers
        wide = widen(model[0]).astype('d') / scale
        W = W.astype('d') / scale
        error = numpy.linalg.norm(W - wide) / numpy.linalg.norm(W)
        assert layer.weight_error == pytest.approx(
            error, rel=4 * float(numpy.finfo(dtype).eps)
        )

    def test_zero_weights(self):
        model = MLP()
        model.l2.W.array[...] = 0
        with numpy.errstate(divide='raise', over='raise', invalid='raise'):
            (layer,) = share(model, {'/l2': 3}).layers
        assert layer.weight_error == 0
        assert not model.l2.W.array.any()

    def test_memory(self, random):
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


X = numpy.ones((3, IN))


PERMUTATION = numpy.arange(HIDDEN)[::-1]


def make_lazy(model):
    with model.init_scope():
        del model.l2
        model.l2 = L.Linear(HIDDEN)


def tie(model):
    model.l2.W = model.l3.W


def tie_bias(model):
    model.l3.b = model.l2.b


def set_array(path, value):
    def change(model):
        dict(model.namedparams())[path].array.flat[1] = value

    return change


def subclass(model):
    class Mine(L.Linear):
        pass

    with model.init_scope():
        del model.l2
        model.l2 = Mine(HIDDEN, HIDDEN)


def add_hook(model):
    model.l2.add_hook(link_hooks.SpectralNormalization())


def share_before(model):
    share(model, {'/l2': 2})


def same_link_twice(model):
    with model.init_scope():
        model.again = model.l2


def nothing(model):
    pass


ERRORS = {
    'width': (nothing, {'common_num': {'/l2': 5}},
              'for /l2 must .* in_size is 12 and common_num is 5; .* 4 or 6$'),
    'width of one': (nothing, {'common_num': 4}, '/l1 .* in_size is 6'),
    'zero': (nothing, {'common_num': 0}, 'common_num for /l1 must .* 0$'),
    'bool': (nothing, {'common_num': True}, 'common_num for /l1 .* True'),
    'text': (nothing, {'common_num': {'/l2': '10'}}, "for /l2 .* '10'"),
    'fraction': (nothing, {'common_num': 2.5}, 'common_num for /l1 .* 2.5'),
    'None': (nothing, {'common_num': None}, 'common_num for /l1 .* None'),
    'path': (nothing, {'common_num': {'/l2': 2, '/l4': 2}},
             'names /l4, which matches none .* are /l1, /l2, /l3'),
    'no slash': (nothing, {'common_num': {'l2': 2}}, ' l2, .* none .* /l2'),
    'pattern': (nothing, {'common_num': {'/fc*': 2}}, r'/fc\*, .* /l1'),
    'two patterns': (nothing, {'common_num': {'/l*': 2, '*2': 2}},
                     r'several patterns for /l2: /l\*, \*2'),
    'not initialized': (make_lazy, {}, '/l2 has no weight yet'),
    'tied': (tie, {}, r'/l2 .* its W occurs in several places: /l2/W, /l3/W'),
    'tied bias': (tie_bias, {}, r'/l2 .* its b occurs in .*: /l2/b, /l3/b'),
    'link twice': (same_link_twice, {},
                   '/again/W, /l2/W'),
    'nan in W': (set_array('/l2/W', numpy.nan), {}, '/l2/W contains NaN'),
    'inf in b': (set_array('/l2/b', numpy.inf), {}, '/l2/b contains NaN'),
    'subclass': (subclass, {}, '/l2, which is of class Mine, not'),
    'hook': (add_hook, {}, '/l2 .* link hooks .SpectralNormalization'),
    'shared': (share_before, {}, '/l2, which is of class SharedLinear'),
    'order': (nothing, {'order': 'interleaved'}, "/l2 must .* 'interleaved'"),
    'allowed orders': (nothing, {'order': [1, 0]},
                       "must be 'grouped', 'contiguous' or a permutation"),
    'no order': (nothing, {'order': None}, '/l2 must .* it is None'),
    'length of order': (nothing, {'order': [1, 0]}, r'/l2 must .* \(2,\)'),
    'order of floats': (nothing, {'order': PERMUTATION * 1.0}, 'float64'),
    'no permutation': (nothing, {'order': PERMUTATION // 2 * 2}, 'is missing'),
    'order of another': (nothing, {'order': {'/l3': 'grouped'}},
                         'order names /l3, which is not being'),
    'no batch': (nothing, {'inputs': []}, 'must hold at least one batch'),
    'empty batch': (nothing, {'inputs': X[:0]}, 'never reach /l2'),
    'bias without inputs': (nothing, {'add_bias': True}, 'without inputs'),
    'nan in inputs': (nothing, {'inputs': X * numpy.nan}, '/l2 .* not finite'),
    'inf in inputs': (nothing, {'inputs': X * numpy.inf}, '/l2 .* not finite'),
    'iterator': (nothing, {'inputs': chainer.iterators.SerialIterator(X, 2)},
                 'not a SerialIterator'),
    'examples with labels': (nothing, {'inputs': [(X[0], 1), (X[0],)]},
                             'batches of ndarray, int, it raises TypeError'),
    'inputs too large': (nothing, {'inputs': X * 1e200}, '/l2 .* too large'),
    'fold of another': (nothing, {'fold': {'/l3': '/l2'}},
                        'fold /l3 into /l2: /l3 is not being shared'),
    'fold into nothing': (nothing, {'fold': {'/l2': '/l4'}},
                          'cannot fold /l2 into /l4: /l4 is not a linear'),
    'fold into a subclass': (subclass, {'common_num': {'/l3': 2},
                                        'fold': {'/l3': '/l2'}},
                             'fold /l3 into /l2: /l2 is not a linear'),
    'fold into itself': (nothing, {'fold': {'/l2': '/l2'}},
                         'fold /l2 into /l2: they are the same layer'),
    'fold twice': (nothing, {'common_num': {'/l2': 2, '/l3': 2},
                             'fold': {'/l2': '/l1', '/l3': '/l1'}},
                   '/l1 can take over only one order'),
    'fold of sizes': (nothing, {'fold': {'/l2': '/l3'}},
                      'cannot fold /l2 into /l3: .* 12 inputs.* 4 outputs'),
    'fold of other sizes': (nothing, {'common_num': {'/l1': 2},
                                      'fold': {'/l1': '/l2'}},
                            '/l1 into /l2: .* 6 inputs.* 12 outputs'),
    'outputs too large': (
        lambda m: m.l2.W.array.fill(1e308),
        {'inputs': X},
        'inputs, an input or output of /l2 is too large or not finite',
    ),
    'fold contiguous': (nothing, {'fold': {'/l2': '/l1'},
                                  'order': 'contiguous'}, '/l2 is contiguous'),
    'fold into tied': (
        lambda m: setattr(m.l3, 'b', m.l1.b),
        {'fold': {'/l2': '/l1'}},
        '/l1 .* its b occurs in several places: /l1/b, /l3/b',
    ),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize('name', ERRORS)
    def test_before_anything_is_changed(self, name):
        prepare, settings, message = ERRORS[name]
        model = MLP()
        prepare(model)
        before = state_of(model)
        with pytest.raises(ValueError, match=r'^share\(\): .*' + message):
            share(model, **{'common_num': {'/l2': 2}, **settings})
        assert state_of(model) == before

    @pytest.mark.parametrize('setting', ['common_num', 'order'])
    def test_paths_that_are_no_strings(self, setting):
        settings = {'common_num': 2, setting: {1: 2}}
        message = rf'^share\(\): {setting} must have paths .* 1$'
        with pytest.raises(TypeError, match=message):
            share(MLP(), **settings)

    @pytest.mark.parametrize('fold', ['/l2', ['/l2'], {'/l2': ['/l1']}, 0])
    def test_fold_of_another_type(self, fold):
        message = r'^share\(\): fold must be .* but is ' + re.escape(
            repr(fold)
        )
        with pytest.raises(TypeError, match=message):
            share(MLP(), 2, fold=fold)

    def test_inputs_that_are_no_iterable(self):
        with pytest.raises(TypeError, match='inputs must .* but are 3'):
            share(MLP(), 2, inputs=3)

    @pytest.mark.parametrize(
        'model', [L.Linear(4, 4), chainer.Sequential(F.relu), L.LSTM]
    )
    def test_models_without_layers(self, model):
        if model is L.LSTM:
            model = SharedLinear(4, 4, common_num=2)
        with pytest.raises(
            ValueError, match=f'this {type(model).__name__} holds none'
        ):
            share(model, 2)

    def test_copies_that_share_their_arrays(self):
        link = L.Linear(4, 4)
        model = chainer.ChainList(link, link.copy())
        with pytest.raises(ValueError, match='several places: /0/W, /1/W'):
            share(model, 2)

    def test_layers_that_inputs_do_not_reach(self, x):
        class Part(MLP):
            def forward(self, x):
                return self.l3(self.l1(x))

        model = Part()
        before = state_of(model)
        with pytest.raises(ValueError, match='never reach /l2'):
            share(model, 2, inputs=x)
        assert state_of(model) == before

    def test_layers_that_the_patch_shares(self, x):
        model = MLP()
        before = state_of(model)
        with chainer.using_config('common_num', 2):
            with pytest.raises(
                ValueError,
                match=r'/l1 is already .* \(12, 6\) is used for 12 columns',
            ):
                share(model, {'/l1': 2}, inputs=numpy.tile(x, 2))
        assert state_of(model) == before

    @pytest.mark.parametrize('call', range(2, 9))
    @pytest.mark.parametrize(
        'error', [KeyboardInterrupt, MemoryError, ZeroDivisionError]
    )
    def test_failures_on_the_way_change_nothing(self, x, call, error):
        class Failing(MLP):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls == call:
                    raise error
                return super().forward(x)

        model = Failing()
        optimizer = optimizers.Adam().setup(model)
        model.cleargrads()
        F.sum(MLP.forward(model, x)).backward()
        optimizer.update()
        before = state_of(model)

        def attempt():
            share(
                model,
                {'/l2': 2, '/l3': 2},
                inputs=x,
                fold={'/l3': '/l2', '/l2': '/l1'},
            )

        # One for all outputs, one for each layer, two for each pair.
        if call <= 7:
            with pytest.raises(error):
                attempt()
            assert state_of(model) == before
        else:
            attempt()
            assert state_of(model) != before

    def test_a_model_that_overflows_when_it_is_shared(self, random):
        """Two columns cancel, until they share with others."""

        class Overflowing(MLP):
            def forward(self, x):
                return self.l2(F.exp(1e9 * self.l1(x)))

        model = Overflowing(nobias=True)
        model.l1.W.array[...] = numpy.array([1, -1, 0, 0, 0, 0])
        x = random.randn(5, IN)
        x[:, 1] = x[:, 0]
        before = state_of(model)
        with numpy.errstate(over='ignore'):
            with pytest.raises(
                ValueError, match='/l2 .* inputs are not finite'
            ):
                share(model, {'/l1': 2, '/l2': 2}, inputs=x)
        assert state_of(model) == before

    def test_weights_that_float16_cannot_hold(self):
        with chainer.using_config('dtype', 'float16'):
            model = chainer.Sequential(L.Linear(2, 1, nobias=True))
        model[0].W.array[...] = [[6e4, 2e4]]
        before = state_of(model)
        # y is 5e4 x_0 and the sum x_0 / 2, so that W is to be near 1e5.
        x = numpy.array([[0.5, -0.25], [0.25, -0.125]], 'e')
        with pytest.raises(ValueError, match='/0 .* range of float16'):
            share(model, 2, inputs=x)
        assert state_of(model) == before

    def test_a_model_that_calls_a_layer_a_varying_number_of_times(self, x):
        class Varying(MLP):
            calls = 0

            def forward(self, x):
                self.calls += 1
                for _ in range(self.calls):
                    y = self.l1(x)
                return y

        model = Varying()
        before = state_of(model)
        with pytest.raises(ValueError, match='/l1 .* no longer calls it'):
            share(model, {'/l1': 2}, inputs=x)
        assert state_of(model) == before
