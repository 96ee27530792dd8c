import os
import subprocess
import sys
import threading
import time

from chainer_shared_patch import (
    install,
    is_installed,
    patch,
    patched,
    uninstall,
)
import chainer
import chainer.functions as F
from chainer.functions.connection.linear import LinearFunction
import chainer.links as L
from chainer.utils.type_check import InvalidType
import numpy
import pytest

NAMES = ('check_type_forward', 'forward', 'forward_chainerx')
x = numpy.ones((2, 20), 'f')
W = numpy.ones((3, 2), 'f')


@pytest.fixture
def originals():
    """Chainer's own methods; the patch is not installed to begin with."""
    uninstall()
    return current()


def current():
    methods = {name: vars(LinearFunction)[name] for name in NAMES}
    # Chainer's own is the one that all links inherit.
    inherited = ('serialize', 'copyparams')
    return {
        **methods,
        **{name: vars(L.Linear).get(name) for name in inherited},
    }


def works(common_num=10):
    with chainer.using_config('common_num', common_num):
        try:
            y = F.linear(x, W)
        except InvalidType:
            return False
    return bool((y.array == 20).all())


def test_install_replaces_the_methods(originals):
    assert not is_installed()
    assert not works()
    install()
    assert is_installed()
    assert works()
    for name in NAMES:
        assert vars(LinearFunction)[name] is not originals[name]
        assert vars(LinearFunction)[name].__qualname__.endswith('.' + name)
        assert vars(LinearFunction)[name].__doc__ == originals[name].__doc__
    assert originals['serialize'] is None
    assert vars(L.Linear)['serialize'].__name__ == 'serialize'


def test_uninstall_restores_the_very_same_methods(originals):
    install()
    uninstall()
    assert not is_installed()
    assert not works()
    assert current() == originals


def test_twice_is_once(originals):
    install()
    once = current()
    install()
    assert current() == once
    uninstall()
    assert current() == originals
    uninstall()
    assert current() == originals


class TestForeignPatch:
    @pytest.mark.parametrize('name', NAMES)
    def test_on_top(self, originals, monkeypatch, name):
        install()
        ours = vars(LinearFunction)[name]
        calls = []

        def foreign(self, *args):
            calls.append(args)
            return ours(self, *args)

        monkeypatch.setattr(LinearFunction, name, foreign)
        before = current()
        with pytest.raises(RuntimeError) as info:
            uninstall()
        assert 'LinearFunction.' + name in str(info.value)
        assert 'foreign' in str(info.value)
        assert current() == before
        assert is_installed()
        assert works()
        # Installing again puts nothing on top of the foreign method.
        install()
        assert current() == before
        monkeypatch.undo()
        uninstall()
        assert current() == originals

    def test_on_top_is_called_once_for_a_shared_layer(self, monkeypatch):
        ours = LinearFunction.forward
        calls = []

        def foreign(self, inputs):
            calls.append(inputs)
            return ours(self, inputs)

        monkeypatch.setattr(LinearFunction, 'forward', foreign)
        assert works()
        assert len(calls) == 1

    def test_beneath(self, originals, monkeypatch):
        def foreign(self, inputs):
            (y,) = originals['forward'](self, inputs)
            return (2 * y,)

        monkeypatch.setattr(LinearFunction, 'forward', foreign)
        with patched(common_num=10):
            # It serves both the ordinary and the shared layer.
            assert (F.linear(x[:, :2], W).array == 4).all()
            assert (F.linear(x, W).array == 40).all()
        assert vars(LinearFunction)['forward'] is foreign

    @pytest.mark.parametrize('of_ours', [True, False])
    def test_proxy_on_top(self, originals, monkeypatch, of_ours):
        class Proxy:
            """Equals what it wraps, as a proxy of wrapt does."""

            def __init__(self, wrapped):
                self.wrapped = wrapped

            def __eq__(self, other):
                return self.wrapped == other

            def __getattr__(self, name):
                return getattr(self.wrapped, name)

            def __get__(self, instance, owner):
                return self.wrapped.__get__(instance, owner)

        install()
        wrapped = originals['forward']
        if of_ours:
            wrapped = vars(LinearFunction)['forward']
        proxy = Proxy(wrapped)
        monkeypatch.setattr(LinearFunction, 'forward', proxy)
        with pytest.raises(RuntimeError, match='LinearFunction.forward'):
            uninstall()
        assert vars(LinearFunction)['forward'] is proxy
        monkeypatch.undo()
        uninstall()
        assert current() == originals

    def test_of_an_inherited_method(self, originals, monkeypatch):
        calls = []
        serialize = chainer.Link.serialize

        def foreign(self, serializer):
            calls.append(self)
            serialize(self, serializer)

        install()
        monkeypatch.setattr(chainer.Link, 'serialize', foreign)
        link = L.Linear(2, 3)
        link.serialize(chainer.serializers.DictionarySerializer())
        assert calls == [link]
        uninstall()
        assert 'serialize' not in vars(L.Linear)

    @pytest.mark.parametrize('is_beneath', [True, False])
    def test_that_put_the_original_back(self, originals, is_beneath):
        def foreign(self, inputs):
            return originals['forward'](self, inputs)

        if is_beneath:
            LinearFunction.forward = foreign
        install()
        LinearFunction.forward = originals['forward']
        assert not is_installed()
        install()
        assert is_installed()
        assert works()
        LinearFunction.forward = originals['forward']
        uninstall()
        assert current() == originals


class TestPatched:
    def test_installs_for_the_body(self, originals):
        with patched(common_num=10, shared_algorithm='tile'):
            assert is_installed()
            assert chainer.config.common_num == 10
            assert chainer.config.shared_algorithm == 'tile'
            assert (F.linear(x, W).array == 20).all()
        assert current() == originals
        assert chainer.config.common_num == 1
        assert chainer.config.shared_algorithm == 'sum'

    def test_leaves_an_installed_patch(self):
        before = current()
        with patched(common_num=10):
            assert current() == before
        assert current() == before

    def test_nested(self, originals):
        with patched(common_num=5):
            with patched(common_num=10):
                assert (F.linear(x, W).array == 20).all()
            assert is_installed()
            assert chainer.config.common_num == 5
        assert current() == originals

    def test_after_an_error(self, originals):
        with pytest.raises(ZeroDivisionError):
            with patched(common_num=10):
                raise ZeroDivisionError
        assert current() == originals
        assert chainer.config.common_num == 1

    def test_install_within_lasts(self, originals):
        with patched():
            install()
        assert is_installed()

    def test_uninstall_within_waits_for_the_end(self, originals):
        with patched(common_num=10):
            with patched():
                uninstall()
                assert works()
            assert is_installed()
            assert works()
        assert current() == originals

    def test_error_on_leaving_does_not_hide_the_body_s(
        self, originals, monkeypatch
    ):
        with monkeypatch.context() as m:
            with pytest.warns(
                RuntimeWarning, match='LinearFunction.forward'
            ) as warnings:
                with pytest.raises(ZeroDivisionError):
                    with patched():
                        m.setattr(LinearFunction, 'forward', lambda: None)
                        raise ZeroDivisionError
            # It points to the statement.
            assert warnings[0].filename == __file__
            with pytest.raises(RuntimeError, match='LinearFunction.forward'):
                with patched():
                    pass
        uninstall()
        assert current() == originals

    @pytest.mark.parametrize(
        'arguments',
        [{'common_num': 0}, {'shared_algorithm': 'x'}],
    )
    def test_bad_arguments_change_nothing(self, originals, arguments):
        ((name, value),) = arguments.items()
        message = rf'patched\(\): {name} .*{value!r}'
        with pytest.raises(ValueError, match=message):
            with patched(**arguments):
                pass
        assert current() == originals
        assert chainer.config.common_num == 1

    def test_as_a_decorator(self, originals):
        @patched(common_num=10)
        def forward():
            return F.linear(x, W)

        assert forward().shape == (2, 3)
        assert current() == originals


def test_uninstalling_between_check_and_forward(originals):
    class Uninstall(chainer.FunctionHook):
        def forward_preprocess(self, function, in_data):
            uninstall()

    install()
    with Uninstall():
        assert works()
    assert current() == originals


def test_subclass_of_linear_function_keeps_chainers_refusal(originals):
    class Subclass(LinearFunction):
        pass

    with patched(common_num=10):
        for type_check, error in ((True, InvalidType), (False, ValueError)):
            with chainer.using_config('type_check', type_check):
                with pytest.raises(error):
                    Subclass().apply((x, W))
        (y,) = Subclass().apply((x[:, :2], W))
    assert type(y.creator_node) is Subclass


def run_in_threads(target, arguments):
    errors = []

    def run(argument):
        try:
            target(argument)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(a,)) for a in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


class TestThreads:
    def test_bodies_that_overlap(self, originals):
        barrier = threading.Barrier(4)

        def bodies_of_one_thread(common_num):
            wide = numpy.ones((2, common_num * 2), 'f')
            barrier.wait()
            for _ in range(200):
                with patched(common_num=common_num):
                    y = F.linear(wide, W)
                    assert (y.array == 2 * common_num).all()

        run_in_threads(bodies_of_one_thread, [2, 3, 5, 10])
        assert current() == originals

    def test_a_body_is_not_disturbed_by_others(self, originals):
        done = threading.Event()

        def compute(_):
            for _ in range(300):
                with patched(common_num=10):
                    assert works()
            done.set()

        def toggle(_):
            while not done.is_set():
                install()
                uninstall()

        run_in_threads(lambda target: target(None), [compute, toggle])
        assert current() == originals

    def test_installing_while_others_compute(self):
        done = threading.Event()

        def compute(_):
            while not done.is_set():
                assert works(common_num=1) is False
                y = F.linear(x[:, :2], W)
                assert (y.array == 2).all()

        def toggle(_):
            for _ in range(300):
                uninstall()
                install()
            done.set()

        run_in_threads(lambda target: target(None), [compute, compute, toggle])


@pytest.mark.filterwarnings('ignore:.*multi-threaded:DeprecationWarning')
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_fork_while_another_thread_installs():
    lock = patch._state.lock
    held = threading.Event()

    def hold(_):
        with lock:
            held.set()
            time.sleep(0.2)

    def fork(_):
        assert held.wait(60)
        pid = os.fork()
        if pid == 0:
            # Nobody is there to release what that thread held.
            os._exit(0 if lock.acquire(timeout=10) else 1)
        assert os.waitpid(pid, 0)[1] == 0

    run_in_threads(lambda target: target(None), [hold, fork])


def test_body_in_a_process_that_never_installs():
    code = """
from chainer_shared_patch import is_installed, patched
with patched():
    print(is_installed())
print(is_installed())
"""
    output = subprocess.check_output(
        [sys.executable, '-c', code],
        env={**os.environ, 'CHAINER_SHARED_PATCH': '0'},
        text=True,
    )
    assert output.split() == ['True', 'False']
