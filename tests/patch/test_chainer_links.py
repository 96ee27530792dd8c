from pathlib import Path
import re

from chainer_shared_patch import uninstall
import chainer
import chainer.functions as F
import chainer.links as L
from chainer.links.rnn.n_step_rnn import NStepRNNBase
from chainer.serializers import (
    load_npz,
    save_npz,
)
from chainer.utils.type_check import InvalidType
import numpy
import pytest

from tests.helpers import (
    K,
    N,
    assert_same,
    assert_same_steps,
    fill,
    iterate,
    make_batches,
    params_of,
    tile,
)

pytestmark = pytest.mark.arithmetic

OUT = 4
BATCH = 5
NOT_LINEAR = (
    'Highway',
    'Bilinear',
    'MLPConvolution2D',
    'SimplifiedDropconnect',
)
TIME = 3


class Tiling(chainer.LinkHook):
    """Gives a link the weights that it needs, tiled by hand, for a call."""

    name = 'Tiling'

    def forward_preprocess(self, args):
        link = args.link
        if isinstance(link, NStepRNNBase):
            self.ws = link.ws
            first = link.n_weights // 2
            # The layers of a direction each have x as their input.
            link.ws = [
                [
                    tile(w) if j < first and layer < link.direction else w
                    for j, w in enumerate(ws)
                ]
                for layer, ws in enumerate(link.ws)
            ]
        elif isinstance(link, L.Linear):
            self.W = link.W
            if args.args[0].shape[1] == N * self.W.shape[1]:
                link.W = tile(self.W)

    def forward_postprocess(self, args):
        if isinstance(args.link, NStepRNNBase):
            args.link.ws = self.ws
        elif isinstance(args.link, L.Linear):
            args.link.W = self.W


class Unrolled(chainer.Chain):
    """A link that is called with each part of a long input in turn."""

    def __init__(self, make_link, call):
        super().__init__()
        numpy.random.seed(0)
        with self.init_scope(), chainer.using_config('dtype', 'd'):
            self.link = make_link()
        fill(self)
        self.call = call

    def forward(self, x):
        # For the noise of zoneout.
        chainer.backend.get_array_module(x).random.seed(0)
        with chainer.using_config('dtype', 'd'):
            return self.call(self.link, F.split_axis(x, TIME, axis=1))


def call_each(link, xs):
    return F.concat([link(x) for x in xs])


def call_stateful(link, xs):
    link.reset_state()
    return call_each(link, xs)


def call_lstm(link, xs):
    c = h = None
    hs = []
    for x in xs:
        c, h = link(c, h, x)
        hs.append(h)
    return F.concat([c, *hs])


def call_gru(link, xs):
    h = xs[0].xp.zeros((len(xs[0]), OUT))
    hs = []
    for x in xs:
        h = link(h, x)
        hs.append(h)
    return F.concat(hs)


def call_tree(link, xs):
    """Two leaves, or what stands for them, and their parent."""
    *leaves, parent = xs
    none = [None, None]
    states = [link(*none, *none, x) for x in leaves]
    cs, hs = zip(*states)
    return F.concat(link(*cs, *hs, parent))


def flat(v):
    return F.reshape(v, (len(v), -1))


def call_n_step(link, xs):
    """Sequences of different lengths."""
    steps = F.stack(xs, axis=1)
    sequences = [x[: TIME - i % 2] for i, x in enumerate(steps)]
    *states, ys = link(*[None] * link.n_cells, sequences)
    last = F.concat([F.transpose(s, (1, 0, 2)) for s in states])
    first = F.stack([y[: TIME - 1] for y in ys])
    return F.concat([flat(v) for v in (last, first)])


def n_step(cls):
    return lambda: cls(2, K, OUT, 0.0)


LINKS = {
    'Linear': (lambda: L.Linear(K, OUT), call_each),
    'Linear without bias': (lambda: L.Linear(K, OUT, nobias=True), call_each),
    'Maxout': (lambda: L.Maxout(K, OUT, 3), call_each),
    'LSTM': (lambda: L.LSTM(K, OUT), call_stateful),
    'StatelessLSTM': (lambda: L.StatelessLSTM(K, OUT), call_lstm),
    'StatefulPeepholeLSTM': (
        lambda: L.StatefulPeepholeLSTM(K, OUT),
        call_stateful,
    ),
    'StatefulZoneoutLSTM': (
        lambda: L.StatefulZoneoutLSTM(K, OUT),
        call_stateful,
    ),
    'GRU': (lambda: L.GRU(K, OUT), call_stateful),
    'StatefulGRU': (lambda: L.StatefulGRU(K, OUT), call_stateful),
    'StatelessGRU': (lambda: L.StatelessGRU(K, OUT), call_gru),
    'StatefulMGU': (lambda: L.StatefulMGU(K, OUT), call_stateful),
    'StatelessMGU': (lambda: L.StatelessMGU(K, OUT), call_gru),
    'ChildSumTreeLSTM': (lambda: L.ChildSumTreeLSTM(K, OUT), call_tree),
    'NaryTreeLSTM': (lambda: L.NaryTreeLSTM(K, OUT), call_tree),
    'NStepGRU': (n_step(L.NStepGRU), call_n_step),
    'NStepBiGRU': (n_step(L.NStepBiGRU), call_n_step),
}


def width(name):
    """The columns of x. An MGU's weight spans the state h besides x."""
    return N * (K + OUT) - OUT if 'MGU' in name else N * K


def assert_identical_steps(actual, expected):
    for actual_step, expected_step in zip(actual, expected):
        for a, e in zip(actual_step, expected_step):
            numpy.testing.assert_array_equal(a, e)


@pytest.mark.parametrize('name', LINKS)
class TestLinksOfFullyConnectedLayers:
    def test_training(self, random, algorithm, name):
        data = make_batches(random, columns=TIME * width(name), out_size=1)
        with chainer.using_config('common_num', N):
            actual = iterate(Unrolled(*LINKS[name]), *data)
        uninstall()
        with Tiling():
            expected = iterate(Unrolled(*LINKS[name]), *data)
        assert_same_steps(actual, expected)
        # A gradient of zero would agree with anything.
        for step in expected:
            assert all(abs(a).max() > 0 for a in step)

    def test_of_the_full_width_is_bit_identical(self, random, name):
        data = make_batches(random, columns=TIME * K, out_size=1)
        with chainer.using_config('common_num', N):
            actual = iterate(Unrolled(*LINKS[name]), *data)
        uninstall()
        assert_identical_steps(actual, iterate(Unrolled(*LINKS[name]), *data))


def test_the_page_lists_the_links():
    docs = Path(__file__).parents[2] / 'docs'
    page = (docs / 'getting_started.md').read_text('utf-8')
    rows = re.findall(r'^\| (yes|no) \| (.*) \|$', page, re.MULTILINE)
    listed = {'yes': set(), 'no': set()}
    for answer, text in rows:
        listed[answer].update(
            name for name in re.findall(r'`(\w+)`', text) if hasattr(L, name)
        )
    assert listed['yes'] == {name.split()[0] for name in LINKS}
    n_step = TestLinksThatAreNotShared.N_STEP
    assert listed['no'] == {*n_step, *NOT_LINEAR}


def test_lstm_of_decreasing_batch_sizes(random, algorithm):
    xs = [random.randn(size, N * K) for size in (5, 5, 3, 1)]

    def forward(link, xs):
        link.reset_state()
        return F.concat([F.flatten(link(x)) for x in xs], axis=0)

    def gradients():
        chain = Unrolled(lambda: L.LSTM(K, OUT), None)
        with chainer.using_config('dtype', 'd'):
            y = forward(chain.link, xs)
        chain.cleargrads()
        F.sum(y**2).backward()
        return [y.array, *(p.grad for _, p in sorted(chain.namedparams()))]

    with chainer.using_config('common_num', N):
        actual = gradients()
    uninstall()
    with Tiling():
        expected = gradients()
    assert_same(actual, expected)


def test_tree_lstm_without_x(random, algorithm):
    # The link makes zeros of its own in_size, which are not shared.
    chain = Unrolled(lambda: L.ChildSumTreeLSTM(K, OUT), None)
    x = random.randn(BATCH, N * K)
    chain.cleargrads()
    with chainer.using_config('common_num', N):
        c, h = chain.link(x)
        shared = chain.link(c, h, None)
        F.sum(shared[1]).backward()
    gW = chain.link.W_x.W.grad
    chain.cleargrads()
    uninstall()
    with Tiling():
        c, h = chain.link(x)
        tiled = chain.link(c, h, None)
    F.sum(tiled[1]).backward()
    assert_same(
        [*(v.array for v in shared), gW],
        [*(v.array for v in tiled), chain.link.W_x.W.grad],
    )


class TestLinksThatAreNotShared:
    N_STEP = (
        'NStepLSTM',
        'NStepBiLSTM',
        'NStepRNNTanh',
        'NStepRNNReLU',
        'NStepBiRNNTanh',
        'NStepBiRNNReLU',
    )

    @pytest.mark.parametrize('name', N_STEP)
    def test_n_step_is_refused(self, random, algorithm, name):
        cls = getattr(L, name)

        # By a check of Chainer's own functions, which NStepGRU's lacks.
        def make():
            return Unrolled(n_step(cls), call_n_step)

        data = make_batches(random, columns=TIME * K, out_size=1)
        with chainer.using_config('common_num', N):
            with pytest.raises(ValueError, match=f'{N * K} != {K}'):
                make()(random.randn(BATCH, TIME * N * K))
            actual = iterate(make(), *data)
        uninstall()
        assert_identical_steps(actual, iterate(make(), *data))

    def test_highway_is_refused(self, random, algorithm):
        # Its output is x, in part, and cannot be narrower.
        with chainer.using_config('common_num', N):
            with pytest.raises(InvalidType, match='cannot broadcast'):
                L.Highway(K)(random.randn(BATCH, N * K).astype('f'))

    @pytest.mark.parametrize(
        ('make_link', 'shapes'),
        [
            (lambda: L.Bilinear(K, K, OUT), [(BATCH, N * K), (BATCH, K)]),
            (
                lambda: L.MLPConvolution2D(K, (OUT, N), 1),
                [(BATCH, N * K, 1, 1)],
            ),
            (lambda: L.SimplifiedDropconnect(K, OUT), [(BATCH, N * K)]),
        ],
        ids=['Bilinear', 'MLPConvolution2D', 'SimplifiedDropconnect'],
    )
    def test_wide_input_is_refused(self, random, algorithm, make_link, shapes):
        arrays = [random.randn(*shape).astype('f') for shape in shapes]
        with chainer.using_config('common_num', N):
            with pytest.raises(InvalidType):
                make_link()(*arrays)


class Model(chainer.Chain):
    """A shared layer and an LSTM whose input side is shared."""

    def __init__(self, linear=L.Linear):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', 'd'):
            self.l1 = linear(K, N * K)
            self.lstm = L.LSTM(K, OUT)
        fill(self)

    def forward(self, x):
        self.lstm.reset_state()
        self.lstm(F.tanh(self.l1(x)))
        return self.lstm(x)


def reload_npz(model, tmp_path):
    save_npz(str(tmp_path / 'model.npz'), model)
    other = Model()
    fill(other, seed=1)
    load_npz(str(tmp_path / 'model.npz'), other)
    return other


def copy_params(model, tmp_path):
    other = Model()
    fill(other, seed=1)
    other.copyparams(model)
    return other


COPIES = {
    'npz': reload_npz,
    'copyparams': copy_params,
}


class TestCopies:
    @pytest.fixture
    def data(self, random):
        return make_batches(random, steps=6, out_size=1)

    @pytest.mark.parametrize('make_copy', COPIES.values(), ids=COPIES)
    def test_copy_in_the_middle_of_a_training(
        self, algorithm, tmp_path, data, make_copy
    ):
        batches, weights = data
        model = Model()
        with chainer.using_config('common_num', N):
            actual = iterate(model, batches[:3], weights[:3])
            twin = make_copy(model, tmp_path)
            before = params_of(model)
            actual += iterate(twin, batches[3:], weights[3:])
        # The original has not moved with its copy.
        for a, e in zip(params_of(model), before):
            numpy.testing.assert_array_equal(a, e)
        uninstall()
        with Tiling():
            expected = iterate(Model(), batches, weights)
        assert_same_steps(actual, expected)
