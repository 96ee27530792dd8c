"""How Chainer's exporters treat a shared layer: ONNX, or an error."""

from __future__ import annotations

import functools
from typing import Any

from chainer_shared_patch.blocks import count_orders, slice_evenly
from chainer_shared_patch.compat.importing import on_import
from chainer_shared_patch.compat.onnx_recurrent import convert_n_step_rnn
from chainer_shared_patch.functions import SharedLinearFunction
from chainer.backends.cuda import to_cpu
import numpy


def convert_shared_linear(params: Any) -> Any:
    """Converts a shared layer to the sum of its blocks and a narrow product.

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
    n = node.common_num
    out_size, k = node.inputs[1].shape
    orders = count_orders(node.order)

    def reshape(x: Any, name: str, *shape: int) -> Any:
        # 0 stands for the batch size, whatever it is.
        array = numpy.array((0, *shape), numpy.int64)
        return graph.op('Reshape', [x, context.add_const(array, name)])

    def gather(x: Any, indices: Any, name: str, axis: int = 0) -> Any:
        constant = context.add_const(indices.astype(numpy.int32), name)
        return graph.op('Gather', [x, constant], axis=axis)

    def add_up(x: Any, axis: int) -> Any:
        return graph.op('ReduceSum', [x], axes=[axis], keepdims=0)

    # Up to opset 10, Gemm must have a bias.
    b = b or [context.add_const(numpy.zeros(1, dtype), 'bias')]
    if node.order is None:
        x = add_up(reshape(x, 'shape', n, k), axis=1)
    else:
        order = to_cpu(node.order).reshape(orders, n, k).swapaxes(1, 2)
        if orders == 1:
            order = order[0]
        # Gather would also take a matrix of another width. For batches,
        # onnxruntime gathers rows faster than columns, and adds up
        # neighbours fastest.
        x = graph.op('Transpose', [reshape(x, 'shape', n * k)], perm=[1, 0])
        x = add_up(gather(x, order, 'order'), axis=order.ndim - 1)
    if orders == 1:
        is_transposed = node.order is not None
        y = graph.op('Gemm', [x, W, *b], transA=int(is_transposed), transB=1)
    else:
        # A slice of the outputs may have a row less than the first.
        slices = slice_evenly(out_size, orders)
        rows = numpy.array([each.start for each in slices])[:, None]
        rows = rows + numpy.arange(slices[0].stop)
        W = gather(W, rows.clip(max=out_size - 1), 'rows')
        y = graph.op('MatMul', [W, x])
        y = graph.op('Transpose', [y], perm=[2, 0, 1])
        y = reshape(y, 'y_shape', rows.size)
        if rows.size > out_size:
            stops = numpy.array([each.stop for each in slices])[:, None]
            y = gather(y, numpy.flatnonzero(rows < stops), 'columns', axis=1)
        y = graph.op('Add', [y, *b])
    if dtypes[0] != dtype:
        graph.op('Cast', [y], to=NP_TYPE_TO_TENSOR_TYPE[dtypes[0]])
    return graph.nodes(params.output_names)


def _add_up_blocks(params: Any, graph: Any, x: Any) -> Any:
    """Prepares the sequences for an ``NStepGRU`` that shares its weights."""
    link, _, sequences = params.func.args
    k = link.ws[0][0].shape[1]
    n = sequences.shape[2] // k
    if n == 1:
        return x
    shape = numpy.array((0, 0, n, k), numpy.int64)
    shape = params.context.add_const(shape, 'blocks')
    x = graph.op('Reshape', [x, shape])
    return graph.op('ReduceSum', [x], axes=[2], keepdims=0)


def _add_converters(mapping: Any) -> None:
    mapping.converters['SharedLinearFunction'] = convert_shared_linear
    mapping.converters['NStepRNN'] = functools.partial(
        convert_n_step_rnn, narrow=_add_up_blocks
    )


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
    on_import('onnx_chainer.mapping', _add_converters)
    on_import('chainer.exporters.caffe', _refuse_shared_layers)
