"""Recurrent layers in the models that Chainer's ONNX exporter writes.

``F.lstm`` becomes its gates. An ``NStepLSTM``, and those like it, becomes
ONNX's own operator, once for each sequence, so that each can be of any length.
Where the sequences are the rows of one array, it does so once for all of them,
and there can be any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from typing import Any

from chainer_shared_patch.compat.importing import Fix, lent
import numpy

# The gates in the order of ONNX, by their numbers in Chainer, and activations.
_OPERATORS = {
    'LSTM': ('LSTM', [0, 3, 1, 2], ['Sigmoid', 'Tanh', 'Tanh']),
    'GRU': ('GRU', [1, 0, 2], ['Sigmoid', 'Tanh']),
    'RNNTanh': ('RNN', [0], ['Tanh']),
    'RNNReLU': ('RNN', [0], ['Relu']),
}


def _find_operator(link: Any) -> Any:
    """Returns None for a link that is not one of Chainer's own."""
    import chainer.links as L

    for name, operator in _OPERATORS.items():
        links = getattr(L, f'NStep{name}'), getattr(L, f'NStepBi{name}')
        rnn = getattr(link.rnn, '__func__', link.rnn)
        if rnn in [each.rnn for each in links]:
            return operator
    return None


def _convert_lstm(params: Any) -> Any:
    from onnx_chainer.onnx_helper import GraphBuilder

    (c, x), (new_c, h) = params.input_names, params.output_names
    size, *rest = params.func.inputs[0].shape[1:]
    batch, x_batch = (each.shape[0] for each in params.func.inputs)
    graph = GraphBuilder()
    shape = numpy.array([0, size, 4, *rest], numpy.int64)
    x = graph.op('Reshape', [x, params.context.add_const(shape, 'shape')])
    a, i, f, o = (
        graph.op(op_type, [graph.op('Squeeze', [each], axes=[2])])
        for op_type, each in zip(
            ('Tanh', 'Sigmoid', 'Sigmoid', 'Sigmoid'),
            graph.op('Split', [x], 4, axis=2),
        )
    )
    ended = []
    if batch > x_batch:
        split = [x_batch, batch - x_batch]
        c, *ended = graph.op('Split', [c], 2, axis=0, split=split)
    c = graph.op('Add', [graph.op('Mul', [a, i]), graph.op('Mul', [f, c])])
    graph.op_output_named('Concat', [c, *ended], [new_c], axis=0)
    graph.op_output_named('Mul', [o, graph.op('Tanh', [c])], [h])
    return graph.nodes()


def convert_n_step_rnn(
    params: Any, narrow: Any = lambda params, graph, x: x
) -> Any:
    """Converts a stack of layers, of which ``narrow`` prepares the input."""
    import chainer
    from onnx_chainer.onnx_helper import GraphBuilder

    link, hs, _ = params.func.args
    n_layers, directions = link.n_layers, link.direction
    op_type, gates, activations = _find_operator(link)
    laterals = [link.n_weights // 2 + each for each in gates]
    graph = GraphBuilder()
    names = iter(params.input_names)
    states = [[''] * n_layers if h is None else [next(names)] for h in hs]
    if n_layers > 1:
        states = [
            graph.op('Split', each, n_layers, axis=0) if all(each) else each
            for each in states
        ]
    x = narrow(params, graph, next(names))
    x = graph.op('Transpose', [x], perm=[1, 0, 2])
    ws, bs = (
        [[next(names) for _ in each] for each in layers]
        for layers in (link.ws, link.bs)
    )
    shape = numpy.array([0, 0, directions * link.out_size], numpy.int64)
    shape = params.context.add_const(shape, 'shape')

    def concat(layer: int, weights: list[list[str]], order: list[int]) -> Any:
        first = layer * directions
        concatenated = [
            graph.op('Concat', [each[i] for i in order], axis=0)
            for each in weights[first : first + directions]
        ]
        names = [graph.op('Unsqueeze', [w], axes=[0]) for w in concatenated]
        return graph.op('Concat', names, axis=0)

    ends = []
    for layer, state in enumerate(zip(*states)):
        if layer and link.dropout and chainer.config.train:
            x = graph.op('Dropout', [x], ratio=link.dropout)
        W, R = concat(layer, ws, gates), concat(layer, ws, laterals)
        b = concat(layer, bs, gates + laterals)
        y, *end = graph.op(
            op_type,
            [x, W, R, b, '', *state],
            1 + len(hs),
            hidden_size=link.out_size,
            direction=('forward', 'bidirectional')[directions - 1],
            activations=activations * directions,
            **({'linear_before_reset': 1} if op_type == 'GRU' else {}),
        )
        # Joins the directions, which are axis 1.
        y = graph.op('Transpose', [y], perm=[0, 2, 1, 3])
        x = graph.op('Reshape', [y, shape])
        ends.append(end)
    *h_names, y_name = params.output_names
    for name, h in zip(h_names, zip(*ends)):
        graph.op_output_named('Concat', h, [name], axis=0)
    graph.op_output_named('Transpose', [x], [y_name], perm=[1, 0, 2])
    return graph.nodes()


def _find_array(rows: Any) -> Any:
    """Returns the Variable of which these are all rows in order, or None."""
    creators: list[Any] = [getattr(row, 'creator_node', None) for row in rows]
    kinds = {type(each).__name__ for each in creators}
    if kinds == {'Separate'} and creators[0].axis == 0:
        nodes = [each() for each in creators[0].outputs]
        is_all = nodes == [row.node for row in rows]
    else:
        is_all = kinds == {'GetItem'} and all(
            each.inputs[0] is creators[0].inputs[0]
            and list(map(type, each.slices)) == [int]
            and each.slices[0] == i
            for i, each in enumerate(creators)
        )
    if not is_all:
        return None
    array = creators[0].inputs[0].get_variable()
    return array if len(array) == len(rows) else None


def _make_functions(call: Any, stack: Any, concat: Any) -> Any:
    """Returns what the three functions are during an export."""
    from chainer import as_variable
    import chainer.functions as F
    from onnx_chainer.replace_func import WrappedFunctionNode

    def call_rows(link: Any, hs: Any, x: Any) -> Any:
        hs, ys = call(link, hs, F.separate(x))
        return [*hs, stack(ys)]

    def call_as_node(link: Any, hs: Any, x: Any) -> Any:
        weights = [each for layer in (*link.ws, *link.bs) for each in layer]
        inputs = [*(h for h in hs if h is not None), x, *weights]
        args = link, hs, x
        node = WrappedFunctionNode('NStepRNN', call_rows, args, {}, inputs)
        return node.apply(inputs)

    def call_as_nodes(link: Any, hs: Any, xs: Any, **kwargs: Any) -> Any:
        # onnxruntime has the operators in float32 alone.
        is_single = all(x.dtype == numpy.float32 for x in (*xs, link.ws[0][0]))
        if kwargs or not xs or not is_single or not _find_operator(link):
            return call(link, hs, xs, **kwargs)
        hs = [None if h is None else as_variable(h) for h in hs]
        array = _find_array(xs)
        if array is not None:
            *hs, ys = call_as_node(link, hs, array)
            return hs, list(F.separate(ys))
        n = len(xs)
        states = [
            [None] * n if h is None else F.split_axis(h, n, 1) for h in hs
        ]
        results = [
            call_as_node(link, state, F.expand_dims(x, 0))
            for x, *state in zip(xs, *states)
        ]
        *hs, ys = zip(*results)
        return [concat(h, 1) for h in hs], [F.squeeze(y, 0) for y in ys]

    def stack_rows(xs: Any, axis: int = 0) -> Any:
        array = _find_array(xs)
        found = array is not None
        return F.moveaxis(array, 0, axis) if found else stack(xs, axis)

    def concat_rows(xs: Any, axis: int = 1) -> Any:
        array = None if axis else _find_array(xs)
        if array is None:
            return concat(xs, axis)
        return F.reshape(array, (-1, *array.shape[2:]))

    return call_as_nodes, stack_rows, concat_rows


def _fix_mapping(mapping: Any) -> None:
    import chainer.functions as F
    from chainer.links.rnn.n_step_rnn import NStepRNNBase

    base: Any = NStepRNNBase
    mapping.converters['LSTM'] = _convert_lstm
    mapping.converters['NStepRNN'] = convert_n_step_rnn
    # Its converter is right only for sequences of the same length.
    for module in (F, F.rnn.n_step_gru):
        mapping._supported_function_set.discard((module, 'n_step_gru'))
    patch_functions = mapping.patch_functions

    @contextlib.contextmanager
    def patch_recurrent_functions() -> Iterator[None]:
        call = base._call
        base._call, stack, concat = _make_functions(call, F.stack, F.concat)
        try:
            with patch_functions(), lent(vars(F), 'stack', stack):
                with lent(vars(F), 'concat', concat):
                    yield
        finally:
            base._call = call

    mapping.patch_functions = patch_recurrent_functions


def _fix_context(context: Any) -> None:
    from chainer import Parameter

    init, get_name = context.Context.__init__, context.Context.get_name

    # The exporter makes the context before it calls the model.
    def init_with_states(self: Any, model: Any) -> None:
        self.states = [
            (path, getattr(link, name, None))
            for path, link in model.namedlinks()
            if hasattr(link, 'reset_state')
            for name in ('c', 'h')
        ]
        init(self, model)

    def get_name_of_new(self: Any, variable: Any) -> Any:
        for path, state in self.states:
            if state is variable and not isinstance(state, Parameter):
                raise ValueError(
                    f'export(): the link {path} has a state from an earlier '
                    'call: call its reset_state() first, or make an array of '
                    'it an input of the model'
                )
        return get_name(self, variable)

    context.Context.__init__ = init_with_states
    context.Context.get_name = get_name_of_new


FIXES = (
    Fix(
        module='onnx_chainer.mapping',
        broken='LSTM and the NStep links are missing, or NStepGRU is wrong '
        'for sequences of different lengths',
        when=None,
        apply=_fix_mapping,
    ),
    Fix(
        module='onnx_chainer.context',
        broken='states that links have from earlier calls become constants',
        when=None,
        apply=_fix_context,
    ),
)
