import contextlib
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist
import chainer
from chainer.dataset import download
import numpy
import pytest

N = {'train': 30, 't10k': 20}


def make_idx(array):
    header = struct.pack('>HBB', 0, 8, array.ndim)
    shape = struct.pack(f'>{array.ndim}I', *array.shape)
    return header + shape + array.tobytes()


@pytest.fixture(scope='module')
def arrays():
    random = numpy.random.RandomState(0)
    return {
        kind: {
            'x': random.randint(0, 256, (n, 784)).astype('u1'),
            'y': random.randint(0, 10, n).astype('u1'),
        }
        for kind, n in N.items()
    }


@pytest.fixture(scope='module')
def files(arrays):
    """The uncompressed files by name."""
    result = {}
    for kind, pair in arrays.items():
        images = make_idx(pair['x'].reshape(-1, 28, 28))
        result[kind + '-images-idx3-ubyte'] = images
        result[kind + '-labels-idx1-ubyte'] = make_idx(pair['y'])
    return result


class Server:
    """Serves answers: functions of a request handler and a path."""

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                self.requests.append(handler.path.lstrip('/'))
                # A client that gives up is what some tests are about.
                with contextlib.suppress(ConnectionError):
                    answer(handler, handler.path.lstrip('/'))

            def log_message(self, *args):
                pass

        self.requests = []
        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Handler
        )
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_port}/'
        threading.Thread(target=self.server.serve_forever).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def send(handler, content, length=None):
    handler.send_response(200)
    if length is None:
        length = len(content)
    handler.send_header('Content-Length', str(length))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def serve(files):
    """Makes a server that answers in one of the ways below."""
    stop = threading.Event()

    def good(handler, path):
        send(handler, compress(files[path[: -len('.gz')]]))

    def truncated(handler, path):
        content = compress(files[path[: -len('.gz')]])
        send(handler, content[:-20], len(content))

    def truncated_without_length(handler, path):
        handler.send_response(200)
        handler.end_headers()
        content = compress(files[path[: -len('.gz')]])
        handler.wfile.write(content[:-20])

    def wrong(handler, path):
        content = bytearray(files[path[: -len('.gz')]])
        content[-1] ^= 1
        send(handler, compress(bytes(content)))

    def forbidden(handler, path):
        handler.send_error(403)

    def not_gzip(handler, path):
        send(handler, b'<html>no longer here</html>')

    def hanging(handler, path):
        stop.wait(60)

    def stalling(handler, path):
        content = compress(files[path[: -len('.gz')]])
        send(handler, content[:20], len(content))
        stop.wait(60)

    def dripping(handler, path):
        handler.send_response(200)
        handler.end_headers()
        # Faster than the timeout, and never at the end.
        while not stop.wait(0.005):
            handler.wfile.write(b'\0')

    def slow(handler, path):
        time.sleep(0.2)
        good(handler, path)

    servers = []
    answers = locals()

    def serve(name):
        servers.append(Server(answers[name]))
        return servers[-1]

    yield serve
    stop.set()
    for server in servers:
        server.close()


@pytest.fixture
def root(tmp_path):
    before = download.get_dataset_root()
    download.set_dataset_root(str(tmp_path))
    yield tmp_path / 'pfnet' / 'chainer' / 'mnist'
    download.set_dataset_root(before)


def compress(content):
    """Returns the same bytes at every call."""
    return gzip.compress(content, mtime=0)


@pytest.fixture
def use(files, monkeypatch):
    """Puts the files above and these mirrors in the place of the real ones."""

    def hash_of(content):
        return hashlib.sha256(content).hexdigest()

    def use(*mirrors):
        sha256 = {
            name: (hash_of(compress(content)), hash_of(content))
            for name, content in files.items()
        }
        monkeypatch.setattr(mnist, 'SHA256', sha256)
        monkeypatch.setattr(mnist, 'MIRRORS', mirrors)

    return use


def assert_is(actual, expected):
    assert sorted(actual) == ['x', 'y']
    for name in actual:
        assert actual[name].dtype == numpy.uint8
        numpy.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize(
    ('kind', 'name'), [('train', 'train.npz'), ('t10k', 'test.npz')]
)
def test_good_mirror(files, arrays, serve, root, use, kind, name):
    server = serve('good')
    use(server.url)
    assert_is(mnist.retrieve(name), arrays[kind])
    assert server.requests == [n + '.gz' for n in files if kind in n]
    # The second time it comes from the cache, which is all that is left.
    assert_is(mnist.retrieve(name), arrays[kind])
    assert len(server.requests) == 2
    assert {p.name for p in root.iterdir()} - {name + '.lock'} == {name}
    # Others may read it as far as the umask lets them.
    (root / 'ordinary').touch()
    mode = (root / 'ordinary').stat().st_mode
    assert (root / name).stat().st_mode == mode


DEFECTS = {
    'truncated': 'bytes',
    'truncated_without_length': 'hash',
    'wrong': 'hash',
    'forbidden': '403',
    'not_gzip': 'hash',
    'hanging': 'timed out',
    'stalling': 'timed out',
    'dripping': 'seconds',
}


@pytest.mark.parametrize('defect', DEFECTS)
def test_bad_mirror(arrays, serve, root, use, monkeypatch, defect):
    monkeypatch.setattr(mnist, 'TIMEOUT', 0.5)
    if defect == 'dripping':
        monkeypatch.setattr(mnist, 'DEADLINE', 0.5)
    bad, good = serve(defect), serve('good')
    use(bad.url, good.url)
    assert_is(mnist.retrieve('train.npz'), arrays['train'])
    assert len(bad.requests) == len(good.requests) == 2

    use(bad.url)
    with pytest.raises(OSError) as info:
        mnist.retrieve('test.npz')
    message = str(info.value)
    assert bad.url + 't10k-images-idx3-ubyte.gz' in message
    assert DEFECTS[defect] in message
    assert not (root / 'test.npz').exists()
    assert not list(root.glob('tmp*'))


def test_dead_mirror(arrays, serve, root, use):
    dead, good = serve('good'), serve('good')
    dead.close()
    use(dead.url, good.url)
    assert_is(mnist.retrieve('train.npz'), arrays['train'])


def test_no_mirror(files, root, use):
    urls = ['http://127.0.0.1:9/a/', 'http://127.0.0.1:9/b/']
    use(*urls)
    with pytest.raises(OSError) as info:
        mnist.retrieve('train.npz')
    message = str(info.value)
    for url in urls:
        assert url + 'train-images-idx3-ubyte.gz' in message
    # And where to put which files.
    assert str(root) in message
    for name in files:
        assert name in message


@pytest.mark.parametrize(
    ('suffix', 'encode'), [('', bytes), ('.gz', gzip.compress)]
)
def test_files_put_there_by_hand(files, arrays, root, use, suffix, encode):
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / (name + suffix)).write_bytes(encode(content))
    use()
    train, test = chainer.datasets.get_mnist()
    for data, kind in ((train, 'train'), (test, 't10k')):
        assert len(data) == N[kind]
        images, labels = data[:][0], [label for _, label in data]
        assert images[0].dtype == numpy.float32
        numpy.testing.assert_allclose(images[0], arrays[kind]['x'][0] / 255)
        numpy.testing.assert_array_equal(labels, arrays[kind]['y'])


def test_cache_that_cannot_be_written(files, arrays, root, use, monkeypatch):
    use()
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    # What root may write is not up to the mode.
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert_is(mnist.retrieve('train.npz'), arrays['train'])
    assert len(list(root.iterdir())) == len(files)


def test_cache_that_cannot_be_made(arrays, serve, tmp_path, root, use):
    (tmp_path / 'pfnet').write_bytes(b'not a directory')
    use(serve('good').url)
    assert_is(mnist.retrieve('train.npz'), arrays['train'])


def test_wrong_file_put_there_by_hand(files, arrays, serve, root, use):
    root.mkdir(parents=True)
    path = root / 'train-images-idx3-ubyte'
    path.write_bytes(files[path.name][:-1] + b'?')
    os.mkfifo(str(path) + '.gz')
    use()
    with pytest.raises(OSError) as info:
        mnist.retrieve('train.npz')
    assert f'{path}: its content has the SHA-256' in str(info.value)
    assert f'{path}.gz is not a regular file' in str(info.value)
    use(serve('good').url)
    assert_is(mnist.retrieve('train.npz'), arrays['train'])


def test_damaged_cache(root):
    root.mkdir(parents=True)
    path = root / 'train.npz'
    damaged = [b'', b'PK\x03\x04 cut off', b'\x93NUMPY']
    x, y = numpy.zeros((3, 784), 'u1'), numpy.zeros(3, 'u1')
    for pair in (
        {'x': x, 'y': y[:2]},
        {'x': x, 'y': y + 10},
        {'x': x, 'y': y[:, None]},
        {'x': x, 'y': y.astype('f')},
        {'x': x * numpy.nan, 'y': y},
    ):
        with io.BytesIO() as file:
            numpy.savez(file, **pair)
            damaged.append(file.getvalue())
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(OSError, match='delete it') as info:
            mnist.retrieve('train.npz')
        assert str(path) in str(info.value)


def retrieve_in_process(directory, sha256, mirrors, barrier, queue):
    download.set_dataset_root(directory)
    mnist.SHA256, mnist.MIRRORS = sha256, mirrors
    barrier.wait(60)
    queue.put(mnist.retrieve('train.npz'))


def test_processes_that_start_at_once(arrays, serve, root, tmp_path, use):
    server = serve('slow')
    use(server.url)
    context = multiprocessing.get_context('spawn')
    barrier, queue = context.Barrier(3), context.Queue()
    args = (str(tmp_path), mnist.SHA256, mnist.MIRRORS, barrier, queue)
    processes = [
        context.Process(target=retrieve_in_process, args=args)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert_is(queue.get(timeout=60), arrays['train'])
    for process in processes:
        process.join(60)
    assert len(server.requests) == 2


def test_addresses():
    assert len(mnist.MIRRORS) >= 2
    assert all(mirror.endswith('/') for mirror in mnist.MIRRORS)
    assert all(
        len(bytes.fromhex(h)) == 32 for hs in mnist.SHA256.values() for h in hs
    )
    assert [name.split('-')[:2] for name in mnist.SHA256] == [
        [kind, what]
        for kind in ('train', 't10k')
        for what in ('images', 'labels')
    ]


def test_import_is_light(tmp_path):
    """Importing imports no downloader and makes no directory."""
    subprocess.run(
        [
            *(sys.executable, '-c'),
            'import sys, chainer_shared_patch, chainer.datasets.mnist\n'
            'assert not {"pooch", "requests"} & set(sys.modules)',
        ],
        env={
            **os.environ,
            'HOME': str(tmp_path),
            'XDG_CACHE_HOME': str(tmp_path),
            'CHAINER_DATASET_ROOT': str(tmp_path / 'root'),
        },
        check=True,
    )
    # CuPy makes one, where it is installed.
    assert {path.name for path in tmp_path.iterdir()} <= {'.cupy'}


class TestReadDirectory:
    @pytest.fixture
    def directory(self, tmp_path, files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    def test_plain_and_gzipped(self, directory, arrays):
        path = directory / 'train-images-idx3-ubyte'
        (directory / (path.name + '.gz')).write_bytes(
            gzip.compress(path.read_bytes())
        )
        path.unlink()
        read = mnist.read_directory(str(directory), 'train')
        assert_is(read, arrays['train'])

    def test_missing_file(self, directory):
        os.unlink(str(directory / 'train-labels-idx1-ubyte'))
        with pytest.raises(FileNotFoundError, match='train-labels-idx1-ubyte'):
            mnist.read_directory(str(directory), 'train')

    @pytest.mark.parametrize(
        ('damage', 'words'),
        [
            (lambda content: content[:-1], 'should hold 23,520 bytes'),
            (lambda content: content + b'x', 'should hold 23,520 bytes'),
            (lambda content: content[:7], 'not an IDX file'),
            (lambda content: content[:13], 'not an IDX file'),
            (lambda content: b'', 'not an IDX file'),
            (lambda content: b'\0\0\x0d' + content[3:], 'not an IDX file'),
            (lambda content: content[:4] + b'\xff' * 12, 'not an IDX file'),
            (lambda content: content[:4] + b'\xff' * 4 + content[8:], '1,000'),
            (
                lambda content: gzip.compress(content)[:-9],
                'not a complete gzip',
            ),
            (
                lambda content: gzip.compress(content)[:40] + b'x',
                'complete gzip',
            ),
            (lambda content: make_idx(numpy.zeros((30, 8, 8), 'u1')), '28'),
            (lambda content: make_idx(numpy.zeros((9, 28, 28), 'u1')), '30'),
            (lambda content: make_idx(numpy.zeros((0, 28, 28), 'u1')), '1 to'),
            (lambda content: make_idx(numpy.zeros(30, 'u1')), 'N images'),
        ],
    )
    def test_damaged_file(self, directory, damage, words):
        path = directory / 'train-images-idx3-ubyte'
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=words) as info:
            mnist.read_directory(str(directory), 'train')
        assert str(directory) in str(info.value)
        assert '\n' not in str(info.value)

    def test_labels_above_9(self, directory):
        path = directory / 'train-labels-idx1-ubyte'
        path.write_bytes(path.read_bytes()[:-1] + b'\x0a')
        with pytest.raises(ValueError, match='holds the label 10') as info:
            mnist.read_directory(str(directory), 'train')
        assert str(path) in str(info.value)

    def test_fifo(self, directory):
        path = directory / 'train-images-idx3-ubyte'
        path.unlink()
        os.mkfifo(str(path))
        with pytest.raises(ValueError, match='not a regular file') as info:
            mnist.read_directory(str(directory), 'train')
        assert str(path) in str(info.value)

    @pytest.mark.parametrize('n', [30, 2**32 - 1])
    def test_gzip_bomb(self, directory, n):
        """No more is read than the header announces, and this has a limit."""
        path = directory / 'train-images-idx3-ubyte'
        header = make_idx(numpy.empty((0, 28, 28), 'u1'))
        with gzip.open(str(path), 'wb', compresslevel=1) as file:
            file.write(header[:4] + struct.pack('>I', n) + header[8:])
            for _ in range(64):
                file.write(bytes(2**22))
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=path.name):
                mnist.read_directory(str(directory), 'train')
            assert tracemalloc.get_traced_memory()[1] < 2**22
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize('encode', [bytes, gzip.compress])
    def test_header_that_promises_much(self, directory, encode):
        """Memory comes with the bytes that are there."""
        path = directory / 'train-images-idx3-ubyte'
        header = make_idx(numpy.empty((0, 28, 28), 'u1'))
        promise = struct.pack('>I', mnist.MAX_IMAGES)
        path.write_bytes(encode(header[:4] + promise + header[8:]))
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match='but holds 0'):
                mnist.read_directory(str(directory), 'train')
            assert tracemalloc.get_traced_memory()[1] < 2**22
        finally:
            tracemalloc.stop()
