"""Weights that half precision cannot hold: what each of them means for the nodes that read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from halfconv.graph.names import Names
from halfconv.graph.typegroups import TypeGroups, is_float
from halfconv.precision.flow import SELECTION_OPS, op, readers, scalar
from halfconv.precision.formats import HalfFormat, format_of
from halfconv.precision.masks import SAFE_SINKS, masks_attention, sinks
from halfconv.precision.match import Match
from halfconv.precision.weights import RoundingStats, rounding_stats

__all__ = ["WeightStats", "constant_ranges", "weight_stats"]

#: Largest relative change of var + epsilon that a normalisation's scale may see.
MAX_VARIANCE_CHANGE = 5e-3
#: (operator, input) pairs where a weight is added: a flushed element changes the result by less than 3e-8.
ADDITIVE = {("Add", 0), ("Add", 1), ("Sub", 0), ("Sub", 1), ("Conv", 2), ("ConvTranspose", 2), ("Gemm", 2), ("Sum", 0), ("Sum", 1),
            ("LayerNormalization", 2), ("BatchNormalization", 2), ("BatchNormalization", 3), ("GRU", 3), ("LSTM", 3)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightStats:
    """A weight and what half precision does to it.

    Attributes:
        value: The weight; for a ConstantOfShape, its output.
        id: Its id.
        stats: The figures.
    """

    value: ir.Value
    id: str
    stats: RoundingStats


def weight_stats(names: Names, groups: TypeGroups, to: ir.DataType) -> dict[ir.Value, WeightStats]:
    """Measure every FP32 weight that something reads, and every default of an input that callers may override, on two threads.

    Args:
        names: Ids of the model's values.
        groups: Its type groups.
        to: FLOAT16 or BFLOAT16.

    Returns:
        Weight -> figures, in the order of the model.
    """
    read: dict[ir.Value, ir.TensorProtocol] = {}
    for node, index in groups.read:
        value = node.inputs[index]
        if value is not None and value.is_initializer() and value.const_value is not None:
            read[value] = value.const_value
    for graph, index in groups.returned:
        value = graph.outputs[index]
        if value.is_initializer() and value.const_value is not None:
            read[value] = value.const_value
    for node in names.node:
        if op(node) in ("ConstantOfShape", "Constant") and "value" in node.attributes and is_float(node.outputs[0]):
            read[node.outputs[0]] = node.attributes["value"].as_tensor()
    with ThreadPoolExecutor(2) as pool:
        figures = list(pool.map(lambda tensor: rounding_stats(tensor, to), read.values()))
    return {v: WeightStats(v, names.value[v], stats) for v, stats in zip(read, figures, strict=True)}


def constant_ranges(names: Names, groups: TypeGroups, weights: dict[ir.Value, WeightStats], to: ir.DataType) -> Iterator[Match]:
    """Yield the nodes that must be FP32 because of a constant that half precision cannot hold.

    A constant beyond half's range may saturate where it is only a bound (Clip, Max, Min), or where it is selected and then used
    by operators that give the same answer (a mask before a Softmax); elsewhere it matters.
    """
    half_format = format_of(to)
    limit, half = half_format.max, half_format.half
    for node, index in groups.read:
        value = node.inputs[index]
        if value is None or value not in weights or not value.is_initializer():
            continue
        known = weights[value]
        if known.stats.saturated:
            yield from _out_of_range(node, index, known, limit)
        elif _flushes(node, index, known, half_format):
            lost, least = f"{known.stats.rel_l2:.1%}", f"{half_format.min_normal:.2g}"
            why = f"the weight '{known.id}' loses {lost} of its norm in {half}: most of it is below {least}"
            yield Match((node,), node, why, {"rel_l2": known.stats.rel_l2, "flushed": known.stats.flushed})
        elif op(node) == "BatchNormalization" and index == 4:
            change = _variance_change(node, value, to)
            if change > MAX_VARIANCE_CHANGE:
                why = f"its variance '{known.id}' changes by {change:.1%} in {half}"
                yield Match((node,), node, why, {"change": change})
    for node in names.node:
        if op(node) in ("ConstantOfShape", "Constant") and node.outputs[0] in weights:
            known = weights[node.outputs[0]]
            if known.stats.saturated:
                yield from _selected(node, known, limit)
            elif known.stats.flushed and known.stats.rel_l2 > half_format.weight_error:
                users = [use.node for use in node.outputs[0].uses()]
                why = f"the constant '{known.id}' flushes to zero in {half}"
                yield Match((node, *users), node, why, {"absmax": known.stats.absmax})


def _out_of_range(node: ir.Node, index: int, known: WeightStats, limit: float) -> Iterator[Match]:
    kind = op(node)
    if all(masks_attention(output) for output in node.outputs):
        return
    number = scalar(node.inputs[index])
    if kind == "Clip" and number is not None and ((index == 1 and number < 0) or (index == 2 and number > 0)):
        return
    if number is not None and ((kind == "Max" and number < 0) or (kind == "Min" and number > 0)):
        return
    if kind in SELECTION_OPS - {"Clip", "Max", "Min"}:
        yield from _selected(node, known, limit)
        return
    figure = {"absmax": known.stats.absmax}
    # What is made of constants alone (Neg of one, say) is as large.
    constant = all(value is None or value.is_initializer() for value in node.inputs)
    kept = (node, *readers(node)) if constant else (node,)
    yield Match(kept, node, f"the weight '{known.id}' reaches {known.stats.absmax:.6g} (> {limit:g})", figure)


def _selected(node: ir.Node, known: WeightStats, limit: float) -> Iterator[Match]:
    """A constant that is selected: harmless only if all its uses give the same answer for the saturated number."""
    if all(masks_attention(output) for output in node.outputs):
        return
    passed, uses, leaves = sinks(node)
    if not leaves and all(op(use) in SAFE_SINKS for use in uses):
        return
    arithmetic = [use for use in uses if op(use) not in SAFE_SINKS]
    why = f"the constant '{known.id}' reaches {known.stats.absmax:.6g} (> {limit:g}), and more than a mask reads it"
    yield Match((*passed, *arithmetic), node, why, {"absmax": known.stats.absmax})


def _flushes(node: ir.Node, index: int, known: WeightStats, to: HalfFormat) -> bool:
    stats = known.stats
    if not stats.lossy or (op(node), index) in ADDITIVE or op(node) in ("Clip", "Max", "Min", "Where"):
        return False
    if op(node) == "Div" and index == 1:
        return True
    return stats.rel_l2 > to.weight_error


def _variance_change(node: ir.Node, value: ir.Value, to: ir.DataType) -> float:
    tensor = value.const_value
    assert tensor is not None
    variance = tensor.numpy().astype(np.float64)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rounded = variance.astype(to.numpy()).astype(np.float64)
    change = np.abs(rounded - variance) / np.maximum(np.abs(variance) + epsilon, np.finfo(np.float64).tiny)
    return float(change.max(initial=0.0))


def reported(weights: Sequence[WeightStats]) -> list[WeightStats]:
    """Return the weights that change by more than rounding."""
    return [known for known in weights if known.stats.saturated or known.stats.flushed]
