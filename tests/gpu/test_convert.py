from chainer_shared_patch import expand, share, summary
import chainer
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy


def make_model(random):
    with chainer.using_config('dtype', 'd'):
        model = chainer.Sequential(L.Linear(12, 8), F.tanh, L.Linear(8, 4))
    for param in model.params():
        param.array[...] = random.randn(*param.shape)
    return model


def test_share_and_expand(random, device):
    on_host = make_model(random)
    on_device = on_host.copy('copy')
    on_device.to_device(device)
    x = random.randn(20, 12)
    for model, where in (
        (on_host, chainer.get_device('@numpy')),
        (on_device, device),
    ):
        share(
            model,
            {'/0': 3, '/1': 2},
            inputs=where.send(x),
            fold={'/1': '/0'},
        )
    for a, b in zip(on_device.params(), on_host.params()):
        assert a.device == device
        # Equal up to the roundings of so few operations in float64.
        numpy.testing.assert_allclose(to_cpu(a.array), b.array, atol=1e-10)
    numpy.testing.assert_array_equal(
        to_cpu(on_device[0].order), on_host[0].order
    )
    y = on_device(device.send(x)).array
    expand(on_device)
    assert on_device[0].W.shape == (8, 12)
    expanded = on_device(device.send(x)).array
    numpy.testing.assert_allclose(to_cpu(expanded), to_cpu(y), atol=1e-10)


def test_summary(random, device):
    on_host = make_model(random)
    expected = str(summary(on_host, random.randn(20, 12)))
    on_host.to_device(device)
    x = device.send(random.randn(20, 12))
    assert str(summary(on_host, x)) == expected
