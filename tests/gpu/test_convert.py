from chainer_shared_patch import expand, load_npz, share, summary
import chainer
from chainer.backends import cuda
from chainer.backends.cuda import to_cpu
import chainer.functions as F
import chainer.links as L
import numpy
import pytest


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
            tune_steps=2,
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


def test_a_model_on_a_device_that_is_not_the_current_one(random, device):
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs two GPUs')
    other = chainer.get_device('@cupy:1')
    on_host = make_model(random)
    on_host.insert(1, L.BatchNormalization(8, dtype='d'))
    model = on_host.copy('copy').to_device(other)
    x = random.randn(20, 12)
    for each, batch in ((on_host, x), (model, other.send(x))):
        share(each, {each[0]: 3, each[3]: 2}, inputs=batch)
    assert all(param.device == other for param in model.params())
    with chainer.using_config('train', False):
        y, expected = model(other.send(x)).array, on_host(x).array
    numpy.testing.assert_allclose(to_cpu(y), expected, atol=1e-10)
    summary(model, other.send(x))
    expand(model)
    assert all(param.device == other for param in model.params())
    assert cuda.cupy.cuda.Device() == device.device


def test_folding_on_another_device(random, device):
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs two GPUs')
    other = chainer.get_device('@cupy:1')
    model = make_model(random).to_device(other)
    x = other.send(random.randn(20, 12))
    share(model, {'/0': 3, '/1': 2}, inputs=x, fold={'/1': '/0'})
    assert all(param.device == other for param in model.params())
    assert model(x).device == other


def test_every_run_draws_the_same_random_numbers(random, device):
    drawn = []

    class Noisy(chainer.Sequential):
        def forward(self, x):
            drawn.append(to_cpu(cuda.cupy.random.standard_normal(8)))
            return super().forward(x + device.send(drawn[-1]).sum())

    model = Noisy(*make_model(random)).to_device(device)
    cuda.cupy.random.seed(0)
    expected = to_cpu(cuda.cupy.random.standard_normal(8))
    cuda.cupy.random.seed(0)
    share(model, 2, inputs=device.send(random.randn(20, 12)))
    assert len(drawn) > 2
    for each in drawn:
        numpy.testing.assert_array_equal(each, drawn[0])
    actual = to_cpu(cuda.cupy.random.standard_normal(8))
    numpy.testing.assert_array_equal(actual, expected)


def test_loading_on_another_device(random, device, tmp_path):
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs two GPUs')
    other = chainer.get_device('@cupy:1')
    model = make_model(random)
    share(model, {'/0': 3})
    path = str(tmp_path / 'model.npz')
    chainer.serializers.save_npz(path, model)
    loaded = make_model(random).to_device(other)
    load_npz(path, loaded)
    assert loaded[0].order.device == other.device
    x = random.randn(5, 12)
    y = loaded(other.send(x)).array
    numpy.testing.assert_allclose(to_cpu(y), model(x).array, atol=1e-10)
