"""Move out of the way what only stands between operators that could be fused.

Two transpositions in a row become one, or none, also through operators that work element by element; Casts from FP32 to FP32 and
Reshapes to the shape that there is go.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from halfconv.graph.fuse import only_reader, remove_unread, scalar
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.typegroups import is_float

__all__ = ["drop_cast", "drop_reshape", "drop_zero", "dropped", "merge_transposes"]

#: Operators of one input, and of others that hold one number, through which a transposition passes.
THROUGH = frozenset({
    "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus",
    "Sqrt", "Tanh",
})  # fmt: skip


def drop_cast(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Remove a Cast from FP32 to FP32, which PyTorch code leaves that computes a norm in FP32 on purpose, or an Identity."""
    value, output = node.inputs[0], node.outputs[0]
    if value is None or node.domain or not is_float(value) or not is_float(output) or output.is_graph_output():
        return None
    return dropped(node, value)


def drop_zero(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Remove the addition of 0: PaddlePaddle's scale writes one."""
    if node.domain or node.outputs[0].is_graph_output():
        return None
    for value, zero in (node.inputs, node.inputs[::-1]):
        if value is None or zero is None or scalar(zero) != 0.0 or not is_float(value):
            continue
        if value.shape is not None and zero.shape is not None and zero.shape.rank() <= value.shape.rank():
            return dropped(node, value)
    return None


def drop_reshape(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Remove a Reshape to the shape that its input has: TorchScript's exporter writes one behind attention."""
    value = node.inputs[0]
    if value is None or node.domain or not is_float(value) or node.outputs[0].is_graph_output():
        return None
    before, after = rewriter.sizes.of(value), rewriter.sizes.of(node.outputs[0])
    return dropped(node, value) if before is not None and before == after else None


def dropped(node: ir.Node, value: ir.Value) -> Callable[[], ir.Node]:
    """Return what lets the readers of a node's output read another value."""
    output, shape = node.outputs[0], node.inputs[1:]

    def drop() -> ir.Node:
        output.replace_all_uses_with(value)
        remove_unread([node, *(read.producer() for read in shape if read is not None)])
        return node

    return drop


def merge_transposes(node: ir.Node, rewriter: Rewriter) -> Outcome:
    """Merge a Transpose with the one before it, through elementwise operators that nothing else reads."""
    value, chain = node.inputs[0], list[ir.Node]()
    while value is not None and is_float(value) and not node.domain:
        before = value.producer()
        if before is None or before.graph is not node.graph or before.domain:
            return None
        if before.op_type == "Transpose":
            return _merged(before, chain, node, rewriter)
        if before.op_type not in THROUGH or only_reader(value) is None:
            return None
        chain.append(before)
        value = before.inputs[0]
    return None


def _merged(before: ir.Node, chain: list[ir.Node], node: ir.Node, rewriter: Rewriter) -> Outcome:
    first, second = ([*step.attributes["perm"].as_ints()] if "perm" in step.attributes else None for step in (before, node))
    if first is None or second is None or len(first) != len(second) or before.inputs[0] is None:
        return None
    source, perm = before.inputs[0], [first[axis] for axis in second]
    straight = perm == list(range(len(perm)))
    if chain and not (straight and only_reader(before.outputs[0]) is not None):
        return "an operator between two transpositions would be given another layout, and nothing be saved"
    if straight and not chain and node.outputs[0].is_graph_output():
        return f"'{node.outputs[0].name}' is a result of the model"

    def merge() -> ir.Node:
        if chain:
            last = chain[0]
            chain[-1].replace_input_with(0, source)
            for step in chain:
                step.outputs[0].shape = node.outputs[0].shape
                rewriter.sizes.forget(step.outputs[0])
            output, result, name = node.outputs[0], last.outputs[0], node.outputs[0].name
            output.replace_all_uses_with(result, replace_graph_outputs=True)
            remove_unread([node])
            output.name, result.name = None, name
            remove_unread([before])
            return last
        if straight:
            node.outputs[0].replace_all_uses_with(source)
            remove_unread([node])
            return source.producer() or before
        return rewriter.replace(node, "Transpose", [source], {"perm": perm})

    return merge
