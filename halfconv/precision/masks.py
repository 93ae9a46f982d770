"""Mask sentinels: constants such as −3.4e38, −1e9 or −10,000 that switch attention scores off before a Softmax.

A sentinel that is *selected* (Where) may saturate at −65,504: Softmax gives the same zeros, and an all-masked row the same
uniform answer. A sentinel that is *added* to scores may not: in half, −65,504 − 20 overflows, and −10,000 + 0.3 drops the 0.3
that decides an all-masked row. That sum, and the Softmax, stay FP32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from halfconv.graph.attention_masks import UNMASKED
from halfconv.graph.typegroups import is_float, is_weight
from halfconv.precision.flow import SELECTION_OPS, backward, constant, forward, inputs_of, op, scalar
from halfconv.precision.formats import BF16, FP16, HalfFormat
from halfconv.precision.match import Match

__all__ = ["SAFE_SINKS", "mask_sums", "masks_attention", "sinks"]

SUMS = frozenset({"Add", "Sub", "Sum"})
#: What half precision does to the sum, by format.
WHY = {FP16: "in half the sum overflows or loses the score", BF16: "in BF16 the sum loses the score"}
#: What a sentinel passes through on its way to the scores.
CARRIERS = SELECTION_OPS | {"Mul", "Neg", "Div", "Add", "Sub"}
#: (operator of com.microsoft, input) that is a mask.
FUSED_MASKS = frozenset({("Attention", 5), ("MultiHeadAttention", 5)})
#: How many operators may stand before it.
REACH = 12
#: Operators that give the same answer for −65,504 as for any smaller number.
SAFE_SINKS = frozenset(
    {"ArgMax", "ArgMin", "Equal", "Erf", "Greater", "GreaterOrEqual", "Hardmax", "HardSigmoid", "IsInf", "IsNaN", "Less",
     "LessOrEqual", "Sigmoid", "Softmax", "Softsign", "Tanh"}
)  # fmt: skip


def masks_attention(value: ir.Value, reach: int = REACH) -> bool:
    """Tell whether a value goes nowhere but into the mask of a fused attention, which is bounded before it gets there."""
    if value.is_graph_output() or not value.uses() or not reach:
        return False
    for use in value.uses():
        node = use.node
        if node.domain == "com.microsoft" and (node.op_type, use.idx) in FUSED_MASKS:
            continue
        if op(node) == "Greater" and scalar(node.inputs[1]) == UNMASKED:
            continue
        if op(node) not in CARRIERS or not all(masks_attention(output, reach - 1) for output in node.outputs):
            return False
    return True


def _holds_sentinel(value: ir.Value | None, large: float) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f" or array.size == 0:
        return False
    finite = array[np.isfinite(array)]
    return bool(finite.size) and bool((np.abs(finite) >= large).any())


def _big_mask(value: ir.Value | None, large: float) -> bool:
    """Tell whether a weight too large to read whole each time is a mask: zeros and large numbers only."""
    if value is None or not is_weight(value) or value.const_value is None or not is_float(value):
        return False
    tensor = value.const_value
    if tensor.size > 1 << 24:
        return False
    array = tensor.numpy().reshape(-1)
    return bool(array.size) and bool(((array == 0) | (np.abs(array) >= large) | (array == 1)).all() and (array < -1).any())


def _tainted(nodes: Sequence[ir.Node], large: float) -> set[ir.Node]:
    """Return the nodes whose result may be a sentinel."""
    found: set[ir.Node] = set()
    for node in nodes:
        kind = op(node)
        if kind == "ConstantOfShape" and "value" in node.attributes and is_float(node.outputs[0]):
            if np.abs(node.attributes["value"].as_tensor().numpy()).max(initial=0) >= large:
                found.add(node)
        elif kind in CARRIERS and any(is_float(output) for output in node.outputs):
            own = any(_holds_sentinel(v, large) or _big_mask(v, large) for v in node.inputs if v is not None and is_float(v))
            if kind in ("Clip", "Max", "Min"):
                own = False  # a bound, not a value
            if own or any(value.producer() in found for value in inputs_of(node)):
                found.add(node)
    return found


def mask_sums(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Yield each Softmax whose input is a sum with a sentinel, with everything from that sum on."""
    softmaxes = [node for node in nodes if op(node) in ("LogSoftmax", "Softmax")]
    if not softmaxes:
        return
    tainted = _tainted(nodes, to.sentinel)
    for softmax in softmaxes:
        path = backward(inputs_of(softmax), lambda n: op(n) in CARRIERS, limit=40)
        sums = [n for n in path if op(n) in SUMS and _masks(n, tainted, to.sentinel)]
        if not sums:
            continue
        after = set(forward(sums, {*path, softmax}.__contains__, limit=60))
        kept = [n for n in path if n in sums or n in after]
        # What makes the mask belongs to it: a constant that saturates before the sum would change the sum.
        for node in sums:
            made = [v for v in inputs_of(node) if v.producer() in tainted]
            kept += backward(made, lambda n: n in tainted and op(n) in CARRIERS | {"ConstantOfShape"}, limit=40)
        why = f"a mask is added to the scores of {op(softmax)}; {WHY[to]}"
        yield Match(tuple(dict.fromkeys([*kept, softmax])), sums[0], why)


def _masks(node: ir.Node, tainted: set[ir.Node], large: float) -> bool:
    """Tell whether a sum adds a sentinel to something that is none."""
    parts = [value for value in node.inputs if value is not None and is_float(value)]
    sentinels = [v for v in parts if v.producer() in tainted or _holds_sentinel(v, large) or _big_mask(v, large)]
    return bool(sentinels) and len(parts) > 1


def sinks(node: ir.Node) -> tuple[list[ir.Node], list[ir.Node], bool]:
    """Follow what a node selects to where it is used.

    Args:
        node: A selecting or moving node.

    Returns:
        The selecting nodes on the way (the node itself first), the nodes that use the selected numbers, and whether some reach
        a graph's results.
    """
    # A pooling window holds more than padding, so what Pad adds never leaves MaxPool.
    stop = {"If", "Loop", "Scan"} | ({"MaxPool"} if op(node) == "Pad" else set())
    passed = [node, *forward([node], lambda n: op(n) in SELECTION_OPS - stop, limit=60)]
    uses: dict[ir.Node, None] = {}
    leaves = False
    for selecting in passed:
        for output in selecting.outputs:
            if not is_float(output):
                continue
            leaves |= output.is_graph_output()
            for use in output.uses():
                if use.node not in passed and not (op(node) == "Pad" and op(use.node) == "MaxPool"):
                    uses[use.node] = None
    return passed, list(uses), leaves
