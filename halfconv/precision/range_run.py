"""Measure the ranges of a model's values in an FP32 run over samples, inside the graph: no tensor leaves the run.

Most values stay within half's normal range, where a few passes over each say everything. Those that do not are looked at closely
in a second run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

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
from halfconv.progress import Progress
from halfconv.runtime_process import RuntimeProcess
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
DOUBLE, FLOAT = ir.DataType.DOUBLE.value, ir.DataType.FLOAT.value
#: The model function that measures one value.
DOMAIN, MEASURE = "halfconv", "Measure"
#: Magnitudes between which squares, of rounding errors too, neither overflow nor underflow in FP32.
SQUARES = (1e-12, 1e15)
#: The lowest IR version with functions.
FUNCTIONS = 8
#: Stands for "no element that is not 0"; as a magnitude it is the largest of FP32.
NONE = float(np.finfo(np.float32).max)


def measure_ranges(
    model: ir.Model, samples: Samples, to: ir.DataType, label: str, on_progress: Callable[[Progress], None] | None = None,
    process: RuntimeProcess | None = None,
) -> tuple[Ranges, int]:  # fmt: skip
    """Measure every FP32 tensor of a model: graph inputs and node outputs, in all scopes.

    Args:
        model: The prepared FP32 model, which is left as it is.
        samples: Samples.
        to: FLOAT16 or BFLOAT16.
        label: What messages call the model.
        on_progress: Called before each sample.
        process: Where it runs; None for a process of its own.

    Returns:
        The ranges, by value id, and how many runs over the samples they took: one, or two.

    Raises:
        InputError: The model cannot be run.
    """
    count, found = _run(model, samples, to, label, None, on_progress, process)
    odd = {name for name, row in found.items() if not _is_plain(row, to)}
    if odd:
        found |= _run(model, samples, to, label, odd, on_progress, process)[1]
    ranges = {name: _range(row) for name, row in found.items() if row[0]}
    return Ranges(ranges, FORMATS[to], count, samples.kind), 2 if odd else 1


def _run(
    model: ir.Model, samples: Samples, to: ir.DataType, label: str, odd: Collection[str] | None,
    on_progress: Callable[[Progress], None] | None, process: RuntimeProcess | None,
) -> tuple[int, dict[str, np.ndarray]]:  # fmt: skip
    """Run an instrumented copy over the samples.

    Args:
        model: The model.
        samples: Samples.
        to: FLOAT16 or BFLOAT16.
        label: What messages call the model.
        odd: The values to look at closely; None for a quick look at all.
        on_progress: Called before each sample.
        process: Where it runs; None for a process of its own.

    Returns:
        The number of samples, and value id -> totals in the order of `COLUMNS`.
    """
    ids = list(Names.of(model).value.values())
    copy = duplicate(model)
    known = {value: name for value, name in zip(Names.of(copy).value, ids, strict=True)}  # a clone has the same order
    if copy.opset_imports.get("", OPSET) < OPSET and not raised_to(copy, OPSET):
        raise InputError(f"{label}: its values cannot be measured at opset {copy.opset_imports.get('')}", "a newer opset")
    opset = copy.opset_imports.setdefault("", OPSET)
    function = _function(to, opset, closely=odd is not None)
    copy.functions[function.identifier()] = function
    copy.opset_imports[DOMAIN] = 1
    copy.ir_version = max(copy.ir_version, FUNCTIONS)
    written = _instrument(copy.graph, lambda value: value in known and (odd is None or known[value] in odd), to, opset, "range")
    for _, _, nodes, _ in reversed(written):  # as in halfconv.drift.localise: the first value is measured by the last node
        copy.graph.extend(nodes)
    copy.graph.outputs[:] = [table for _, table, _, _ in written]
    rows = [known[value] for values, _, _, _ in written for value in values]
    totals = np.zeros((len(rows), len(COLUMNS)))
    totals[:, [not summed for summed in SUMMED]] = -math.inf
    count = 0
    if rows:
        about = f"{len(rows):,} values" + (" beyond the normal range of half" if odd is not None else "")
        with evaluate_model(copy, f"{label} (ranges)", process) as run:
            for sample in samples:
                if on_progress is not None:
                    on_progress(Progress("ranges", about, count))
                found = np.concatenate([t.reshape(-1, len(COLUMNS)) for t in run.run(sample.feeds, sample.name).values()])
                with np.errstate(invalid="ignore"):  # infinities, which the close look leaves out
                    totals = np.where(SUMMED, totals + found, np.fmax(totals, found))
                count += 1
    return count, dict(zip(rows, totals, strict=True))


def _named(row: np.ndarray) -> dict[str, float]:
    return {name: float(number) for (name, _), number in zip(COLUMNS, row, strict=True)}


def _is_plain(row: np.ndarray, to: ir.DataType) -> bool:
    """Tell whether a quick look said everything: no element overflows or becomes 0, and no square did in FP32."""
    found = _named(row)
    top, least = min(HALF_OVERFLOW[to], SQUARES[1]), max(HALF_TINY[to] / 2, SQUARES[0])
    return bool(found["absmax"] < top and -found["least"] > least and math.isfinite(found["error"] + found["size"]))


def _range(row: np.ndarray) -> ValueRange:
    found = _named(row)
    elements = found["elements"]
    rounding = math.sqrt(found["error"] / found["size"]) if found["size"] > 0 and math.isfinite(found["error"]) else 0.0
    smallest = -found["least"]
    return ValueRange(
        elements=int(elements),
        absmax=max(found["absmax"], 0.0),
        # FP32's largest number may itself be the smallest of a value.
        smallest=smallest if 0 < smallest < NONE or smallest == found["absmax"] else None,
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
            (row,) = b.several(MEASURE, [value], 1, domain=DOMAIN)
            row.type = ir.TensorType(ir.DataType.DOUBLE)
            written.append(([value], row, b.nodes, False))

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


def _function(to: ir.DataType, opset: int, *, closely: bool) -> ir.Function:
    """Write the function that measures one value: an FP32 tensor in, a vector of FP64 numbers out, in the order of `COLUMNS`.

    A model function is written once, however many values there are; ONNX Runtime puts its nodes in place of each call.
    """
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    b = Builder(to, "m", opset)
    zero, none, flat = b.constant(np.float32(0)), b.constant(np.float32(NONE)), b.constant(np.array([-1], np.int64))
    # With one zero more, so that an empty tensor has a largest element.
    x = b.wide("Concat", b.wide("Reshape", value, flat), b.constant(np.zeros(1, np.float32)), axis=0)
    size = b.wide("Abs", x)
    if closely:
        size = b.where(b.test("Less", size, b.constant(np.float32(np.inf))), size, zero)  # of NaN, no comparison is true
        beyond = b.test("GreaterOrEqual", size, b.constant(np.float32(HALF_OVERFLOW[to])))
        kept = b.where(beyond, zero, size)
        half = b.round(kept)
        gone = b.test("And", b.test("Equal", half, zero), b.test("Greater", kept, zero))
        counts = [b.wide("ReduceSum", b.wide("Cast", condition, to=FLOAT)) for condition in (beyond, gone)]
        # In FP64, squares of FP32 numbers neither overflow nor underflow.
        parts = [b.typed(ir.DataType.DOUBLE, "Cast", part, to=DOUBLE) for part in (kept, b.wide("Sub", half, kept))]
    else:
        counts = [b.constant(np.zeros(2, np.float32))]
        parts = [size, b.wide("Sub", b.round(size), size)]
    squares = [b.typed(part.dtype or ir.DataType.FLOAT, "ReduceSumSquare", part) for part in parts]
    ends = [b.wide("ReduceMax", size), b.wide("Neg", b.wide("ReduceMin", b.where(b.test("Greater", size, zero), size, none)))]
    elements = b.typed(ir.DataType.DOUBLE, "Cast", b.typed(ir.DataType.INT64, "Size", value), to=DOUBLE)
    wide = [b.typed(ir.DataType.DOUBLE, "Reshape", elements, flat)]
    narrow = [*counts, *ends]
    if closely:
        wide += squares
    else:
        narrow = [*squares, *narrow]
    rest = b.typed(ir.DataType.DOUBLE, "Cast", b.wide("Concat", *narrow, axis=0), to=DOUBLE)
    row = b.typed(ir.DataType.DOUBLE, "Concat", *wide, rest, axis=0)
    graph = ir.Graph([value], [row], nodes=b.nodes, opset_imports={"": opset})
    return ir.Function(DOMAIN, MEASURE, graph=graph, attributes=[])
