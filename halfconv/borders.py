"""Inputs and outputs of a model: which become half, and what a converted model must show."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from halfconv.errors import UsageError
from halfconv.model import SourceModel

__all__ = ["half_borders", "promise"]


def half_borders(
    source: SourceModel, half_io: bool | Iterable[str], keep_io: Iterable[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of inputs and of outputs that become half."""
    graph, kept = source.model.graph, frozenset(keep_io)
    floats = [{v.name or "" for v in side if v.dtype == ir.DataType.FLOAT} for side in (graph.inputs, graph.outputs)]
    known = {v.name or "" for v in (*graph.inputs, *graph.outputs)}
    named = frozenset() if isinstance(half_io, bool) else frozenset(half_io)
    for option, wanted in (("--half-io", named), ("--keep-io", kept)):
        for name in sorted(wanted):
            if name not in known:
                raise UsageError(
                    f"{option}={name}: the model has no input or output of that name",
                    "one of " + ", ".join(sorted(known)),
                )
            if name not in floats[0] | floats[1] and option == "--half-io":
                raise UsageError(f"{option}={name}: its type is not FP32", "one of " + ", ".join(sorted(floats[0] | floats[1])))
    both = named & kept
    if both:
        raise UsageError(f"'{min(both)}' is named by both --half-io and --keep-io", "one of them")
    if half_io is True:
        named = frozenset(floats[0] | floats[1]) - kept
    return frozenset(floats[0] & named), frozenset(floats[1] & named)


def promise(
    source: SourceModel, model: ir.Model, half_inputs: frozenset[str], half_outputs: frozenset[str], dtype: ir.DataType
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the inputs and outputs that the output must have: the source's, with the wanted ones in half."""
    kept = {value.name for value in model.graph.inputs}
    sides = []
    for values, wanted in (([v for v in source.inputs if v.name in kept], half_inputs), (source.outputs, half_outputs)):
        side = []
        for value in values:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            if value.name in wanted and copy.type.HasField("tensor_type"):
                copy.type.tensor_type.elem_type = dtype.value
            side.append(copy)
        sides.append(side)
    return sides[0], sides[1]
