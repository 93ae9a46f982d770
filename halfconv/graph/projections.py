"""Fold a factor for each channel into the product before it: the layer scale of ConvNeXt, CaiT and DINOv2."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.sizes import perm_of
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["fold_scale"]

#: Factors within these bounds leave a weight's digits in half as they are; smaller ones would flush some.
SMALLEST, LARGEST = 2.0**-6, 2.0**6


def fold_scale(mul: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fold gamma · (x · W + b) into weight and bias; a Transpose may stand between the two, as timm writes it."""
    if mul.domain or len(mul.inputs) != 2 or not is_float(mul.outputs[0]):
        return None
    for gamma, value in (mul.inputs, mul.inputs[::-1]):
        if gamma is None or value is None or not is_weight(gamma) or gamma.const_value is None:
            continue
        moved = value.producer()
        transpose = moved if moved is not None and is_op(moved, "Transpose", mul.graph) else None
        value = value if transpose is None else transpose.inputs[0]
        if value is None or not _of_channels(gamma, transpose, mul.outputs[0]):
            continue
        add = value.producer()
        bias, product = _biased(add, value)
        matmul = product.producer() if product is not None else None
        if product is None or matmul is None or not is_op(matmul, "MatMul", mul.graph):
            continue
        weight = matmul.inputs[1]
        if weight is None or not is_weight(weight) or weight.shape is None or weight.shape.rank() != 2:
            continue
        if weight.const_value is None or weight.shape[1] != gamma.const_value.size:
            continue
        steps = [value, product] if transpose is None else [transpose.outputs[0], value, product]
        if any(only_reader(step) is None for step in steps) or len(list(weight.uses())) > 1:
            return "the product before it, or its weight, is read by others, too"
        sizes = np.abs(gamma.const_value.numpy())
        if not ((sizes >= SMALLEST) & (sizes <= LARGEST)).all():
            return f"its factors reach from {sizes.min():.2g} to {sizes.max():.2g}; folded, weights would lose digits in half"
        return _fold(mul, transpose, matmul, weight, bias, gamma, rewriter)
    return None


def _of_channels(gamma: ir.Value, transpose: ir.Node | None, output: ir.Value) -> bool:
    """Tell whether a factor is a vector along the axis that is the last one before the transposition."""
    if gamma.shape is None or output.shape is None or gamma.const_value is None:
        return False
    dims, rank = gamma.const_value.shape.numpy(), output.shape.rank()
    if transpose is None:
        return len(dims) == 1
    axis = perm_of(transpose, rank).index(rank - 1)
    return len(dims) <= rank and all(size == 1 or place + rank - len(dims) == axis for place, size in enumerate(dims))


def _biased(add: ir.Node | None, value: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """Return (bias, product) of a product plus a vector, or (None, the value)."""
    if add is None or not is_op(add, "Add", add.graph):
        return None, value
    for bias, product in (add.inputs, add.inputs[::-1]):
        if bias is None or not is_weight(bias) or bias.const_value is None:
            continue
        if bias.shape is not None and bias.shape.rank() == 1:
            return bias, product
    return None, None


def _fold(
    mul: ir.Node, transpose: ir.Node | None, matmul: ir.Node, weight: ir.Value, bias: ir.Value | None, gamma: ir.Value,
    rewriter: Rewriter,
) -> Outcome:  # fmt: skip
    tensors = weight.const_value, gamma.const_value, bias.const_value if bias is not None else None
    if bias is not None and (tensors[1] is None or bias.shape is None or bias.shape[0] != tensors[1].size):
        return None

    def factors() -> np.ndarray:
        assert tensors[1] is not None
        return np.asarray(tensors[1].numpy().reshape(-1))

    def scaled() -> np.ndarray:
        assert tensors[0] is not None
        return np.asarray(tensors[0].numpy().astype(np.float64) * factors()).astype(np.float32)

    def fold() -> ir.Node:
        assert weight.shape is not None
        whole = rewriter.lazy(scaled, weight.shape.numpy(), f"{weight.name}_scaled")
        inputs, sizes = [matmul.inputs[0], whole], rewriter.sizes.of(matmul.outputs[0])
        if tensors[2] is None and transpose is None:
            return rewriter.replace(mul, "MatMul", inputs)
        value = rewriter.add("MatMul", inputs, mul, "product", sizes)
        if tensors[2] is not None:
            shifted = (tensors[2].numpy().astype(np.float64) * factors()).astype(np.float32)
            inputs = [value, rewriter.constant(shifted, f"{weight.name}_bias")]
            if transpose is None:
                return rewriter.replace(mul, "Add", inputs)
            value = rewriter.add("Add", inputs, mul, "shifted", sizes)
        assert transpose is not None
        return rewriter.replace(mul, "Transpose", [value], {a.name: a for a in transpose.attributes.values()})

    return fold
