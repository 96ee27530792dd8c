import collections
import copy

import chainer_shared_patch  # noqa: F401
import chainer
import chainermn
import numpy
import pytest


class Mailbox:
    """A communicator of two ranks, the first of which runs to its end."""

    def __init__(self, rank, messages):
        self.rank = rank
        self.messages = messages

    def bcast(self, x, root):
        if self.rank == root:
            self.messages.append(x)
            return x
        return self.messages.popleft()


@pytest.mark.parametrize('shuffle', [True, False])
def test_multi_node_iterator(shuffle):
    data = numpy.arange(10, dtype='f')
    messages = collections.deque()
    master, slave = (
        chainermn.iterators.create_multi_node_iterator(
            chainer.iterators.SerialIterator(
                data, 4, repeat=False, shuffle=shuffle
            ),
            Mailbox(rank, messages),
        )
        for rank in range(2)
    )
    assert slave.dataset_size == 10
    expected = list(master)
    assert sorted(sum(expected, [])) == data.tolist()
    assert list(slave) == expected


def observe(values, aggregator=None):
    """Returns what a trainer extension makes of values of one rank each."""

    class Communicator:
        rank = 0

        def gather_obj(self, history):
            return [[value] for value in values]

        def bcast_obj(self, obj):
            return obj

    class Trainer:
        observation = {'loss': values[0]}
        updater = type('Updater', (), {'iteration': 1})

    extension = chainermn.extensions.ObservationAggregator(
        Communicator(), 'loss', aggregator=aggregator
    )
    trainer = Trainer()
    extension(trainer)
    return trainer.observation['loss']


@pytest.mark.parametrize('kind', [numpy.float32, numpy.float16, numpy.int8])
@pytest.mark.parametrize('wrap', [lambda value: value, numpy.asarray])
def test_average_of_observations(kind, wrap):
    # The sum of the values, and their average, are beyond their dtype.
    values = [wrap(value) for value in numpy.array([100, 1, 1], kind)] * 100
    if kind is not numpy.int8:
        values = [wrap(numpy.nextafter(value, kind(0))) for value in values]
    exact = numpy.array(values).astype('d').mean()
    actual = observe(values)
    assert actual.dtype == numpy.float64
    numpy.testing.assert_allclose(actual, exact, rtol=len(values) * 2**-53)


@pytest.mark.parametrize('value', [numpy.ones(2, 'f'), 1.5])
def test_average_of_other_observations(value):
    actual = observe([value, 3 * value])
    assert type(actual) is type(value)
    assert getattr(actual, 'dtype', 'f') == 'f'
    numpy.testing.assert_array_equal(actual, 2 * value)


def test_average_of_variables():
    """The variable stays, with its graph, unless its key is written."""

    class Communicator:
        rank = 0

        def gather_obj(self, history):
            return [history, history]

        def bcast_obj(self, obj):
            return obj

    class Trainer:
        updater = type('Updater', (), {'iteration': 1})

    loss = chainer.functions.sum(chainer.Variable(numpy.ones(3, 'f')))
    for key in ('average', 'loss'):
        trainer = Trainer()
        trainer.observation = {'loss': loss}
        chainermn.extensions.ObservationAggregator(
            Communicator(), 'loss', key
        )(trainer)
        assert trainer.observation[key] == 3
        assert not isinstance(trainer.observation[key], chainer.Variable)
        assert trainer.observation['loss'] is loss or key == 'loss'
    assert loss.creator is not None
    assert isinstance(loss.array, numpy.ndarray)


@pytest.mark.parametrize(
    ('updates', 'broadcasts'), [([0, 0], 1), ([2, 2], 0), ([2, 0], 1)]
)
def test_first_update_of_a_multi_node_optimizer(updates, broadcasts):
    """Only resumed on all ranks, it needs no broadcast and updates at once."""

    class Communicator:
        size = 2
        broadcasts = 0

        def allreduce_obj(self, obj):
            assert obj == (updates[0] > 0)
            return sum(t > 0 for t in updates)

        def bcast_data(self, model):
            self.broadcasts += 1

        def multi_node_mean_grad(self, model, zero_fill):
            pass

    model = chainer.links.Linear(2, 3)
    optimizer = chainermn.create_multi_node_optimizer(
        chainer.optimizers.SGD(), Communicator()
    ).setup(model)
    optimizer.t = updates[0]
    for _ in range(3):
        model.cleargrads()
        chainer.functions.sum(model(numpy.ones((1, 2), 'f'))).backward()
        optimizer.update()
    assert optimizer.communicator.broadcasts == broadcasts
    assert optimizer.t == updates[0] + 3 - broadcasts


class Buffer:
    """Memory of a GPU, on the CPU."""

    def __init__(self, array):
        self.bytes = array.tobytes()

    def to_device(self, dst, size, offset, stream):
        source = self.bytes[offset : offset + size]
        dst[...] = numpy.frombuffer(source, dst.dtype).reshape(dst.shape)


@pytest.mark.parametrize('transfer_dtype', ['e', 'f', 'd'])
def test_unpack_params(transfer_dtype):
    pytest.importorskip('mpi4py.MPI')
    from chainermn.communicators import _memory_utility

    params = [
        chainer.Parameter(numpy.zeros((2, 3), 'f')),
        chainer.Parameter(numpy.zeros(4, 'e')),
        chainer.Parameter(numpy.zeros((), 'd')),
    ]
    params[0].grad = numpy.zeros((2, 3), 'f')
    params[2].grad = numpy.zeros((), 'd')
    _memory_utility.unpack_params(
        params,
        'grad',
        Buffer(numpy.arange(11, dtype=transfer_dtype)),
        numpy.dtype(transfer_dtype),
        zero_fill=True,
    )
    assert [param.grad.dtype for param in params] == ['f', 'e', 'd']
    numpy.testing.assert_array_equal(params[0].grad, [[0, 1, 2], [3, 4, 5]])
    numpy.testing.assert_array_equal(params[1].grad, [6, 7, 8, 9])
    assert params[2].grad == 10


def test_deepcopy_of_multi_node_batch_normalization():
    pytest.importorskip('mpi4py.MPI')
    comm = object()
    link = chainermn.links.MultiNodeBatchNormalization(3, comm)
    copied, same = copy.deepcopy([link, link])
    assert copied is same
    assert copied is not link
    assert copied.comm is comm
    assert link.comm is comm
    assert set(copied.__dict__) == set(link.__dict__)
    copied.gamma.array[...] = 2
    copied.avg_mean[...] = 2
    assert (link.gamma.array == 1).all()
    assert (link.avg_mean == 0).all()
