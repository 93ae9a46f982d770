"""Choose what is computed channels last: our kernels want it, ONNX Runtime's other operators have channels first.

A tensor that crosses between the two is copied by a Transpose; those that a model already has cost nothing where both their sides
agree. The choice with the least cost is a minimum cut, as for Casts (`halfconv.precision.mincut`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from halfconv.graph.fuse import scalar
from halfconv.graph.rules import is_transpose
from halfconv.kernels.convolutions import Convolution, convolution
from halfconv.kernels.operators import TO_FIRST, TO_LAST
from halfconv.kernels.parts import half_weight, is_half
from halfconv.precision.mincut import CastCost, minimum_cut

__all__ = ["ELEMENTWISE", "Layout", "choose", "is_pixel", "reads_in_order"]

#: Operators that work element by element on images of one shape, or that are broadcast: they compute the same in any layout.
ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt",
    "Sub", "Swish", "Tanh",
})  # fmt: skip
#: What an operator saves channels last that gains nothing by it: where copies cost the same, a convolution may take it up.
BESIDE = 1e-3
#: What it costs to change the layout of images of one pixel: a node that copies nothing.
PIXEL = 4 * BESIDE


@dataclass(slots=True)
class Layout:
    """What is computed channels last.

    Attributes:
        last: Nodes of the model that are.
        convolutions: Those among them that become operators of ours.
        refused: Convolutions that do not, and why.
    """

    last: set[ir.Node]
    convolutions: dict[ir.Node, Convolution]
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)


def is_pixel(value: ir.Value) -> bool:
    """Tell whether images have one pixel each, so that both layouts are the same bytes."""
    return value.shape is not None and value.shape.rank() == 4 and value.shape[2] == 1 and value.shape[3] == 1


def reads_in_order(node: ir.Node, place: int) -> bool:
    """Tell whether a node reads the elements of images of one pixel in the order in which they lie, in either layout."""
    if node.domain or node.op_type not in ("Flatten", "Reshape") or place != 0:
        return False
    if node.op_type == "Flatten":
        return node.attributes.get_int("axis", 1) == 1
    shape = node.inputs[1].const_value if node.inputs[1] is not None else None
    return shape is not None and shape.size <= 8 and 0 not in shape.numpy().reshape(-1)[1:]


def choose(graph: ir.Graph) -> Layout:
    """Choose for the nodes of a graph."""
    found = {node: known for node in graph if (known := convolution(node)) is not None}
    refused = [(node, why) for node, why in found.items() if isinstance(why, str)]
    ours = {node: known for node, known in found.items() if isinstance(known, Convolution)}
    free = [node for node in graph if node in ours or _is_free(node)]
    groups = {node: number for number, node in enumerate(free)}
    outside = len(free)
    as_last, as_first = [0.0] * outside + [math.inf], [BESIDE] * outside + [0.0]
    for node, group in groups.items():
        if node in ours:
            as_first[group] = _saved(node)
        elif is_transpose(node, TO_FIRST) or is_transpose(node, TO_LAST):
            as_last[group], as_first[group] = BESIDE, _copy(node.outputs[0])
        elif node.op_type == "GlobalAveragePool":  # for which the library may have no kernel
            as_last[group], as_first[group] = BESIDE, 0.0
    last = minimum_cut(as_last, as_first, _crossings(groups, outside)) if ours else [False] * (outside + 1)
    chosen = {node for node, group in groups.items() if last[group]}
    refused += [(node, "the copies around it would cost more than it saves") for node in ours if node not in chosen]
    return Layout(chosen, {node: known for node, known in ours.items() if node in chosen}, refused)


def _is_free(node: ir.Node) -> bool:
    """Tell whether a node can be computed in either layout."""
    if is_transpose(node, TO_FIRST) or is_transpose(node, TO_LAST):
        return is_half(node.inputs[0], node.outputs[0]) and not node.outputs[0].is_graph_output()
    output = node.outputs[0] if node.outputs else None
    if output is None or not is_half(output) or output.shape is None or output.shape.rank() != 4 or len(node.outputs) != 1:
        return False
    if node.domain not in ("", "com.microsoft"):
        return False
    images = [value for value in node.inputs if value is not None and not value.is_initializer()]
    if any(not is_half(value) or value.shape is None or value.shape.rank() != 4 for value in images):
        return False
    if node.domain and any(value is not None for value in node.inputs[1:]):  # FastGelu adds a bias along the last axis
        return False
    if node.op_type in ELEMENTWISE:
        return bool(images) and all(_is_anywhere(value) for value in node.inputs if value is not None and value not in images)
    if node.op_type == "Concat":
        return len(images) == len(node.inputs)
    return node.op_type == "GlobalAveragePool"


def _is_anywhere(constant: ir.Value) -> bool:
    """Tell whether a constant can be broadcast in either layout: it is a number, or gets the other layout itself."""
    return scalar(constant) is not None or half_weight(constant) is not None


def _elements(value: ir.Value | None) -> float:
    """Return the number of elements of one image; sizes that are not known count as 1."""
    shape = value.shape if value is not None and value.shape is not None else ()
    return float(math.prod(size for size in shape[1:] if isinstance(size, int)))


def _copy(value: ir.Value) -> float:
    """Return what a Transpose costs: it reads all elements, and writes them."""
    return PIXEL if is_pixel(value) else 2 * _elements(value)


def _saved(conv: ir.Node) -> float:
    """Return what a convolution of ours saves, about: a pass over memory for what follows it, and a copy of its input for cuDNN."""
    return _elements(conv.inputs[0]) + _elements(conv.outputs[0])


def _crossings(groups: Mapping[ir.Node, int], outside: int) -> list[CastCost]:
    """Return what it costs that a value is read in another layout than it is made in.

    A Transpose channels last is a node that only reads an image; one back only makes one: their other sides are no images here.
    """
    readers: dict[ir.Value, set[int]] = defaultdict(set)
    for node, group in groups.items():
        for value in node.inputs:
            if value is not None and not value.is_initializer() and not is_transpose(node, TO_FIRST):
                readers[value].add(group)
        if not is_transpose(node, TO_LAST):
            readers[node.outputs[0]].update(())
    costs = []
    for value, reading in readers.items():
        producer = value.producer()
        made = groups.get(producer, outside) if producer is not None else outside
        if producer is not None and is_transpose(producer, TO_LAST):
            made = outside
        # A Transpose to channels first reads the value as it is.
        others = [use for use in value.uses() if use.node not in groups or is_transpose(use.node, TO_FIRST)]
        if value.is_graph_output() or not all(is_pixel(value) and reads_in_order(use.node, use.idx) for use in others):
            reading.add(outside)
        if reading - {made}:
            costs.append(CastCost(made, tuple(sorted(reading)), _copy(value), _copy(value)))
    return costs
