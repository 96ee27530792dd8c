"""What the types of the public names say, as `make lint` checks too."""

from __future__ import annotations

import chainer_shared_patch
from chainer_shared_patch import (
    LinkSummary,
    Plan,
    PlannedLayer,
    SharedLayer,
    SharedLinear,
    ShareReport,
    Summary,
    patched,
    plan,
    share,
    summary,
)
from chainer_shared_patch.links import Order
import chainer
import chainer.links as L
import numpy
import pytest
from typing_extensions import assert_type


def test_shared_linear() -> None:
    x = numpy.ones((2, 20), numpy.float32)
    link = SharedLinear(20, 5, common_num=10, initialW=0.5)
    assert_type(link(x), chainer.Variable)
    assert_type(link(chainer.Variable(x)), chainer.Variable)
    assert_type(link.W, chainer.Parameter)
    assert_type(link.common_num, int)
    copy = SharedLinear.from_params(
        link.W, link.b, common_num=10, order=range(20)
    )
    assert_type(copy, SharedLinear)


def test_plan_share_and_summary() -> None:
    x = numpy.ones((2, 20), numpy.float32)
    model = chainer.Sequential(L.Linear(20, 5))
    result = plan(model, x, max_parameters=20, evaluate=lambda model: 1)
    assert_type(result, Plan)
    assert_type(result.layers, tuple[PlannedLayer, ...])
    assert_type(result.common_num, dict[str, int])
    report = share(model, {'/0': 10}, inputs=x, order='grouped')
    assert_type(report, ShareReport)
    assert_type(report.layers, tuple[SharedLayer, ...])
    assert_type(report.layers[0].path, str)
    assert_type(summary(model, x), Summary)
    assert_type(summary(model, x).rows, list[LinkSummary])
    chainer_shared_patch.expand(model)


def test_patch() -> None:
    with patched(common_num=10, shared_algorithm='tile'):
        assert_type(chainer_shared_patch.is_installed(), bool)


def test_integers_and_orders_of_many_types() -> None:
    two = numpy.int64(2)
    orders: list[Order] = [
        'interleaved',
        range(4),
        [numpy.int64(2), 0, 1, 3],
        [[0, 1, 2, 3], range(4)],
        numpy.arange(4),
        chainer.Variable(numpy.arange(4)),
    ]
    for order in orders:
        link = SharedLinear(numpy.int64(4), two, common_num=two, order=order)
        assert type(link.in_size) is int
    with patched(common_num=two):
        model = chainer.Sequential(L.Linear(4, 2))
        share(model, {'/0': two}, order=numpy.arange(4))


def test_mistakes() -> None:
    # That mypy finds each of them shows in that it wants all these comments.
    with pytest.raises(TypeError):
        SharedLinear(20, 5)  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        SharedLinear(20, 5, common_num=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SharedLinear(20.0, 5, common_num=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        SharedLinear(4, 5, common_num=2, order='abc')  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        SharedLinear(4, 5, common_num=2, order=3)  # type: ignore[arg-type]
    model = chainer.Sequential(L.Linear(4, 2))
    with pytest.raises(ValueError):
        share(model, 2, order='interleaved')  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        share(model, 2, order={'/0': 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        with patched(shared_algorithm='add'):  # type: ignore[arg-type]
            pass
