"""What measured ranges decide: values that half precision cannot hold, or whose loss a division or logarithm would blow up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups, is_float, is_weight
from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.flow import SELECTION_OPS, op, scalar
from halfconv.precision.masks import masks_attention
from halfconv.precision.ranges import ValueRange
from halfconv.precision.rules import Decision, Strength
from halfconv.precision.weights import HALF_MAX, HALF_TINY

__all__ = ["HEADROOM", "range_decisions"]

#: A value is kept in FP32 if other inputs, this much larger than the samples', would make it infinite in half.
HEADROOM = 1.25
#: (operator, input) where a number that became 0 makes an infinity: division, and what has a pole at 0.
POLES = {("Div", 1), ("Reciprocal", 0), ("Log", 0)}
#: Operators that hand a 0 on to a pole; a sum does so only where nearly all of it becomes 0.
HANDS_ON = EXACT_OPS | {"Abs", "Neg", "Pow", "Sqrt"}
SUMS = frozenset({"ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"})
NEARLY_ALL = 0.9
#: Operators whose result is the same number for infinity as for half's largest number.
SATURATING = frozenset({"Erf", "HardSigmoid", "Sigmoid", "Tanh"})
#: Operators that only move numbers of their first input.
MOVES = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Neg", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
#: How many operators may stand between a value and a pole, or what saturates.
REACH = 8


def range_decisions(names: Names, groups: TypeGroups, ranges: Mapping[str, ValueRange], to: ir.DataType) -> Iterator[Decision]:
    """Yield the groups that must be FP32 because of what their values held.

    A value that half cannot hold stays FP32 where it is made and where it is read: a Cast would overflow as well. What flushes to
    0 stays FP32 if a division or logarithm reads it, along with what stands between.

    Args:
        names: Ids of the model's nodes and values.
        groups: Its type groups.
        ranges: Value id -> range; a value without one decides nothing.
        to: FLOAT16 or BFLOAT16.
    """
    limit, tiny = HALF_MAX[to], HALF_TINY[to] / 2
    for value, group in groups.produced.items():
        known = ranges.get(names.value[value])
        node = value.producer() or next((use.node for use in value.uses()), None)
        if known is None or node is None:
            continue
        if known.absmax * HEADROOM > limit:
            if _is_sentinel(value, lambda v, room: _fits(v, names, ranges, limit, room)):
                continue
            if masks_attention(value):
                continue
            if _saturates(value, lambda v: v in groups.produced and _fits(v, names, ranges, limit)):
                continue
            name = names.value[value]
            more = f"; {known.overflow:.2%} of it would be infinite" if known.overflow else ""
            why = f"'{name}' reaches {known.absmax:,.6g} (half ends at {limit:,.6g}{more})"
            figures = {"absmax": known.absmax, "overflow": known.overflow}
            reading = [groups.read[use.node, use.idx] for use in value.uses() if (use.node, use.idx) in groups.read]
            for number in dict.fromkeys((group, *reading)):
                yield Decision(node, False, Strength.MEASURED, why, "overflow", node, figures, number)
        elif known.flush and known.smallest is not None and known.smallest <= tiny:
            for pole, between in _poles(value, known.flush > NEARLY_ALL):
                why = (
                    f"{known.flush:.2%} of '{names.value[value]}' would become 0 in half (smallest {known.smallest:.3g}), and "
                    f"{pole.op_type} '{names.node[pole]}' has its pole there"
                )
                figures = {"smallest": known.smallest, "flush": known.flush}
                yield Decision(node, False, Strength.MEASURED, why, "underflow", pole, figures, group)
                for other in (*between, pole):
                    yield Decision(other, False, Strength.MEASURED, why, "underflow", pole, figures)


def _fits(value: ir.Value, names: Names, ranges: Mapping[str, ValueRange], limit: float, room: float = HEADROOM) -> bool:
    known = ranges.get(names.value.get(value, ""))
    return known is not None and known.absmax * room <= limit


def _is_sentinel(value: ir.Value, fits: Callable[[ir.Value, float], bool]) -> bool:
    """Tell whether a value is beyond half's range only because a constant is, which saturates there: a mask's −3.4e38.

    Args:
        value: The value.
        fits: Tells whether another one, so many times as large, is within half's range.
    """
    node = value.producer()
    if node is None:
        return False
    given = [v for v in node.inputs if v is not None and is_float(v)]
    computed, weights = [v for v in given if not is_weight(v)], [v for v in given if is_weight(v)]
    if op(node) in SELECTION_OPS:
        return bool(weights or not given) and all(fits(v, HEADROOM) for v in computed)
    # A mask of ones and zeros times the constant, which is then ±65,504 at most.
    return op(node) == "Mul" and len(weights) == 1 and all(fits(v, HALF_MAX[ir.DataType.FLOAT16]) for v in computed)


def _saturates(value: ir.Value, fits: Callable[[ir.Value], bool], reach: int = REACH) -> bool:
    """Tell whether all that reads a value gives the same for infinity, as the Tanh of GELU does for its cube."""
    if value.is_graph_output() or not value.uses() or not reach:
        return False
    for use in value.uses():
        kind = op(use.node)
        if kind in SATURATING:
            continue
        others = [given for index, given in enumerate(use.node.inputs) if given is not None and index != use.idx]
        constants = [scalar(given) if is_weight(given) else None for given in others]
        scaled = kind == "Mul" or (kind == "Div" and use.idx == 0)
        if not (
            (scaled and all(constants))  # by a number, not 0
            or (kind in ("Add", "Sub") and all(is_weight(given) or fits(given) for given in others))
            or (kind in MOVES and use.idx == 0)
        ):
            return False
        if not all(_saturates(output, fits, reach - 1) for output in use.node.outputs):
            return False
    return True


def _poles(value: ir.Value, gone: bool) -> Iterator[tuple[ir.Node, tuple[ir.Node, ...]]]:
    """Yield each division or logarithm that a value comes to, with the nodes between; through sums if it is as good as gone."""
    through = HANDS_ON | SUMS if gone else HANDS_ON
    todo: list[tuple[ir.Value, tuple[ir.Node, ...]]] = [(value, ())]
    seen = {value}
    for current, between in todo:  # grows while it is walked
        for use in current.uses():
            if (op(use.node), use.idx) in POLES:
                yield use.node, between
            elif op(use.node) in through and len(between) < REACH:
                for output in use.node.outputs:
                    if output not in seen:
                        seen.add(output)
                        todo.append((output, (*between, use.node)))
