"""Numbers for the symbolic and unknown dimensions of a model's inputs, where samples must be made up.

Known by weights that an input meets first (channels, features), by name (batch, sequence, height), or by place. Axes that
convolutions without padding shrink get what these need.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from halfconv.input_roles import shape_of
from halfconv.sample_checks import InputSpec, known_dim

__all__ = ["SIDE", "resolve_dims"]

#: Pixels along a free side of a picture.
SIDE = 224
_BATCH = re.compile(r"batch|^bsz?$|num_?samples", re.I)
_FIRST = re.compile(r"^(n|b)$|^unk__", re.I)  # the batch, if it is the first axis
_SPATIAL = re.compile(r"height|width|^(h|w)$|image|pixel", re.I)
_PAST = re.compile(r"past", re.I)
_HOPS = ("Identity", "Cast", "Pad", "Dropout", "Relu", "Unsqueeze", "Squeeze")
#: Operators that leave the lengths of spatial axes alone.
_KEEPING = frozenset(
    [
        "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
        "LeakyRelu", "Log", "Mul", "Neg", "Pad", "Pow", "PRelu", "Relu", "Selu", "Sigmoid", "Slice", "Softplus", "Split",
        "Sqrt", "Squeeze", "Sub", "Tanh", "Unsqueeze",
    ]
)
_WINDOWS = ("Conv", "MaxPool", "AveragePool", "LpPool", "ConvInteger", "QLinearConv", "FusedConv")


def resolve_dims(
    model: ir.Model, specs: Sequence[InputSpec], length: int, given: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Choose a shape for every input.

    Args:
        model: The model.
        specs: Its inputs.
        length: What a free sequence-like axis gets, at least.
        given: Symbols whose value is known.

    Returns:
        Input -> shape, and symbol -> value. A symbol has the same value everywhere; ``a + b`` is computed.
    """
    values = {value.name: value for value in model.graph.inputs}
    symbols = dict(given)
    shapes: dict[str, list[int | None]] = {}
    wanted: dict[str, list[int]] = {}
    for spec in specs:
        value, dims = values[spec.name], tuple(known_dim(dim) for dim in spec.shape or ())
        needs = _features(value, len(dims))
        shape: list[int | None] = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            size = needs.get(axis) or _by_name(dim, dims, axis, spec, length, value)
            shape.append(size if dim is None else None)
            if dim is not None and _expression(dim, None) is None:
                wanted.setdefault(dim, []).append(-size if axis in needs else size)
        shapes[spec.name] = shape
    for symbol, sizes in wanted.items():
        fixed = [-size for size in sizes if size < 0]  # what weights dictate
        symbols.setdefault(symbol, fixed[0] if fixed else max(sizes))
    _add_totals(symbols, given)
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if shapes[spec.name][axis] is None:
                dim = str(known_dim(dim))
                known = symbols.get(dim) or _expression(dim, symbols)
                shapes[spec.name][axis] = symbols.setdefault(dim, known if known and known > 0 else length)
    return {name: tuple(dim or 0 for dim in shape) for name, shape in shapes.items()}, symbols


def _by_name(dim: str | None, dims: tuple[int | str | None, ...], axis: int, spec: InputSpec, length: int, value: ir.Value) -> int:
    rank, name = len(dims), dim or ""
    if _BATCH.search(name) or (axis == 0 and (dim is None or rank == 4 or _FIRST.search(name))):
        return 1
    if dim is None and rank == 3 and axis == 1 and isinstance(dims[0], int) and isinstance(dims[2], int):
        return 1  # the state of a recurrent network: layers, batch, units
    if _PAST.search(name):
        return max(1, length // 2)
    vague = dim is None or not re.search(r"seq|len|time|frame|token|step|audio", name, re.I)
    last_is_channel = rank == 4 and dims[3] in (1, 3, 4) and axis in (1, 2)
    if _SPATIAL.search(name) or (vague and rank >= 4 and (last_is_channel or axis >= 2)):
        return SIDE
    if vague and rank >= 4 and axis == 1:
        return 3
    needed = _window(value, axis - rank)
    size = length
    while size < needed:
        size *= 2
    return size


def _features(value: ir.Value, rank: int) -> dict[int, int]:
    """Axis -> size that weights dictate: those of the operators that read the input first."""
    found: dict[int, int] = {}
    todo, hops = [value], 0
    while todo and hops < 50:
        hops += 1
        current = todo.pop()
        for node, index in current.uses():
            op = node.op_type
            if op in ("Identity", "Cast", "Dropout"):
                todo += node.outputs
            if index != 0:
                continue
            weight = shape_of(node.inputs[1]) if len(node.inputs) > 1 else None
            axis: int | None = None
            size: int | str | None = None
            if op == "Conv" and weight and len(weight) == rank and isinstance(weight[1], int):
                axis, size = 1, weight[1] * node.attributes.get_int("group", 1)
            elif op == "MatMul" and weight and len(weight) >= 2:
                axis, size = rank - 1, weight[-2]
            elif op == "Gemm" and weight and len(weight) == 2 and not node.attributes.get_int("transA", 0):
                axis, size = 1, weight[1 if node.attributes.get_int("transB", 0) else 0]
            elif op in ("LSTM", "GRU", "RNN") and weight and len(weight) == 3:
                axis, size = 2, weight[2]
            elif op == "BatchNormalization" and weight:
                axis, size = 1, weight[0]
            elif op.startswith("TreeEnsemble") and "nodes_featureids" in node.attributes:
                axis, size = rank - 1, max(node.attributes["nodes_featureids"].as_ints(), default=0) + 1
            if axis is not None and 0 <= axis < rank and isinstance(size, int) and size > 0:
                found.setdefault(axis, size)
    return found


def _window(value: ir.Value, axis: int) -> int:
    """Length of an axis (counted from the end) that leaves one element after the convolutions and poolings that follow."""
    needed = 1
    todo = [(value, 1, 0)]  # the input's length is a·(length here) + b
    seen = {value}
    while todo:
        current, a, b = todo.pop()
        needed = max(needed, a + b)
        for node, index in current.uses():
            if node.op_type in _WINDOWS and index == 0:
                kernel = _kernel(node)
                place = len(kernel) + axis
                if not 0 <= place < len(kernel):
                    continue
                strides, dilations, pads = (
                    list(node.attributes.get_ints(name, default))
                    for name, default in (
                        ("strides", [1] * len(kernel)),
                        ("dilations", [1] * len(kernel)),
                        ("pads", [0] * 2 * len(kernel)),
                    )
                )
                padded = pads[place] + pads[place + len(kernel)]
                if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
                    padded = (kernel[place] - 1) * dilations[place]
                stride = strides[place]
                follow = (a * stride, a * ((kernel[place] - 1) * dilations[place] + 1 - stride - padded) + b)
            elif node.op_type in _KEEPING:
                follow = (a, b)
            else:
                continue
            for output in node.outputs:
                if output not in seen and len(seen) < 2000:
                    seen.add(output)
                    todo.append((output, *follow))
    return needed


def _kernel(node: ir.Node) -> list[int]:
    if "kernel_shape" in node.attributes:
        return list(node.attributes["kernel_shape"].as_ints())
    place = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}.get(node.op_type)
    weight = shape_of(node.inputs[place]) if place is not None and place < len(node.inputs) else None
    return [dim if isinstance(dim, int) else 1 for dim in (weight or ())[2:]]


def _expression(text: str, symbols: Mapping[str, int] | None) -> int | None:
    """The value of ``past + sequence`` and the like; without symbols, whether it is one (0), else None."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.BinOp):
        return None
    return 0 if symbols is None else _evaluated(tree, symbols)


def _evaluated(tree: ast.expr, symbols: Mapping[str, int]) -> int | None:
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return symbols.get(tree.id)
    if isinstance(tree, ast.BinOp):
        left, right = _evaluated(tree.left, symbols), _evaluated(tree.right, symbols)
        if left is not None and right is not None:
            match tree.op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.Div() | ast.FloorDiv() if right:
                    return left // right
    return None


def _add_totals(symbols: dict[str, int], given: Mapping[str, int]) -> None:
    """``total_sequence_length`` is what is past and what is new."""
    for symbol in symbols:
        rest = re.sub(r"total_?", "", symbol, flags=re.I)
        if rest != symbol and symbol not in given:
            past = [size for name, size in symbols.items() if _PAST.search(name) and rest in name]
            if rest in symbols:
                symbols[symbol] = symbols[rest] + sum(past[:1])
