"""The models that are shared, and what they are compared with."""

from chainer_shared_patch import SharedLinear
import chainer
import chainer.functions as F
import chainer.links as L
import numpy

from tests import helpers
from tests.helpers import cut, fill

IN, HIDDEN, OUT = 6, 12, 4


class MLP(chainer.Chain):
    def __init__(self, dtype='d', nobias=False):
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.l1 = L.Linear(IN, HIDDEN, nobias)
            self.l2 = L.Linear(HIDDEN, HIDDEN, nobias)
            self.l3 = L.Linear(HIDDEN, OUT, nobias)
        fill(self)

    def forward(self, x):
        return self.l3(F.relu(self.l2(F.relu(self.l1(x)))))


def widen(link):
    """The weight of the dense layer that computes what a shared one does."""
    return helpers.widen(link.W.array, link.order, link.common_num)


def average(W, n, order, weights=None):
    """The weight whose columns are the means of those that share."""
    W = W.astype('d')
    if weights is None:
        weights = numpy.ones(W.shape[1])
    narrow = numpy.empty((len(W), W.shape[1] // n))
    for each, rows in cut(W, order, 1):
        for i, group in enumerate(each.reshape(n, -1).T):
            columns = W[numpy.ix_(rows, group)]
            narrow[rows, i] = numpy.average(
                columns, axis=1, weights=weights[group]
            )
    return narrow


def shared_numbers_of(model):
    return {
        path: link.common_num
        for path, link in model.namedlinks()
        if type(link) is SharedLinear
    }


def state_of(model):
    """Everything of a model that a failure must not change, bit for bit."""
    links = [(path, link, link.name) for path, link in model.namedlinks()]
    params = []
    for path, param in model.namedparams():
        rule = param.update_rule
        arrays = [param.array]
        if param.array is not None:
            arrays.append(param.grad)
        if rule is not None and rule.state:
            arrays += [rule.state[key] for key in sorted(rule.state)]
        copies = [None if a is None else a.tobytes() for a in arrays]
        t = None if rule is None else rule.t
        params.append((path, param, rule, t, copies))
    orders = [getattr(link, 'order', None) for _, link, _ in links]
    persistents = [
        (name, repr(vars(link)[name]))
        for _, link, _ in links
        for name in sorted(link._persistent)
    ]
    orders = [None if o is None else o.tolist() for o in orders]
    return links, params, orders, persistents


def train(model, optimizer, x, steps=2):
    for _ in range(steps):
        model.cleargrads()
        F.sum(model(x) ** 2).backward()
        optimizer.update()
