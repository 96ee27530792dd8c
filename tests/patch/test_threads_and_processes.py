import itertools
import multiprocessing
import threading

from chainer_shared_patch import functions, patched
import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType
import numpy

from tests.helpers import (
    SIZES,
    N,
    integers,
    make_arrays,
    reference,
    run,
    run_python,
)

CHILDREN = """
import multiprocessing
import chainer_shared_patch
import chainer, chainer.functions as F, numpy

def shape():
    config = chainer.config.common_num, chainer.config.shared_algorithm
    y = F.linear(numpy.ones((2, 14), 'f'), numpy.ones((3, 2), 'f'))
    return (*config, y.shape, y.array.sum())

def send(connection):
    connection.send(shape())

if __name__ == '__main__':
    print(shape())
    for method in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send, args=(sender,))
        process.start()
        assert receiver.poll(60)
        print(receiver.recv())
        process.join(60)
"""


def test_children_inherit_the_environment(tmp_path, algorithm):
    script = tmp_path / 'script.py'
    script.write_text(CHILDREN)
    environment = {
        'CHAINER_COMMON_NUM': '7',
        'CHAINER_SHARED_ALGORITHM': algorithm,
    }
    result = run_python(script, **environment)
    assert result.returncode == 0, result.stderr
    parent, *children = result.stdout.splitlines()
    assert parent.startswith(f"(7, '{algorithm}', (2, 3), ")
    assert len(children) == len(multiprocessing.get_all_start_methods())
    assert set(children) == {parent}


def test_threads_with_their_own_numbers(random):
    layers = {
        n: make_arrays(integers(random), 5, n, 60 // n, 3)
        for n in (2, 3, 5, 6)
    }
    results = {}
    barrier = threading.Barrier(len(layers))

    def compute(n, algorithm):
        barrier.wait(60)
        with chainer.using_config('shared_algorithm', algorithm):
            with chainer.using_config('common_num', n):
                results[n] = [run(*layers[n]) for _ in range(20)]

    threads = [
        threading.Thread(target=compute, args=args)
        for args in zip(layers, itertools.cycle(['sum', 'tile']))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert chainer.config.common_num == 1
    for n, arrays in layers.items():
        for result in results[n]:
            for a, e in zip(result, reference(*arrays, n)):
                numpy.testing.assert_array_equal(a, e)


def test_setting_of_a_thread_is_not_that_of_a_new_one(random):
    x, W, b, _ = make_arrays(random.randn, *SIZES)
    nodes = []

    def compute():
        for common_num in (None, N):
            try:
                with patched(common_num=common_num):
                    nodes.append(F.linear(chainer.Variable(x), W, b).creator)
            except InvalidType as error:
                nodes.append(error)

    with chainer.using_config('common_num', N):
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join(60)
    assert isinstance(nodes[0], InvalidType)
    assert isinstance(nodes[1], functions.SharedLinearFunction)
