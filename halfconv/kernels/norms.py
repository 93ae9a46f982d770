"""LayerNormalization over the last axis: with the depthwise convolution before it, or by itself."""

from __future__ import annotations

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.kernels.parts import ALIGNED, followed, half_weight, is_half, is_own, put, same_shape, zeros

__all__ = ["layer_norm", "normed"]

#: The kernel normalises so many values together at most.
WIDEST = 4096
#: Behind a depthwise convolution, so many channels: libraries that know no LayerNorm refuse more when they run.
WIDEST_CHANNELS = 1024
#: The rank at which ONNX Runtime computes a sum and the norm behind it together.
SUMMED = 3


def normed(norm: ir.Node, rewriter: Rewriter) -> Outcome:
    """Take a LayerNormalization over the channels into the depthwise convolution before it."""
    value = norm.inputs[0]
    made = value.producer() if value is not None else None
    if norm.domain or value is None or made is None or not is_own(made, "DepthwiseConv"):
        return None
    why = _unfit(norm, 4, half_weight(made.inputs[2]), WIDEST_CHANNELS)
    return why or followed(made, "DepthwiseConvNorm", norm, _parameters(norm, rewriter), _epsilon(norm), rewriter)


def layer_norm(norm: ir.Node, rewriter: Rewriter) -> Outcome:
    """Turn a LayerNormalization over the last axis into LayerNorm."""
    value = norm.inputs[0]
    if norm.domain or value is None or not is_half(value, norm.outputs[0]):
        return None
    rank = value.shape.rank() if value.shape is not None else None
    add = value.producer()
    if add is not None and rank == SUMMED and only_reader(value) is not None and is_op(add, "Add", norm.graph):
        first, second = add.inputs
        if first is not None and second is not None and same_shape(first, second, rewriter):
            return "ONNX Runtime computes the sum before it in the same kernel"
    last = value.shape[-1] if value.shape is not None and value.shape.rank() else None
    why = _unfit(norm, rank, (last,) if isinstance(last, int) else half_weight(norm.inputs[1]), WIDEST)
    return why or (lambda: put(norm, "LayerNorm", [value, *_parameters(norm, rewriter)], _epsilon(norm), rewriter))


def _unfit(norm: ir.Node, rank: int | None, width: tuple[int, ...] | None, most: int) -> str | None:
    """Say why a kernel for so many values together does not compute the norm of a tensor of this rank and width."""
    axis = norm.attributes.get_int("axis", -1)
    if axis != -1 and (rank is None or axis != rank - 1):
        return "it is not over the last axis alone"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its statistics are read"
    if norm.attributes.get_int("stash_type", 1) != ir.DataType.FLOAT:
        return "it asks for statistics in another type than FP32"
    given, beta = half_weight(norm.inputs[1]), norm.inputs[2] if len(norm.inputs) > 2 else None
    if given is None or len(given) != 1 or given != width or (beta is not None and half_weight(beta) != given):
        return "its scale and shift are not FP16 vectors of the model, with a number for each channel"
    if given[0] % ALIGNED or not 0 < given[0] <= most:
        return f"it is over {given[0]} values, not a multiple of {ALIGNED} up to {most}"
    return None


def _parameters(norm: ir.Node, rewriter: Rewriter) -> list[ir.Value | None]:
    """Return scale and shift."""
    gamma, beta = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
    assert gamma is not None and gamma.const_value is not None
    return [gamma, beta if beta is not None else zeros(gamma.const_value.size, rewriter)]


def _epsilon(norm: ir.Node) -> dict[str, float]:
    return {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}
