"""What depends on the example in the models of Chainer's ONNX exporter.

The exporter writes what a model does with an example, whose values and sizes
become constants. The model runs once more with other values: what differs
between the two graphs depends on them, and is refused. Where ``input_shapes``
has names, the model also runs with other sizes: what then differs is written
so that it follows them, or refused. The exporter's options and its version
of the format are mended on the way.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import os
import sys
import threading
from typing import Any, NamedTuple
import warnings

from chainer_shared_patch.compat.importing import Fix, lent
import numpy

# By different factors, the sizes of different axes can be told apart.
_FACTORS = (3, 2, 5, 7, 11, 13)


class _Axis(NamedTuple):
    """An axis of an input, and its size in the two runs."""

    number: int
    axis: int
    name: Any
    size: int
    other_size: int


def _find_axes(args: list[Any], shapes: list[Any]) -> list[_Axis]:
    axes = []
    names: list[Any] = []
    for index, (arg, shape) in enumerate(zip(args, shapes)):
        for axis, (size, name) in enumerate(zip(arg.shape, shape)):
            if isinstance(name, str) or name is None:
                key = axis if name is None else name
                if key not in names:
                    names.append(key)
                factor = _FACTORS[names.index(key) % len(_FACTORS)]
                other_size = max(size, 1) * factor
            else:
                other_size = name
            if other_size != size:
                axes.append(_Axis(index, axis, name, size, other_size))
    return axes


def _resize(args: list[Any], axes: list[_Axis]) -> list[Any]:
    from chainer import using_device
    from chainer.backend import get_array_module, get_device_from_array

    arrays = [getattr(arg, 'array', arg) for arg in args]
    for each in axes:
        array = arrays[each.number]
        xp = get_array_module(array)
        with using_device(get_device_from_array(array)):
            indices = xp.arange(each.other_size) % max(each.size, 1)
            arrays[each.number] = xp.take(array, indices, each.axis)
    return arrays


def _change(arg: Any, step: int) -> Any:
    """Returns other values, which the model is likely to take as well."""
    from chainer.backend import get_device_from_array
    from chainer.backends.cuda import to_cpu

    arg = getattr(arg, 'array', arg)
    array = to_cpu(arg)
    is_float = array.dtype.kind == 'f'
    # The next smaller of the example's and these; floats are of either sign.
    others = numpy.array([1, 2] if is_float else [0, 1], array.dtype)
    factors = numpy.array([-2, 5] if is_float else [1], array.dtype)
    values = numpy.append(array, others)
    values, places = numpy.unique(values, return_inverse=True)
    places = places[: array.size][::step].reshape(array.shape)
    changed = values[abs(places - 1)] * numpy.resize(factors, array.shape)
    return get_device_from_array(arg).send(changed)


class _State:
    """What a model may read and change while it runs."""

    def __init__(self, model: Any) -> None:
        from chainer import get_array_types

        types: Any = (list, *get_array_types())
        self._attributes = [vars(link) for link in model.links()]
        self._saved = [dict(each) for each in self._attributes]
        self._values = [
            (value, value.copy())
            for each in self._saved
            for value in each.values()
            if isinstance(value, types)
        ]
        self._random = numpy.random.get_state()

    def restore(self, random: bool = True) -> None:
        from chainer import using_device
        from chainer.backend import get_device_from_array

        for attributes, saved in zip(self._attributes, self._saved):
            attributes.clear()
            attributes.update(saved)
        for value, saved_value in self._values:
            if isinstance(value, list):
                value[:] = saved_value
                continue
            with using_device(get_device_from_array(value)):
                value[...] = saved_value
        if random:
            numpy.random.set_state(self._random)


class _Graph:
    """The nodes, constants, weights and shapes of a model."""

    def __init__(self, model: Any, arrays: list[Any]) -> None:
        from onnx import helper, numpy_helper

        graph = model.graph
        self.nodes = graph.node
        self.outputs = [each.name for each in graph.output]
        self.constants = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in graph.node
            if node.op_type == 'Constant' and node.attribute[0].name == 'value'
        }
        self.weights = {
            each.name: numpy_helper.to_array(each)
            for each in graph.initializer
        }
        names = [each.name for each in graph.input]
        self.inputs = [name for name in names if name not in self.weights]
        shapes = dict(zip(self.inputs, (array.shape for array in arrays)))
        # Without the weights, which may be large.
        self._sized = helper.make_model(
            helper.make_graph(graph.node, graph.name, graph.input, []),
            ir_version=model.ir_version,
            opset_imports=model.opset_import,
        )
        for each in self._sized.graph.input:
            dims = each.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes.get(each.name, ())):
                dim.dim_value = size

    @functools.cached_property
    def shapes(self) -> dict[str, list[int]]:
        from onnx import shape_inference

        inferred = shape_inference.infer_shapes(self._sized).graph
        shapes = {}
        for each in (*inferred.input, *inferred.value_info):
            dims = each.type.tensor_type.shape.dim
            if all(dim.HasField('dim_value') for dim in dims):
                shapes[each.name] = [dim.dim_value for dim in dims]
        return shapes


def _are_same(a: Any, b: Any) -> bool:
    return bool(
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.tobytes() == b.tobytes()
    )


def _are_zeros(a: Any, b: Any) -> Any:
    """Tells whether two arrays are zeros, and differ in their shapes alone."""
    return (
        a.shape != b.shape and a.dtype.kind == 'f' and not (a.any() or b.any())
    )


class _Difference(NamedTuple):
    """A constant that depends on the example, and a node that reads it.

    Of an array of zeros, it is the shape.
    """

    name: str
    value: Any
    other_value: Any
    node: Any
    other_node: Any


def _refuse(axes: list[_Axis], what: str) -> None:
    if not axes:
        raise ValueError(
            f'export(): {what} depends on the values of the example, which '
            'would become constants: compute it from the variables with '
            'chainer.functions, or make it an input of the model'
        )
    names = ' or '.join(sorted({repr(each.name) for each in axes}))
    raise ValueError(
        f'export(): {what} depends on the size of an axis that input_shapes '
        f'gives as {names}, in a way that cannot be exported'
    )


def _compare(a: _Graph, b: _Graph, axes: list[_Axis]) -> list[_Difference]:
    """Lists where constants follow the axes, and refuses what else differs."""
    if [x.op_type for x in a.nodes] != [y.op_type for y in b.nodes]:
        # Chainer skips some functions that would not change the shape.
        _refuse(
            axes,
            'which functions the model calls, perhaps only with this example,',
        )
    differences = []
    same = dict(zip([*a.inputs, *a.weights], [*b.inputs, *b.weights]))
    for x, y in zip(a.nodes, b.nodes):
        if x.output[0] in a.constants and y.output[0] in b.constants:
            continue
        is_same = (
            len(x.input) == len(y.input)
            and len(x.output) == len(y.output)
            and _serialize(x.attribute) == _serialize(y.attribute)
        )
        for name, other in zip(x.input, y.input):
            if name in a.constants and other in b.constants:
                values = a.constants[name], b.constants[other]
                if not _are_same(*values):
                    is_same = is_same and bool(axes)
                    differences.append(_Difference(name, *values, x, y))
            elif name in a.weights and other in b.weights:
                values = a.weights[name], b.weights[other]
                if axes and _are_zeros(*values):
                    shape, other_shape = (
                        numpy.array(each.shape) for each in values
                    )
                    differences.append(
                        _Difference(name, shape, other_shape, x, y)
                    )
                else:
                    is_same = is_same and _are_same(*values)
            else:
                is_same = is_same and same.get(name, name) == other
        if not is_same:
            _refuse(axes, x.name.split('_tmp_')[0])
        same.update(zip(x.output, y.output))
    if [same.get(name) for name in a.outputs] != b.outputs:
        _refuse(axes, 'what the model returns')
    return differences


def _serialize(attributes: Any) -> list[bytes]:
    return sorted(each.SerializeToString() for each in attributes)


def _reshape(a: _Graph, b: _Graph, each: _Difference) -> Any:
    """Returns a shape with 0 and -1 for open axes, or None."""
    graphs = (a, each.node), (b, each.other_node)
    try:
        (x, y), (other_x, other_y) = (
            [graph.shapes[name] for name in (node.input[0], node.output[0])]
            for graph, node in graphs
        )
    except KeyError:  # Their inference has not come this far.
        return None
    kept = list(zip(x, other_x))
    shape = [
        size
        if size == other_size
        else 0
        if kept[i : i + 1] == [(size, other_size)]
        else -1
        for i, (size, other_size) in enumerate(zip(y, other_y))
    ]
    return shape if shape.count(-1) < 2 else None


def _compute(
    inputs: list[str], each: _Difference, axes: list[_Axis]
) -> list[Any]:
    """Returns nodes that compute a vector from the sizes of the inputs."""
    from onnx import helper, numpy_helper

    value, other_value = each.value, each.other_value
    function = each.node.name.split('_tmp_')[0]
    if (
        value.dtype != numpy.int64
        or value.ndim != 1
        or value.shape != other_value.shape
    ):
        _refuse(axes, function)
    nodes: list[Any] = []

    def add(op_type: str, *names: str, **attributes: Any) -> str:
        name = f'{each.name}_{len(nodes)}'
        nodes.append(
            helper.make_node(op_type, names, [name], name, **attributes)
        )
        return name

    def add_constant(number: int) -> str:
        array = numpy.array([number])
        return add('Constant', value=numpy_helper.from_array(array))

    parts = []
    for size, other_size in zip(value.tolist(), other_value.tolist()):
        if size == other_size:
            parts.append(add_constant(size))
            continue
        for axis in axes:
            factor = size // axis.size
            if (size, other_size) == (
                factor * axis.size,
                factor * axis.other_size,
            ):
                shape = add('Shape', inputs[axis.number])
                part = add('Gather', shape, add_constant(axis.axis))
                if factor != 1:
                    part = add('Mul', part, add_constant(factor))
                parts.append(part)
                break
        else:
            _refuse(axes, function)
    add('Concat', *parts, axis=0)
    nodes[-1].output[:] = [each.name]
    return nodes


def _make_zeros(a: _Graph, each: _Difference, axes: list[_Axis]) -> list[Any]:
    """Returns nodes that compute a shape, and an array of zeros of it."""
    from onnx import helper, numpy_helper

    shape, zero = f'{each.name}_shape', f'{each.name}_zero'
    array = numpy.zeros([1] * len(each.value), a.weights[each.name].dtype)
    return [
        *_compute(a.inputs, each._replace(name=shape), axes),
        helper.make_node(
            'Constant', [], [zero], value=numpy_helper.from_array(array)
        ),
        helper.make_node('Tile', [zero, shape], [each.name]),
    ]


def _follow_sizes(a: _Graph, b: _Graph, axes: list[_Axis]) -> list[Any]:
    """Returns the nodes of a model that follows the sizes of its inputs."""
    from onnx import helper, numpy_helper

    replaced: dict[str, list[Any]] = {}
    zeros: dict[str, list[Any]] = {}
    differences = _compare(a, b, axes)
    readers = collections.Counter(each.name for each in differences)
    for each in differences:
        shape = None
        if each.name in a.weights:
            zeros[each.name] = _make_zeros(a, each, axes)
            continue
        if each.node.op_type == 'Reshape' and readers[each.name] == 1:
            shape = _reshape(a, b, each)
        if shape is None:
            replaced[each.name] = _compute(a.inputs, each, axes)
        else:
            tensor = numpy_helper.from_array(numpy.array(shape), each.name)
            replaced[each.name] = [
                helper.make_node('Constant', [], [each.name], value=tensor)
            ]
    nodes = [
        new for node in a.nodes for new in replaced.get(node.output[0], [node])
    ]
    return [*sum(zeros.values(), []), *nodes]


def _find_error(a: _Graph, b: _Graph) -> ValueError | None:
    try:
        _compare(a, b, [])
    except ValueError as error:
        return error
    return None


def _check_values(graph: _Graph, run: Any, examples: list[Any]) -> None:
    """Refuses what depends on the values, if the model takes others."""
    run = functools.partial(run, draw_anew=True)
    for step in (-1, 1):  # Sequences may have to be sorted.
        with contextlib.suppress(Exception):
            other = run([_change(each, step) for each in examples])
            break
    else:
        warnings.warn(
            'export(): the model fails with other values than those of the '
            'example, so what depends on them may be a constant',
            stacklevel=7,
        )
        return
    error = _find_error(graph, other)
    if error and _find_error(graph, run(examples)):
        warnings.warn(
            'export(): the model computes something else each time that it '
            'runs with the example; what it drew at random is a constant',
            stacklevel=7,
        )
    elif error:
        raise error


def _to_list(args: Any) -> list[Any]:
    if isinstance(args, dict):
        return list(args.values())
    return list(args) if isinstance(args, (list, tuple)) else [args]


def _run_with_other_sizes(run: Any, args: Any, axes: list[_Axis]) -> Any:
    try:
        return run(_resize(args, axes))
    except Exception as error:
        sizes = ' and '.join(
            sorted({f'{each.other_size} for {each.name!r}' for each in axes})
        )
        raise ValueError(
            f'export(): the model fails with {sizes} in input_shapes: '
            f'{type(error).__name__}: {error}'
        ) from error


def _fix_export(export: Any) -> None:
    run = export._export
    signature = inspect.signature(run)
    default_opset = export.MAXIMUM_OPSET_VERSION
    for module in (export, sys.modules['onnx_chainer']):
        vars(module)['MAXIMUM_OPSET_VERSION'] = 18
    # Exporting replaces functions of Chainer's for as long as it takes.
    lock = threading.RLock()

    @functools.wraps(run)
    def run_with_checks(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return run_locked(*args, **kwargs)

    def run_locked(*args: Any, **kwargs: Any) -> Any:
        options = dict(signature.bind(*args, **kwargs).arguments)
        if options['opset_version'] is None:
            options['opset_version'] = default_opset
        filename = options['filename']
        if filename is not None and not hasattr(filename, 'write'):
            options['filename'] = os.fsdecode(filename)
        examples = _to_list(options['args'])
        axes = []
        shapes = options['input_shapes']
        if shapes is not None:
            shapes = export.format_customized_shapes(options['args'], shapes)
            axes = _find_axes(examples, shapes)
        has_weights = options['export_params']
        options['export_params'] = True
        names = 'filename', 'input_shapes', 'return_named_inout'
        again = {**options, **dict.fromkeys(names)}
        before = _State(options['model'])
        check = export.check_onnx_model

        def run_again(arrays: list[Any], draw_anew: bool = False) -> _Graph:
            args = options['args']
            if isinstance(args, dict):
                args = dict(zip(args, arrays))
            else:
                is_list = isinstance(args, (list, tuple))
                args = arrays[:] if is_list else arrays[0]
            after = _State(options['model'])
            before.restore(random=not draw_anew)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')
                    model = run(**{**again, 'args': args})
            finally:
                after.restore()
            return _Graph(model, arrays)

        # The exporter calls it before it writes the file.
        def check_example(model: Any, *args: Any) -> None:
            export.check_onnx_model = check  # It is called again.
            # The exporter lists weights as inputs, as this version requires.
            # Later versions take these for defaults, which no runtime folds.
            model.ir_version = 3
            graph = _Graph(model, examples)
            _check_values(graph, run_again, examples)
            if axes:
                other = _run_with_other_sizes(run_again, examples, axes)
                nodes = _follow_sizes(graph, other, axes)
                del model.graph.node[:]
                model.graph.node.extend(nodes)
                computed = {name for node in nodes for name in node.output}
                for values in (model.graph.input, model.graph.initializer):
                    kept = [x for x in values if x.name not in computed]
                    del values[:]
                    values.extend(kept)
            if not has_weights:
                del model.graph.initializer[:]
            check(model, *args)

        with lent(vars(export), 'check_onnx_model', check_example):
            return run(**options)

    export._export = run_with_checks


FIXES = (
    Fix(
        module='onnx_chainer.export',
        broken='writes values and sizes of the example as constants, gives '
        'models an IR version that onnxruntime may not know, warns of opsets '
        'later than 11, and writes nothing where filename is a path',
        when=None,
        apply=_fix_export,
    ),
)
