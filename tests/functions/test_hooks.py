"""Function hooks and link hooks on shared layers."""

import io

from chainer_shared_patch import uninstall
import chainer
from chainer import link_hooks
from chainer.function_hooks import PrintHook
import chainer.functions as F
import chainer.links as L
import numpy
import pytest

from tests.helpers import (
    SIZES,
    Chain,
    K,
    N,
    TiledLinear,
    assert_same_steps,
    iterate,
    make_arrays,
    make_batches,
)

pytestmark = pytest.mark.arithmetic


class TestFunctionHooks:
    def test_print(self, random, algorithm):
        chain = Chain()
        x = chainer.Variable(random.randn(4, N * K))
        with chainer.using_config('common_num', N):
            output = io.StringIO()
            with PrintHook(file=output):
                F.sum(chain(x)).backward()
        lines = output.getvalue().splitlines()
        label = f'SharedLinearFunction (common_num={N})'
        # Once in forward, and once in backward.
        assert lines.count('function\t' + label) == 2
        assert lines.count('function\tLinearFunction') == 2

    def test_hook_of_one_node_and_deleted_hook(self, random, algorithm):
        class Count(chainer.FunctionHook):
            name = 'Count'
            shapes = ()

            def backward_preprocess(self, function, in_data, out_grad):
                self.shapes += (
                    [a.shape for a in in_data if a is not None],
                    [g.shape for g in out_grad],
                )

        x, W, *_ = (
            chainer.Variable(a) for a in make_arrays(random.randn, *SIZES)
        )
        hook = Count()
        with chainer.using_config('common_num', N):
            y = F.linear(x, W)
            y.creator_node.add_hook(hook)
            other = F.linear(x, W)
            F.sum(y + other).backward()
            # The arrays that the user has given, and not the summed ones.
            expected = ([(4, N * K), (5, K)], [(4, 5)])
            assert hook.shapes == expected
            y.creator_node.delete_hook('Count')
            y.grad = other.array
            y.backward()
        assert hook.shapes == expected


class TestLinkHooks:
    def train(self, linear, make_hook, batches, weights):
        numpy.random.seed(0)
        chain = Chain(linear)
        chain.l1.add_hook(make_hook())
        return iterate(chain, batches, weights)

    @pytest.mark.parametrize(
        'make_hook',
        [
            link_hooks.SpectralNormalization,
            lambda: link_hooks.SpectralNormalization(2, use_gamma=True),
            lambda: link_hooks.SpectralNormalization(factor=0.5),
            link_hooks.WeightStandardization,
        ],
        ids=['SN', 'SN with gamma', 'SN with factor', 'WS'],
    )
    def test_hook(self, random, algorithm, make_hook):
        batches, weights = make_batches(random)
        with chainer.using_config('common_num', N):
            actual = self.train(L.Linear, make_hook, batches, weights)
        uninstall()
        expected = self.train(TiledLinear, make_hook, batches, weights)
        assert_same_steps(actual, expected)
        unhooked = iterate(Chain(TiledLinear), batches, weights)
        assert not numpy.allclose(actual[0][0], unhooked[0][0])
