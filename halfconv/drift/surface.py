"""Lead measures out of branches and bodies: what is measured at every iteration leaves a node once, as a table.

A table holds a row for every value measured and a column for every measure. Over the iterations of a body some columns are
added up, and of the others the largest number is kept, so that memory does not grow with the number of iterations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder, i64

__all__ = ["BODIES", "lead_out", "stacked"]

#: Operator -> its attributes that hold graphs, in the order in which their rows leave it.
BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",), "SequenceMap": ("body",)}


def stacked(b: Builder, parts: Sequence[ir.Value | list[ir.Value]]) -> ir.Value:
    """Make one table.

    Args:
        b: Where the nodes go; at opset 13 or later.
        parts: Tables, and lists of rows (vectors of one length); all of one type.
    """
    dtype = next(value.dtype for part in parts for value in ([part] if isinstance(part, ir.Value) else part))
    assert dtype is not None
    axis = b.constant(i64(0))
    tables = []
    for part in parts:
        tables += [part] if isinstance(part, ir.Value) else [b.typed(dtype, "Unsqueeze", row, axis) for row in part]
    return b.typed(dtype, "Concat", *tables, axis=0)


def lead_out(node: ir.Node, tables: Mapping[str, tuple[int, ir.Value]], summed: Sequence[bool], b: Builder) -> ir.Value:
    """Give a node one more output: what was measured inside it.

    Args:
        node: An If, Loop, Scan or SequenceMap.
        tables: Attribute -> number of rows, and the table that this body computes.
        summed: For each column whether it is added up over iterations; if not, its largest number is kept.
        b: Where nodes behind `node` go, in its graph; at opset 13 or later.

    Returns:
        The table, in the node's graph: the rows of each body in the order of `BODIES`. A body that did not run adds 0 to sums, and
        −∞ to largest numbers.
    """
    dtype = next(iter(tables.values()))[1].dtype
    assert dtype is not None
    for attribute in BODIES[node.op_type]:
        body = node.attributes[attribute].as_graph()
        parts = [tables[attribute][1]] if attribute in tables else []
        if node.op_type == "If":
            parts = [
                table if name == attribute else _nothing(body, f"{b.stem}/{name}/none", _neutral(rows, summed, dtype))
                for name in BODIES["If"]
                if name in tables
                for rows, table in [tables[name]]
            ]
        inner = Builder(b.to, f"{b.stem}/{attribute}", b.opset)
        body.outputs.append(inner.typed(dtype, "Concat", *parts, axis=0))
        body.extend(inner.nodes)
    node.resize_outputs(len(node.outputs) + 1)
    left = node.outputs[-1]
    left.name, left.type = f"{b.stem}/left", ir.TensorType(dtype)
    if node.op_type == "If":
        return left
    rows = tables["body"][0]
    nothing = b.constant(_neutral(rows, summed, dtype))
    if node.op_type == "SequenceMap":
        left.type = ir.SequenceType(ir.TensorType(dtype))
        begun = b.node("SequenceInsert", [left, nothing], {}, 1).outputs[0]  # there may be no element
        left = b.typed(dtype, "ConcatFromSequence", begun, axis=0, new_axis=1)
    else:
        for name in ("scan_output_axes", "scan_output_directions"):
            if name in node.attributes:
                node.attributes[name] = ir.AttrInt64s(name, [*node.attributes[name].as_ints(), 0])
        first = b.typed(dtype, "Unsqueeze", nothing, b.constant(i64(0)))
        left = b.typed(dtype, "Concat", first, left, axis=0)
    # From opset 18 the axes of ReduceMax are an input.
    largest = (
        b.typed(dtype, "ReduceMax", left, b.constant(i64(0)), keepdims=0)
        if b.opset >= 18
        else b.typed(dtype, "ReduceMax", left, axes=[0], keepdims=0)
    )
    total = b.typed(dtype, "ReduceSum", left, b.constant(i64(0)), keepdims=0)
    return b.typed(dtype, "Where", b.constant(np.array(summed)), total, largest)


def _neutral(rows: int, summed: Sequence[bool], dtype: ir.DataType) -> np.ndarray:
    return np.tile(np.where(summed, 0, -np.inf).astype(dtype.numpy()), (rows, 1))


def _nothing(body: ir.Graph, stem: str, table: np.ndarray) -> ir.Value:
    b = Builder(ir.DataType.FLOAT16, stem, 13)
    value = b.constant(table)
    body.extend(b.nodes)
    return value
