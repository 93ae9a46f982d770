"""What the rules share that put operators of ``com.halfconv`` in: weights in another form, sizes, and what fits a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import only_reader
from halfconv.graph.rules import READ_BY_OTHERS, Outcome, Rewriter
from halfconv.graph.sizes import perm_of
from halfconv.graph.transposes import dropped
from halfconv.graph.typegroups import is_weight
from halfconv.kernels.operators import DOMAIN

__all__ = [
    "ALIGNED", "HALF", "bias_of", "followed", "half_weight", "is_half", "is_own", "last_bias", "put", "reshaped",
    "same_shape", "stored", "zeros",
]  # fmt: skip

HALF = ir.DataType.FLOAT16
#: Channels come in multiples of this: a kernel reads 16 bytes at once.
ALIGNED = 8


def is_half(*values: ir.Value | None) -> bool:
    """Tell whether all values are there, and FP16 tensors."""
    return all(value is not None and value.dtype == HALF and isinstance(value.type, ir.TensorType) for value in values)


def half_weight(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the dimensions of a value that is an FP16 constant; None if it is none."""
    if value is None or not is_half(value) or not is_weight(value) or value.const_value is None:
        return None
    return tuple(value.const_value.shape.numpy())


def is_own(node: ir.Node | None, *names: str) -> bool:
    """Tell whether a node is one of these operators of ours; of any of ours if none is named."""
    return node is not None and node.domain == DOMAIN and (not names or node.op_type in names)


def reshaped(
    weight: ir.Value, form: str, shape: Sequence[int], change: Callable[[np.ndarray], np.ndarray], rewriter: Rewriter
) -> ir.Value:  # fmt: skip
    """Return a weight in another form, made when it is read; the same for all who ask.

    Args:
        weight: The weight.
        form: What the form is called.
        shape: Its dimensions.
        change: Makes it.
        rewriter: Adds it.
    """
    tensor = weight.const_value
    assert tensor is not None
    if tuple(tensor.shape.numpy()) == tuple(shape) and form == "bias":
        return weight
    key = (weight, form)
    if key not in rewriter.shared:
        rewriter.shared[key] = rewriter.lazy(
            lambda: np.ascontiguousarray(change(tensor.numpy()).reshape(shape)), shape, f"{weight.name}_{form}", HALF
        )  # fmt: skip
    return rewriter.shared[key]


def stored(transpose: ir.Node, rewriter: Rewriter) -> Outcome:
    """Store a weight as a Transpose would give it: definitions of operators of ours leave such, once they are written out."""
    weight, output = transpose.inputs[0], transpose.outputs[0]
    dims = half_weight(weight)
    if transpose.domain or weight is None or dims is None or output.is_graph_output():
        return None
    perm = perm_of(transpose, len(dims))
    if any(use.node.op_type != "Transpose" or use.node.domain or perm_of(use.node, len(dims)) != perm for use in weight.uses()):
        return "others read the constant as it is, and it would be stored twice"
    form, shape = "by_" + "".join(map(str, perm)), [dims[axis] for axis in perm]
    return lambda: dropped(transpose, reshaped(weight, form, shape, lambda array: array.transpose(perm), rewriter))()


def zeros(size: int, rewriter: Rewriter) -> ir.Value:
    """Return the bias of what has none."""
    return rewriter.constant(np.zeros(size, np.float16), f"zeros_{size}")


def last_bias(value: ir.Value | None, size: int, rank: int) -> bool:
    """Tell whether a value is a constant that is added along the last axis of a tensor of this rank."""
    dims = half_weight(value)
    return dims is not None and 0 < len(dims) <= rank and dims[-1] == size and all(dim == 1 for dim in dims[:-1])


def bias_of(value: ir.Value, rewriter: Rewriter) -> ir.Value:
    """Return such a constant as a vector."""
    assert value.const_value is not None
    return reshaped(value, "bias", (value.const_value.size,), lambda array: array, rewriter)


def same_shape(first: ir.Value, second: ir.Value, rewriter: Rewriter) -> bool:
    """Tell whether two values have one shape, whatever the sizes that are not known."""
    sizes = rewriter.sizes.of(first)
    return sizes is not None and sizes == rewriter.sizes.of(second)


def followed(
    made: ir.Node, name: str, last: ir.Node, more: list[ir.Value | None], attributes: dict[str, float], rewriter: Rewriter
) -> Outcome:  # fmt: skip
    """Put an operator of ours, with more inputs and attributes, in the place of the last of two, if only that reads the first."""
    if last.graph is not made.graph:
        return None
    if only_reader(made.outputs[0]) is None:
        return READ_BY_OTHERS
    kept = {a.name: a for a in made.attributes.values()} | attributes
    return lambda: put(last, name, [*made.inputs, *more], kept, rewriter)


def put(
    last: ir.Node, name: str, inputs: list[ir.Value | None], attributes: Mapping[str, Any], rewriter: Rewriter
) -> ir.Node:  # fmt: skip
    """Put an operator of ours in the place of a node, and remove what only that read."""
    sizes = rewriter.sizes.of(last.outputs[0])
    node = rewriter.replace(last, name, inputs, attributes, domain=DOMAIN)
    if sizes is not None:
        rewriter.sizes.learn(node.outputs[0], sizes)
    return node
