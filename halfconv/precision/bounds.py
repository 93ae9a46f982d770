"""Static bounds: what a value can be at most whatever the inputs are, and the rules of the block list that this disproves.

A Softmax lies between 0 and 1, a Clip between its ends, a constant is known; interval arithmetic carries such bounds on, as in
R. E. Moore, Interval Analysis (1966). A value without bounds may be anything. Bounds hold for real numbers; a share of `SLACK`
is left for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from halfconv.graph.reductions import reduced_count
from halfconv.graph.typegroups import is_weight
from halfconv.precision.constants import WeightStats
from halfconv.precision.flow import constant, op, scalar
from halfconv.precision.formats import FP16
from halfconv.precision.rules import Decision, Strength

__all__ = ["Interval", "is_disproved", "static_bounds"]

#: (least, largest).
Interval = tuple[float, float]

SLACK = 1.01
ANYTHING = (-math.inf, math.inf)
#: Operator -> the interval of its result, for arguments of any size.
RESULTS: Mapping[str, Interval] = {
    "Abs": (0, math.inf), "Atan": (-math.pi / 2, math.pi / 2), "Cos": (-1, 1), "Erf": (-1, 1), "Exp": (0, math.inf),
    "Gelu": (-0.17, math.inf), "HardSigmoid": (0, 1), "HardSwish": (-0.375, math.inf), "Hardmax": (0, 1),
    "LogSoftmax": (-math.inf, 0), "Mish": (-0.31, math.inf), "ReduceL1": (0, math.inf), "ReduceL2": (0, math.inf),
    "ReduceSumSquare": (0, math.inf), "Relu": (0, math.inf), "Sigmoid": (0, 1), "Sin": (-1, 1), "Softmax": (0, 1),
    "Softplus": (0, math.inf), "Softsign": (-1, 1), "Sqrt": (0, math.inf), "Tanh": (-1, 1),
}  # fmt: skip
#: Operators that move, select or average numbers of their first input.
MOVES = frozenset(
    {
        "CastLike", "Compress", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape",
        "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
#: Likewise, with zeros among them.
PADS = frozenset({"AveragePool", "CenterCropPad", "MaxPool", "Pad", "Trilu"})
#: Functions that never decrease.
RISING: Mapping[str, Callable[[float], float]] = {
    "Exp": lambda x: math.exp(min(x, 700.0)) if x > -math.inf else 0.0,
    "Log": lambda x: math.log(x) if x > 0 else -math.inf, "Relu": lambda x: max(x, 0.0),
    "Sqrt": lambda x: math.sqrt(max(x, 0.0)), "Tanh": math.tanh, "Erf": math.erf,
    "Sigmoid": lambda x: 1 / (1 + math.exp(min(-x, 700.0))),
}  # fmt: skip
#: Element type -> the interval of what is cast from it.
CAST: Mapping[ir.DataType, Interval] = {
    ir.DataType.BOOL: (0, 1), ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127), ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
}  # fmt: skip
#: Patterns of the block list that a bound of their culprit disproves; the rows of single operators are disproved likewise.
DISPROVABLE = frozenset({"log", "scale-up", "wide-sum"})
#: The largest argument whose exponential, rounded, half holds.
LARGEST_EXPONENT = 11.0


def static_bounds(nodes: Iterable[ir.Node], weights: Mapping[ir.Value, WeightStats]) -> dict[ir.Value, Interval]:
    """Return the values that are bounded on at least one side, with their bounds.

    Args:
        nodes: The model's nodes in all scopes, each behind what it reads.
        weights: Figures of the model's FP32 weights.
    """
    known: dict[ir.Value, Interval] = {}

    def of(value: ir.Value | None) -> Interval:
        if value is None:
            return ANYTHING
        if value in known:
            return known[value]
        array = constant(value) if is_weight(value) else None
        if array is not None and array.size and array.dtype.kind in "fiu" and np.isfinite(array).all():
            return float(array.min()), float(array.max())
        if is_weight(value) and value in weights and not weights[value].stats.nonfinite:
            return -weights[value].stats.absmax, weights[value].stats.absmax
        return ANYTHING

    for node in nodes:
        found = _bounds(node, [of(value) for value in node.inputs])
        if found != ANYTHING:
            for output in node.outputs[: len(node.outputs) if op(node) == "Split" else 1]:
                known[output] = found
    return known


def is_disproved(decision: Decision, bounds: Mapping[ir.Value, Interval]) -> bool:
    """Tell whether bounds show that what a row of the default block list fears of FP16's range cannot happen.

    Args:
        decision: A decision.
        bounds: Bounds of the model's values, see `static_bounds`.
    """
    node = decision.culprit
    if decision.strength != Strength.BLOCK_LIST or decision.rule not in (f"block-list:{op(node)}", *DISPROVABLE):
        return False
    low, high = bounds.get(node.inputs[0], ANYTHING) if node.inputs and node.inputs[0] is not None else ANYTHING
    size, kind = max(abs(low), abs(high)) * SLACK, op(node)
    if decision.rule == "scale-up":
        return _fits(bounds.get(node.outputs[0], ANYTHING))
    if kind == "Exp":
        return high <= LARGEST_EXPONENT
    if kind in ("Cosh", "Sinh"):
        return size <= LARGEST_EXPONENT
    if kind in ("Log", "Reciprocal"):
        return low >= FP16.min_normal
    count = reduced_count(node) if kind.startswith("Reduce") else None
    if count is None or not math.isfinite(size):
        return False
    if kind in ("ReduceL1", "ReduceSum"):
        return size * count <= FP16.max
    if kind in ("ReduceL2", "ReduceSumSquare"):
        return size * size * count <= FP16.max
    if kind == "ReduceLogSum":
        return low >= FP16.min_normal and size * count <= FP16.max
    if kind == "ReduceLogSumExp":
        return high <= LARGEST_EXPONENT and math.exp(high) * count * SLACK <= FP16.max
    return kind == "ReduceProd" and count * math.log(max(size, 1.0)) <= math.log(FP16.max)


def _fits(bounds: Interval) -> bool:
    return max(abs(bounds[0]), abs(bounds[1])) * SLACK <= FP16.max


def _bounds(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """Return the bounds of a node's first result."""
    kind = op(node)
    first = inputs[0] if inputs else ANYTHING
    if kind == "Cast":
        source = node.inputs[0].dtype if node.inputs[0] is not None else None
        return first if source is None else CAST.get(source, first)
    if kind in MOVES:
        return first
    if kind in PADS:
        fill = node.attributes.get_float("value", 0.0)  # of Pad before opset 11
        return _hull(first, inputs[2] if kind == "Pad" and len(inputs) > 2 and node.inputs[2] is not None else (fill, fill))
    if kind in ("Concat", "Max", "Min", "Sum", "Where"):
        return _several(kind, inputs)
    if kind == "Clip":
        low = node.attributes.get_float("min", -math.inf) if len(inputs) < 2 else inputs[1][0]
        high = node.attributes.get_float("max", math.inf) if len(inputs) < 3 else inputs[2][1]
        return min(max(first[0], low), high), max(min(first[1], high), low)
    if kind == "Neg":
        return -first[1], -first[0]
    if kind == "Abs":
        return (0.0 if first[0] <= 0 <= first[1] else min(abs(first[0]), abs(first[1]))), max(abs(first[0]), abs(first[1]))
    if kind in ("Add", "Sub", "Mul", "Div") and len(inputs) == 2:
        return _arithmetic(node, kind, *inputs)
    if kind == "Pow" and scalar(node.inputs[1]) == 2:
        return _squared(first)
    if kind == "Reciprocal":
        return _product((1, 1), _inverse(first))
    if kind in ("ReduceSum", "ReduceL1", "ReduceSumSquare") and (count := reduced_count(node)) is not None:
        each = {"ReduceSum": first, "ReduceL1": _bounds_of_size(first), "ReduceSumSquare": _squared(first)}[kind]
        return _meet(_product(each, (count, count)), RESULTS.get(kind, ANYTHING))
    if kind in RISING:
        return _meet((RISING[kind](first[0]), RISING[kind](first[1])), RESULTS.get(kind, ANYTHING))
    return RESULTS.get(kind, ANYTHING)


def _bounds_of_size(x: Interval) -> Interval:
    return 0.0, max(abs(x[0]), abs(x[1]))


def _arithmetic(node: ir.Node, kind: str, a: Interval, b: Interval) -> Interval:
    if kind == "Mul" and node.inputs[0] is node.inputs[1]:
        return _squared(a)
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1]
    if kind == "Sub":
        # x − max(x) is at most 0.
        top = node.inputs[1].producer() if node.inputs[1] is not None else None
        largest = 0.0 if op(top) == "ReduceMax" and top is not None and top.inputs[0] is node.inputs[0] else math.inf
        return a[0] - b[1], min(a[1] - b[0], largest)
    return _product(a, b if kind == "Mul" else _inverse(b))


def _several(kind: str, inputs: Sequence[Interval]) -> Interval:
    parts = inputs[1:] if kind == "Where" else inputs
    if kind == "Sum":
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    if kind == "Max":
        return max(low for low, _ in parts), max(high for _, high in parts)
    if kind == "Min":
        return min(low for low, _ in parts), min(high for _, high in parts)
    return _hull(*parts)


def _hull(*parts: Interval) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _meet(a: Interval, b: Interval) -> Interval:
    return max(a[0], b[0]), min(a[1], b[1])


def _squared(x: Interval) -> Interval:
    ends = [end * end for end in x]
    return (0.0 if x[0] <= 0 <= x[1] else min(ends)), max(ends)


def _inverse(x: Interval) -> Interval:
    if x[0] > 0 or x[1] < 0:
        return 1 / x[1], 1 / x[0]
    return ANYTHING


def _product(a: Interval, b: Interval) -> Interval:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)
