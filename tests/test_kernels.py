"""The CUDA kernels of blocks.py where there is no GPU: on the host.

A C++ compiler knows the language that they are written in, but for a few
words. What is not tested here is CUDA itself.
"""

import contextlib
import ctypes
import importlib.util
import re
import shutil
import subprocess
from types import SimpleNamespace

from chainer_shared_patch import blocks
import chainer
from chainer.backends import cuda
import numpy
import pytest

COMPILER = shutil.which('c++')
FLAGS = [
    *('-std=c++17', '-O1', '-shared', '-fPIC', '-I.'),
    *('-Wall', '-Werror', '-Wno-unknown-pragmas'),
    *('-fsanitize=undefined', '-fno-sanitize-recover=all'),
]
HOST = """
#define __global__
static struct { long long x; } blockIdx, blockDim, threadIdx;
#include "kernel.cu"
extern "C" void run(
    long long n_blocks, long long n_threads,
    const SOURCE* x, TARGET* y, INDEX size, INDEX common_num, INDEX k
) {
    blockDim.x = n_threads;
    for (blockIdx.x = 0; blockIdx.x < n_blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < n_threads; ++threadIdx.x)
            NAME(x, y, size, common_num, k);
}
"""


class Array(numpy.ndarray):
    """An array that has the attributes of CuPy's that blocks.py needs."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def make(array):
    return numpy.ascontiguousarray(array).view(Array)


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """Lets arrays of the class above take the way of CuPy's.

    Returns a list of the options and the arguments of every launch.
    """
    if not COMPILER:
        pytest.skip('needs a C++ compiler')
    (tmp_path / 'cuda_fp16.h').write_text('typedef _Float16 half;')
    (tmp_path / 'host.cc').write_text(HOST)
    launches = []

    def raw(code, name, options):
        def launch(n_blocks, n_threads, arguments):
            x, y, *sizes = arguments
            launches.append((options, *sizes))
            (tmp_path / 'kernel.cu').write_text(code)
            library = tmp_path / '{}.so'.format(len(launches))
            subprocess.run(
                [COMPILER, *FLAGS, *options, 'host.cc', '-o', str(library)],
                cwd=tmp_path,
                check=True,
            )
            integers = (ctypes.c_longlong(i) for i in n_blocks + n_threads)
            pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, y))
            sizes = (
                numpy.ctypeslib.as_ctypes_type(size.dtype)(size)
                for size in sizes
            )
            ctypes.CDLL(str(library)).run(*integers, *pointers, *sizes)

        return launch

    fake_cupy = SimpleNamespace(
        empty=lambda shape, dtype: make(numpy.full(shape, 77, dtype)),
        ascontiguousarray=make,
    )
    monkeypatch.setattr(cuda, 'ndarray', Array)
    monkeypatch.setattr(cuda, 'cupy', fake_cupy)
    monkeypatch.setattr(cuda, 'raw', raw)
    monkeypatch.setattr(
        cuda, 'get_device_from_array', lambda _: contextlib.nullcontext()
    )
    return launches


def option(launch, name):
    (value,) = [o for o in launch[0] if o.startswith('-D{}='.format(name))]
    return value.split('=')[1]


@pytest.mark.parametrize('dtype', ['e', 'f', 'd'])
@pytest.mark.parametrize(
    ('batch_size', 'n', 'k', 'vector_bytes'),
    [
        (5, 4, 8, 16),
        (3, 10, 100, None),
        (4, 3, 1, 0),
        (2, 1, 12, None),
        (67, 2, 64, 16),
        (1, 7, 640, 16),
    ],
)
def test_sum_and_tile(random, launches, batch_size, n, k, vector_bytes, dtype):
    x = random.randn(batch_size, n * k).astype(dtype)
    y = blocks.sum_blocks(make(x), n)
    exact = x.astype('d').reshape(batch_size, n, k).sum(axis=1)
    assert isinstance(y, Array) and y.dtype == dtype
    sizes = abs(x.astype('d')).reshape(batch_size, n, k).sum(axis=1)
    eps = numpy.finfo(numpy.promote_types(dtype, 'f')).eps
    rounding = numpy.finfo(dtype).eps / 2 * abs(exact)
    assert (abs(y - exact) <= n * eps * sizes + rounding).all()

    tiled = blocks.tile_blocks(y, n)
    assert tiled.dtype == dtype
    numpy.testing.assert_array_equal(tiled, numpy.tile(y, (1, n)))

    if vector_bytes is not None:
        for launch in launches:
            width = int(option(launch, 'WIDTH'))
            assert width == max(vector_bytes // x.itemsize, 1)


def test_memory_that_is_not_aligned(random, launches):
    # float16 from an address of 4 bytes more than a multiple of 16.
    memory = make(numpy.empty(3 * 40 + 8, 'e'))
    start = (4 - memory.data.ptr) % 16 // 2
    x = memory[start : start + 120].reshape(3, 40)
    x[...] = random.randint(-9, 10, x.shape)
    assert x.data.ptr % 16 == 4
    y = blocks.sum_blocks(x, 5)
    numpy.testing.assert_array_equal(y, x.reshape(3, 5, 8).sum(axis=1))
    assert option(launches[0], 'WIDTH') == '2'


def test_more_elements_than_32_bits_count(random, launches, monkeypatch):
    x = random.randint(-9, 10, (3, 24)).astype('f')
    expected = x.reshape(3, 4, 6).sum(axis=1)
    for limit, index, dtype in ((18, 'long long', 'i8'), (19, 'int', 'i4')):
        monkeypatch.setattr(blocks, '_INT32_SIZE', 4 * limit)
        y = blocks.sum_blocks(make(x), 4)
        numpy.testing.assert_array_equal(y, expected)
        assert option(launches[-1], 'INDEX') == index
        assert [size.dtype for size in launches[-1][1:]] == [dtype] * 3


def test_sum_in_a_wider_dtype(launches):
    x = make(numpy.array([[1, 2**-30]], 'f'))
    assert blocks.sum_blocks(x, 2, 'd') == 1 + 2**-30
    # 2048 + 1 is 2048 in float16, which is what rounding at the end spares.
    x = make(numpy.array([[2048, 1, 1, -2048]], 'e'))
    assert blocks.sum_blocks(x, 4) == 2
    assert blocks.sum_blocks(x, 4).dtype == numpy.float16
    assert blocks.sum_blocks(x, 4, 'f').dtype == numpy.float32


@pytest.mark.parametrize(('batch_size', 'n', 'k'), [(0, 3, 4), (3, 4, 0)])
def test_nothing_to_do_is_not_launched(launches, batch_size, n, k):
    x = make(numpy.empty((batch_size, n * k), 'f'))
    assert blocks.sum_blocks(x, n).shape == (batch_size, k)
    y = make(numpy.empty((batch_size, k), 'f'))
    assert blocks.tile_blocks(y, n).shape == (batch_size, n * k)
    assert not launches


class TestCompilation:
    """The kernels as PTX, by the compiler that CuPy calls."""

    @pytest.fixture(autouse=True)
    def headers(self):
        if not cuda.available:
            pytest.skip('needs CuPy')
        self.nvrtc = cuda.cupy.cuda.nvrtc
        try:
            self.nvrtc.getVersion()
        except RuntimeError as error:
            pytest.skip('needs NVRTC: {}'.format(error))
        folders = []
        with contextlib.suppress(ModuleNotFoundError):
            spec = importlib.util.find_spec('nvidia.cuda_runtime')
            folders += spec.submodule_search_locations if spec else []
        folders += filter(None, [cuda.cupy.cuda.get_cuda_path()])
        self.options = tuple('-I{}/include'.format(each) for each in folders)
        if not folders:
            pytest.skip('needs the headers of CUDA')

    def compile(self, name, options):
        nvrtc = self.nvrtc
        program = nvrtc.createProgram(blocks._SOURCES[name], name, (), ())
        options += (*self.options, '--gpu-architecture=compute_70')
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        return nvrtc.getPTX(program).decode()

    @pytest.mark.parametrize('index', ['int', 'long long'])
    @pytest.mark.parametrize(
        ('source', 'target', 'sum_', 'width'),
        [
            ('half', 'half', 'float', 8),
            ('half', 'float', 'float', 8),
            ('half', 'half', 'float', 1),
            ('float', 'float', 'float', 4),
            ('float', 'float', 'float', 2),
            ('float', 'double', 'double', 4),
            ('double', 'double', 'double', 2),
        ],
    )
    def test_loads_and_stores(self, source, target, sum_, width, index):
        macros = {'SOURCE': source, 'TARGET': target, 'SUM': sum_}
        macros.update(WIDTH=width, INDEX=index)
        ptx = {}
        for name in ('sum_blocks', 'tile_blocks'):
            macros['NAME'] = name
            if name == 'tile_blocks':
                macros['TARGET'] = source
            options = tuple('-D{}={}'.format(*m) for m in macros.items())
            ptx[name] = self.compile(name, options)
            assert '.entry {}('.format(name) in ptx[name]
        itemsize = {'half': 2, 'float': 4, 'double': 8}[source]
        # As few instructions as there can be: what is 16 bytes of loads is
        # one, and not one for each element.
        for name, instruction in (
            ('sum_blocks', 'ld.global'),
            ('tile_blocks', 'ld.global'),
            ('tile_blocks', 'st.global'),
        ):
            found = re.findall(instruction + r'\S*', ptx[name])
            moved = {self.count_bytes(each) for each in found}
            assert moved == {width * itemsize}, (name, found)

    def count_bytes(self, instruction):
        *_, type_ = instruction.split('.')
        (vector,) = re.findall(r'\.v(\d)', instruction) or [1]
        return int(vector) * int(type_[1:]) // 8


def test_arrays_of_cupy_take_the_way_of_the_gpu(monkeypatch):
    if not cuda.available:
        pytest.skip('needs CuPy')
    cupy = cuda.cupy

    def make(shape, dtype='f'):
        # CuPy's arrays may be in memory that is not its own.
        host = numpy.zeros(shape, dtype)
        memory = cupy.cuda.UnownedMemory(
            host.ctypes.data, host.nbytes, host, 0
        )
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    launched = []
    monkeypatch.setattr(
        cuda, 'raw', lambda _, name, options: lambda *_: launched.append(name)
    )
    monkeypatch.setattr(
        cuda, 'get_device_from_array', lambda _: contextlib.nullcontext()
    )
    monkeypatch.setattr(cupy, 'empty', make)
    x = make((2, 12))
    assert chainer.backend.get_array_module(x) is cupy
    y = blocks.sum_blocks(x, 3)
    assert isinstance(y, cupy.ndarray) and y.shape == (2, 4)
    tiled = blocks.tile_blocks(y, 3)
    assert isinstance(tiled, cupy.ndarray) and tiled.shape == (2, 12)
    assert launched == ['sum_blocks', 'tile_blocks']
    # And those of NumPy do not.
    assert isinstance(blocks.sum_blocks(numpy.ones((2, 12)), 3), numpy.ndarray)
    assert len(launched) == 2
