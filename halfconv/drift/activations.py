"""Activations as CUDA kernels compute them in half: see `halfconv.drift.expansions`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder, first, given

__all__ = [
    "bias_gelu",
    "elu",
    "fast_gelu",
    "gelu",
    "gelu_bf16",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "quick_gelu",
    "selu",
    "sigmoid",
    "sigmoid_bf16",
    "softplus",
    "softsign",
]


def elu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write alpha · (exp(x) − 1) below 0."""
    x, alpha = first(node), node.attributes.get_float("alpha", 1.0)
    below = b.half("Mul", alpha, b.half("Sub", b.half("Exp", x), 1.0))
    return [b.where(b.test("Less", x, 0.0), below, x)]


def selu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write gamma · x, or gamma · alpha · (exp(x) − 1) below 0."""
    x = first(node)
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    below = b.half("Mul", b.half("Mul", gamma, alpha), b.half("Sub", b.half("Exp", x), 1.0))
    return [b.where(b.test("Greater", x, 0.0), b.half("Mul", gamma, x), below)]


def leaky_relu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write alpha · x below 0, with alpha rounded to half."""
    x = first(node)
    return [b.where(b.test("Less", x, 0.0), b.half("Mul", node.attributes.get_float("alpha", 0.01), x), x)]


def _clipped(b: Builder, x: ir.Value) -> ir.Value:
    return b.wide("Max", b.wide("Min", x, 1.0), 0.0)


def hard_sigmoid(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write alpha · x + beta as one fused step, clipped."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return [_clipped(b, b.round(b.wide("Add", b.wide("Mul", alpha, first(node)), beta)))]


def hard_swish(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write x · clip(x / 6 + 0.5), each step rounded."""
    x = first(node)
    scaled = b.round(b.wide("Mul", x, b.constant(np.float32(1 / 6))))
    return [b.half("Mul", x, _clipped(b, b.half("Add", scaled, 0.5)))]


def softplus(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write max(x, 0) + log(1 + exp(−|x|))."""
    x = first(node)
    tail = b.half("Log", b.half("Add", b.half("Exp", b.wide("Neg", b.wide("Abs", x))), 1.0))
    return [b.where(b.test("Greater", x, 0.0), b.half("Add", x, tail), tail)]


def softsign(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write x / (1 + |x|)."""
    x = first(node)
    return [b.half("Div", x, b.half("Add", b.wide("Abs", x), 1.0))]


def _tanh_gelu(b: Builder, x: ir.Value) -> ir.Value:
    half, slope, cubic = 0.5, 0.7978845608028654, 0.035677408136300125
    inner = b.round(b.wide("Add", b.wide("Mul", cubic, b.half("Mul", x, x)), slope))
    tanh = b.half("Tanh", b.half("Mul", x, inner))
    return b.half("Mul", x, b.round(b.wide("Add", b.wide("Mul", half, tanh), half)))


def gelu_bf16(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write x · Φ(x), with Φ rounded."""
    x = first(node)
    erf = b.wide("Erf", b.wide("Mul", x, b.constant(np.float32(0.7071067811865476))))
    cdf = b.round(b.wide("Mul", b.constant(np.float32(0.5)), b.wide("Add", erf, 1.0)))
    return [b.half("Mul", x, cdf)]


def gelu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write GELU by tanh."""
    return [_tanh_gelu(b, first(node))]


def fast_gelu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write GELU by tanh, behind a bias."""
    x = first(node)
    bias = given(node, 1)
    return [_tanh_gelu(b, b.half("Add", x, bias) if bias is not None else x)]


def bias_gelu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write GELU by erf in half steps, behind a bias."""
    x = b.half("Add", first(node), first(node, 1))
    erf = b.half("Erf", b.half("Mul", x, 0.7071067811865476))
    return [b.half("Mul", b.half("Mul", x, 0.5), b.half("Add", erf, 1.0))]


def _step_sigmoid(b: Builder, x: ir.Value) -> ir.Value:
    one = b.half("Div", 1.0, b.half("Add", b.half("Exp", b.wide("Neg", b.wide("Abs", x))), 1.0))
    return b.where(b.test("Greater", x, 0.0), one, b.half("Sub", 1.0, one))


def sigmoid_bf16(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write Sigmoid in BF16 steps."""
    return [_step_sigmoid(b, first(node))]


def sigmoid(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write 1 / (1 + exp(−|x|)) or one minus that, in FP32: small results keep the error of the subtraction."""
    x = first(node)
    one = b.wide("Div", 1.0, b.wide("Add", b.wide("Exp", b.wide("Neg", b.wide("Abs", x))), 1.0))
    return [b.round(b.where(b.test("Greater", x, 0.0), one, b.wide("Sub", 1.0, one)))]


def quick_gelu(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write x · sigmoid(alpha · x)."""
    x, alpha = first(node), node.attributes.get_float("alpha", 1.702)
    return [b.half("Mul", x, _step_sigmoid(b, b.half("Mul", alpha, x)))]
