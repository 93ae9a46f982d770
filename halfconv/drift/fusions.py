"""What ONNX Runtime fuses when it loads a model: values that never leave a kernel, and are not rounded there.

The rows follow ONNX Runtime's graph transformers, as their effect was seen on an H100 (1.31.1): the values that vanished from the
optimised graph. A fusion that rounds as the separate operators do needs no row: BiasGelu and SkipLayerNormalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from halfconv.drift.kernels import HALF_TYPES
from halfconv.graph.fuse import put_in_place
from halfconv.graph.reductions import over_last
from halfconv.graph.typegroups import is_weight, past_casts

__all__ = ["INSIDE", "REPLACED", "FusePass"]

Inside = list[ir.Value]
#: The opset from which on Softmax is over one axis, by default the last one.
LAST_AXIS = 13


@dataclass(frozen=True, slots=True)
class Fused:
    """An operator of com.microsoft that replaces a pattern.

    Attributes:
        last: The pattern's last node.
        op: The operator.
        inputs: Its inputs.
        attributes: Its attributes.
    """

    last: ir.Node
    op: str
    inputs: tuple[ir.Value, ...]
    attributes: Mapping[str, float] | None = None


def _is(node: ir.Node | None, *ops: str) -> bool:
    return node is not None and node.op_type in ops and node.domain in ("", "ai.onnx")


def _made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    found = past_casts(value)
    node = found.producer() if found is not None else None
    return node if _is(node, *ops) else None


def _readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, looking through Casts."""
    found: list[ir.Node] = []
    for use in value.uses():
        found += _readers(use.node.outputs[0]) if _is(use.node, "Cast") else [use.node]
    return found


def _only_reader(value: ir.Value, *ops: str) -> ir.Node | None:
    if value.is_graph_output():
        return None
    readers = _readers(value)
    return readers[0] if len(readers) == 1 and _is(readers[0], *ops) else None


def _number(value: ir.Value | None, rank: int | None = None) -> float | None:
    """Return a constant of one element, which has at most some number of axes."""
    found = past_casts(value)
    if found is None or not is_weight(found) or found.const_value is None:
        return None
    if found.const_value.size != 1 or (rank is not None and found.const_value.shape.rank() > rank):
        return None
    return float(found.const_value.numpy().astype("float64").reshape(-1)[0])


def _close(value: ir.Value | None, wanted: float) -> bool:
    number = _number(value, 1)
    return number is not None and abs(number - wanted) <= 2e-3 * abs(wanted)


def _with_constant(node: ir.Node, wanted: float) -> ir.Value | None:
    """Return the input beside a constant."""
    first, second = node.inputs[:2]
    return first if _close(second, wanted) else second if _close(first, wanted) else None


def _has_vector(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether the input beside a value has one axis."""
    others = [other.shape for other in node.inputs if other is not None and past_casts(other) is not past_casts(value)]
    return any(shape is not None and shape.rank() == 1 for shape in others)


def _read_only_by(node: ir.Node, *readers: ir.Node) -> bool:
    value = node.outputs[0]
    return not value.is_graph_output() and all(reader in readers for reader in _readers(value))


def _layer_norm(div: ir.Node, opset: int) -> Inside:
    """LayerNormFusion: (x − mean) / sqrt(mean((x − mean)²) + eps) · gamma + beta."""
    if not _is(div, "Div"):
        return []
    sub, root = _made_by(div.inputs[0], "Sub"), _made_by(div.inputs[1], "Sqrt")
    add = _made_by(root.inputs[0], "Add") if root is not None else None
    if sub is None or root is None or add is None:
        return []
    epsilon = next((number for value in add.inputs if (number := _number(value)) is not None), 0.0)
    variance = next((node for value in add.inputs if (node := _made_by(value, "ReduceMean"))), None)
    square = _made_by(variance.inputs[0], "Pow") if variance is not None else None
    mean = _made_by(sub.inputs[1], "ReduceMean")
    scaled = _only_reader(div.outputs[0], "Mul")
    shifted = _only_reader(scaled.outputs[0], "Add") if scaled is not None else None
    if variance is None or square is None or mean is None or scaled is None or shifted is None or epsilon <= 0:
        return []
    if not (over_last(mean) and over_last(variance)) or past_casts(mean.inputs[0]) is not past_casts(sub.inputs[0]):
        return []
    if not _has_vector(scaled, div.outputs[0]) or not _has_vector(shifted, scaled.outputs[0]):
        return []
    other = _made_by(square.inputs[0], "Sub")
    if _number(square.inputs[1]) != 2.0 or other is None or past_casts(other.inputs[0]) is not past_casts(sub.inputs[0]):
        return []
    chain = [(mean, sub, other), (sub, div, square), (other, div, square)]
    chain += [(square, variance, variance), (variance, add, add), (add, root, root), (root, div, div)]
    if not all(_read_only_by(*nodes) for nodes in chain):
        return []
    nodes = [mean, sub, other, square, variance, add, root, div, scaled]
    return [node.outputs[0] for node in nodes]


def _rms_norm(div: ir.Node, opset: int) -> Inside:
    """SimplifiedLayerNormFusion: x / sqrt(mean(x²) + eps) · gamma."""
    if not _is(div, "Div") or _layer_norm(div, opset):
        return []
    root = _made_by(div.inputs[1], "Sqrt")
    add = _made_by(root.inputs[0], "Add") if root is not None else None
    mean = next((node for value in add.inputs if (node := _made_by(value, "ReduceMean"))), None) if add is not None else None
    power = _made_by(mean.inputs[0], "Pow") if mean is not None else None
    scaled = _only_reader(div.outputs[0], "Mul")
    epsilon = next((number for value in add.inputs if (number := _number(value)) is not None), 0.0) if add is not None else 0.0
    if root is None or add is None or mean is None or power is None or scaled is None or _number(power.inputs[1]) != 2.0:
        return []
    if epsilon <= 0:  # an epsilon that is zero in half is removed before norms are fused
        return []
    if past_casts(power.inputs[0]) is not past_casts(div.inputs[0]) or not over_last(mean):
        return []
    if not _has_vector(scaled, div.outputs[0]):
        return []
    if not all(_read_only_by(*pair) for pair in ((power, mean), (mean, add), (add, root), (root, div))):
        return []
    return [node.outputs[0] for node in (power, mean, add, root, div)]


def _gelu(erf: ir.Node) -> Fused | None:
    """GeluFusion: x · (erf(x / √2) + 1) · 0.5; behind the addition of a bias it becomes BiasGelu, which rounds every step."""
    inner = _made_by(erf.inputs[0], "Div") if _is(erf, "Erf") else None
    if inner is None or not _read_only_by(inner, erf):
        return None
    plus = _only_reader(erf.outputs[0], "Add")
    product = _only_reader(plus.outputs[0], "Mul") if plus is not None and _with_constant(plus, 1.0) is not None else None
    if not _close(inner.inputs[1], 2**0.5) or plus is None or product is None:
        return None
    x = inner.inputs[0]
    other = next((value for value in product.inputs if value is not plus.outputs[0]), None)
    if other is x:
        last = _only_reader(product.outputs[0], "Mul")
        if last is None or _with_constant(last, 0.5) is None:
            return None
    else:
        halved = _made_by(other, "Mul")
        if halved is None or _with_constant(halved, 0.5) is not x or not _read_only_by(halved, product):
            return None
        last = product
    assert x is not None
    bias = _bias_add(x)
    if bias is not None:
        return Fused(last, "BiasGelu", bias)
    return Fused(last, "Gelu", (x,))


def _bias_add(x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return the operands if x is the sum of a value and a vector that nothing else reads."""
    add = x.producer()
    if add is None or not _is(add, "Add") or x.is_graph_output():
        return None
    first, second = add.inputs
    assert first is not None and second is not None
    for value, vector in ((first, second), (second, first)):
        if vector.shape is not None and vector.shape.rank() == 1 and value.shape is not None and value.shape.rank() > 1:
            return value, vector
    return None


def _quick_gelu(sigmoid: ir.Node) -> Fused | None:
    """QuickGeluFusion: x · sigmoid(alpha · x); alpha is 1 in SiLU."""
    if not _is(sigmoid, "Sigmoid"):
        return None
    last, inner = _only_reader(sigmoid.outputs[0], "Mul"), sigmoid.inputs[0]
    if last is None or inner is None:
        return None
    x = next((value for value in last.inputs if value is not sigmoid.outputs[0]), None)
    if x is inner:
        return Fused(last, "QuickGelu", (inner,), {"alpha": 1.0})
    scale = inner.producer()
    if x is None or scale is None or not _is(scale, "Mul") or x not in scale.inputs:
        return None
    if len(list(inner.uses())) != 1 or inner.is_graph_output():
        return None
    alpha = _number(next((value for value in scale.inputs if value is not x), None), 1)
    return None if alpha is None else Fused(last, "QuickGelu", (x,), {"alpha": alpha})


def _scaled_matmul(node: ir.Node, opset: int) -> Inside:
    """MatMulScaleFusion: a scalar factor before or behind a MatMul becomes its alpha."""
    if not _is(node, "MatMul"):
        return []
    inside = []
    reader = _only_reader(node.outputs[0], "Mul", "Div")
    if reader is not None and _scale(reader) is not None:
        inside.append(node.outputs[0])
    for value in node.inputs:
        before = value.producer() if value is not None else None
        if value is None or before is None or not _is(before, "Mul", "Div"):
            continue
        if _scale(before) is not None and len(list(value.uses())) == 1 and not value.is_graph_output():
            inside.append(value)
    return inside


def _scale(node: ir.Node) -> float | None:
    """Return the constant factor of a Mul or Div, which adds no axes to its result."""
    first, second = (value.shape.rank() if value is not None and value.shape is not None else None for value in node.inputs)
    behind = _number(node.inputs[1], first)
    return behind if behind is not None or node.op_type == "Div" else _number(node.inputs[0], second)


def _reciprocal(node: ir.Node, opset: int) -> Inside:
    """DivMulFusion: (1 / a) · b becomes b / a."""
    divided = [value for value in node.inputs if value is not None and _is(value.producer(), "Div")] if _is(node, "Mul") else []
    for value in divided:
        div = value.producer()
        if div is not None and _number(div.inputs[0]) == 1.0 and len(list(value.uses())) == 1:
            return [value]
    return []


def _bias_softmax(node: ir.Node, opset: int) -> Inside:
    """BiasSoftmaxFusion: a mask is added inside the softmax kernel, which FP16 has and BF16 has not.

    From the softmax axis on, the shapes are the same; before it, one of them has ones, then the same sizes, or the reverse.
    """
    add = node.inputs[0].producer() if _is(node, "Softmax") and node.inputs[0] is not None else None
    if add is None or not _is(add, "Add") or node.outputs[0].dtype != ir.DataType.FLOAT16:
        return []
    if add.outputs[0].is_graph_output() or len(list(add.outputs[0].uses())) != 1:
        return []
    shapes = [list(value.shape) if value is not None and value.shape is not None else [] for value in add.inputs]
    if not all(shapes):
        return []
    x, mask = sorted(shapes, key=len, reverse=True)
    axis = node.attributes.get_int("axis", -1 if opset >= LAST_AXIS else 1) % len(x)
    if opset >= LAST_AXIS and axis != len(x) - 1:
        return []
    length = len(x) - axis
    if len(mask) < length or not _same(x[axis:], mask[len(mask) - length :]):
        return []
    before, given = x[:axis], mask[: len(mask) - length]
    pairs = [(before, given), (given, before)] if len(before) == len(given) else [(before, given)]
    return [add.outputs[0]] if any(_repeats(*pair) for pair in pairs) else []


def _same(first: Sequence[int | ir.SymbolicDim], second: Sequence[int | ir.SymbolicDim]) -> bool:
    """Tell whether sizes may be the same: ONNX Runtime folds constants first, and so knows more of them."""
    pairs = zip(first, second, strict=True)
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)


def _ones(sizes: Sequence[int | ir.SymbolicDim]) -> bool:
    return all(size == 1 for size in sizes)


def _repeats(sizes: Sequence[int | ir.SymbolicDim], mask: Sequence[int | ir.SymbolicDim]) -> bool:
    """Tell whether a mask has the last sizes and ones before them, or the first sizes and ones behind them."""
    count = len(mask)
    if any(_same(sizes[len(sizes) - k :], mask[count - k :]) and _ones(mask[: count - k]) for k in range(count + 1)):
        return True
    return count == len(sizes) and any(_same(sizes[:k], mask[:k]) and _ones(mask[k:]) for k in range(count + 1))


#: Transformer of ONNX Runtime -> matcher, which gets each node and the opset, and returns the values that the fused kernel keeps.
INSIDE: tuple[tuple[str, Callable[[ir.Node, int], Inside]], ...] = (
    ("LayerNormFusion", _layer_norm),
    ("SimplifiedLayerNormFusion", _rms_norm),
    ("MatMulScaleFusion", _scaled_matmul),
    ("DivMulFusion", _reciprocal),
    ("BiasSoftmaxFusion", _bias_softmax),
)
#: Transformer -> matcher, which returns the fused operator, for those that round in another way than their parts.
REPLACED: tuple[tuple[str, Callable[[ir.Node], Fused | None]], ...] = (
    ("GeluFusion", _gelu),
    ("QuickGeluFusion", _quick_gelu),
)


class FusePass(ir.passes.InPlacePass):
    """Fuse as ONNX Runtime does on load.

    Attributes:
        inside: Half value that is never rounded, because a fused kernel keeps it -> the transformer that fuses it away.
        counts: Transformer -> number of fusions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: dict[ir.Value, str] = {}
        self.counts: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass on a half-precision model with inferred types, without functions."""
        changed = False
        opset = model.opset_imports.get("", LAST_AXIS)
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            for name, match in INSIDE:
                inside = list(_through_casts(match(node, opset)))
                if any(value.dtype in HALF_TYPES for value in inside) and not any(value.is_graph_output() for value in inside):
                    self.inside.update((value, name) for value in inside if value.dtype in HALF_TYPES)
                    self.counts[name] = self.counts.get(name, 0) + 1
            for name, find in REPLACED:
                found = find(node) if node.graph is not None else None
                if found is not None and found.last.outputs[0].dtype in HALF_TYPES and found.last.graph is node.graph:
                    fused = ir.node(found.op, list(found.inputs), found.attributes or {}, domain="com.microsoft")
                    put_in_place(fused, found.last)
                    model.opset_imports.setdefault("com.microsoft", 1)
                    self.counts[name] = self.counts.get(name, 0) + 1
                    changed = True
        return ir.passes.PassResult(model, modified=changed)


def _through_casts(values: Inside) -> Iterator[ir.Value]:
    """Yield the values, and what Casts between them make of them."""
    for value in dict.fromkeys(values):
        yield value
        for use in value.uses():
            if _is(use.node, "Cast"):
                yield use.node.outputs[0]
