"""Raise a model's opset, where its meaning stays the same.

Between two opsets most operators only gain types. `STEPS` names, for each step that halfconv takes, the operators that do change,
with what to do about a node of them: nothing (it is not affected), a rewriting, or a refusal, which leaves the model where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

__all__ = [
    "STEPS",
    "Fresh",
    "LiftClipPass",
    "Rewriting",
    "Rule",
    "Steps",
    "always",
    "known_mode",
    "lift",
    "never",
    "obstacle",
    "one_output",
    "over_last_axis",
    "to_inputs",
]

#: What a step asks of one node: whether it can be taken, and how the node is rewritten for it (None: not at all).
Rewriting = Callable[[ir.Node, "Fresh"], None]
Rule = tuple[Callable[[ir.Node], bool], Rewriting | None]
#: Step from the opset -> operator -> (whether the step can be taken, how the node is rewritten).
Steps = Mapping[int, Mapping[str, Rule]]


#: Operators whose result has the largest rank of their inputs.
SAME_RANK = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Dropout",
        "Identity",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Slice",
        "Softmax",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
    }
)


class Fresh:
    """Makes constants and values under names that the model does not use yet."""

    def __init__(self, model: ir.Model):
        self.graph = model.graph
        self.taken = {value.name for graph in model.graphs() for node in graph for value in node.outputs}
        self.taken |= {name for graph in model.graphs() for name in graph.initializers}
        self.taken |= {value.name for graph in model.graphs() for value in graph.inputs}

    def name(self, hint: str) -> str:
        """Return a name that no value has."""
        name, number = hint, 1
        while name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def constant(self, array: np.ndarray, hint: str) -> ir.Value:
        """Add an initializer to the main graph."""
        name = self.name(hint)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value


def always(node: ir.Node) -> bool:
    """Say that a step can be taken for every node."""
    return True


def never(node: ir.Node) -> bool:
    """Say that a step can be taken for no node."""
    return False


def to_inputs(*names: str, scalar: bool = False) -> Rewriting:
    """Return what turns integer attributes into inputs behind those that the node has; a missing one in the middle stays empty."""

    def rewrite(node: ir.Node, fresh: Fresh) -> None:
        given = [node.attributes.get(name) for name in names]
        last = max((i for i, attribute in enumerate(given) if attribute is not None), default=-1)
        first = len(node.inputs)
        node.resize_inputs(first + last + 1)
        for offset, (name, attribute) in enumerate(zip(names[: last + 1], given, strict=False)):
            if attribute is not None:
                numbers: Sequence[int] = [attribute.as_int()] if scalar else attribute.as_ints()
                node.replace_input_with(
                    first + offset, fresh.constant(np.array(numbers, np.int64), f"{node.outputs[0].name}_{name}")
                )
                del node.attributes[name]

    return rewrite


def _clip_bounds(node: ir.Node, fresh: Fresh) -> None:
    bounds = [node.attributes.get(name) for name in ("min", "max")]
    last = 2 if bounds[1] is not None else 1 if bounds[0] is not None else 0
    node.resize_inputs(1 + last)
    for index, (name, attribute) in enumerate(zip(("min", "max"), bounds, strict=True), start=1):
        if attribute is not None:
            array = np.array(attribute.as_float(), np.float32)
            node.replace_input_with(index, fresh.constant(array, f"{node.outputs[0].name}_{name}"))
            del node.attributes[name]


def _clips_floats(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT


def _drop_ratio(node: ir.Node, fresh: Fresh) -> None:
    node.attributes.pop("ratio", None)  # it matters in training only


def _rank(value: ir.Value | None, depth: int = 12) -> int | None:
    """Return a value's rank; where shape inference gave up on a computed shape, it follows from what computes it."""
    if value is None or depth == 0:
        return None
    if value.shape is not None:
        return value.shape.rank()
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Transpose" and "perm" in node.attributes:
        return len(node.attributes["perm"].as_ints())
    if node.op_type == "Reshape":
        return _length(node.inputs[1])
    if node.op_type == "Expand":
        return _length(node.inputs[1])
    if node.op_type in ("Squeeze", "Unsqueeze") and "axes" in node.attributes:
        rank, change = _rank(node.inputs[0], depth - 1), len(node.attributes["axes"].as_ints())
        return None if rank is None else rank + (change if node.op_type == "Unsqueeze" else -change)
    if node.op_type == "Gather":
        ranks = [_rank(read, depth - 1) for read in node.inputs]
        return None if None in ranks else sum(rank for rank in ranks if rank is not None) - 1
    if node.op_type in SAME_RANK:
        ranks = [_rank(read, depth - 1) for read in node.inputs]
        return None if None in ranks or not ranks else max(rank for rank in ranks if rank is not None)
    return None


def _length(shape: ir.Value | None) -> int | None:
    """Return the number of elements of a computed shape, if it is known."""
    if shape is None or shape.shape is None or shape.shape.rank() != 1 or not isinstance(shape.shape[0], int):
        return None
    return shape.shape[0]


def over_last_axis(node: ir.Node) -> bool:
    """Tell whether a Softmax works on the last axis: only then does flattening, as up to opset 12, change nothing."""
    axis = node.attributes.get_int("axis", 1)
    rank = _rank(node.inputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _last_axis(node: ir.Node, fresh: Fresh) -> None:
    node.attributes.add(ir.AttrInt64("axis", -1))


def one_output(node: ir.Node) -> bool:
    """Tell whether only one result of a node has a name."""
    return sum(bool(output.name) for output in node.outputs) == 1


def _plain_batch_norm(node: ir.Node) -> bool:
    return one_output(node) and node.attributes.get_int("spatial", 1) == 1


def _drop_spatial(node: ir.Node, fresh: Fresh) -> None:
    node.attributes.pop("spatial", None)


def _names_its_mode(node: ir.Node) -> bool:
    return "coordinate_transformation_mode" in node.attributes


def known_mode(node: ir.Node) -> bool:
    """Tell whether a Resize has no mode that opset 13 dropped."""
    return node.attributes.get_string("coordinate_transformation_mode", "") != "tf_half_pixel_for_nn"


#: The steps that fusions and Clip take: they leave the graph as it is, up to constants.
STEPS: Steps = {
    8: {"BatchNormalization": (_plain_batch_norm, _drop_spatial), "Scan": (never, None), "Upsample": (never, None)},
    9: {
        "Slice": (always, to_inputs("starts", "ends", "axes")),
        "TopK": (always, to_inputs("k", scalar=True)),
        "Upsample": (never, None),
    },
    10: {
        "Clip": (_clips_floats, _clip_bounds),
        "Pad": (never, None),  # pads and value became inputs
        "Resize": (never, None),  # other inputs, other coordinates
        "Scatter": (never, None),  # deprecated
    },
    11: {"Dropout": (always, _drop_ratio)},
    12: {
        "Hardmax": (over_last_axis, _last_axis),
        "LogSoftmax": (over_last_axis, _last_axis),
        "ReduceSum": (always, to_inputs("axes")),
        "Resize": (known_mode, None),
        "Softmax": (over_last_axis, _last_axis),
        "Split": (always, to_inputs("split")),
        "Squeeze": (always, to_inputs("axes")),
        "Unsqueeze": (always, to_inputs("axes")),
    },
    13: {"BatchNormalization": (one_output, None)},  # other outputs when training
    14: {},  # only types
    15: {"RoiAlign": (_names_its_mode, None)},  # another default
    16: {},  # only new operators
}


def lift(model: ir.Model, opset: int, steps: Steps = STEPS) -> bool:
    """Raise the default domain's opset in place, if every step on the way leaves the model's meaning alone.

    Args:
        model: A model without functions, with inferred types.
        opset: The opset wanted.
        steps: What the steps ask of nodes.

    Returns:
        Whether the model now has that opset, or had a newer one; otherwise it is unchanged.
    """
    current = model.opset_imports.get("", 0)
    if current >= opset:
        return True
    if any(step not in steps for step in range(current, opset)) or obstacle(model, opset, steps) is not None:
        return False
    fresh = Fresh(model)
    for node, (_, rewriting) in list(_affected(model, opset, steps)):
        if rewriting is not None:
            rewriting(node, fresh)
    model.opset_imports[""] = opset
    return True


def obstacle(model: ir.Model, opset: int, steps: Steps = STEPS) -> ir.Node | None:
    """Return the first node for which a step cannot be taken; see `lift`."""
    return next((node for node, (possible, _) in _affected(model, opset, steps) if not possible(node)), None)


def _affected(model: ir.Model, opset: int, steps: Steps) -> Iterator[tuple[ir.Node, Rule]]:
    """Yield the nodes that a step changes, with its rule, step by step; operators are those of the model as it is."""
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain in ("", "ai.onnx")]
    kinds = [node.op_type for node in nodes]
    for step in range(model.opset_imports.get("", 0), opset):
        rules = steps.get(step, {})
        yield from ((node, rules[kind]) for node, kind in zip(nodes, kinds, strict=True) if kind in rules)


class LiftClipPass(ir.passes.InPlacePass):
    """Raise a model with Clip to opset 12: ONNX Runtime's CUDA provider has no FP16 kernel for older Clips."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        if not 0 < model.opset_imports.get("", 0) < 12:
            return ir.passes.PassResult(model, modified=False)
        clips = any(node.op_type == "Clip" and not node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph))
        return ir.passes.PassResult(model, modified=clips and lift(model, 12))
