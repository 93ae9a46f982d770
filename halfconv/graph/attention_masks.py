"""Masks of attention, brought into the form that ONNX Runtime's operators take.

A row that is masked as a whole is a mean of all values where a score and the lowest FP32 number are added. Half precision has no
such number: there the row is what it would be without a mask. It is finite in either case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from halfconv.formats.layout import BFLOAT16
from halfconv.graph.fuse import scalar
from halfconv.graph.heads import Heads
from halfconv.graph.rules import Rewriter
from halfconv.graph.sizes import Size
from halfconv.graph.typegroups import is_float, is_weight

__all__ = [
    "LOWEST",
    "UNMASKED",
    "Fills",
    "for_all_heads",
    "is_finite",
    "lets_all_pass",
    "lowest",
    "mask_fault",
    "mask_of",
    "unmasked_rows",
]

#: The lowest FP32 number: added to a score it gives itself, so that a row masked as a whole stays a mean, as exporters have it.
LOWEST = float(np.finfo(np.float32).min)
#: The lowest BF16 number, below which no mask goes: in half its bound is the lowest number of that format, and not −∞, which would
#: make NaN of a row that is masked as a whole.
FLOOR = -BFLOAT16.max
#: A row that has a number above this is not masked as a whole; half holds it.
UNMASKED = -60000.0
#: How far a mask is followed up, and the largest constant that is looked at.
DEPTH, MAX_SIZE = 40, 1 << 20
#: The opset in which the axes of ReduceMax became an input.
REDUCE_AXES = 18
#: Operators that move floats.
MOVING = frozenset({"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: (condition, whether it keeps scores, what is filled in where it does not).
Fills = Sequence[tuple[ir.Value, bool, float]]


def is_finite(bias: ir.Value, depth: int = DEPTH) -> bool:
    """Tell whether a mask holds no infinity: it is made of finite constants by operators that make none."""
    if is_weight(bias):
        known = bias.const_value
        return known is not None and known.size < MAX_SIZE and bool(np.isfinite(known.numpy()).all())
    node = bias.producer()
    if not is_float(bias):
        return bias.dtype is not None
    if node is None or depth == 0 or node.domain:
        return False
    if node.op_type == "Where":
        return all(read is not None and is_finite(read, depth - 1) for read in node.inputs[1:])
    if node.op_type == "Mul":  # (1 − mask) · lowest
        return any(scalar(read) is not None for read in node.inputs) and all(
            read is not None and is_finite(read, depth - 1) for read in node.inputs
        )
    if node.op_type == "Gather":
        return node.inputs[0] is not None and is_finite(node.inputs[0], depth - 1)
    if node.op_type in ("Cast", "Expand", "Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"):
        floats = [read for read in node.inputs[: 2 if node.op_type == "Sub" else 1] if read is not None]
        return all(is_finite(read, depth - 1) for read in floats)
    return False


def lowest(bias: ir.Value | None, depth: int = DEPTH) -> float:
    """Return a bound that no number of a mask is below; −∞ where none is known. Relative positions have one, of weights."""
    if bias is None or not is_float(bias) or depth == 0:
        return -math.inf
    if is_weight(bias):
        known = bias.const_value
        return float(known.numpy().min()) if known is not None and 0 < known.size < MAX_SIZE else -math.inf
    node = bias.producer()
    if node is None or node.domain:
        return -math.inf
    if node.op_type in ("Add", "Where"):
        sides = [lowest(read, depth - 1) for read in node.inputs[-2:]]
        return sum(sides) if node.op_type == "Add" else min(sides)
    return lowest(node.inputs[0], depth - 1) if node.op_type in MOVING else -math.inf


def lets_all_pass(bias: ir.Value) -> bool:
    """Tell whether a mask is 0 throughout: PyTorch's exporter writes one that is true everywhere where there is none."""
    where = bias.producer()
    if where is None or where.op_type != "Where" or where.domain or scalar(where.inputs[1]) != 0.0:
        return False
    value = where.inputs[0]
    for _ in range(6):
        if value is None or is_weight(value):
            break
        node = value.producer()
        if node is None or node.domain or node.op_type not in ("Expand", "Identity", "Reshape", "Unsqueeze"):
            return False
        value = node.inputs[0]
    known = value.const_value if value is not None else None
    return known is not None and known.size < MAX_SIZE and bool(known.numpy().all())


def mask_fault(bias: ir.Value, query: Heads, rewriter: Rewriter) -> str | None:
    """Say why a mask does not fit; None if it does: its axes are those of the scores, or 1."""
    sizes = rewriter.sizes.of(bias)
    if sizes is None:
        return f"the rank of its mask '{bias.name}' is not known"
    if len(sizes) > (3 if query.folded else 4):
        return f"its mask '{bias.name}' has more axes than the scores"
    leading = sizes[: max(len(sizes) - 2, 0)]
    wanted = query.sizes[:1] if query.folded else query.sizes[:2]
    for size, expected in zip(leading[::-1], wanted[::-1], strict=False):
        if isinstance(size, int) and size != 1 and isinstance(expected, int) and size != expected:
            return f"its mask '{bias.name}' is for another batch size or number of heads"
    return None


def for_all_heads(mask: ir.Value, rewriter: Rewriter) -> bool:
    """Tell whether a mask is the same for all heads."""
    sizes = rewriter.sizes.of(mask)
    return sizes is not None and (len(sizes) < 3 or sizes[-3] == 1)


def unmasked_rows(mask: ir.Value | None, last: ir.Node, rewriter: Rewriter) -> ir.Value:
    """Return, as [batch, length, 1], whether a row of a mask that `mask_of` made lets anything pass."""
    assert mask is not None
    key = ("rows", mask)
    if key not in rewriter.shared:
        sizes = rewriter.sizes.of(mask) or []
        axes, given = rewriter.constant(np.array([-1], np.int64), "last"), {"axes": [-1]}
        by_input = rewriter.opset >= REDUCE_AXES
        largest = rewriter.add(
            "ReduceMax", [mask, axes] if by_input else [mask], last, "mask_largest", [*sizes[:3], 1], {} if by_input else given
        )
        bound = rewriter.constant(np.array(UNMASKED, np.float32), "unmasked")
        passes = rewriter.add("Greater", [largest, bound], last, "mask_passes", [*sizes[:3], 1], dtype=ir.DataType.BOOL)
        shape = rewriter.constant(np.array([0, -1, 1], np.int64), "rows")
        rewriter.shared[key] = rewriter.add(
            "Reshape", [passes, shape], last, "mask_rows", [sizes[0], sizes[2], 1], dtype=ir.DataType.BOOL
        )
    return rewriter.shared[key]


def mask_of(
    biases: Sequence[ir.Value], fills: Fills, folded: bool, flat: Sequence[ir.Value], last: ir.Node, rewriter: Rewriter
) -> ir.Value | None:  # fmt: skip
    """Return the sum of all masks as [1 or batch, 1 or heads, length, length of keys], made once for all that share it."""
    if not biases and not fills:
        return None
    lengths = tuple(rewriter.sizes.size(value, 1) for value in flat[:2])
    key = ("bias", tuple(biases), tuple((condition, keeps, math.isinf(fill)) for condition, keeps, fill in fills), lengths,
           folded, last.graph)  # fmt: skip
    if key not in rewriter.shared:
        total = _total(biases, fills, last, rewriter)
        if folded:
            axes, known = rewriter.constant(np.array([1], np.int64), "heads_axis"), rewriter.sizes.of(total)
            if known is not None and len(known) == 3:
                total = rewriter.add("Unsqueeze", [total, axes], last, "mask_heads", [known[0], 1, *known[1:]])
        whole = _whole(total, flat, lengths, last, rewriter)
        floor = rewriter.constant(np.array(FLOOR, np.float32), "mask_floor")
        rewriter.shared[key] = rewriter.add("Max", [whole, floor], last, "mask_bounded", rewriter.sizes.of(whole))
    return rewriter.shared[key]


def _total(biases: Sequence[ir.Value], fills: Fills, last: ir.Node, rewriter: Rewriter) -> ir.Value:
    """Return the sum of masks; a filling-in is written as the addition of the lowest number."""
    terms = list(biases)
    for condition, keeps, fill in fills:
        zero = rewriter.constant(np.array(0, np.float32), "no_mask")
        masked = rewriter.constant(np.array(-np.inf if math.isinf(fill) else LOWEST, np.float32), "masked")
        chosen = [condition, zero, masked] if keeps else [condition, masked, zero]
        terms.append(rewriter.add("Where", chosen, last, "mask", rewriter.sizes.of(condition)))
    total = terms[0]
    for term in terms[1:]:
        total = rewriter.add("Add", [total, term], last, "masks", rewriter.sizes.together(total, term))
    return total


def _whole(total: ir.Value, flat: Sequence[ir.Value], lengths: tuple[Size, ...], last: ir.Node, rewriter: Rewriter) -> ir.Value:
    """Give a mask the scores' axes of length, over which ONNX Runtime does not broadcast."""
    sizes = rewriter.sizes.of(total)
    if sizes is not None and len(sizes) == 4 and tuple(sizes[2:]) == lengths:
        return total
    one = rewriter.constant(np.array([1], np.int64), "one")
    parts = [one, one]
    for size, value in zip(lengths, flat[:2], strict=True):
        if isinstance(size, int):
            parts.append(rewriter.constant(np.array([size], np.int64), "length"))
            continue
        read, axis = _source(size, value, last, rewriter)
        shape = rewriter.add("Shape", [read], last, "rows_shape", None, dtype=ir.DataType.INT64)
        place = rewriter.constant(np.array([axis], np.int64), "axis")
        parts.append(rewriter.add("Gather", [shape, place], last, "length", [1], {"axis": 0}, dtype=ir.DataType.INT64))
    shape = rewriter.add("Concat", parts, last, "mask_shape", [4], {"axis": 0}, dtype=ir.DataType.INT64)
    leading: list[Size] = [1, 1, 1, 1, *(sizes or [])][-4:-2]
    return rewriter.add("Expand", [total, shape], last, "mask_whole", [*leading, *lengths])


def _source(size: Size, value: ir.Value, last: ir.Node, rewriter: Rewriter) -> tuple[ir.Value, int]:
    """Return a value and its axis of a length, as far up as it is known: what is read here cannot be fused away."""
    owner = rewriter.sizes.owner(size)
    if owner is None:
        return value, 1
    producer = owner[0].producer()
    here = owner[0].is_graph_input() or (producer is not None and producer.graph is last.graph)
    return owner if here else (value, 1)
