"""Fold a factor for each channel into the product before it: the layer scale of ConvNeXt, CaiT and DINOv2."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader
from halfconv.graph.rules import Outcome, Rewriter
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["fold_scale"]

#: Factors within these bounds leave a weight's digits in half as they are; smaller ones would flush some.
SMALLEST, LARGEST = 2.0**-6, 2.0**6


def fold_scale(mul: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fold gamma · (x · W + b) into weight and bias."""
    if mul.domain or len(mul.inputs) != 2 or not is_float(mul.outputs[0]):
        return None
    for gamma, value in (mul.inputs, mul.inputs[::-1]):
        if gamma is None or value is None or not is_weight(gamma) or gamma.shape is None or gamma.shape.rank() != 1:
            continue
        add = value.producer()
        bias, product = _biased(add, value)
        matmul = product.producer() if product is not None else None
        if product is None or matmul is None or not is_op(matmul, "MatMul", mul.graph):
            continue
        weight = matmul.inputs[1]
        if weight is None or not is_weight(weight) or weight.shape is None or weight.shape.rank() != 2:
            continue
        if weight.const_value is None or gamma.const_value is None or weight.shape[1] != gamma.shape[0]:
            continue
        if only_reader(value) is not mul or only_reader(product) is None or len(list(weight.uses())) > 1:
            return "the product before it, or its weight, is read by others, too"
        sizes = np.abs(gamma.const_value.numpy())
        if not ((sizes >= SMALLEST) & (sizes <= LARGEST)).all():
            return f"its factors reach from {sizes.min():.2g} to {sizes.max():.2g}; folded, weights would lose digits in half"
        return _fold(mul, matmul, weight, bias, gamma, rewriter)
    return None


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
    mul: ir.Node, matmul: ir.Node, weight: ir.Value, bias: ir.Value | None, gamma: ir.Value, rewriter: Rewriter
) -> Outcome:  # fmt: skip
    tensors = weight.const_value, gamma.const_value, bias.const_value if bias is not None else None
    if bias is not None and bias.shape != gamma.shape:
        return None

    def scaled() -> np.ndarray:
        assert tensors[0] is not None and tensors[1] is not None
        product: np.ndarray = tensors[0].numpy().astype(np.float64) * tensors[1].numpy()
        return product.astype(np.float32)

    def fold() -> ir.Node:
        assert weight.shape is not None and tensors[1] is not None
        whole = rewriter.lazy(scaled, weight.shape.numpy(), f"{weight.name}_scaled")
        inputs = [matmul.inputs[0], whole]
        if tensors[2] is None:
            return rewriter.replace(mul, "MatMul", inputs)
        shifted = (tensors[2].numpy().astype(np.float64) * tensors[1].numpy()).astype(np.float32)
        product = rewriter.add("MatMul", inputs, mul, "product", rewriter.sizes.of(matmul.outputs[0]))
        return rewriter.replace(mul, "Add", [product, rewriter.constant(shifted, f"{weight.name}_bias")])

    return fold
