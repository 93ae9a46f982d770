"""Find what decoders with rotary positions and grouped heads compute, and say why it stays as it is.

Both would become operators whose rounding on a GPU the simulation does not model (`halfconv.drift.kernels.UNMODELLED`), so that
what `convert` promises could not be checked.
"""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.typegroups import is_float

__all__ = ["grouped_heads", "rotary"]


def rotary(concat: ir.Node, rewriter: Rewriter) -> Outcome:
    """Find x · cos + rotated(x) · sin by its rotation, the Concat of −x₂ and x₁."""
    if concat.domain or len(concat.inputs) != 2 or not is_float(concat.outputs[0]):
        return None
    first, second = (value.producer() if value is not None else None for value in concat.inputs)
    halves = first is not None and is_op(first, "Neg", concat.graph) and second is not None and second.op_type in ("Slice", "Split")
    product = only_reader(concat.outputs[0])
    if not halves or product is None or not is_op(product, "Mul", concat.graph):
        return None
    return "the simulation does not model how the GPU rounds inside RotaryEmbedding"


def grouped_heads(expand: ir.Node, rewriter: Rewriter) -> Outcome:
    """Find keys or values that are repeated for each query head of a group: Unsqueeze, Expand, Reshape."""
    before = expand.inputs[0].producer() if expand.inputs[0] is not None else None
    after = only_reader(expand.outputs[0])
    if expand.domain or before is None or not is_op(before, "Unsqueeze", expand.graph) or after is None:
        return None
    sizes = rewriter.sizes.of(expand.outputs[0])
    if not is_op(after, "Reshape", expand.graph) or not is_float(expand.outputs[0]) or sizes is None or len(sizes) != 5:
        return None
    return "the simulation does not model how the GPU rounds inside GroupQueryAttention"
