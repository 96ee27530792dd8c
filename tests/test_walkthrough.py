"""The program in docs/walkthrough.md, on the bundled sample of MNIST."""

from pathlib import Path
import re

import chainer_shared_patch  # noqa: F401
from chainer_shared_patch.datasets import read_directory
import chainer
from chainer.datasets._mnist_helper import preprocess_mnist
import numpy
import pytest

ROOT = Path(__file__).parents[1]


def read_blocks():
    """Returns each block of code with the output that the page shows."""
    page = (ROOT / 'docs' / 'walkthrough.md').read_text(encoding='utf-8')
    blocks = []
    for language, text in re.findall(r'```(\w+)\n(.*?)```', page, re.DOTALL):
        if language == 'python':
            blocks.append([text, ''])
        else:
            blocks[-1][1] = text
    return blocks


def get_sample():
    """Returns the first 2,000 training and all test images of the sample."""
    train, test = (
        preprocess_mnist(
            read_directory(str(ROOT / 'scripts' / 'mnist_sample'), kind),
            withlabel=True,
            ndim=3,
            scale=1.0,
            image_dtype=numpy.float32,
            label_dtype=numpy.int32,
            rgb_format=False,
        )
        for kind in ('train', 't10k')
    )
    return chainer.datasets.SubDataset(train, 0, 2000), test


def test_walkthrough(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    train, test = get_sample()
    monkeypatch.setattr(
        chainer.datasets, 'get_mnist', lambda ndim: (train, test)
    )
    names = {}
    accuracies = []
    random_state = numpy.random.get_state()
    for code, shown in read_blocks():
        exec(code, names)
        printed = capsys.readouterr().out
        pattern = r'accuracy (0\.\d+)\n'
        accuracies += map(float, re.findall(pattern, printed))
        # Other data need other plans.
        changes = r'[\d.,%]+| +|-{2,}'
        assert re.sub(changes, '', printed) == re.sub(changes, '', shown)
    numpy.random.set_state(random_state)
    dense, at_once, tuned, loaded, expanded = accuracies
    # Some thousand examples are few for what the page does with 60,000.
    assert min(dense, at_once, tuned) > 0.6
    assert loaded == tuned
    # A rounding may decide between two digits.
    assert abs(expanded - tuned) <= 1 / len(test)
