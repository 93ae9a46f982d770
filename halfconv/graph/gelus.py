"""Fuse the forms in which exporters write GELU, and the bias before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from halfconv.graph.fuse import is_op, only_reader, scalar
from halfconv.graph.rules import MS, Outcome, Rewriter, readers
from halfconv.graph.typegroups import is_float, is_weight

__all__ = ["bias_gelu", "erf_gelu", "quick_gelu", "tanh_gelu"]

#: The largest relative difference of a constant from the number that it stands for: some exporters write five digits.
CLOSE = 2e-5


def _close(value: ir.Value | None, wanted: float) -> bool:
    number = scalar(value)
    return number is not None and abs(number - wanted) <= CLOSE * abs(wanted)


def _beside(node: ir.Node | None, one: ir.Value, op: str) -> ir.Value | None:
    """Return what a Mul or Add of two inputs reads beside a value."""
    if node is None or node.op_type != op or node.domain or len(node.inputs) != 2:
        return None
    return node.inputs[1] if node.inputs[0] is one else node.inputs[0] if node.inputs[1] is one else None


def _but(node: ir.Node, number: float) -> ir.Value | None:
    """Return what a Mul or Add reads beside a constant; None without that constant."""
    constant = next((value for value in node.inputs if value is not None and _close(value, number)), None)
    return _beside(node, constant, node.op_type) if constant is not None else None


def _factors(node: ir.Node, inside: list[ir.Value], depth: int = 3) -> Iterator[ir.Value]:
    """Yield the factors of a chain of products, through products that nothing else reads."""
    for value in node.inputs:
        if value is None:
            continue
        below = value.producer()
        if depth and below is not None and is_op(below, "Mul", node.graph) and only_reader(value) is not None:
            inside.append(value)
            yield from _factors(below, inside, depth - 1)
        else:
            yield value


def _product(plus: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the product x · 0.5 · (1 + …) that a sum is a factor of, in any order, and x."""
    last = only_reader(plus.outputs[0])
    for _ in range(2):
        if last is None or not is_op(last, "Mul", plus.graph):
            return None
        factors = list(_factors(last, []))
        rest = [value for value in factors if value is not plus.outputs[0] and not _close(value, 0.5)]
        if len(factors) == 3 and len(rest) == 1 and is_float(rest[0]) and not is_weight(rest[0]):
            return last, rest[0]
        last = only_reader(last.outputs[0])
    return None


def _plus_one(value: ir.Value) -> ir.Node | None:
    """Return the addition of 1 that alone reads a value."""
    plus = only_reader(value)
    return plus if plus is not None and _close(_beside(plus, value, "Add"), 1.0) else None


def erf_gelu(erf: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse x · 0.5 · (1 + erf(x / √2)) into Gelu."""
    if erf.domain or not is_float(erf.inputs[0]):
        return None
    scaled, plus = erf.inputs[0].producer(), _plus_one(erf.outputs[0])  # type: ignore[union-attr]
    found = _product(plus) if plus is not None else None
    if found is None:
        return "it is no factor of x · 0.5 · (1 + erf(x / √2))"
    last, x = found
    if scaled is None or scaled.domain:
        return "its argument is not x / √2"
    divided = scaled.op_type == "Div" and scaled.inputs[0] is x and _close(scaled.inputs[1], math.sqrt(2))
    if not divided and not _close(_beside(scaled, x, "Mul"), math.sqrt(0.5)):
        return "its argument is not x / √2"
    return lambda: rewriter.replace(last, "Gelu", [x], domain=MS)


def tanh_gelu(tanh: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse x · 0.5 · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) into FastGelu; a Tanh that is no such factor is no GELU."""
    plus = _plus_one(tanh.outputs[0]) if not tanh.domain and is_float(tanh.inputs[0]) else None
    found = _product(plus) if plus is not None else None
    if found is None:
        return None
    last, x = found
    scaled = tanh.inputs[0].producer() if tanh.inputs[0] is not None else None
    if scaled is None or not is_op(scaled, "Mul", tanh.graph) or not (_is_sum(scaled, x) or _is_chain(scaled, x)):
        return "its argument is not √(2/π) · (x + 0.044715 · x³)"
    return lambda: rewriter.replace(last, "FastGelu", [x], domain=MS)


def _is_sum(scaled: ir.Node, x: ir.Value) -> bool:
    """Tell whether a product is √(2/π) · (x + 0.044715 · x³)."""
    total = _but(scaled, math.sqrt(2 / math.pi))
    cubic = _beside(total.producer(), x, "Add") if total is not None else None
    return cubic is not None and _is_power(cubic, x, 3)


def _is_chain(scaled: ir.Node, x: ir.Value) -> bool:
    """Tell whether a product is √(2/π) · x · (1 + 0.044715 · x²), in any order."""
    factors = list(_factors(scaled, []))
    rest = [value for value in factors if value is not x and not _close(value, math.sqrt(2 / math.pi))]
    plus = rest[0].producer() if len(factors) == 3 and len(rest) == 1 and x in factors else None
    if plus is None or not is_op(plus, "Add", scaled.graph):
        return False
    square = _but(plus, 1.0)
    return square is not None and _is_power(square, x, 2)


def _is_power(value: ir.Value, x: ir.Value, wanted: int) -> bool:
    """Tell whether a value is 0.044715 times a power of x."""
    node = value.producer()
    if node is None or not is_op(node, "Mul", node.graph):
        return False
    factors = list(_factors(node, []))
    rest = [factor for factor in factors if not _close(factor, 0.044715)]
    if len(rest) != len(factors) - 1:
        return False
    powers = 0.0
    for factor in rest:
        power = factor.producer()
        raised = power is not None and is_op(power, "Pow", node.graph) and power.inputs[0] is x
        powers += 1 if factor is x else (scalar(power.inputs[1]) or 0.0) if raised and power is not None else math.nan
    return powers == wanted


def quick_gelu(sigmoid: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse x · sigmoid(alpha · x) into QuickGelu; with alpha = 1 it is SiLU."""
    inner, last = sigmoid.inputs[0], only_reader(sigmoid.outputs[0])
    x = _beside(last, sigmoid.outputs[0], "Mul") if not sigmoid.domain else None
    if x is None or inner is None or last is None or not is_float(x) or last.graph is not sigmoid.graph:
        return None
    alpha: float | None = 1.0
    if x is not inner:
        scale = inner.producer()
        if scale is None or only_reader(inner) is None:
            return None
        alpha = scalar(_beside(scale, x, "Mul"))
    if alpha is None:
        return None
    found = alpha
    return lambda: rewriter.replace(last, "QuickGelu", [x], {"alpha": found}, domain=MS)


def bias_gelu(gelu: ir.Node, rewriter: Rewriter) -> Outcome:
    """Fuse the addition of a vector and Gelu into BiasGelu."""
    if gelu.attributes.get_string("approximate", "none") != "none" or not is_float(gelu.inputs[0]):
        return None
    total = gelu.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or not is_op(add, "Add", gelu.graph):
        return None
    for x, bias in (add.inputs, add.inputs[::-1]):
        if x is not None and bias is not None and is_weight(bias) and bias.shape is not None and bias.shape.rank() == 1:
            sizes = rewriter.sizes.of(x)
            if sizes is None or sizes[-1:] != [bias.shape[0]]:
                return f"the last axis of '{x.name}' may be another than the bias's"
            if len(readers(total)) > 1 or total.is_graph_output():
                return f"'{total.name}' is read by others, too"
            return lambda x=x, bias=bias: rewriter.replace(gelu, "BiasGelu", [x, bias], domain=MS)  # type: ignore[misc]
    return None
