"""Queries, keys and values of attention: how exporters split them into heads, and how they are joined again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op
from halfconv.graph.rules import Rewriter, transposed
from halfconv.graph.sizes import Size
from halfconv.graph.typegroups import is_float

__all__ = ["TO_HEADS", "Heads", "flat_rows", "heads_of", "heads_of_rows", "unscaled", "untransposed"]

#: Axes of [batch, length, heads, size] as [batch, heads, length, size], and back.
TO_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values.

    Attributes:
        value: [batch, heads, length, size], or [batch · heads, length, size] if they are folded; None if only rows hold them.
        rows: [batch, length, heads, size], if a value holds that.
        packed: A value of [batch, length, 3, heads, size], and which of the three it is, if they come so.
        sizes: Batch, heads, length and size.
        folded: Whether heads are folded into the batch.
    """

    value: ir.Value | None
    rows: ir.Value | None
    sizes: tuple[Size, Size, Size, Size]
    folded: bool = False
    packed: tuple[ir.Value, int] | None = None


def heads_of(value: ir.Value | None, rewriter: Rewriter) -> Heads | None:
    """Return what a value of [batch, heads, length, size], or of rank 3, holds; None if heads and size are no numbers."""
    sizes = rewriter.sizes.of(value) if value is not None and is_float(value) else None
    if value is None or sizes is None:
        return None
    folded = len(sizes) == 3
    if folded:
        sizes = [sizes[0], 1, *sizes[1:]]
    if len(sizes) != 4 or not all(isinstance(sizes[axis], int) and sizes[axis] for axis in (1, 3)):
        return None
    rows = None if folded else transposed(value, *TO_HEADS)
    packed = _packed(value, rewriter) if rows is None and not folded else None
    return Heads(value, rows, (sizes[0], sizes[1], sizes[2], sizes[3]), folded, packed)


def _packed(value: ir.Value, rewriter: Rewriter) -> tuple[ir.Value, int] | None:
    """Match the choice of queries, keys or values of [3, batch, heads, length, size], as vision transformers have them."""
    node = value.producer()
    if node is None or node.domain or not node.inputs:
        return None
    whole, numbers = node.inputs[0], rewriter.sizes.elements(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        index = numbers[0] if numbers is not None and len(numbers) == 1 else None
    elif node.op_type == "Squeeze" and (numbers == [0] or node.attributes.get_ints("axes", ()) == (0,)):
        index, whole = _part(whole, rewriter)
    else:
        return None
    source = transposed(whole, 2, 0, 3, 1, 4)
    return (source, index) if source is not None and isinstance(index, int) and 0 <= index < 3 else None


def _part(value: ir.Value | None, rewriter: Rewriter) -> tuple[int | None, ir.Value | None]:
    """Return which of the first axis a Slice or Split takes, and of what; it takes one."""
    node = value.producer() if value is not None else None
    if node is None or value is None or node.domain:
        return None, None
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) == 0 and len(node.outputs) == 3:
        return list(node.outputs).index(value), node.inputs[0]
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None, None
    start, end, axes = (rewriter.sizes.elements(read) for read in node.inputs[1:4])
    if start is None or end is None or axes != [0] or len(start) != 1 or not isinstance(start[0], int):
        return None, None
    return (start[0], node.inputs[0]) if end == [start[0] + 1] else (None, None)


def heads_of_rows(rows: ir.Value, rewriter: Rewriter) -> Heads | None:
    """As `heads_of`, of [batch, length, heads, size]."""
    sizes = rewriter.sizes.of(rows) if is_float(rows) else None
    if sizes is None or len(sizes) != 4 or not all(isinstance(sizes[axis], int) and sizes[axis] for axis in (2, 3)):
        return None
    return Heads(None, rows, (sizes[0], sizes[2], sizes[1], sizes[3]))


def unscaled(value: ir.Value | None, rewriter: Rewriter) -> tuple[ir.Value | None, float]:
    """Return what a chain of products with numbers was given, and their product."""
    scale = 1.0
    for _ in range(4):
        node = value.producer() if value is not None else None
        if node is None or node.domain or node.op_type not in ("Mul", "Div", "Identity", "Cast"):
            break
        if node.op_type in ("Identity", "Cast"):
            if not is_float(node.inputs[0]):
                break
            value = node.inputs[0]
            continue
        first, second = node.inputs
        factor = rewriter.number(second)
        if factor is None and node.op_type == "Mul":
            factor, first = rewriter.number(first), second
        if factor is None or factor == 0:
            break
        value, scale = first, scale * (factor if node.op_type == "Mul" else 1 / factor)
    return value, scale


def untransposed(value: ir.Value | None, rewriter: Rewriter) -> ir.Value | None:
    """Return the keys of which a value is the transpose in its last two axes."""
    for perm in ((0, 1, 3, 2), (0, 2, 1)):
        if (found := transposed(value, *perm)) is not None:
            return found
    return _flat_keys(value, rewriter)


def _flat_keys(value: ir.Value | None, rewriter: Rewriter) -> ir.Value | None:
    """As `untransposed`, where heads are folded into the batch for the transposition, as PyTorch's exporter does."""
    back = value.producer() if value is not None else None
    flat = transposed(back.inputs[0], 0, 2, 1) if back is not None and back.op_type == "Reshape" and not back.domain else None
    fold = flat.producer() if flat is not None else None
    keys = fold.inputs[0] if fold is not None and fold.op_type == "Reshape" and not fold.domain else None
    if keys is None or flat is None or back is None:
        return None
    whole, folded = rewriter.sizes.of(keys), rewriter.sizes.elements(fold.inputs[1]) if fold is not None else None
    shape = rewriter.sizes.elements(back.inputs[1])
    if whole is None or len(whole) != 4 or folded is None or shape is None:
        return None
    return keys if folded[1:] == whole[2:] and len(folded) == 3 and shape == [whole[0], whole[1], whole[3], whole[2]] else None


def flat_rows(part: Heads, last: ir.Node, hint: str, rewriter: Rewriter) -> ir.Value:
    """Return [batch, length, heads · size]: what was split into heads, where that is the same, or else joined again."""
    if part.folded:
        assert part.value is not None
        return part.value
    batch, heads, length, size = part.sizes
    assert isinstance(heads, int) and isinstance(size, int)
    sizes: list[Size] = [batch, length, heads * size]
    rows = part.rows
    if part.packed is not None:
        whole, index = part.packed
        node, wide = whole.producer(), heads * size
        source = node.inputs[0] if is_op(node, "Reshape", last.graph) and node is not None else None
        if source is not None and rewriter.sizes.of(source) == [batch, length, 3 * wide]:
            cut = [rewriter.constant(np.array([number], np.int64), "cut") for number in (index * wide, (index + 1) * wide, 2)]
            return rewriter.add("Slice", [source, *cut], last, hint, sizes)
        chosen = rewriter.constant(np.array(index, np.int64), "chosen")
        rows = rewriter.add("Gather", [whole, chosen], last, f"{hint}_rows", [batch, length, heads, size], {"axis": 2})
    if rows is None:
        rows = rewriter.add("Transpose", [part.value], last, f"{hint}_rows", [batch, length, heads, size], {"perm": TO_HEADS})
    node = rows.producer()
    source = node.inputs[0] if is_op(node, "Reshape", last.graph) and node is not None else None
    if source is not None and rewriter.sizes.of(source) == sizes:
        return source
    shape = rewriter.constant(np.array([0, 0, heads * size], np.int64), "rows_shape")
    return rewriter.add("Reshape", [rows, shape], last, hint, sizes)
