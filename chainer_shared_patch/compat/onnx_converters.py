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
        raise ValueError(
            f'export(): cannot export GetItem with the indices {slices}'
        )
    return indices


def _convert_get_item(convert: Any, params: Any) -> Any:
    params.func = copy.copy(params.func)
    params.func.slices = tuple(_to_indices(params.func.slices))
    return convert(params)


def _name_constant(params: Any, array: Any, name: str) -> None:
    from chainer.backends.cuda import to_cpu

    if id(array) not in params.context.name_list:
        constant = numpy.asarray(to_cpu(array))
        constant_name = params.context.add_const(constant, name)
        params.context.set_name(array, constant_name)


def _convert_where(convert: Any, params: Any) -> Any:
    _name_constant(params, params.func.condition, 'condition')
    return convert(params)


def _convert_permutate(convert: Any, params: Any) -> Any:
    _name_constant(params, params.func.indices, 'indices')
    return convert(params)


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


def _convert_batch_normalization(convert: Any, params: Any) -> Any:
    x = params.func.inputs[0]
    axis = tuple(params.func.axis)
    if axis != (0, *range(2, len(x.shape))):
        raise ValueError(
            f'export(): cannot export BatchNormalization over the axes {axis}'
            ', but only over all except axis 1'
        )
    return _widen(params, convert(params))


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
    numbers = {'x_min': params.func.x_min, 'x_max': params.func.x_max}
    return _write_numbers(params, numbers, convert(params))


def _convert_clipped_relu(convert: Any, params: Any) -> Any:
    numbers = {'zero': 0, 'clip_z': params.func.cap}
    return _write_numbers(params, numbers, convert(params))


def _convert_group_normalization(convert: Any, params: Any) -> Any:
    numbers = {'eps': params.func.eps}
    return _widen(params, _write_numbers(params, numbers, convert(params)))


def _convert_pad(convert: Any, params: Any) -> Any:
    params.func = copy.copy(params.func)
    keywords = params.func.keywords
    numbers = {}
    if 'constant_values' in keywords:
        values = numpy.unique(keywords['constant_values']).tolist()
        params.func.keywords = {**keywords, 'constant_values': values}
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


def _convert_dilated(convert: Any, params: Any) -> Any:
    from onnx.helper import make_attribute

    func = params.func
    dilate = getattr(func, 'dilate', None) or (func.dy, func.dx)
    (node,) = convert(params)
    if 'dilations' not in [each.name for each in node.attribute]:
        node.attribute.append(make_attribute('dilations', dilate))
    return [node]


def _convert_average_pooling(convert: Any, params: Any) -> Any:
    (node,) = convert(params)
    for each in node.attribute:
        if each.name == 'count_include_pad':
            each.i = int(params.func.pad_value is not None)
    return [node]


def _convert_unpooling(convert: Any, params: Any) -> Any:
    """Repeats pixels as Upsample, which was replaced by Resize, does."""
    from onnx.helper import make_attribute

    (node,) = convert(params)
    if node.op_type == 'Resize' and params.opset_version > 10:
        node.attribute.append(
            make_attribute('coordinate_transformation_mode', 'asymmetric')
        )
        node.attribute.append(make_attribute('nearest_mode', 'floor'))
    return [node]


def _convert_resize_images(convert: Any, params: Any) -> Any:
    """Aligns the corners as Chainer does; up to opset 10, no runtime can."""
    from onnx.helper import make_attribute

    func = params.func
    if func.mode != 'bilinear':
        raise ValueError(
            f'export(): cannot export ResizeImages with mode={func.mode!r}, '
            "but only with 'bilinear'"
        )
    (node,) = convert(params)
    if params.opset_version > 10 and func.align_corners:
        node.attribute.append(
            make_attribute('coordinate_transformation_mode', 'align_corners')
        )
    return [node]


def _convert_rollaxis(convert: Any, params: Any) -> Any:
    from onnx_chainer.onnx_helper import make_node

    func = params.func
    ndim = len(func.inputs[0].shape)
    labels = numpy.broadcast_to(0, range(1, ndim + 1))
    shape = numpy.rollaxis(labels, func.axis, func.start).shape
    perm = [label - 1 for label in shape]
    names = params.input_names, params.output_names
    return [make_node('Transpose', *names, perm=perm)]


def _convert_softplus(convert: Any, params: Any) -> Any:
    if params.func.beta != 1:
        raise ValueError(
            'export(): cannot export Softplus with a beta of '
            f'{params.func.beta}, but only of 1'
        )
    return convert(params)


def _convert_tile(convert: Any, params: Any) -> Any:
    func = params.func = copy.copy(params.func)
    ndim = len(func.inputs[0].shape)
    reps = (func.reps,) if isinstance(func.reps, int) else func.reps
    if len(reps) > ndim:
        raise ValueError(
            f'export(): cannot export Tile of {ndim} axes with reps={reps}'
        )
    func.reps = (1,) * (ndim - len(reps)) + tuple(reps)
    return convert(params)


def _convert_transpose(convert: Any, params: Any) -> Any:
    func = params.func = copy.copy(params.func)
    if func.axes is not None:
        func.axes = [axis % len(func.axes) for axis in func.axes]
    return convert(params)


def _convert_normalize(convert: Any, params: Any) -> Any:
    """Adds eps to the norm, which LpNormalization cannot."""
    from onnx_chainer.onnx_helper import GraphBuilder

    func, (x,) = params.func, params.input_names
    eps = numpy.array(func.eps, func.inputs[0].dtype)
    graph = GraphBuilder()
    norm = graph.op('ReduceL2', [x], axes=func.axis, keepdims=1)
    norm = graph.op('Add', [norm, params.context.add_const(eps, 'eps')])
    graph.op('Div', [x, norm])
    return graph.nodes(params.output_names)


def _convert_max_pooling(convert: Any, params: Any) -> Any:
    from chainer.utils.conv import get_conv_outsize

    func = params.func
    windows = (
        ((func.kh, func.sy, func.ph), (func.kw, func.sx, func.pw))
        if hasattr(func, 'kh')
        else zip(func.ksize, func.stride, func.pad)
    )
    for size, (ksize, stride, pad) in zip(func.inputs[0].shape[2:], windows):
        out = get_conv_outsize(size, ksize, stride, pad, func.cover_all)
        if (out - 1) * stride >= size + pad:
            raise ValueError(
                'export(): cannot export max pooling whose last window lies '
                f'in the padding: of {size} elements with ksize={ksize}, '
                f'stride={stride} and pad={pad}'
            )
    return convert(params)


def _use(converters: dict[str, Any], mapping: Any) -> None:
    for name, convert in converters.items():
        mapping.converters[name] = functools.partial(
            convert, mapping.converters[name]
        )


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
    def create_node_with_inputs(self: Any, *args: Any) -> Any:
        nodes = create_node(self, *args)
        for i, node in enumerate(nodes):
            name, opset = _INPUTS.get(node.op_type, ('', 0))
            if not name or self.specified_opset_version < opset:
                continue
            found = [each for each in node.attribute if each.name == name]
            for attribute in found:
                value = helper.get_attribute_value(attribute)
                dtype = 'f' if isinstance(value, float) else 'q'
                array = numpy.array(value, dtype)
                constant = self.context.add_const(array, f'{name}_{i}')
                node.input.append(constant)
                node.attribute.remove(attribute)
            is_split = node.op_type == 'Split'
            if is_split and not found and self.specified_opset_version > 17:
                attribute = helper.make_attribute(
                    'num_outputs', len(node.output)
                )
                node.attribute.append(attribute)
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
        Permutate=_convert_permutate,
        Where=_convert_where,
    ),
    _make_fix(
        'numbers, weights and inputs of different data types meet',
        BatchNormalization=_convert_batch_normalization,
        Clip=_convert_clip,
        ClippedReLU=_convert_clipped_relu,
        FixedBatchNormalization=_convert_batch_normalization,
        GroupNormalization=_convert_group_normalization,
        Pad=_convert_pad,
    ),
    _make_fix(
        'axes are counted otherwise than in Chainer',
        PReLUFunction=_convert_prelu,
        Rollaxis=_convert_rollaxis,
        Tile=_convert_tile,
        Transpose=_convert_transpose,
    ),
    _make_fix(
        'align_corners, beta, cover_all, dilate, eps, mode and pad_value are '
        'ignored',
        AveragePoolingND=_convert_average_pooling,
        ConvolutionND=_convert_dilated,
        Deconvolution2DFunction=_convert_dilated,
        DeconvolutionND=_convert_dilated,
        MaxPooling2D=_convert_max_pooling,
        MaxPoolingND=_convert_max_pooling,
        NormalizeL2=_convert_normalize,
        ResizeImages=_convert_resize_images,
        Softplus=_convert_softplus,
        Unpooling2D=_convert_unpooling,
    ),
    Fix(
        module='onnx_chainer.graph',
        broken='attributes that are inputs since opset 12, 13 or 18 are '
        'attributes',
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
