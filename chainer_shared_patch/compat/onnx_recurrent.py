"""Recurrent layers in the models that Chainer's ONNX exporter writes.

``F.lstm`` becomes its gates. An ``NStepLSTM``, and those like it, becomes
ONNX's own operator, once for each sequence, so that each can be of any length.
Where the sequences are the rows of one array, it does so once for all of them,
and there can be any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

from chainer_shared_patch.compat.importing import Fix, lent
import numpy

# The gates are in the order of ONNX, and numbered as in Chainer.
_OPERATORS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    'LSTM': ('LSTM', [0, 3, 1, 2], {}),
    'GRU': ('GRU', [1, 0, 2], {'linear_before_reset': 1}),
    'RNNTanh': ('RNN', [0], {'activations': ['Tanh']}),
    'RNNReLU': ('RNN', [0], {'activations': ['Relu']}),
}


def _find_operator(link: Any) -> Any:
    """Returns None for a link that is not one of Chainer's own."""
    import chainer.links as L

    for name, operator in _OPERATORS.items():
        links = getattr(L, f'NStep{name}'), getattr(L, f'NStepBi{name}')
        if type(link).rnn in [each.rnn for each in links]:
            return operator
    return None


def _convert_lstm(params: Any) -> Any:
    from onnx_chainer.onnx_helper import GraphBuilder

    (c, x), (new_c, h) = params.input_names, params.output_names
    size, *rest = params.func.inputs[0].shape[1:]
    batches = [len(each.data) for each in params.func.inputs]
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
    if batches[0] > batches[1]:
        split = [batches[1], batches[0] - batches[1]]
        c, *ended = graph.op('Split', [c], 2, axis=0, split=split)
    c = graph.op('Add', [graph.op('Mul', [a, i]), graph.op('Mul', [f, c])])
    graph.op_output_named('Concat', [c, *ended], [new_c], axis=0)
    graph.op_output_named('Mul', [o, graph.op('Tanh', [c])], [h])
    return graph.nodes()


def _convert_n_step_rnn(params: Any) -> Any:
    import chainer
    from onnx_chainer.onnx_helper import GraphBuilder

    link, hs, _ = params.func.args
    op_type, gates, attributes = _find_operator(link)
    laterals = [link.n_weights // 2 + each for each in gates]
    graph = GraphBuilder()
    names = iter(params.input_names)
    states = [[''] * link.n_layers if h is None else [next(names)] for h in hs]
    for i, state in enumerate(states):
        if link.n_layers > len(state):
            states[i] = graph.op('Split', state, link.n_layers, axis=0)
    x = graph.op('Transpose', [next(names)], perm=[1, 0, 2])
    ws, bs = (
        [[next(names) for _ in each] for each in layers]
        for layers in (link.ws, link.bs)
    )
    width = numpy.array([0, 0, link.direction * link.out_size], numpy.int64)
    width = params.context.add_const(width, 'shape')

    def join(layers: list[list[str]], order: list[int]) -> Any:
        each_direction = [
            graph.op('Concat', [each[i] for i in order], axis=0)
            for each in layers
        ]
        return graph.op(
            'Concat',
            [graph.op('Unsqueeze', [w], axes=[0]) for w in each_direction],
            axis=0,
        )

    new_states = []
    for layer, state in enumerate(zip(*states)):
        if layer and link.dropout and chainer.config.train:
            x = graph.op('Dropout', [x], ratio=link.dropout)
        each = slice(layer * link.direction, (layer + 1) * link.direction)
        W, R = join(ws[each], gates), join(ws[each], laterals)
        b = join(bs[each], gates + laterals)
        x, *new_state = graph.op(
            op_type,
            [x, W, R, b, *([''] * any(state)), *(state if any(state) else ())],
            1 + len(hs),
            hidden_size=link.out_size,
            direction='forward' if link.direction == 1 else 'bidirectional',
            **{k: v * link.direction for k, v in attributes.items()},
        )
        # The axes of x are time, direction, sequence and feature.
        x = graph.op('Transpose', [x], perm=[0, 2, 1, 3])
        x = graph.op('Reshape', [x, width])
        new_states.append(new_state)
    *h_names, y_name = params.output_names
    for name, each_layer in zip(h_names, zip(*new_states)):
        graph.op_output_named('Concat', each_layer, [name], axis=0)
    graph.op_output_named('Transpose', [x], [y_name], perm=[1, 0, 2])
    return graph.nodes()


def _find_array(rows: Any) -> Any:
    """Returns the Variable of which these are all rows in order, or None."""
    import chainer

    if not all(isinstance(row, chainer.Variable) for row in rows):
        return None
    creators = [row.creator_node for row in rows]
    kinds = {type(each).__name__ for each in creators}
    if kinds == {'Separate'} and creators[0].axis == 0:
        nodes = [each() for each in creators[0].outputs]
        if nodes != [row.node for row in rows]:
            return None
    elif kinds != {'GetItem'} or any(
        [type(index) for index in each.slices] != [int]
        or each.slices[0] != i
        or each.inputs[0] is not creators[0].inputs[0]
        for i, each in enumerate(creators)
    ):
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

    def call_batch(link: Any, hs: Any, x: Any) -> Any:
        """Returns the states, and the sequences as one array."""
        weights = [each for layer in (*link.ws, *link.bs) for each in layer]
        inputs = [*(h for h in hs if h is not None), x, *weights]
        node = WrappedFunctionNode(
            'NStepRNN', call_rows, (link, hs, x), {}, inputs
        )
        return node.apply(inputs)

    def call_as_nodes(link: Any, hs: Any, xs: Any, **kwargs: Any) -> Any:
        if kwargs or not xs or _find_operator(link) is None:
            return call(link, hs, xs, **kwargs)
        array = _find_array(xs)
        hs = [None if h is None else as_variable(h) for h in hs]
        if array is not None:
            *hs, ys = call_batch(link, hs, array)
            return hs, F.separate(ys)
        states = [
            [None] * len(xs) if h is None else F.split_axis(h, len(xs), 1)
            for h in hs
        ]
        results = [
            call_batch(link, each, F.expand_dims(x, 0))
            for x, *each in zip(xs, *states)
        ]
        *hs, ys = zip(*results)
        hs = [concat(h, axis=1) for h in hs]
        return hs, [F.squeeze(y, 0) for y in ys]

    @functools.wraps(stack)
    def stack_rows(xs: Any, axis: int = 0) -> Any:
        array = _find_array(xs)
        if array is None:
            return stack(xs, axis)
        return F.moveaxis(array, 0, axis) if axis else array

    @functools.wraps(concat)
    def concat_rows(xs: Any, axis: int = 1) -> Any:
        array = None if axis else _find_array(xs)
        if array is None:
            return concat(xs, axis)
        return F.reshape(array, (-1, *array.shape[2:]))

    return call_as_nodes, stack_rows, concat_rows


def _fix_mapping(mapping: Any) -> None:
    mapping.converters['LSTM'] = _convert_lstm
    mapping.converters['NStepRNN'] = _convert_n_step_rnn
    # Its converter is right only for sequences of the same length.
    mapping._supported_function_set = {
        each
        for each in mapping._supported_function_set
        if each[1] != 'n_step_gru'
    }
    patch_functions = mapping.patch_functions

    @contextlib.contextmanager
    def patch_recurrent_functions() -> Iterator[None]:
        import chainer.functions as F
        from chainer.links.rnn.n_step_rnn import NStepRNNBase as Base

        call = Base._call
        call_as_nodes, stack, concat = _make_functions(call, F.stack, F.concat)
        with (
            patch_functions(),
            lent(vars(F), 'stack', stack),
            lent(vars(F), 'concat', concat),
        ):
            Base._call = call_as_nodes
            try:
                yield
            finally:
                Base._call = call

    mapping.patch_functions = patch_recurrent_functions


def _fix_context(context: Any) -> None:
    init = context.Context.__init__

    # The exporter makes the context before it calls the model.
    @functools.wraps(init)
    def init_with_states(self: Any, model: Any) -> None:
        init(self, model)
        self.states = {
            id(state): path
            for path, link in model.namedlinks()
            if hasattr(link, 'reset_state')
            for state in (getattr(link, 'c', None), getattr(link, 'h', None))
            if state is not None
        }

    context.Context.__init__ = init_with_states


def _fix_graph(graph: Any) -> None:
    create_node = graph.Graph.create_node

    @functools.wraps(create_node)
    def create_node_without_state(
        self: Any, name: str, func: Any, *args: Any
    ) -> Any:
        for each in func.inputs:
            path = self.context.states.get(id(each.get_variable_or_none()))
            if path is not None:
                raise ValueError(
                    f'export(): the link {path} has a state from an earlier '
                    'call. Call its reset_state() first, or make the state an '
                    'input of the model'
                )
        return create_node(self, name, func, *args)

    graph.Graph.create_node = create_node_without_state


FIXES = (
    Fix(
        module='onnx_chainer.mapping',
        broken='LSTM and the NStep links are missing, and GRU is written '
        'wrong for sequences of different lengths',
        when=None,
        apply=_fix_mapping,
    ),
    Fix(
        module='onnx_chainer.context',
        broken='constants stand for the state of an earlier call',
        when=None,
        apply=_fix_context,
    ),
    Fix(
        module='onnx_chainer.graph',
        broken='constants stand for the state of an earlier call',
        when=None,
        apply=_fix_graph,
    ),
)
