"""Files of linear layers, ordinary and shared, and what is refused."""

import copy

from chainer_shared_patch import (
    SharedLinear,
    functions,
    share,
    uninstall,
)
from chainer_shared_patch import (
    load_npz as load_shared_npz,
)
import chainer
from chainer import link_hooks
import chainer.functions as F
import chainer.links as L
from chainer.serializers import (
    HDF5Deserializer,
    load_hdf5,
    load_npz,
    save_hdf5,
    save_npz,
)
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests.helpers import (
    ORDERS,
    PERMUTATION,
    K,
    N,
    fill,
    make_link,
    params_of,
)

OUT = 5
BATCH = 4


class TestLinear:
    def reload(self, tmp_path, source, target):
        path = str(tmp_path / 'link.npz')
        save_npz(path, source)
        load_npz(path, target)

    # Blocks of one column are what NumPy would broadcast.
    @pytest.mark.parametrize('k', [1, K])
    @pytest.mark.parametrize('into_shared', [True, False])
    def test_dense_and_shared_are_told_apart(self, tmp_path, k, into_shared):
        dense, shared = L.Linear(N * k, OUT), L.Linear(k, OUT)
        source, target = (dense, shared) if into_shared else (shared, dense)
        before = target.W.array.copy()
        with pytest.raises(ValueError) as info:
            self.reload(tmp_path, source, target)
        for words in (
            f'cannot load a W of shape {source.W.shape}',
            f'whose W has the shape {target.W.shape}',
            f'{dense.W.shape} is the shape in an ordinary layer',
            f'{shared.W.shape} that in a layer shared by',
            f'by {N} blocks',
            'Linear({}, {})'.format(*source.W.shape[::-1]),
        ):
            assert words in str(info.value)
        numpy.testing.assert_array_equal(target.W.array, before)

    def test_other_widths_are_refused(self, tmp_path):
        with pytest.raises(ValueError) as info:
            self.reload(tmp_path, L.Linear(5, OUT), L.Linear(3, OUT))
        message = str(info.value)
        assert f'{(OUT, 5)}' in message
        assert f'{(OUT, 3)}' in message
        assert 'shared' not in message

    def test_no_width_is_refused(self, tmp_path):
        path = str(tmp_path / 'link.npz')
        numpy.savez(path, W=numpy.zeros((OUT, 0)), b=numpy.zeros(OUT))
        message = r'\(5, 0\) into a Linear whose W has the shape \(5, 2\)$'
        with pytest.raises(ValueError, match=message):
            load_npz(path, L.Linear(K, OUT))

    def test_within_a_chain(self, tmp_path):
        with pytest.raises(ValueError, match='shared by 3 blocks'):
            self.reload(
                tmp_path,
                chainer.Sequential(L.Linear(2, OUT), L.Linear(N * K, OUT)),
                chainer.Sequential(L.Linear(2, OUT), L.Linear(K, OUT)),
            )

    @pytest.mark.parametrize('k', [1, K])
    def test_hdf5(self, tmp_path, k):
        h5py = pytest.importorskip('h5py')
        path = str(tmp_path / 'link.h5')
        save_hdf5(path, chainer.Sequential(L.Linear(N * k, OUT)))
        with pytest.raises(ValueError, match='shared by 3 blocks'):
            load_hdf5(path, chainer.Sequential(L.Linear(k, OUT)))
        # Of a link that the file lacks there is not even a group.
        link = L.Linear(k, OUT)
        before = link.W.array.copy()
        two = chainer.Sequential(L.Linear(N * k, OUT), link)
        with h5py.File(path, 'r') as file:
            HDF5Deserializer(file, strict=False).load(two)
        numpy.testing.assert_array_equal(link.W.array, before)

    def test_other_links_of_a_subclass_are_serialized(self, tmp_path):
        class Extra(chainer.Link):
            extra = 0

            def serialize(self, serializer):
                super().serialize(serializer)
                self.extra = serializer('extra', self.extra)

        class Both(L.Linear, Extra):
            pass

        source, target = Both(K, OUT), Both(K, OUT)
        source.extra = 7
        self.reload(tmp_path, source, target)
        assert target.extra == 7
        numpy.testing.assert_array_equal(target.W.array, source.W.array)

    def test_subclass_that_saves_an_order_of_its_own(self, tmp_path):
        class Ordered(L.Linear):
            own = 3

            def serialize(self, serializer):
                super().serialize(serializer)
                self.own = serializer('order', numpy.arange(self.own)).size

        target = Ordered(K, OUT)
        self.reload(tmp_path, Ordered(K, OUT), target)
        assert target.own == 3

    def test_links_whose_W_is_no_matrix_of_parameters(self, tmp_path):
        without = L.Linear(K, OUT)
        del without.W
        self.reload(tmp_path, without, without)
        vector = L.Linear(K, OUT)
        with vector.init_scope():
            vector.W = chainer.Parameter(0, (OUT,))
        with pytest.raises(ValueError, match='cannot load a W of shape'):
            self.reload(tmp_path, L.Linear(K, OUT), vector)

    def test_deserializer_of_a_subclass_keeps_its_own_ways(self, tmp_path):
        class Renaming(chainer.serializers.NpzDeserializer):
            def __call__(self, key, value):
                return super().__call__('old_' + key, value)

        path = str(tmp_path / 'link.npz')
        source = L.Linear(K, OUT)
        numpy.savez(path, old_W=source.W.array, old_b=source.b.array)
        target = L.Linear(K, OUT)
        with numpy.load(path) as file:
            Renaming(file).load(target)
        numpy.testing.assert_array_equal(target.W.array, source.W.array)

    def test_link_of_no_width_yet_is_loaded_as_such(self, tmp_path):
        self.reload(tmp_path, L.Linear(None, OUT), L.Linear(None, OUT))
        target = L.Linear(None, OUT)
        self.reload(tmp_path, L.Linear(None, OUT), target)
        assert target.W.array is None

    def test_every_array_is_read_once(self, tmp_path, monkeypatch):
        path = str(tmp_path / 'link.npz')
        save_npz(path, L.Linear(K, OUT))
        read = []
        read_array = numpy.lib.format.read_array

        def counted(*args, **kwargs):
            read.append(read_array(*args, **kwargs))
            return read[-1]

        monkeypatch.setattr(numpy.lib.format, 'read_array', counted)
        load_npz(path, L.Linear(K, OUT))
        assert sorted(array.shape for array in read) == [(OUT,), (OUT, K)]

    def test_missing_W_is_chainers_to_refuse(self, tmp_path):
        path = str(tmp_path / 'link.npz')
        numpy.savez(path, b=numpy.zeros(OUT, 'f'))
        with pytest.raises(KeyError):
            load_npz(path, L.Linear(K, OUT))
        load_npz(path, L.Linear(K, OUT), strict=False)

    def test_link_of_no_width_yet_becomes_shared(
        self, random, tmp_path, algorithm
    ):
        shared, lazy = L.Linear(K, OUT), L.Linear(None, OUT)
        fill(shared)
        self.reload(tmp_path, shared, lazy)
        x = random.randn(BATCH, N * K).astype('f')
        with chainer.using_config('common_num', N):
            y = lazy(x)
            numpy.testing.assert_array_equal(y.array, shared(x).array)
        assert lazy.W.shape == (OUT, K)
        assert isinstance(y.creator_node, functions.SharedLinearFunction)

    def test_link_of_no_width_yet_is_dense_on_its_own(self, random):
        lazy = L.Linear(None, OUT)
        with chainer.using_config('common_num', N):
            lazy(random.randn(BATCH, N * K).astype('f'))
        assert lazy.W.shape == (OUT, N * K)

    def test_copyparams_from_dense_is_refused(self):
        with pytest.raises(ValueError, match='broadcast'):
            L.Linear(K, OUT).copyparams(L.Linear(N * K, OUT))


class TestSharedLinear:
    @pytest.fixture
    def path(self, tmp_path):
        return str(tmp_path / 'link.npz')

    def check_refused(self, path, target, *words, **kwargs):
        before = copy.deepcopy(target)
        with pytest.raises(ValueError) as info:
            load_npz(path, target, **kwargs)
        for word in words:
            assert word in str(info.value)
        assert str(target) == str(before)
        for a, e in zip(target.params(), before.params()):
            numpy.testing.assert_array_equal(a.array, e.array)

    def save(self, path, **changes):
        """Saves a link some of whose arrays are others."""
        save_npz(path, make_link(PERMUTATION))
        with numpy.load(path) as file:
            arrays = {**file, **changes}
        numpy.savez(path, **{k: a for k, a in arrays.items() if a is not None})

    @pytest.mark.parametrize('strict', [True, False])
    def test_bias_that_the_link_lacks(self, path, strict):
        save_npz(path, make_link())
        target = make_link(nobias=True)
        self.check_refused(path, target, 'with a bias', strict=strict)

    def test_file_holds_no_pickles(self, path, orders):
        link = make_link(orders[0])
        save_npz(path, link)
        with numpy.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        assert sorted(arrays) == ['W', 'b', 'common_num', 'order']
        assert arrays['common_num'] == N
        expected = [] if link.order is None else link.order
        numpy.testing.assert_array_equal(arrays['order'], expected)

    @pytest.mark.parametrize('other', ORDERS)
    def test_order_is_that_of_the_file(self, random, path, orders, other):
        uninstall()
        source = make_link(orders[0])
        save_npz(path, source)
        target = make_link(ORDERS[other][0], seed=1)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, source(x).array)

    @pytest.mark.parametrize('other', [None, 'interleaved'])
    def test_into_a_link_of_no_width_yet(
        self, random, path, orders, double, other
    ):
        source = make_link(orders[0])
        save_npz(path, source)
        target = SharedLinear(None, OUT, common_num=N, order=other)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, source(x).array)
        assert str(target) == str(source)
        with pytest.raises(InvalidType):
            target(numpy.zeros((BATCH, N * K + N)))

    def test_file_of_a_link_of_no_width_yet(self, random, path):
        lazy = SharedLinear(None, OUT, common_num=N, order='interleaved')
        save_npz(path, lazy)
        with numpy.load(path, allow_pickle=False) as file:
            assert file['order'].dtype == numpy.int64
        for target in (
            SharedLinear(None, OUT, common_num=N, order='interleaved'),
            SharedLinear(N * K, OUT, common_num=N, order='interleaved'),
        ):
            load_npz(path, target)
            target(numpy.zeros((BATCH, N * K), 'f'))
            numpy.testing.assert_array_equal(
                target.order, ORDERS['interleaved'][1]
            )

    @pytest.mark.parametrize('in_size', [N * K, None])
    @pytest.mark.parametrize('strict', [True, False])
    def test_another_common_num(self, path, in_size, strict):
        save_npz(path, make_link(in_size=2 * K, common_num=2))
        target = SharedLinear(in_size, OUT, common_num=N)
        words = 'with common_num 2 into one with common_num 3'
        self.check_refused(path, target, words, strict=strict)

    @pytest.mark.parametrize('strict', [True, False])
    @pytest.mark.parametrize('columns', [K, N * K])
    def test_file_of_a_linear(self, path, strict, columns):
        save_npz(path, L.Linear(columns, OUT))
        target = make_link(PERMUTATION)
        words = (
            'cannot load a Linear',
            f'{(OUT, columns)}',
            'chainer_shared_patch.share',
            'SharedLinear.from_params',
        )
        self.check_refused(path, target, *words, strict=strict)

    @pytest.mark.parametrize(
        'changes',
        [
            {'order': numpy.array([0, 1, 2, 3, 4, numpy.nan])},
            {'order': numpy.array([0, 1, 2, 3, 4, 4])},
            {'order': numpy.arange(4)},
            {'order': numpy.arange(9)},
            {'order': None},
            {'common_num': None},
            {'common_num': numpy.array(numpy.nan)},
            {'common_num': numpy.array([N, N])},
            {'W': numpy.ones((OUT, 1))},
            {'W': numpy.ones((1, K))},
            {'W': numpy.ones(K)},
            {'W': numpy.ones((OUT, 2 * K))},
            {'b': numpy.ones(1)},
            {'order': numpy.array([None, 1], object)},
            {'b': numpy.array([None, 1], object)},
        ],
        ids=str,
    )
    def test_broken_file(self, path, changes):
        self.save(path, **changes)
        self.check_refused(path, make_link('interleaved', seed=1))

    @pytest.mark.parametrize(
        'W', [numpy.ones((1, K)), numpy.ones(K), numpy.ones((OUT, 2 * K))]
    )
    def test_broken_file_into_a_link_of_no_width_yet(self, path, W):
        self.save(path, W=W)
        target = SharedLinear(None, OUT, common_num=N, order='interleaved')
        self.check_refused(path, target)
        assert target.W.array is None

    @pytest.mark.parametrize('missing', ['W', 'b'])
    def test_missing_parameter(self, path, missing):
        self.save(path, **{missing: None})
        target = make_link('interleaved', seed=1)
        before = params_of(target)
        with pytest.raises(KeyError, match=missing):
            load_npz(path, target)
        for a, e in zip(params_of(target), before):
            numpy.testing.assert_array_equal(a, e)
        load_npz(path, target, strict=False)
        # An order without its W would be of no use.
        expected = ORDERS['interleaved'][1] if missing == 'W' else PERMUTATION
        numpy.testing.assert_array_equal(target.order, expected)

    def test_path(self, random, path):
        model = chainer.Sequential(make_link(PERMUTATION), F.relu)
        save_npz(path, model)
        target = make_link(seed=1)
        load_npz(path, target, path='0/')
        x = random.randn(BATCH, N * K)
        numpy.testing.assert_array_equal(target(x).array, model[0](x).array)
        untouched = make_link('interleaved', seed=1)
        with pytest.raises(KeyError):
            load_npz(path, untouched, path='1/')
        load_npz(path, untouched, path='1/', strict=False)
        expected = make_link('interleaved', seed=1)
        numpy.testing.assert_array_equal(untouched(x).array, expected(x).array)

    def test_ignore_names(self, path):
        save_npz(path, make_link(PERMUTATION))
        target = make_link('interleaved', seed=1)
        load_npz(path, target, ignore_names=['W'])
        numpy.testing.assert_array_equal(
            target.order, ORDERS['interleaved'][1]
        )

    @pytest.mark.parametrize('in_size', [K, None])
    def test_linear_refuses_an_order(self, path, in_size):
        save_npz(path, make_link(PERMUTATION))
        target = L.Linear(in_size, OUT)
        words = 'with common_num 3 and an order', 'SharedLinear'
        self.check_refused(path, target, *words)

    def test_linear_that_the_patch_shares_takes_contiguous_blocks(
        self, random, path, double
    ):
        source = make_link()
        save_npz(path, source)
        target = L.Linear(K, OUT)
        load_npz(path, target)
        x = random.randn(BATCH, N * K)
        with chainer.using_config('common_num', N):
            numpy.testing.assert_array_equal(target(x).array, source(x).array)
        with pytest.raises(InvalidType):
            target(x)
        with pytest.raises(ValueError, match=f'shared by {N} blocks'):
            load_npz(path, L.Linear(N * K, OUT))

    def test_linear_with_an_order_of_its_own(self, path):
        class Ordered(L.Linear):
            def __init__(self):
                super().__init__(K, OUT)
                self.add_persistent('order', numpy.arange(3))

        source, target = Ordered(), Ordered()
        source.order = numpy.array([2, 1, 0])
        save_npz(path, source)
        load_npz(path, target)
        numpy.testing.assert_array_equal(target.order, [2, 1, 0])

    def test_other_links_of_a_subclass_are_serialized(self, path):
        class Extra(chainer.Link):
            extra = 0

            def serialize(self, serializer):
                super().serialize(serializer)
                self.extra = serializer('extra', self.extra)

        class Both(SharedLinear, Extra):
            pass

        source, target = (Both(N * K, OUT, common_num=N) for _ in range(2))
        source.extra = 7
        save_npz(path, source)
        load_npz(path, target)
        assert target.extra == 7

    def test_hdf5(self, random, tmp_path, orders, double):
        pytest.importorskip('h5py')
        path = str(tmp_path / 'link.h5')
        source = make_link(orders[0])
        chainer.serializers.save_hdf5(path, source)
        x = random.randn(BATCH, N * K)
        lazy = SharedLinear(None, OUT, common_num=N)
        for target in (make_link('interleaved', seed=1), lazy):
            chainer.serializers.load_hdf5(path, target)
            numpy.testing.assert_array_equal(target(x).array, source(x).array)
        with pytest.raises(ValueError, match='common_num 3 into .* 2$'):
            chainer.serializers.load_hdf5(
                path, make_link(in_size=2 * K, common_num=2)
            )
        if orders[0] is not None:
            with pytest.raises(ValueError, match='an order of its inputs'):
                chainer.serializers.load_hdf5(path, L.Linear(K, OUT))
        chainer.serializers.save_hdf5(path, L.Linear(K, OUT))
        with pytest.raises(ValueError, match='cannot load a Linear'):
            chainer.serializers.load_hdf5(path, make_link(orders[0]))


class Network(chainer.Chain):
    def __init__(self, in_size=N * K, nobias=False):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(in_size, 8, nobias)
            self.l2 = L.Linear(8, 8)
            self.bn = L.BatchNormalization(8)
        self.add_link('l3/out', L.Linear(8, 3, nobias))

    def forward(self, x):
        return self['l3/out'](self.bn(self.l2(F.relu(self.l1(x)))))


class TestLoadNpz:
    @pytest.fixture
    def path(self, tmp_path):
        return str(tmp_path / 'model.npz')

    @pytest.fixture
    def x(self, random):
        return random.randn(BATCH, N * K).astype('f')

    @pytest.fixture
    def model(self, random, x):
        model = Network(nobias=True)
        fill(model)
        model.bn.avg_mean[...] = random.randn(8)
        share(model, {'/l1': N, '/l3/out': 4}, inputs=x, add_bias=True)
        return model

    def evaluate(self, model, x):
        with chainer.using_config('train', False):
            return model(x).array

    # The first has a bias that the file has, the second lacks one.
    @pytest.mark.parametrize('nobias', [False, True])
    @pytest.mark.parametrize('in_size', [N * K, None])
    def test_a_dense_model_becomes_as_the_file(
        self, path, x, model, nobias, in_size
    ):
        save_npz(path, model)
        loaded = Network(in_size, nobias)
        l2 = loaded.l2
        chainer.optimizers.Adam().setup(loaded)
        load_shared_npz(path, loaded)
        y = self.evaluate(loaded, x)
        numpy.testing.assert_array_equal(y, self.evaluate(model, x))
        assert loaded.l2 is l2
        assert loaded['l3/out'].common_num == 4
        assert all(each.update_rule is not None for each in loaded.params())
        # Another time there is nothing to share.
        links = list(loaded.links())
        load_shared_npz(path, loaded)
        assert list(loaded.links()) == links

    def test_a_bias_that_the_file_lacks(self, path):
        model = chainer.Sequential(make_link(PERMUTATION, nobias=True))
        save_npz(path, model)
        loaded = chainer.Sequential(L.Linear(N * K, OUT))
        load_shared_npz(path, loaded)
        assert loaded[0].b is None
        numpy.testing.assert_array_equal(loaded[0].order, PERMUTATION)

    def test_within_a_file(self, path, x, model):
        save_npz(path, chainer.Sequential(model))
        loaded = Network(nobias=True)
        load_shared_npz(path, loaded, path='0/')
        y = self.evaluate(loaded, x)
        numpy.testing.assert_array_equal(y, self.evaluate(model, x))

    @pytest.mark.parametrize(
        'names', [['l1/W', 'l1/b'], lambda name: name.startswith('l1/')]
    )
    def test_layers_that_are_not_loaded_stay(self, path, model, names):
        save_npz(path, model)
        loaded = Network(in_size=5)
        l1, W = loaded.l1, loaded.l1.W.array.copy()
        load_shared_npz(path, loaded, ignore_names=names)
        assert loaded.l1 is l1
        numpy.testing.assert_array_equal(l1.W.array, W)
        assert loaded['l3/out'].common_num == 4

    def test_dtype_is_the_models(self, path, model):
        save_npz(path, model)
        with chainer.using_config('dtype', 'd'):
            loaded = Network(nobias=True)
        load_shared_npz(path, loaded)
        assert loaded.l1.W.dtype == loaded.l1.b.dtype == numpy.float64

    @pytest.mark.parametrize(
        ('changes', 'message'),
        [
            ({'l1/common_num': numpy.array(4)}, 'common_num of /l1 must div'),
            ({'l1/common_num': numpy.ones(2)}, 'common_num of /l1 must be'),
            ({'l1/order': numpy.arange(4)}, '/l1: order must be'),
            ({'l1/W': numpy.ones((8, 1))}, r'/l1: cannot load a W of shape'),
            ({'l3/out/b': numpy.ones(1)}, '/l3/out: cannot load a b of shape'),
            ({'l1/W': numpy.ones((8, 2, 2))}, '/l1: cannot load a W of shape'),
        ],
    )
    def test_files_that_do_not_fit(self, path, model, changes, message):
        save_npz(path, model)
        with numpy.load(path) as file:
            arrays = {**file, **changes}
        numpy.savez(path, **arrays)
        loaded = Network(nobias=True)
        links = list(loaded.links())
        with pytest.raises(ValueError, match=message):
            load_shared_npz(path, loaded)
        assert list(loaded.links()) == links

    def test_layers_that_cannot_be_replaced(self, path, model):
        save_npz(path, model)
        loaded = Network(nobias=True)
        loaded.l1.add_hook(link_hooks.TimerHook())
        message = r'^load_npz\(\): /l1 cannot be changed, .* link hooks'
        with pytest.raises(ValueError, match=message):
            load_shared_npz(path, loaded)

    def test_no_link(self, path):
        with pytest.raises(TypeError, match=r'^load_npz\(\): model must be'):
            load_shared_npz(path, chainer.optimizers.SGD())

    def test_chainers_load_npz_names_the_path(self, path, model):
        save_npz(path, model)
        with pytest.raises(ValueError, match='^/l(1|3/out): cannot load a Sh'):
            load_npz(path, Network())
        pytest.importorskip('h5py')
        save_hdf5(path, model)
        with pytest.raises(ValueError, match='^/l(1|3/out): cannot load a Sh'):
            load_hdf5(path, Network())
