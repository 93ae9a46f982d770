"""Attribute a drift to the values that half precision rounds: how much of the outputs' error began where.

The drift of every value is known from one run of both models side by side. From the outputs backwards, the error of each value is
shared out between the rounding of the value itself and the errors of what its node read, in proportion to their squares, as
independent errors add up. It is an estimate, which only has to rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from halfconv.drift.expansions import expansion_of
from halfconv.drift.kernels import is_exact
from halfconv.drift.measure import PairSums
from halfconv.drift.surface import BODIES
from halfconv.graph.names import places
from halfconv.graph.typegroups import TypeGroups, is_weight
from halfconv.precision.constants import WeightStats
from halfconv.precision.flow import op
from halfconv.precision.ranges import ValueRange

__all__ = ["contributions"]

#: Stands for the drift of a value that is infinite or NaN: more than any other has.
BROKEN = 1e6
#: Operators whose result has the sum of its inputs' absolute errors; in others relative errors add up.
ADDITIVE = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum", "Where"})


def contributions(
    model: ir.Model,
    groups: TypeGroups,
    half: Sequence[bool],
    drift: Mapping[str, PairSums],
    ranges: Mapping[ir.Value, ValueRange],
    weights: Mapping[ir.Value, WeightStats],
    outputs: Mapping[str, float],
    to: ir.DataType,
) -> dict[int, float]:
    """Estimate what each group contributes to the outputs' drift.

    Args:
        model: The prepared FP32 model.
        groups: Its type groups.
        half: For each group, whether it is half in the candidate.
        drift: Place of a value -> its drift in the candidate, on some samples.
        ranges: Value -> its range, which holds the error of its own rounding.
        weights: Weight -> figures, likewise.
        outputs: Output -> how bad it is: its drift over its bound.
        to: FLOAT16 or BFLOAT16.

    Returns:
        Group -> share of the squared badness of all outputs; groups that are not half are absent.
    """
    known = {value: drift[key] for key, value in places(model.graph) if key in drift}
    walk = _Walk(groups, half, known, ranges, weights, to, model.opset_imports.get(""))
    for output in model.graph.outputs:
        walk.importance[output] += min(outputs.get(output.name or "", 0.0), BROKEN) ** 2
    walk.graph(model.graph)
    return walk.found


class _Walk:
    def __init__(
        self, groups: TypeGroups, half: Sequence[bool], drift: Mapping[ir.Value, PairSums],
        ranges: Mapping[ir.Value, ValueRange], weights: Mapping[ir.Value, WeightStats], to: ir.DataType, opset: int | None,
    ):  # fmt: skip
        self.to, self.opset = to, opset
        self.groups, self.half, self.drift, self.ranges, self.weights = groups, half, drift, ranges, weights
        self.importance: defaultdict[ir.Value, float] = defaultdict(float)
        self.found: dict[int, float] = {g: 0.0 for g, is_half in enumerate(half) if is_half}

    def graph(self, graph: ir.Graph) -> None:
        for node in reversed(graph):
            if op(node) in BODIES:
                self._enter(node)
                continue
            for output in node.outputs:
                if self.importance[output]:
                    self._share(node, output, self.importance[output])
        for value in graph.inputs:  # of the model
            group = self.groups.produced.get(value)
            if group is not None and self.half[group]:
                self.found[group] += self.importance[value]

    def _enter(self, node: ir.Node) -> None:
        """Hand what a node's results matter on to the results of its bodies, and what the bodies are given to the node's inputs."""
        skipped = 1 if op(node) == "Loop" else 0
        for attribute in BODIES[op(node)]:
            body = node.attributes[attribute].as_graph()
            for output, result in zip(node.outputs, list(body.outputs)[skipped:], strict=False):
                self.importance[result] += self.importance[output]
            self.graph(body)
            for given, value in zip(node.inputs, body.inputs, strict=False):
                if given is not None:
                    self.importance[given] += self.importance[value]

    def _share(self, node: ir.Node, output: ir.Value, importance: float) -> None:
        reads = [value for value in dict.fromkeys(node.inputs) if value is not None and value in self.groups.produced]
        absolute = op(node) in ADDITIVE
        before = {value: self._size(value, absolute) for value in reads}
        group = self.groups.produced.get(output)
        own = 0.0
        if group is not None and self.half[group]:
            own = math.hypot(*self._roundings(node, output, absolute))
            drift = self._size(output, absolute)
            if drift >= BROKEN or expansion_of(node, self.to, self.opset) is not None:  # it arises inside the kernel
                own = max(own, math.sqrt(max(0.0, drift**2 - sum(size**2 for size in before.values()))))
        total = own**2 + sum(size**2 for size in before.values())
        if not total:
            return
        if group is not None and own:
            self.found[group] += importance * own**2 / total
        for value, size in before.items():
            self.importance[value] += importance * size**2 / total

    def _roundings(self, node: ir.Node, output: ir.Value, absolute: bool) -> list[float]:
        """Return the errors of what is rounded for a node's half result: the result, weights, and inputs that are FP32."""
        scale = self._norm(output) if absolute else 1.0
        rounded = [] if is_exact(node) else [output]
        found = []
        for index, value in enumerate(node.inputs):
            group = self.groups.read.get((node, index))
            if value is None or group is None or not self.half[group]:
                continue
            if is_weight(value) and value in self.weights:
                found.append(self.weights[value].stats.rel_l2 * (0.0 if absolute else 1.0))
            elif value in self.groups.produced and not self.half[self.groups.produced[value]]:
                rounded.append(value)
        for value in rounded:
            known = self.ranges.get(value)
            found.append(known.rounding * (self._norm(value) if absolute and value is not output else scale) if known else 0.0)
        return found

    def _norm(self, value: ir.Value) -> float:
        known = self.drift.get(value)
        return math.sqrt(known.size) if known is not None and math.isfinite(known.size) else 1.0

    def _size(self, value: ir.Value, absolute: bool) -> float:
        """Return a value's drift: relative, or as the norm of its error."""
        known = self.drift.get(value)
        if known is None:
            return 0.0
        if not math.isfinite(known.rel_l2):
            return BROKEN
        return min(BROKEN, math.sqrt(known.error) if absolute else known.rel_l2)
