"""How Chainer's exporters treat a shared layer: ONNX, or an error."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.compat.importing import on_import
from chainer_shared_patch.functions import SharedLinearFunction
from chainer.backends.cuda import to_cpu
import numpy


def convert_shared_linear(params: Any) -> Any:
    """Converts a shared layer to the sum of its blocks and a narrow Gemm.

    ``onnx_chainer`` calls it with its parameters for converters. As in
    Chainer, the sum is computed in float32 at least and not rounded.
    """
    from onnx_chainer import onnx_helper
    from onnx_chainer.functions.array import NP_TYPE_TO_TENSOR_TYPE

    node, context = params.func, params.context
    graph = onnx_helper.GraphBuilder()
    dtypes = [each.dtype for each in node.inputs]
    dtype = numpy.result_type(numpy.float32, *dtypes)
    x, W, *b = (
        name
        if each == dtype
        else graph.op('Cast', [name], to=NP_TYPE_TO_TENSOR_TYPE[dtype])
        for name, each in zip(params.input_names, dtypes)
    )
    shape = (node.common_num, node.inputs[1].shape[1])

    def reshape(*shape: int) -> Any:
        # 0 stands for the batch size, whatever it is.
        array = numpy.array((0, *shape), numpy.int64)
        return graph.op('Reshape', [x, context.add_const(array, 'shape')])

    if node.order is None:
        x = reshape(*shape)
        axis = 1
    else:
        # Gather would also take a matrix of another width.
        x = reshape(shape[0] * shape[1])
        # For batches, onnxruntime gathers rows faster than columns.
        order = to_cpu(node.order).reshape(shape)
        x = graph.op('Transpose', [x], perm=[1, 0])
        x = graph.op('Gather', [x, context.add_const(order, 'order')], axis=0)
        axis = 0
    x = graph.op('ReduceSum', [x], axes=[axis], keepdims=0)
    # Up to opset 10, Gemm must have a bias.
    b = b or [context.add_const(numpy.zeros(1, dtype), 'bias')]
    y = graph.op('Gemm', [x, W, *b], transA=1 - axis, transB=1)
    if dtypes[0] != dtype:
        graph.op('Cast', [y], to=NP_TYPE_TO_TENSOR_TYPE[dtypes[0]])
    return graph.nodes(params.output_names)


def _add_converter(mapping: Any) -> None:
    mapping.converters['SharedLinearFunction'] = convert_shared_linear


def _refuse_shared_layers(caffe: Any) -> None:
    dump_graph = caffe._dump_graph

    # It is called before a file is opened.
    @functools.wraps(dump_graph)
    def dump_graph_without_sharing(outputs: Any) -> Any:
        nodes = dump_graph(outputs)
        for node in nodes:
            if isinstance(node, SharedLinearFunction):
                inputs: Any = node.inputs
                raise ValueError(
                    'cannot export a layer whose W of shape '
                    f'{inputs[1].shape} is shared by {node.common_num} blocks '
                    'of the input: Caffe has no such layer. Export to ONNX, '
                    'or first convert a SharedLinear with '
                    'chainer_shared_patch.expand'
                )
        return nodes

    caffe._dump_graph = dump_graph_without_sharing


def register() -> None:
    """Teaches the exporters about shared layers, once they are imported."""
    on_import('onnx_chainer.mapping', _add_converter)
    on_import('chainer.exporters.caffe', _refuse_shared_layers)
