"""Chainer's ONNX exporter."""

import os
from pathlib import Path
import warnings

import chainer_shared_patch  # noqa: F401
import chainer
import chainer.functions as F
import chainer.links as L
import numpy
import onnx
import onnx_chainer
from onnx_chainer.onnx_helper import GraphBuilder
import onnxruntime
import pytest

from tests.helpers import DTYPES, run_onnx, run_python

EXPORT = """
import chainer, numpy, onnx, onnx_chainer, onnxruntime, sys
x = numpy.ones((2, 3), 'f')
graph = onnx_chainer.export(chainer.Sequential(chainer.links.Linear(3, 4)), x)
onnx.checker.check_model(graph)
onnxruntime.InferenceSession(graph.SerializeToString())
"""


def run(code):
    result = run_python('-c', code)
    assert result.returncode == 0, result.stderr
    return result


def load(graph):
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=['CPUExecutionProvider']
    )


@pytest.mark.parametrize('to', DTYPES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_dtypes(dtype, to):
    x = numpy.array([[1, 2]], dtype)
    graph = onnx_chainer.export(
        chainer.Sequential(lambda x: F.cast(x * 3, to)), x
    )
    onnx.checker.check_model(graph, full_check=True)
    session = load(graph)
    (y,) = session.run(None, {'Input_0': x})
    assert y.dtype == to
    assert y.tolist() == [[3, 6]]


@pytest.mark.parametrize('opset', [None, 12, 18])
def test_opsets(opset):
    assert onnx_chainer.MAXIMUM_OPSET_VERSION == 18
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        graph = onnx_chainer.export(
            chainer.Sequential(L.Linear(3, 4)),
            numpy.ones((2, 3), 'f'),
            opset_version=opset,
        )
    assert graph.opset_import[0].version == (opset or 11)


def test_weights_are_constants():
    x = numpy.ones((2, 3), 'f')
    graph = onnx_chainer.export(chainer.Sequential(L.Linear(3, 4)), x)
    session = load(graph)
    assert [each.name for each in session.get_inputs()] == ['Input_0']
    assert session.get_overridable_initializers() == []


@pytest.mark.parametrize(
    'convert', [str, Path, os.fsencode], ids=['str', 'Path', 'bytes']
)
@pytest.mark.parametrize('shape', [None, ('batch', 3)])
def test_filename(tmp_path, convert, shape):
    path = tmp_path / 'model.onnx'
    graph = onnx_chainer.export(
        chainer.Sequential(L.Linear(3, 4)),
        numpy.ones((2, 3), 'f'),
        filename=convert(path),
        input_shapes=shape,
        save_text=True,
        no_testcase=True,
    )
    assert path.read_bytes() == graph.SerializeToString()
    assert (tmp_path / 'model.onnx.txt').exists()


def test_filename_of_another_kind():
    with pytest.raises(TypeError, match='not int'):
        onnx_chainer.export(
            chainer.Sequential(L.Linear(3, 4)),
            numpy.ones((2, 3), 'f'),
            filename=5,
            no_testcase=True,
        )


def test_testcase(tmp_path):
    model = chainer.Sequential(L.Linear(6, 4))
    x = numpy.ones((2, 2, 3), 'f')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # experimental
        onnx_chainer.export_testcase(
            model, x, tmp_path, input_shapes=('batch', 2, 3)
        )
    graph = onnx.load(tmp_path / 'model.onnx')
    tensors = [
        onnx.numpy_helper.to_array(onnx.load_tensor(path))
        for kind in ('input', 'output')
        for path in tmp_path.glob(f'test_data_set_0/{kind}_0.pb')
    ]
    numpy.testing.assert_array_equal(tensors[0], x)
    assert tensors[1].shape == run_onnx(graph, x)[0].shape == (2, 4)


def test_onnx_is_left_as_it_was():
    run(
        'import onnx, sys\n'
        'names = set(vars(onnx))\n'
        "before = sys.modules.get('onnx.mapping')\n"
        'import chainer_shared_patch, onnx_chainer\n'
        "assert sys.modules.get('onnx.mapping') is before\n"
        'added = set(vars(onnx)) - names\n'
        "assert all('onnx.' + name in sys.modules for name in added), added\n"
    )


def test_imported_before():
    # As where Chainer needs no fixes, but the exporter does.
    run(
        'from chainer_shared_patch.compat import importing, onnx_chainer\n'
        'for fix in onnx_chainer.FIXES:\n'
        '    importing._hooks.pop(fix.module, None)\n'
        'import onnx, onnx_chainer as package, sys\n'
        "has_mapping = hasattr(onnx, 'mapping')\n"
        "export = sys.modules['onnx_chainer.export']\n"
        'assert export._available is has_mapping\n'
        'for fix in onnx_chainer.FIXES:\n'
        '    fix.register()\n'
        'assert export._available\n' + EXPORT
    )


def test_without_onnx():
    result = run(
        """
import sys
from importlib import metadata
version = metadata.version

def version_without_onnx(name):
    if name == 'onnx':
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = version_without_onnx
sys.modules['onnx'] = None
import chainer_shared_patch, onnx_chainer, numpy
import chainer
try:
    onnx_chainer.export(chainer.Sequential(), numpy.ones((1, 1), 'f'))
except ImportError as error:
    assert 'ONNX is not installed' in str(error)
else:
    raise AssertionError
"""
    )
    assert result.stderr == ''


@pytest.mark.filterwarnings('ignore:.*is experimental:FutureWarning')
def test_converters_of_the_program():
    def convert_erf(params):
        graph = GraphBuilder()
        graph.op('Erf', params.input_names)
        return graph.nodes(output_names=params.output_names)

    x = numpy.ones((2, 3), 'f')
    graph = onnx_chainer.export(
        chainer.Sequential(F.erf),
        x,
        opset_version=9,
        external_converters={'Erf': convert_erf},
        input_shapes=('batch', 3),
    )
    onnx.checker.check_model(graph)
    assert [node.op_type for node in graph.graph.node] == ['Erf']
