import gzip
import hashlib
import http.server
import os
import threading

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.compat import mnist_download
import chainer
from chainer.dataset import download
from chainer.datasets import mnist
import numpy
import pytest

from tests.helpers import run_python

from ..test_datasets import make_idx

N = {'train': 30, 't10k': 20}


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
    """The contents of the gzipped files, by name."""
    result = {}
    for kind, pair in arrays.items():
        images = make_idx(pair['x'].reshape(-1, 28, 28))
        labels = make_idx(pair['y'])
        for name, content in (
            ('images-idx3', images),
            ('labels-idx1', labels),
        ):
            result[f'{kind}-{name}-ubyte.gz'] = gzip.compress(content, mtime=0)
    return result


@pytest.fixture
def root(tmp_path):
    before = download.get_dataset_root()
    download.set_dataset_root(str(tmp_path))
    yield tmp_path / 'pfnet' / 'chainer' / 'mnist'
    download.set_dataset_root(before)


@pytest.fixture
def serve(files, monkeypatch):
    """Makes these the mirrors of the files; returns the requests to each."""
    stop = threading.Event()
    servers = []

    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                content = files[self.path.lstrip('/')]
                self.send_response(403 if answer == 'forbidden' else 200)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                if answer == 'wrong':
                    content = content[:-1] + b'?'
                elif answer == 'truncated':
                    content = content[:-1]
                elif answer == 'hanging':
                    stop.wait(60)
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        requests = []
        servers.append(
            http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        )
        threading.Thread(target=servers[-1].serve_forever).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/', requests

    def serve(*answers):
        started = list(map(start, answers))
        monkeypatch.setattr(
            mnist_download, 'MIRRORS', [url for url, _ in started]
        )
        return [requests for _, requests in started]

    sha256 = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
    }
    monkeypatch.setattr(mnist_download, 'SHA256', sha256)
    monkeypatch.setattr(mnist_download, 'TIMEOUT', 0.5)
    yield serve
    stop.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def assert_is(actual, expected):
    assert sorted(actual) == ['x', 'y']
    for name in actual:
        assert actual[name].dtype == numpy.uint8
        numpy.testing.assert_array_equal(actual[name], expected[name])


def test_download(files, arrays, serve, root):
    (requests,) = serve('good')
    for _ in range(2):  # the second time, all files are there
        train, test = chainer.datasets.get_mnist()
        for data, kind in ((train, 'train'), (test, 't10k')):
            images, labels = chainer.dataset.concat_examples(data[:])
            assert images.dtype == numpy.float32
            numpy.testing.assert_allclose(images, arrays[kind]['x'] / 255)
            numpy.testing.assert_array_equal(labels, arrays[kind]['y'])
    assert sorted(requests) == sorted('/' + name for name in files)
    assert {path.name for path in root.iterdir()} == set(files)


@pytest.mark.parametrize(
    ('answer', 'words'),
    [
        ('forbidden', '403'),
        ('wrong', 'hash'),
        ('truncated', 'bytes'),
        ('hanging', 'timed out'),
    ],
)
def test_bad_mirror(files, arrays, serve, root, answer, words):
    bad, good = serve(answer, 'good')
    assert_is(mnist._retrieve_mnist_training(), arrays['train'])
    assert len(bad) == len(good) == 2
    serve(answer)
    with pytest.raises(OSError) as info:
        mnist._retrieve_mnist_test()
    message = str(info.value)
    assert f'{mnist_download.MIRRORS[0]}t10k-images-idx3-ubyte.gz: ' in message
    assert words in message
    # And where to put which files.
    assert str(root) in message
    for name in files:
        assert name in message
    assert len(list(root.iterdir())) == 2


@pytest.mark.parametrize('uncompressed', [False, True])
def test_files_put_there_by_hand(files, arrays, serve, root, uncompressed):
    root.mkdir(parents=True)
    for name, content in files.items():
        if uncompressed:
            name, content = name[: -len('.gz')], gzip.decompress(content)
        (root / name).write_bytes(content)
    serve()
    assert_is(mnist._retrieve_mnist_training(), arrays['train'])
    name = sorted(os.listdir(root))[0]
    (root / name).write_bytes(b'damaged')
    with pytest.raises(ValueError, match=name):
        mnist._retrieve_mnist_test()


def test_file_made_by_chainer(arrays, serve, root):
    root.mkdir(parents=True)
    numpy.savez_compressed(root / 'train.npz', **arrays['train'])
    serve()
    assert_is(mnist._retrieve_mnist_training(), arrays['train'])


# The names that Chainer gives to what it downloads from yann.lecun.com.
CACHED = {
    'train-images-idx3-ubyte.gz': '23278f029ff68f1e993776e500ce06b9',
    'train-labels-idx1-ubyte.gz': 'd8b415e67abd11881e156b8f111d3300',
    't10k-images-idx3-ubyte.gz': 'b0cdab8e37ae7c1c5560ee858afaac1d',
    't10k-labels-idx1-ubyte.gz': 'd4fdde61aca9f72d5fe2315410bb46a5',
}


def test_files_that_chainer_has_downloaded(files, arrays, serve, root):
    cache = root.parents[2] / '_dl_cache'
    cache.mkdir()
    for name, content in files.items():
        (cache / CACHED[name]).write_bytes(content)
    serve()
    assert_is(mnist._retrieve_mnist_training(), arrays['train'])
    assert_is(mnist._retrieve_mnist_test(), arrays['t10k'])
    assert not root.exists()  # nor need it be writable
    # What was put there by hand comes first.
    root.mkdir(parents=True)
    labels = make_idx(arrays['t10k']['y'][::-1])
    (root / 't10k-labels-idx1-ubyte').write_bytes(labels)
    expected = {**arrays['t10k'], 'y': arrays['t10k']['y'][::-1]}
    assert_is(mnist._retrieve_mnist_test(), expected)
    damaged = cache / CACHED['t10k-images-idx3-ubyte.gz']
    damaged.write_bytes(b'damaged')
    with pytest.raises(ValueError, match=damaged.name):
        mnist._retrieve_mnist_test()


def test_import_is_light(tmp_path):
    """Importing imports no downloader and makes no directory."""
    result = run_python(
        '-c',
        'import sys, chainer_shared_patch, chainer.datasets.mnist\n'
        'assert not {"pooch", "requests"} & set(sys.modules)',
        HOME=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path),
        CHAINER_DATASET_ROOT=str(tmp_path / 'root'),
    )
    assert result.returncode == 0, result.stderr
    # CuPy makes one, where it is installed.
    assert {path.name for path in tmp_path.iterdir()} <= {'.cupy'}
