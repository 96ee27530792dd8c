"""Functions that Chainer's ONNX exporter writes wrong, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
import copy
import functools
import operator
from typing import Any

from chainer_shared_patch.compat.importing import Fix
import numpy


def _to_index(index: Any) -> Any:
    """Returns None, an Ellipsis, an int, a slice or an array."""
    from chainer import get_array_types
    from chainer.backends.cuda import to_cpu

    if index is None or index is Ellipsis:
        return index
    if isinstance(index, slice):
        return slice(
            *(
                None if each is None else operator.index(each)
                for each in (index.start, index.stop, index.step)
            )
        )
    if isinstance(index, get_array_types()):
        index = to_cpu(index)
    array = numpy.asarray(index)
    if array.ndim == 0 and array.dtype != bool:
        return operator.index(array)
    return array if array.size or array.dtype == bool else array.astype(int)


def _to_indices(slices: Sequence[Any]) -> list[Any]:
    """Returns indices that the exporter writes right, or refuses them."""
    indices: list[Any] = []
    is_supported = True
    for index in map(_to_index, slices):
        if isinstance(index, numpy.ndarray) and index.dtype == bool:
            # Without an axis, a mask adds one.
            is_supported = is_supported and index.ndim > 0
            indices.extend(numpy.atleast_1d(index).nonzero())
        else:
            indices.append(index)
    picked = [
        i for i, each in enumerate(indices) if hasattr(each, '__index__')
    ]
    places = [i for i in picked if isinstance(indices[i], numpy.ndarray)]
    if places:
        arrays = numpy.broadcast_arrays(*(indices[i] for i in places))
        for i, array in zip(places, arrays):
            indices[i] = array
        # Where indices are apart, NumPy puts the picked axis first.
        is_first = picked[: places[0] + 1] == list(range(places[0] + 1))
        is_adjacent = picked[-1] - picked[0] + 1 == len(picked)
        if len(places) > 1:
            is_supported = is_supported and is_first and arrays[0].ndim == 1
        else:
            is_supported = is_supported and (is_first or is_adjacent)
    if not is_supported:
        raise ValueError(f'the indices are {slices}')
    return indices


def _convert_get_item(convert: Any, params: Any) -> Any:
    params.func.slices = tuple(_to_indices(params.func.slices))
    return convert(params)


def _convert_with_constant(name: str, convert: Any, params: Any) -> Any:
    """Writes an array of the function that is no variable of the model."""
    from chainer.backends.cuda import to_cpu

    array = getattr(params.func, name)
    if id(array) not in params.context.name_list:
        constant = params.context.add_const(numpy.asarray(to_cpu(array)), name)
        params.context.set_name(array, constant)
    return convert(params)


def _make_graph() -> Any:
    from onnx_chainer.onnx_helper import GraphBuilder

    return GraphBuilder()


def _set_attributes(node: Any, **attributes: Any) -> Any:
    """Sets attributes, or deletes those that are None."""
    from onnx.helper import make_attribute

    kept = [each for each in node.attribute if each.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    for name, value in attributes.items():
        if value is not None:
            node.attribute.append(make_attribute(name, value))
    return [node]


def _find_dtype(params: Any) -> Any:
    return numpy.result_type(*(each.dtype for each in params.func.inputs))


def _widen(params: Any, nodes: Any) -> Any:
    """Computes in the widest data type of the inputs, as Chainer does."""
    from onnx.helper import make_node
    from onnx_chainer.functions.array import NP_TYPE_TO_TENSOR_TYPE

    dtype = _find_dtype(params)
    dtypes = {
        params.context.get_name(each): each.dtype
        for each in params.context.parameters
    }
    inputs = params.func.inputs
    dtypes.update(zip(params.input_names, (each.dtype for each in inputs)))
    casts: dict[str, Any] = {}

    def cast(name: str, new_name: str, to: Any) -> Any:
        to = NP_TYPE_TO_TENSOR_TYPE[to]
        return make_node('Cast', [name], [new_name], f'{new_name}_cast', to=to)

    for node in nodes:
        for i, name in enumerate(node.input):
            if dtypes.get(name, dtype) != dtype:
                new_name = f'{params.output_names[0]}_wide_{name}'
                casts[name] = cast(name, new_name, dtype)
                node.input[i] = new_name
    nodes = [*casts.values(), *nodes]
    (output,) = params.output_names
    if inputs[0].dtype != dtype:
        wide_output = f'{output}_wide'
        nodes[-1].output[:] = [wide_output]
        nodes.append(cast(wide_output, output, inputs[0].dtype))
    return nodes


def _normalize(params: Any, reduced: Any, added: Any) -> Any:
    """Writes (x - mean) / sqrt(var + eps) * gamma + beta.

    Where they are no inputs, mean and var are those of x along the reduced
    axes. To the other inputs, axes are added.
    """
    graph = _make_graph()
    eps = numpy.array(params.func.eps, _find_dtype(params))
    x, *others = params.input_names
    gamma, beta, *statistics = (
        graph.op('Unsqueeze', [each], axes=added) for each in others
    )

    def take_mean(x: Any) -> Any:
        return graph.op('ReduceMean', [x], axes=reduced, keepdims=1)

    mean, var = statistics or (take_mean(x), None)
    x = graph.op('Sub', [x, mean])
    var = var or take_mean(graph.op('Mul', [x, x]))
    var = graph.op('Add', [var, params.context.add_const(eps, 'eps')])
    x = graph.op('Div', [x, graph.op('Sqrt', [var])])
    graph.op('Add', [graph.op('Mul', [x, gamma]), beta])
    return _widen(params, graph.nodes(params.output_names))


def _convert_batch_normalization(convert: Any, params: Any) -> Any:
    """Takes the statistics of each batch where Chainer does."""
    x, *others = params.func.inputs
    axis = tuple(params.func.axis)
    if len(others) == 2 or axis != (0, *range(2, len(x.shape))):
        return _normalize(params, axis, axis)
    return _widen(params, convert(params))


def _convert_layer_normalization(convert: Any, params: Any) -> Any:
    return _normalize(params, reduced=[1], added=[0])


def _convert_swish(convert: Any, params: Any) -> Any:
    graph = _make_graph()
    x, beta = params.input_names
    x_ndim, beta_ndim = (len(each.shape) for each in params.func.inputs)
    axes = [0, *range(1 + beta_ndim, x_ndim)]
    beta = graph.op('Unsqueeze', [beta], axes=axes)
    graph.op('Mul', [x, graph.op('Sigmoid', [graph.op('Mul', [x, beta])])])
    return graph.nodes(params.output_names)


def _convert_rounding(convert: Any, params: Any) -> Any:
    graph = _make_graph()
    graph.op(params.func.custom_function_node_name.title(), params.input_names)
    return graph.nodes(params.output_names)


def _write_numbers(params: Any, numbers: dict[str, Any], nodes: Any) -> Any:
    """Writes constants in the data type of the inputs, not in float32."""
    from onnx import numpy_helper

    dtype = _find_dtype(params)
    for constant in params.context.constants:
        tensor = constant.attribute[0].t
        name = tensor.name.partition('_const_')[2]
        if name in numbers and dtype.kind == 'f':
            array = numpy.array(numbers[name], dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return nodes


def _convert_clip(convert: Any, params: Any) -> Any:
    func = params.func
    func.x_min = float('-inf' if func.x_min is None else func.x_min)
    func.x_max = float('inf' if func.x_max is None else func.x_max)
    numbers = {'x_min': func.x_min, 'x_max': func.x_max}
    return _write_numbers(params, numbers, convert(params))


def _convert_clipped_relu(convert: Any, params: Any) -> Any:
    numbers = {'zero': 0, 'clip_z': params.func.cap}
    return _write_numbers(params, numbers, convert(params))


def _convert_group_normalization(convert: Any, params: Any) -> Any:
    numbers = {'eps': params.func.eps}
    return _widen(params, _write_numbers(params, numbers, convert(params)))


def _convert_pad(convert: Any, params: Any) -> Any:
    keywords = params.func.keywords
    if keywords.keys() - {'constant_values'}:
        raise ValueError(f'the options are {keywords}')
    numbers = {}
    if 'constant_values' in keywords:
        values = numpy.unique(keywords['constant_values']).tolist()
        params.func.keywords = {'constant_values': values}
        numbers['constant_value'] = values[0]
    return _write_numbers(params, numbers, convert(params))


def _convert_prelu(convert: Any, params: Any) -> Any:
    """Aligns the slopes with the first axes, not the last."""
    from onnx.helper import make_node

    x, W = (each.shape for each in params.func.inputs)
    axes = list(range(len(W), len(x) - 1))
    (node,) = convert(params)
    if not W or not axes:
        return [node]
    name = f'{node.name}_slope'
    slope = make_node('Unsqueeze', [node.input[1]], [name], name, axes=axes)
    node.input[1] = name
    return [slope, node]


def _convert_convolution(convert: Any, params: Any) -> Any:
    """Adds dilate, and pads the ends for cover_all or outsize."""
    from chainer.utils import conv
    from onnx.helper import get_attribute_value

    func = params.func
    (node,) = convert(params)
    old = {each.name: get_attribute_value(each) for each in node.attribute}
    dilations = getattr(func, 'dilate', None) or (func.dy, func.dx)
    sizes = func.inputs[0].shape[2:]
    pads = old['pads'][: len(sizes)]
    windows = zip(sizes, old['kernel_shape'], old['strides'], pads, dilations)
    outsize: Any = old.get('output_shape')
    ends = []
    for i, (size, k, stride, pad, d) in enumerate(windows):
        if outsize:
            out = conv.get_deconv_outsize(size, k, stride, pad, d=d)
            ends.append(outsize[i] - out)
        else:
            out = conv.get_conv_outsize(
                size, k, stride, pad, func.cover_all, d
            )
            end = (out - 1) * stride + (k - 1) * d + 1 - size - pad
            ends.append(max(pad, end))
    _set_attributes(node, dilations=dilations, output_shape=None)
    if outsize:
        return _set_attributes(node, output_padding=ends)
    return _set_attributes(node, pads=[*pads, *ends])


def _convert_average_pooling(convert: Any, params: Any) -> Any:
    (node,) = convert(params)
    is_counted = int(params.func.pad_value is not None)
    return _set_attributes(node, count_include_pad=is_counted)


def _convert_unpooling(convert: Any, params: Any) -> Any:
    """Repeats pixels as Upsample does, and cuts off what is not covered."""
    from onnx_chainer.functions.array import get_slice_node

    func, opset = params.func, params.opset_version
    h, w = func.inputs[0].shape[2:]
    ends = func.outh - func.kh * h, func.outw - func.kw * w
    if func.cover_all:
        func.cover_all = False
        func.outh, func.outw = func.kh * h, func.kw * w
    (node,) = convert(params)
    if opset > 10:
        mode = {'coordinate_transformation_mode': 'asymmetric'}
        _set_attributes(node, nearest_mode='floor', **mode)
    if not any(ends):
        return [node]
    whole = f'{node.name}_whole'
    node.output[:] = [whole]
    graph = _make_graph()
    slices = [2, 3], [0, 0], [end or 2**63 - 1 for end in ends], [1, 1]
    get_slice_node(graph, opset, params.context, [whole], *slices)
    return [node, *graph.nodes(params.output_names)]


def _convert_resize_images(convert: Any, params: Any) -> Any:
    """Aligns the corners as Chainer does; up to opset 10, no runtime can."""
    func = params.func
    if func.mode != 'bilinear':
        raise ValueError(f"mode is {func.mode!r}, but must be 'bilinear'")
    (node,) = convert(params)
    if params.opset_version > 10:
        # Sizes need no rounding, as scales do.
        shape = *func.inputs[0].shape[:2], func.out_H, func.out_W
        node.input[2:] = [
            params.context.add_const(numpy.zeros(0, 'f'), 'no_scales'),
            params.context.add_const(numpy.array(shape), 'sizes'),
        ]
        mode = 'align_corners' if func.align_corners else 'half_pixel'
        _set_attributes(node, coordinate_transformation_mode=mode)
    return [node]


def _convert_rollaxis(convert: Any, params: Any) -> Any:
    func = params.func
    ndim = len(func.inputs[0].shape)
    labels = numpy.broadcast_to(0, range(1, ndim + 1))
    shape = numpy.rollaxis(labels, func.axis, func.start).shape
    graph = _make_graph()
    perm = [label - 1 for label in shape]
    graph.op('Transpose', params.input_names, perm=perm)
    return graph.nodes(params.output_names)


def _convert_softplus(convert: Any, params: Any) -> Any:
    if params.func.beta != 1:
        raise ValueError(f'beta is {params.func.beta}, but must be 1')
    return convert(params)


def _convert_tile(convert: Any, params: Any) -> Any:
    func = params.func
    ndim = len(func.inputs[0].shape)
    reps = (func.reps,) if isinstance(func.reps, int) else func.reps
    if len(reps) > ndim:
        raise ValueError(f'reps={reps} are more than {ndim} axes')
    func.reps = (1,) * (ndim - len(reps)) + tuple(reps)
    return convert(params)


def _convert_transpose(convert: Any, params: Any) -> Any:
    axes = params.func.axes
    if axes is not None:
        params.func.axes = [axis % len(axes) for axis in axes]
    return convert(params)


def _convert_normalize(convert: Any, params: Any) -> Any:
    """Adds eps to the norm, which LpNormalization cannot."""
    func, (x,) = params.func, params.input_names
    eps = numpy.array(func.eps, func.inputs[0].dtype)
    graph = _make_graph()
    norm = graph.op('ReduceL2', [x], axes=func.axis, keepdims=1)
    norm = graph.op('Add', [norm, params.context.add_const(eps, 'eps')])
    graph.op('Div', [x, norm])
    return graph.nodes(params.output_names)


def _convert_matmul(convert: Any, params: Any) -> Any:
    """Swaps a vector and a transposed matrix, which onnxruntime mistakes."""
    func = params.func
    ndims = [len(each.shape) for each in func.inputs]
    if 1 in ndims and (func.transb, func.transa)[ndims.index(1)]:
        params.input_names.reverse()
        func.transa = func.transb = False
    return convert(params)


def _convert_softmax_cross_entropy(convert: Any, params: Any) -> Any:
    """Ignores the labels of each batch that are -1."""
    from onnx_chainer.functions.array import NP_TYPE_TO_TENSOR_TYPE

    func, context = params.func, params.context
    x, t = func.inputs
    options = func.normalize, func.ignore_label, func.reduce, len(x.shape)
    is_weighted = func.class_weight is not None
    if options != (True, -1, 'mean', 2) or is_weighted or func.soft_target:
        raise ValueError('options are not the default, or x is no matrix')
    graph = _make_graph()
    classes = numpy.arange(x.shape[1], dtype=t.dtype)
    one = context.add_const(numpy.array(1, x.dtype), 'one')
    scores, labels = params.input_names
    labels = graph.op('Unsqueeze', [labels], axes=[1])
    hot = graph.op('Equal', [labels, context.add_const(classes, 'classes')])
    hot = graph.op('Cast', [hot], to=NP_TYPE_TO_TENSOR_TYPE[x.dtype])
    y = graph.op('Mul', [graph.op('LogSoftmax', [scores], axis=1), hot])
    y, count = (graph.op('ReduceSum', [each], keepdims=0) for each in (y, hot))
    y = graph.op('Div', [y, graph.op('Max', [count, one])])
    graph.op('Neg', [y])
    return graph.nodes(params.output_names)


def _convert_max_pooling(convert: Any, params: Any) -> Any:
    from chainer.utils.conv import get_conv_outsize

    func = params.func
    sizes = func.inputs[0].shape[2:]
    windows = zip(sizes, func.ksize, func.stride, func.pad)
    for size, ksize, stride, pad in windows:
        out = get_conv_outsize(size, ksize, stride, pad, func.cover_all)
        if (out - 1) * stride >= size + pad:
            raise ValueError(
                f'with ksize={ksize}, stride={stride} and pad={pad}, the '
                f'last window of {size} elements lies in the padding'
            )
    return convert(params)


def _use(converters: dict[str, Any], mapping: Any) -> None:
    def make_converter(convert: Any, original: Any) -> Any:
        def convert_copy(params: Any) -> Any:
            params.func = copy.copy(params.func)
            return convert(original, params)

        return convert_copy

    for name, convert in converters.items():
        mapping.converters[name] = make_converter(
            convert, mapping.converters.get(name)
        )


def _add_functions(mapping: Any) -> None:
    # Without a converter, they are refused.
    import chainer.functions as F
    from chainer.functions.math import floor

    _use({'ceil': _convert_rounding, 'floor': _convert_rounding}, mapping)
    names = 'ceil', 'floor', 'gumbel_softmax'
    mapping._supported_function_set.update((F, name) for name in names)
    mapping._supported_function_set.add((floor, 'floor'))


# What became an input of an operator, and in which opset.
_INPUTS = {
    'Dropout': ('ratio', 12),
    'ReduceL2': ('axes', 18),
    'ReduceLogSumExp': ('axes', 18),
    'ReduceMax': ('axes', 18),
    'ReduceMean': ('axes', 18),
    'ReduceMin': ('axes', 18),
    'ReduceProd': ('axes', 18),
    'ReduceSum': ('axes', 13),
    'Split': ('split', 13),
    'Squeeze': ('axes', 13),
    'Unsqueeze': ('axes', 13),
}


def _fix_inputs(graph: Any) -> None:
    from onnx import helper

    create_node = graph.Graph.create_node

    @functools.wraps(create_node)
    def create_node_with_inputs(
        self: Any, func_name: str, func: Any, *args: Any
    ) -> Any:
        def add_input(node: Any, name: str, value: Any) -> None:
            node.input.append(self.context.add_const(value, name))

        try:
            nodes = create_node(self, func_name, func, *args)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f'export(): cannot export {func_name}: {error}'
            ) from error
        opset = self.specified_opset_version
        for i, node in enumerate(nodes):
            name, since = _INPUTS.get(node.op_type, ('', opset + 1))
            if opset < since:
                continue
            found = [each for each in node.attribute if each.name == name]
            for attribute in found:
                value = helper.get_attribute_value(attribute)
                dtype = 'f' if name == 'ratio' else 'q'
                add_input(node, f'{name}_{i}', numpy.array(value, dtype))
                node.attribute.remove(attribute)
            if node.op_type == 'Dropout':
                # It is written only in train mode.
                add_input(node, f'training_mode_{i}', numpy.array(True))
            if node.op_type == 'Split' and not found and opset > 17:
                _set_attributes(node, num_outputs=len(node.output))
        return nodes

    graph.Graph.create_node = create_node_with_inputs


def _fix_order(graph: Any) -> None:
    to_onnx_graph = graph.Graph.to_onnx_graph

    @functools.wraps(to_onnx_graph)
    def to_onnx_graph_in_order(self: Any) -> None:
        variables = list(self.network_outputs.values())
        to_onnx_graph(self)
        names = {id(var): name for name, var in self.network_outputs.items()}
        self.network_outputs.clear()
        for var in variables:
            self.network_outputs[names[id(var)]] = var

    graph.Graph.to_onnx_graph = to_onnx_graph_in_order


def _make_fix(broken: str, **converters: Any) -> Fix:
    apply = functools.partial(_use, converters)
    return Fix('onnx_chainer.mapping', broken, None, apply)


FIXES = (
    _make_fix(
        'masks, NumPy integers and several arrays as indices are written '
        'wrong or refused',
        GetItem=_convert_get_item,
    ),
    _make_fix(
        'constant conditions and indices are missing',
        Permutate=functools.partial(_convert_with_constant, 'indices'),
        Where=functools.partial(_convert_with_constant, 'condition'),
    ),
    _make_fix(
        'numbers, weights and inputs of different data types meet',
        Clip=_convert_clip,
        ClippedReLU=_convert_clipped_relu,
        GroupNormalization=_convert_group_normalization,
        Pad=_convert_pad,
    ),
    _make_fix(
        'axes are counted differently from Chainer',
        PReLUFunction=_convert_prelu,
        Rollaxis=_convert_rollaxis,
        Tile=_convert_tile,
        Transpose=_convert_transpose,
    ),
    _make_fix(
        'align_corners, beta, cover_all, dilate, eps, mode, outsize, '
        'pad_value and reflect_type are ignored',
        AveragePoolingND=_convert_average_pooling,
        Convolution2DFunction=_convert_convolution,
        ConvolutionND=_convert_convolution,
        Deconvolution2DFunction=_convert_convolution,
        DeconvolutionND=_convert_convolution,
        MaxPoolingND=_convert_max_pooling,
        NormalizeL2=_convert_normalize,
        ResizeImages=_convert_resize_images,
        Softplus=_convert_softplus,
        Unpooling2D=_convert_unpooling,
    ),
    _make_fix(
        'the statistics and the ignored labels of the example are constants',
        BatchNormalization=_convert_batch_normalization,
        FixedBatchNormalization=_convert_batch_normalization,
        SoftmaxCrossEntropy=_convert_softmax_cross_entropy,
    ),
    _make_fix(
        'onnxruntime takes a transposed matrix and a vector for others',
        MatMul=_convert_matmul,
    ),
    _make_fix(
        'LayerNormalization and Swish have no converter',
        LayerNormalization=_convert_layer_normalization,
        Swish=_convert_swish,
    ),
    Fix(
        'onnx_chainer.mapping',
        'results of ceil, floor and gumbel_softmax are constants',
        None,
        _add_functions,
    ),
    Fix(
        module='onnx_chainer.graph',
        broken='attributes that are inputs since opset 12, 13 or 18 are '
        'attributes, and not every error names the function',
        when=None,
        apply=_fix_inputs,
    ),
    Fix(
        module='onnx_chainer.graph',
        broken='the outputs are in the order in which they are computed',
        when=None,
        apply=_fix_order,
    ),
)
