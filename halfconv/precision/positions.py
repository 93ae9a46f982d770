"""Shape arithmetic: positions, lengths, sizes and indices that a model computes in floating point.

Half precision holds whole numbers exactly only to 2,048, BF16 to 256.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from halfconv.graph.names import subgraphs
from halfconv.graph.typegroups import is_float, is_weight
from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.flow import backward, inputs_of, op
from halfconv.precision.formats import HalfFormat
from halfconv.precision.match import Match
from halfconv.precision.unscaled import WIDE

__all__ = ["shape_arithmetic"]

#: Operators whose integer results count or address something.
COUNTERS = frozenset({"ArgMax", "ArgMin", "CumSum", "NonMaxSuppression", "NonZero", "Range", "Shape", "Size", "TopK"})
ARITHMETIC = frozenset(
    {"Abs", "Add", "Ceil", "Clip", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Reciprocal",
     "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Round", "Sqrt", "Sub", "Sum", "Where"}
)  # fmt: skip
ROUNDING = frozenset({"Ceil", "Floor", "Round"})
#: (operator, inputs that are coordinates).
COORDINATES: dict[str, tuple[int, ...]] = {
    "DeformConv": (2,),
    "GridSample": (1,),
    "MaxRoiPool": (1,),
    "NonMaxSuppression": (0, 1),
    "RoiAlign": (1,),
}
NORMS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)  # fmt: skip
ANGLES = frozenset({"Cos", "Sin", "Tan"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_integer()


def shape_arithmetic(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Yield what computes positions or sizes, and what ends in integers, coordinates or angles."""
    counted, from_integers = _taints(nodes)
    for node in nodes:
        kind = op(node)
        if node in counted:
            yield Match((node,), node, to.word("it computes with positions or sizes, exact in {half} only to {whole}"))
        if kind == "Cast" and is_float(node.inputs[0]) and _is_whole(node.outputs[0]):
            path = backward(inputs_of(node), lambda n: op(n) in ARITHMETIC | EXACT_OPS, limit=40)
            what = "a truth value" if node.outputs[0].dtype == ir.DataType.BOOL else "an integer"
            yield Match((node, *path), node, f"it becomes {what}, which {to.precision} would change")
        elif kind in NORMS and node.inputs and node.inputs[0] is not None:
            path = backward([node.inputs[0]], lambda n: op(n) in ARITHMETIC | EXACT_OPS, limit=12)
            wide = [n for n in path if op(n) == "Cast" and n.inputs[0] is not None and n.inputs[0].dtype in WIDE]
            if wide:
                why = f"large integers or doubles reach it, which {to.half} cannot hold before they are normalised"
                yield Match((node, *path), wide[0], why)
        elif kind in ("Loop", "Scan"):
            for update in _accumulators(node):
                yield Match((node, update), update, to.word("it adds up over iterations, and {half} stops counting at {whole}"))
        elif kind in ROUNDING:
            path = backward(inputs_of(node), lambda n: op(n) in ARITHMETIC | EXACT_OPS, limit=12)
            yield Match((node, *path), node, f"{kind} turns a rounding error into a whole step")
        elif kind in COORDINATES:
            starts = [node.inputs[i] for i in COORDINATES[kind] if i < len(node.inputs)]
            path = backward([v for v in starts if v is not None], lambda n: op(n) in ARITHMETIC | EXACT_OPS, limit=40)
            if path:
                yield Match(tuple(path), node, f"it computes coordinates for {kind}")
        elif kind in ANGLES:
            path = backward(
                inputs_of(node), lambda n: op(n) in {"Add", "Div", "Mul", "Neg", "Sub"} | EXACT_OPS or n in from_integers,
                limit=12,
            )  # fmt: skip
            yield Match((node, *path), node, to.word("{precision} holds angles beyond {whole} only to whole radians"))
        elif kind in COMPARISONS and any(
            value.producer() in from_integers for value in inputs_of(node) if value.producer() is not None
        ):
            path = backward(inputs_of(node), lambda n: n in from_integers, limit=12)
            yield Match((node, *path), node, "it compares whole numbers")


def _is_whole(value: ir.Value) -> bool:
    return _is_integer(value) or value.dtype == ir.DataType.BOOL


def _accumulators(node: ir.Node) -> Iterator[ir.Node]:
    """Yield what updates a carried value of a loop by adding to it or multiplying it."""
    for _, body in subgraphs(node):
        carried = set(body.inputs)
        for result in body.outputs:
            update = result.producer()
            if update is None or not is_float(result) or op(update) not in ("Add", "Mul", "Sub", "Sum"):
                continue
            if any(value in carried and _carries(node, body, value, result) for value in inputs_of(update)):
                yield update


def _carries(node: ir.Node, body: ir.Graph, value: ir.Value, result: ir.Value) -> bool:
    """Tell whether a body's result becomes this input of it in the next iteration."""
    shift = 1 if op(node) == "Loop" else 0
    return list(body.inputs).index(value) == list(body.outputs).index(result) + shift


def _taints(nodes: Sequence[ir.Node]) -> tuple[set[ir.Node], set[ir.Node]]:
    """Return the nodes whose FP32 results come from counters only, and those that come from integers only."""
    counters: set[ir.Value] = set()
    counted: set[ir.Node] = set()
    integers: set[ir.Node] = set()
    for node in nodes:
        kind = op(node)
        if kind in COUNTERS:
            counters.update(output for output in node.outputs if _is_integer(output))
            if kind == "Range" and is_float(node.outputs[0]):
                counted.add(node)
                integers.add(node)
            continue
        reads = [value for value in node.inputs if value is not None and not is_weight(value)]
        if not reads:
            continue
        if any(_is_integer(output) for output in node.outputs) and kind in ARITHMETIC | EXACT_OPS:
            if any(value in counters for value in reads):
                counters.update(node.outputs)
            continue
        if not any(is_float(output) for output in node.outputs):
            continue
        if kind == "Cast":
            if _is_integer(reads[0]):
                integers.add(node)
                if reads[0] in counters:
                    counted.add(node)
            elif reads[0].producer() in integers:
                integers.add(node)
            continue
        floats = [value.producer() for value in inputs_of(node)]
        if floats and kind in ARITHMETIC | EXACT_OPS | {"MatMul", "Einsum"}:
            if all(producer in integers for producer in floats):
                integers.add(node)
            if all(producer in counted for producer in floats) and kind in ARITHMETIC | EXACT_OPS:
                counted.add(node)
    return counted, integers
