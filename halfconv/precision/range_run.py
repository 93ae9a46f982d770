"""Measure the ranges of a model's values in one FP32 run over samples, inside the graph: no tensor leaves the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder
from halfconv.drift.evaluate import evaluate_model
from halfconv.drift.raising import raised_to
from halfconv.drift.simulate import FORMATS
from halfconv.drift.surface import BODIES, lead_out, stacked
from halfconv.errors import InputError
from halfconv.graph.duplicate import duplicate
from halfconv.graph.names import Names, subgraphs
from halfconv.graph.typegroups import is_float
from halfconv.precision.ranges import Ranges, ValueRange
from halfconv.precision.weights import HALF_OVERFLOW, HALF_TINY
from halfconv.samples import Samples

__all__ = ["measure_ranges"]

#: The lowest opset in which the measures can be written.
OPSET = 13
#: What is measured: (name, whether it is added up over iterations and samples; if not, the largest is kept).
COLUMNS = (
    ("elements", True), ("size", True), ("error", True), ("overflow", True), ("flush", True), ("absmax", False),
    ("least", False),
)  # fmt: skip
SUMMED = tuple(summed for _, summed in COLUMNS)
DOUBLE, INT32 = ir.DataType.DOUBLE.value, ir.DataType.INT32.value
#: Magnitudes between which squares, of rounding errors too, neither overflow nor underflow in FP32.
SQUARES = (1e-12, 1e15)
#: Stands for "no element that is not 0"; as a magnitude it is the largest of FP32.
NONE = float(np.finfo(np.float32).max)


def measure_ranges(
    model: ir.Model, samples: Samples, to: ir.DataType, label: str, on_sample: Callable[[int], None] | None = None
) -> Ranges:
    """Measure every FP32 tensor of a model: graph inputs and node outputs, in all scopes.

    Args:
        model: The prepared FP32 model, which is left as it is.
        samples: Samples.
        to: FLOAT16 or BFLOAT16.
        label: What messages call the model.
        on_sample: Called with the number of samples done.

    Returns:
        The ranges, by value id.

    Raises:
        InputError: The model cannot be run.
    """
    ids = list(Names.of(model).value.values())
    copy = duplicate(model)
    known = {value: name for value, name in zip(Names.of(copy).value, ids, strict=True)}  # a clone has the same order
    if copy.opset_imports.get("", OPSET) < OPSET and not raised_to(copy, OPSET):
        raise InputError(f"{label}: its values cannot be measured at opset {copy.opset_imports.get('')}", "a newer opset")
    opset = copy.opset_imports.setdefault("", OPSET)
    written = _instrument(copy.graph, lambda value: value in known, to, opset, "range")
    for _, _, nodes, _ in reversed(written):  # as in halfconv.drift.localise: the first value is measured by the last node
        copy.graph.extend(nodes)
    copy.graph.outputs[:] = [table for _, table, _, _ in written]
    rows = [known[value] for values, _, _, _ in written for value in values]
    totals = np.zeros((len(rows), len(COLUMNS)))
    totals[:, [not summed for summed in SUMMED]] = -math.inf
    count = 0
    if rows:
        with evaluate_model(copy, f"{label} (ranges)") as run:
            for sample in samples:
                found = np.concatenate([t.reshape(-1, len(COLUMNS)) for t in run.run(sample.feeds, sample.name).values()])
                totals = np.where(SUMMED, totals + found, np.fmax(totals, found))
                count += 1
                if on_sample is not None:
                    on_sample(count)
    values = {name: _range(row) for name, row in zip(rows, totals, strict=True) if row[0]}
    return Ranges(values, FORMATS[to], count, samples.kind)


def _range(row: np.ndarray) -> ValueRange:
    found = {name: float(number) for (name, _), number in zip(COLUMNS, row, strict=True)}
    elements = found["elements"]
    rounding = math.sqrt(found["error"] / found["size"]) if found["size"] > 0 and math.isfinite(found["error"]) else 0.0
    smallest = -found["least"]
    return ValueRange(
        elements=int(elements),
        absmax=max(found["absmax"], 0.0),
        smallest=smallest if 0 < smallest < NONE else None,
        overflow=found["overflow"] / elements,
        flush=found["flush"] / elements,
        rounding=rounding if math.isfinite(rounding) else 0.0,
    )


#: Values, what is measured of them, the nodes that measure, and whether that is a table (of values inside a node) or a vector.
Written = list[tuple[list[ir.Value], ir.Value, list[ir.Node], bool]]


def _instrument(graph: ir.Graph, wanted: Callable[[ir.Value], bool], to: ir.DataType, opset: int, stem: str) -> Written:
    """Write measures for a graph's values, and lead out those of bodies; the nodes are not yet part of the graph.

    Returns:
        What was written, in topological order.
    """
    written: Written = []

    def one(value: ir.Value) -> None:
        if is_float(value) and value.name and wanted(value):
            b = Builder(to, f"{stem}:{len(written)}", opset)
            written.append(([value], _measure(b, value), b.nodes, False))

    for value in graph.inputs:
        one(value)
    for node in list(graph):
        if node.op_type in BODIES and node.domain in ("", "ai.onnx"):
            tables: dict[str, tuple[int, ir.Value]] = {}
            inside: list[ir.Value] = []
            for attribute, body in sorted(subgraphs(node), key=lambda entry: BODIES[node.op_type].index(entry[0])):
                below = f"{stem}:{len(written)}.{attribute}"
                found = _instrument(body, wanted, to, opset, below)
                if not found:
                    continue
                b = Builder(to, f"{below}:all", opset)
                for _, _, nodes, _ in found:
                    body.extend(nodes)
                table = stacked(b, [part if is_table else [part] for _, part, _, is_table in found])
                body.extend(b.nodes)
                measured = [value for values, _, _, _ in found for value in values]
                tables[attribute] = (len(measured), table)
                inside += measured
            if tables:
                b = Builder(to, f"{stem}:{len(written)}.out", opset)
                written.append((inside, lead_out(node, tables, SUMMED, b), b.nodes, True))
        for output in node.outputs:
            one(output)
    return written


def _measure(b: Builder, value: ir.Value) -> ir.Value:
    """Write the measures of one value: a vector of FP64 numbers, in the order of `COLUMNS`.

    Most values stay within half's range, where a few passes over them say everything; only the others are looked at closely.
    """
    flat, nothing = b.constant(np.array([-1], np.int64)), b.constant(np.zeros(1, np.float32))
    # With one zero more, so that an empty tensor has a largest element.
    x = b.wide("Concat", b.wide("Reshape", value, flat), nothing, axis=0)
    size = b.wide("Abs", x)
    top = b.wide("ReduceMax", size, keepdims=0)
    zero, none = b.constant(np.float32(0)), b.constant(np.float32(NONE))
    least = b.wide("ReduceMin", b.where(b.test("Greater", size, zero), size, none), keepdims=0)
    inside = b.test("Less", top, b.constant(np.float32(min(HALF_OVERFLOW[b.to], SQUARES[1]))))
    plain = b.test("And", inside, b.test("Greater", least, b.constant(np.float32(max(HALF_TINY[b.to] / 2, SQUARES[0])))))
    counted = b.typed(ir.DataType.DOUBLE, "Cast", b.typed(ir.DataType.INT64, "Size", value), to=DOUBLE)
    branches = {}
    for attribute, write in (("then_branch", _plain), ("else_branch", _closely)):
        inner = Builder(b.to, f"{b.stem}/{attribute}", b.opset)
        branches[attribute] = ir.Graph([], [write(inner, x, size, top, least)], nodes=inner.nodes, name=attribute)
    table = b.node("If", [plain], branches, 1).outputs[0]
    table.type = ir.TensorType(ir.DataType.DOUBLE)
    line = b.typed(ir.DataType.DOUBLE, "Reshape", counted, b.constant(np.array([1], np.int64)))
    return b.typed(ir.DataType.DOUBLE, "Concat", line, table, axis=0)


def _row(b: Builder, numbers: Sequence[ir.Value]) -> ir.Value:
    """Make one FP64 vector of scalars of any type."""
    one = b.constant(np.array([1], np.int64))
    wide = [n if n.dtype == ir.DataType.DOUBLE else b.typed(ir.DataType.DOUBLE, "Cast", n, to=DOUBLE) for n in numbers]
    return b.typed(ir.DataType.DOUBLE, "Concat", *(b.typed(ir.DataType.DOUBLE, "Reshape", n, one) for n in wide), axis=0)


def _plain(b: Builder, x: ir.Value, size: ir.Value, top: ir.Value, least: ir.Value) -> ir.Value:
    zero = b.constant(np.float32(0))
    squares = [b.wide("ReduceSumSquare", part, keepdims=0) for part in (x, b.wide("Sub", b.round(x), x))]
    return _row(b, [*squares, zero, zero, top, b.wide("Neg", least)])


def _closely(b: Builder, x: ir.Value, size: ir.Value, top: ir.Value, least: ir.Value) -> ir.Value:
    zero, none = b.constant(np.float32(0)), b.constant(np.float32(NONE))
    strange = b.test("Or", b.test("IsInf", x), b.test("IsNaN", x))
    finite = b.where(strange, zero, size)
    fits = b.test("Less", finite, b.constant(np.float32(HALF_OVERFLOW[b.to])))
    kept = b.where(fits, finite, zero)
    half = b.round(kept)
    gone = b.test("And", b.test("Greater", kept, zero), b.test("Equal", half, zero))
    # Squares of scaled numbers neither overflow nor underflow in FP32.
    largest = b.wide("ReduceMax", kept, keepdims=0)
    scale = b.where(b.test("Greater", largest, zero), largest, b.constant(np.float32(1)))
    wide = b.typed(ir.DataType.DOUBLE, "Cast", scale, to=DOUBLE)
    area = b.typed(ir.DataType.DOUBLE, "Mul", wide, wide)
    squares = [
        b.typed(ir.DataType.DOUBLE, "Cast", b.wide("ReduceSumSquare", b.wide("Div", part, scale), keepdims=0), to=DOUBLE)
        for part in (kept, b.wide("Sub", half, kept))
    ]
    lowest = b.where(b.test("Greater", finite, zero), finite, none)
    counts = [
        b.typed(ir.DataType.INT32, "ReduceSum", b.typed(ir.DataType.INT32, "Cast", condition, to=INT32), keepdims=0)
        for condition in (b.test("Not", fits), gone)
    ]
    return _row(b, [
        *(b.typed(ir.DataType.DOUBLE, "Mul", square, area) for square in squares),
        *counts,
        b.wide("ReduceMax", finite, keepdims=0),
        b.wide("Neg", b.wide("ReduceMin", lowest, keepdims=0)),
    ])  # fmt: skip
