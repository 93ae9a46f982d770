"""What a model does with its inputs, as far as made-up values must respect it: indices of a table, masks, lengths, counts.

Each input is followed forward through operators that move or shift its elements (Cast, Reshape, Slice, adding a constant, …),
into and out of subgraphs and functions, to those that give its values a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from halfconv.graph.names import subgraphs
from halfconv.sample_checks import known_dim

__all__ = ["Role", "find_roles", "shape_of"]

#: Operators that pass the elements of these inputs on, in another order or type.
MOVES = {
    **dict.fromkeys(
        [
            "Cast", "CastLike", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Transpose", "Flatten", "Expand",
            "Tile", "Split", "Gather", "GatherElements", "GatherND", "Pad", "Relu", "Clip", "Dropout", "Floor", "Ceil", "Round",
            "Compress", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "Trilu", "ReduceMax", "ReduceMin",
            "OptionalGetElement", "Optional", "SequenceConstruct",
        ],
        (0,),
    ),
    **dict.fromkeys(("Concat", "Max", "Min"), None),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
    "CumSum": (0,),
}
#: (operator, input) -> (input that is the table, its axis by name or number); -1 is the last.
INDICES: dict[tuple[str, int], tuple[int, str | int]] = {
    ("Gather", 1): (0, "axis"),
    ("GatherElements", 1): (0, "axis"),
    ("ScatterElements", 1): (0, "axis"),
    ("GatherBlockQuantized", 1): (0, "gather_axis"),
    ("ArrayFeatureExtractor", 1): (0, -1),
    ("SoftmaxCrossEntropyLoss", 1): (0, 1),
    ("NegativeLogLikelihoodLoss", 1): (0, 1),
    ("EmbedLayerNormalization", 0): (2, 0),
    ("EmbedLayerNormalization", 1): (4, 0),
    ("EmbedLayerNormalization", 8): (3, 0),
}
#: (operator, input) -> the smallest and the largest number that make sense there.
COUNTS = {
    ("Expand", 1): (1, 1),
    ("ConstantOfShape", 0): (1, 4),
    ("Tile", 1): (1, 2),
    ("Range", 0): (0, 0),
    ("Range", 1): (1, 8),
    ("Range", 2): (1, 1),
    ("Slice", 1): (0, 0),
    ("Slice", 2): (1, 4),
    ("Slice", 4): (1, 1),
    ("TopK", 1): (1, 1),
    ("Pad", 1): (0, 1),
    ("Loop", 0): (1, 3),
    ("Resize", 3): (1, 8),
    ("OneHot", 1): (2, 8),
    ("NonMaxSuppression", 2): (1, 8),
    **{(op, 1): (0, 0) for op in ("Unsqueeze", "Squeeze", "CumSum", "Trilu", "SequenceAt", "SequenceErase")},
    **{(op, 1): (0, 0) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")},
}
#: Inputs that hold the lengths of the sequences in the batch.
LENGTHS = {("LSTM", 4), ("GRU", 4), ("RNN", 4), ("ReverseSequence", 1)}
#: ai.onnx.ml operators that know a fixed set of values -> attributes that list it.
KNOWN_VALUES = {
    "LabelEncoder": ("keys_strings", "keys_int64s"),
    "CategoryMapper": ("cats_strings", "cats_int64s"),
    "OneHotEncoder": ("cats_strings", "cats_int64s"),
    "TfIdfVectorizer": ("pool_strings", "pool_int64s"),
}
#: A mask is turned into something so negative that Softmax forgets it.
LARGE = 1e3
#: Values that are followed per input; more would be a very odd model.
FOLLOWED = 2000


@dataclass(slots=True)
class Role:
    """What values of an input must respect.

    Attributes:
        limits: Bounds as (scale, offset, limit): 0 ≤ scale·x + offset < limit, where the limit is a number, a symbolic
            dimension, or None if it is not known.
        counts: Bounds of x where it is a shape or a count, both included.
        choices: The numbers or texts that an operator knows.
        compared: Constants that x is compared with.
        shape: It is the shape argument of Reshape.
        mask: It is turned into a large negative number, or a condition.
        length: It holds lengths of sequences.
    """

    limits: list[tuple[float, float, int | str | None]] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    choices: list[int | str] = field(default_factory=list)
    compared: list[float] = field(default_factory=list)
    shape: bool = False
    mask: bool = False
    length: bool = False


def find_roles(model: ir.Model) -> dict[str, Role]:
    """The role of every input of a model; nothing is changed or computed.

    Args:
        model: The model, prepared or as loaded.
    """
    ties = _ties(model)
    return {value.name or "": _follow(value, model, ties) for value in model.graph.inputs}


def _ties(model: ir.Model) -> dict[ir.Value, list[ir.Value]]:
    """Outputs of subgraphs and functions -> outputs of the nodes that run them."""
    found: dict[ir.Value, list[ir.Value]] = {}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            inner = [body.outputs for _, body in subgraphs(node)]
            if function := model.functions.get(node.op_identifier()):
                inner.append(function.outputs)
            skip = 1 if node.op_type == "Loop" else 0  # the condition
            for outputs in inner:
                for value, outer in zip(list(outputs)[skip:], node.outputs, strict=False):
                    found.setdefault(value, []).append(outer)
    return found


def _follow(start: ir.Value, model: ir.Model, ties: dict[ir.Value, list[ir.Value]]) -> Role:
    role = Role()
    todo: list[tuple[ir.Value, float, float, float]] = [(start, 1.0, 0.0, 0.0)]  # value, scale, lowest and highest offset
    seen = {start}
    while todo and len(seen) < FOLLOWED:
        value, scale, low, high = todo.pop()
        onward: list[tuple[ir.Value, float, float, float]] = [(outer, scale, low, high) for outer in ties.get(value, ())]
        for node, index in value.uses():
            _meaning(role, node, index, scale, (low, high))
            onward += [(inner, scale, low, high) for inner in _inside(node, index, model)]
            op, offset = node.op_type, None
            if op in ("Add", "Sub", "Mul", "Div"):
                offset = _arithmetic(node, index, scale, low, high)
            elif op in MOVES and ((places := MOVES[op]) is None or index in places):
                offset = (scale, low, high)
            if offset is not None:
                if abs(offset[0]) >= LARGE and abs(scale) < LARGE:
                    role.mask = True
                    continue
                onward += [(output, *offset) for output in node.outputs]
        for item in onward:
            if item[0] not in seen:
                seen.add(item[0])
                todo.append(item)
    return role


def _inside(node: ir.Node, index: int, model: ir.Model) -> Iterator[ir.Value]:
    """What a node's input is called inside the subgraph or function that the node runs."""
    bodies = [graph.inputs for _, graph in subgraphs(node)] if node.op_type in ("Loop", "Scan") else []
    if function := model.functions.get(node.op_identifier()):
        bodies.append(function.inputs)
    for inputs in bodies:
        if index < len(inputs):
            yield inputs[index]


def _arithmetic(node: ir.Node, index: int, scale: float, low: float, high: float) -> tuple[float, float, float] | None:
    """Scale and offsets after the operator, if its other input is a constant."""
    other = node.inputs[1 - index] if len(node.inputs) == 2 else None
    constants = _constants(other)
    if constants is None:
        return None
    least, most = float(constants[0]), float(constants[-1])
    op = node.op_type
    if op == "Add":
        return scale, low + least, high + most
    if op == "Sub":
        return (scale, low - most, high - least) if index == 0 else (-scale, least - high, most - low)
    if least != most or least == 0 or (op == "Div" and index == 1):
        return None
    factor = least if op == "Mul" else 1 / least
    ends = sorted((low * factor, high * factor))
    return scale * factor, ends[0], ends[1]


def _meaning(role: Role, node: ir.Node, index: int, scale: float, offset: tuple[float, float]) -> None:
    """Note what the operator wants of this input."""
    op, key = node.op_type, (node.op_type, index)
    # Both ends of the offset must stay in the table.
    for limit in _limits(node, index):
        role.limits += [(scale, end, limit) for end in dict.fromkeys(offset)]
    if key in COUNTS:
        role.counts.append(COUNTS[key])
    elif op in KNOWN_VALUES:
        for name in KNOWN_VALUES[op]:
            if name in node.attributes:
                role.choices += [v for v in node.attributes[name].value]
    elif op == "Equal":
        constants = _constants(node.inputs[1 - index])
        if constants is not None and len(constants) == 1 and scale:
            role.compared.append((float(constants[0]) - offset[0]) / scale)
        elif constants is not None and np.array_equal(constants, constants[0] + np.arange(len(constants))):
            role.limits.append((scale, offset[0] - float(constants[0]), len(constants)))  # a one-hot code
    role.shape = role.shape or key == ("Reshape", 1)
    role.length = role.length or key in LENGTHS
    to_bool = op == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.BOOL.value
    role.mask = role.mask or key == ("Where", 0) or to_bool or (op == "EmbedLayerNormalization" and index == 7)


def _constants(value: ir.Value | None) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """The distinct finite numbers of a constant, which may be reshaped or repeated."""
    for _ in range(8):
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if tensor is not None:
            if not 0 < tensor.size <= 4096 or tensor.dtype == ir.DataType.STRING:
                return None
            numbers = np.unique(np.asarray(tensor.numpy()).astype(np.float64))
            return numbers if np.isfinite(numbers).all() else None
        node = value.producer() if value is not None else None
        if node is None or node.op_type not in ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Tile", "Unsqueeze"):
            return None
        value = node.inputs[0]
    return None


def _limits(node: ir.Node, index: int) -> Iterator[int | str | None]:
    """Sizes of the axes that the input indexes."""
    op = node.op_type
    if (op, index) in INDICES:
        place, axis = INDICES[op, index]
        shape = shape_of(node.inputs[place]) if place < len(node.inputs) else None
        axis = node.attributes.get_int(axis, 0) if isinstance(axis, str) else axis
        yield shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    elif (op, index) in (("GatherND", 1), ("ScatterND", 1)):
        shape = shape_of(node.inputs[0])
        indices = shape_of(node.inputs[1])
        first = node.attributes.get_int("batch_dims", 0)
        depth = indices[-1] if indices and isinstance(indices[-1], int) else None
        yield from shape[first : None if depth is None else first + depth] if shape is not None else (None,)
    elif (op, index) == ("OneHot", 0):
        classes = _constants(node.inputs[1])
        yield int(classes[0]) if classes is not None else None
    elif op == "RotaryEmbedding" and index == (1 if node.domain == "com.microsoft" else 3):
        shape = shape_of(node.inputs[2 if node.domain == "com.microsoft" else 1])
        yield shape[0] if shape else None


def shape_of(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """A value's dimensions as far as they are known: its own, or those of the constant that it is cast from."""
    for _ in range(8):
        if value is None:
            return None
        tensor = ir.convenience.get_const_tensor(value)
        shape = value.shape if tensor is None else tensor.shape
        if shape is not None:
            return tuple(known_dim(dim if isinstance(dim, int) else dim.value) for dim in shape)
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "Identity", "DequantizeLinear", "QuantizeLinear"):
            return None
        value = node.inputs[0]
    return None
