import threading

from chainer_shared_patch import config
import chainer
import chainer.functions as F
import numpy
import pytest

from tests.helpers import run_python

x = numpy.ones((2, 20), 'f')
W = numpy.ones((3, 2), 'f')
BAD_NUMBERS = [0, -1, 2.5, 10.0, 'ten', '10', True, None, numpy.bool_(True)]
BAD_ALGORITHMS = ['SUM', 'mean', '', None, 1]


@pytest.mark.parametrize('value', BAD_NUMBERS)
def test_bad_common_num(value):
    # At its first use, which an ordinary layer does not make of it.
    for type_check in (True, False):
        with chainer.using_config('common_num', value):
            with chainer.using_config('type_check', type_check):
                assert (F.linear(x[:, :2], W).array == 2).all()
                with pytest.raises(ValueError) as info:
                    F.linear(x, W)
        message = str(info.value)
        assert 'chainer.config.common_num' in message
        assert repr(value) in message
        assert 'integer of at least 1' in message


@pytest.mark.parametrize('value', BAD_ALGORITHMS)
def test_bad_shared_algorithm(value):
    with chainer.using_config('common_num', 10):
        with chainer.using_config('shared_algorithm', value):
            with pytest.raises(ValueError) as info:
                F.linear(x, W)
    message = str(info.value)
    assert 'chainer.config.shared_algorithm' in message
    assert repr(value) in message
    assert "'sum' or 'tile'" in message


@pytest.mark.parametrize('value', [10, numpy.int64(10), numpy.uint8(10)])
def test_good_common_num(value):
    with chainer.using_config('common_num', value):
        y = F.linear(x, W)
    assert (y.array == 20).all()
    assert type(config.check_common_num(value, '')) is int


def test_global_config_holds_for_all_threads():
    chainer.global_config.common_num = 10
    results = []
    thread = threading.Thread(target=lambda: results.append(F.linear(x, W)))
    thread.start()
    thread.join()
    assert results[0].shape == (2, 3)


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, 'True 1 sum'),
        (
            {
                'CHAINER_SHARED_PATCH': '0',
                'CHAINER_COMMON_NUM': '3',
                'CHAINER_SHARED_ALGORITHM': 'tile',
            },
            'False 3 tile',
        ),
    ],
)
def test_environment(environment, expected):
    code = """
import chainer_shared_patch as plugin, chainer
print(plugin.is_installed(), chainer.config.common_num,
      chainer.config.shared_algorithm)
"""
    result = run_python('-c', code, **environment)
    assert result.stdout.strip() == expected, result.stderr


@pytest.mark.parametrize(
    ('name', 'value', 'allowed'),
    [
        ('CHAINER_COMMON_NUM', '0', 'integer of at least 1'),
        ('CHAINER_COMMON_NUM', 'ten', 'integer of at least 1'),
        ('CHAINER_COMMON_NUM', '', 'integer of at least 1'),
        ('CHAINER_SHARED_ALGORITHM', 'mean', "'sum' or 'tile'"),
        ('CHAINER_SHARED_PATCH', 'maybe', '0 (off) or 1 (on)'),
        ('CHAINER_SHARED_PATCH', '', '0 (off) or 1 (on)'),
    ],
)
def test_bad_environment(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f'^{name} must be ') as info:
        config.read_environment()
    assert 'it is ' in str(info.value) and value in str(info.value)
    assert allowed in str(info.value)


def test_setting_of_the_program_stays(monkeypatch):
    monkeypatch.setenv('CHAINER_COMMON_NUM', '10')
    chainer.global_config.common_num = 7
    config.read_environment()
    assert chainer.global_config.common_num == 7
