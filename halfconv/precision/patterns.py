"""Patterns of several operators that must stay FP32 together.

A pattern is a function from the graph's nodes and the format to matches. To add one, write the function and a row in `PATTERNS`.
A row about overflow or underflow is for FP16 alone; one about precision is for BF16 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from halfconv.graph.reductions import over_an_end, reduced_count
from halfconv.graph.typegroups import is_weight
from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.flow import backward, constant, forward, inputs_of, op, readers, scalar
from halfconv.precision.formats import BF16, BOTH, FP16, HalfFormat
from halfconv.precision.masks import mask_sums
from halfconv.precision.match import Match
from halfconv.precision.near_one import cancelling_sums
from halfconv.precision.positions import shape_arithmetic
from halfconv.precision.unscaled import unscaled

__all__ = ["PATTERNS", "Pattern"]

MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})
SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceL1", "CumSum"})
LINEAR = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sum"})
BOUNDS = frozenset({"Max", "Clip", "Relu", "Min"})
#: What statistics are made of, between the squares and the root.
STATISTICS = MEANS | SUMS | LINEAR | BOUNDS | EXACT_OPS | {"Pow", "Sqrt"}
#: Operators whose result may be a small number that somebody divides by or takes the logarithm of.
SMALL_MAKERS = STATISTICS | {"Exp", "Log", "LogSoftmax", "ReduceLogSumExp", "Sigmoid", "Softmax", "Where", "ReduceMax"}
#: 1/sqrt(epsilon) is below 31,623, and sqrt(epsilon) above half's smallest numbers.
SAFE_EPSILON = 1e-9
#: A factor that lifts numbers of order 64 out of half's range.
SCALE_UP = 1024.0
#: Count from which the sum inside a mean is no longer safe: numbers of order 64 reach 65,504.
WIDE_MEAN = 1024
#: What a norm, a sum of exponentials and a mean lose, by format.
NORM_WHY = {
    FP16: "the squares inside this norm overflow beyond 255",
    BF16: "this norm divides by statistics, of which BF16 keeps 8 bits",
}
EXP_WHY = {
    FP16: "exponentials overflow beyond 11.09, and so does their sum",
    BF16: "exponentials turn the rounding of their arguments into errors of percents, and a division or logarithm follows",
}
MEAN_WHY = {
    FP16: "the GPU rounds the sum of {} numbers to half before it divides",
    BF16: "the GPU rounds the sum of {} numbers to BF16's 8 bits before it divides",
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A named pattern.

    Attributes:
        name: What ``--block-pattern`` takes, and the ``rule`` of its values.
        why: One line.
        default: Whether the default block list includes it.
        find: Yields the matches in a list of nodes.
        formats: The formats for which the default block list includes it.
    """

    name: str
    why: str
    default: bool
    find: Callable[[Sequence[ir.Node], HalfFormat], Iterator[Match]]
    formats: tuple[HalfFormat, ...] = BOTH


def _is_square(node: ir.Node) -> bool:
    """Tell whether a node squares its input: Pow(x, 2), Mul(x, x), or a sum of squares."""
    kind = op(node)
    if kind == "Pow":
        return scalar(node.inputs[1]) == 2.0
    return kind in ("ReduceSumSquare", "ReduceL2") or (kind == "Mul" and node.inputs[0] is node.inputs[1])


def _ends_at_square(node: ir.Node) -> bool:
    """Tell whether a walk towards the sources ends here: at a square, unless it only undoes a root (a power spectrum)."""
    return _is_square(node) and not any(_is_root(p) for v in inputs_of(node) if (p := v.producer()) is not None)


def _is_root(node: ir.Node) -> bool:
    kind = op(node)
    if kind == "Pow":
        return scalar(node.inputs[1]) in (0.5, -0.5)
    return kind in ("Sqrt", "ReduceL2")


def _reads_weight(node: ir.Node) -> bool:
    return len(list(inputs_of(node))) < sum(value is not None for value in node.inputs)


def _centring(square: ir.Node) -> list[ir.Node]:
    """Return what makes x − mean(x), or mean(x), in front of a square: their rounding is squared too."""
    found = []
    for value in inputs_of(square):
        node = value.producer()
        if op(node) in MEANS | {"ReduceSum"}:
            return [node] if node else []
        if op(node) in ("Mul", "Div") and node is not None and _reads_weight(node):
            inner = [v.producer() for v in inputs_of(node)]
            if any(op(n) in ("ReduceSum", *MEANS) for n in inner):
                return [node, *(n for n in inner if n is not None)]
        if op(node) == "Sub" and node is not None:
            means = backward(inputs_of(node), lambda n: op(n) in MEANS | {"ReduceSum", "Mul", "Div"} | EXACT_OPS, limit=6)
            if any(op(n) in MEANS | {"ReduceSum"} for n in means):
                last = next(i for i, n in enumerate(means) if op(n) in MEANS | {"ReduceSum"})
                found += [node, *means[: last + 1]]
    return found


def _norms(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Decomposed LayerNorm, RMSNorm, InstanceNorm, L2 normalisation: squares, their mean, the root, and the division."""
    for root in nodes:
        if not _is_root(root):
            continue
        behind = [] if _is_square(root) else backward(inputs_of(root), lambda n: op(n) in STATISTICS, _is_square, 40)
        squares = [node for node in (root, *behind) if _is_square(node)]
        reduced = any(op(node) in MEANS | SUMS for node in (root, *behind))
        if not squares or not reduced:
            continue
        inside = [*behind, root]
        for square in squares:
            inside += _centring(square)
        inside += _division(root, inside)
        inside += _affine(inside)
        yield Match(tuple(dict.fromkeys(inside)), root, f"{NORM_WHY[to]} ({op(root)})")


def _affine(inside: Sequence[ir.Node]) -> list[ir.Node]:
    """Return the gamma and beta of a plain LayerNorm: a runtime fuses the whole, which must then have one precision."""
    found = []
    for node in inside:
        if op(node) != "Div" or op(node.inputs[0].producer() if node.inputs[0] is not None else None) != "Sub":
            continue
        scales = [reader for reader in readers(node) if op(reader) == "Mul" and _reads_weight(reader)]
        for scale in scales:
            found += [scale, *(reader for reader in readers(scale) if op(reader) == "Add" and _reads_weight(reader))]
    return found


def _division(root: ir.Node, inside: Sequence[ir.Node]) -> list[ir.Node]:
    """Return what applies a norm's root: up to where the normalised value, of order 1, has been computed.

    The product with the norm's own input may be half, where an epsilon keeps the reciprocal root in half's range.
    """
    found: dict[ir.Node, None] = {}
    known = set(inside)
    epsilons = [n for node in inside if op(node) in ("Add", "Max", "Clip") for v in node.inputs if (n := scalar(v))]
    bounded = any(SAFE_EPSILON <= epsilon < 1 for epsilon in epsilons)
    todo = [root]
    while todo:
        node = todo.pop(0)
        for reader in readers(node):
            if reader in found or reader in known or op(reader) not in LINEAR | BOUNDS | EXACT_OPS | {"Reciprocal", "Pow"}:
                continue
            others = [value.producer() for value in inputs_of(reader) if value.producer() is not node]
            joins = bool(others) and all(other in found or other in known for other in others)
            applies = op(reader) in ("Div", "Mul") and bool(others)
            if applies and bounded and not any(other in found or other in known for other in others):
                continue
            statistic = not others  # only weights beside it: rsqrt(var) · gamma, max(norm, eps)
            if not (joins or applies or statistic) or len(found) > 12:
                continue
            found[reader] = None
            if statistic or (joins and op(reader) in ("Mul", "Sub") and not applies):
                todo.append(reader)
            elif applies or joins:
                # beta − mean · rstd joins x · rstd in one Add; gamma and beta of a plain LayerNorm stay outside
                for after in readers(reader):
                    sides = [value.producer() for value in inputs_of(after)]
                    if op(after) in ("Add", "Sub") and len(list(after.inputs)) == 2:
                        inner = [s for s in sides if s is not None and (s in found or s in known)]
                        if len(inner) == len(sides) == 2 or (op(after) == "Sub" and inner and _reads_weight(after)):
                            found[after] = None
                            todo.append(after)
    return list(found)


def _exp_sums(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Exponentials that are summed and then divided or logged: decomposed Softmax, LogSumExp, Softplus, tanh."""
    between = LINEAR | SUMS | EXACT_OPS | MEANS | {"Max", "Where"}
    ends = frozenset({"Log", "Div", "Reciprocal"})
    for node in nodes:
        if op(node) != "Exp":
            continue
        path = forward([node], lambda n: op(n) in between | ends, lambda n: op(n) in ends, 24)
        last = [n for n in path if op(n) in ends]
        summed = [n for n in path if op(n) in SUMS | {"Add", "Sub"}]
        if last and summed:
            kept = [n for n in path if op(n) in ends or _leads_to(n, last)]
            yield Match((node, *kept), node, EXP_WHY[to])


def _leads_to(node: ir.Node, ends: Sequence[ir.Node]) -> bool:
    return node in backward([v for end in ends for v in inputs_of(end)], lambda n: True, limit=64)


def _small_epsilons(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A constant below half's normal range that protects a division, root or logarithm."""
    ends = frozenset({"Div", "Log", "Pow", "Reciprocal", "Sqrt"})
    for node in nodes:
        epsilon = _epsilon(node, to.min_normal)
        if epsilon is None:
            continue
        path = forward([node], lambda n: op(n) in ends | EXACT_OPS | {"Mul", "Neg", "ReduceSum", "Add"}, _divides, 16)
        last = [n for n in path if op(n) in ends]
        if not last:
            continue
        kept = [n for n in path if n in last or _leads_to(n, last)]
        roots = [n for n in last if op(n) in ("Sqrt", "Pow", "Reciprocal")]
        kept += forward(roots, _inverts if epsilon >= SAFE_EPSILON else _applies, _divides, 8)
        behind = small_sources(inputs_of(node))
        where = f"{to.half}'s normal range ({to.min_normal:.2g})"
        why = f"the constant {epsilon:.3g} is below {where} and keeps a division or logarithm finite"
        yield Match((node, *behind, *kept), node, why, {"epsilon": epsilon})


def _inverts(node: ir.Node) -> bool:
    """Tell whether a node moves a root or takes its reciprocal."""
    return op(node) in EXACT_OPS | {"Reciprocal"} or (op(node) == "Div" and scalar(node.inputs[0]) is not None)


def _applies(node: ir.Node) -> bool:
    """Tell whether a node moves, inverts or applies a root."""
    return op(node) in EXACT_OPS | {"Div", "Mul", "Reciprocal"}


def _divides(node: ir.Node) -> bool:
    return op(node) in ("Div", "Log") or (op(node) == "Mul" and len(list(inputs_of(node))) > 1)


def _epsilon(node: ir.Node, tiny: float) -> float | None:
    """Return a node's constant operand below a number, if it has one."""
    kind = op(node)
    if kind in ("Add", "Sub", "Max", "Sum"):
        numbers = [scalar(value) for value in node.inputs]
    elif kind == "Clip":
        numbers = [scalar(node.inputs[1])] if len(node.inputs) > 1 and node.inputs[1] is not None else []
        if "min" in node.attributes:
            numbers.append(node.attributes.get_float("min"))
    elif kind == "Where":
        numbers = [scalar(value) for value in node.inputs[1:]]
    else:
        return None
    return next((n for n in numbers if n is not None and 0 < abs(n) < tiny), None)


def small_sources(start: Iterator[ir.Value]) -> list[ir.Node]:
    """Return what computes a number that may be small, back to where it is a square or a heavy operator's result.

    A matrix product with a weight between the squares and the division (a mel filter bank) belongs to it.
    """
    values = list(start)
    near = backward(values, lambda n: op(n) in SMALL_MAKERS, _ends_at_square, 40)
    values += [value for node in near for value in inputs_of(node)]
    banks = [p for value in values if (p := value.producer()) is not None and _filters_squares(p)]
    return list(dict.fromkeys([*near, *banks, *(node for bank in banks for node in _spectrum(bank))]))


def _spectrum(bank: ir.Node) -> list[ir.Node]:
    return backward(inputs_of(bank), lambda n: op(n) in LINEAR | EXACT_OPS | {"Pow", "Sqrt"}, _ends_at_square, 8)


def _filters_squares(node: ir.Node) -> bool:
    """Tell whether a node multiplies squares by a weight matrix."""
    return op(node) in ("MatMul", "Gemm") and _reads_weight(node) and any(_is_square(n) for n in _spectrum(node))


def _logs(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A logarithm and what computes its argument."""
    for node in nodes:
        if op(node) in ("Log", "Reciprocal") and any(True for _ in inputs_of(node)):
            behind = small_sources(inputs_of(node))
            if behind:
                yield Match((node, *behind), node, f"{op(node)} of a number that {to.precision} may flush to zero")


def _cancelling_logs(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A logarithm of a sum or difference with a constant, and what computes it."""
    for node in nodes:
        sums = cancelling_sums(node)
        if sums:
            why = f"Log of a sum with a constant, of which {to.precision} keeps too few bits"
            yield Match((node, *dict.fromkeys([*sums, *small_sources(inputs_of(node))])), node, why)


def _softmax_attention(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Attention scores: the MatMul that feeds a Softmax, what lies between, and the Softmax."""
    between = LINEAR | EXACT_OPS | {"Where", "Clip", "Max", "Min", "Tanh"}
    for node in nodes:
        if op(node) == "Softmax":
            path = backward(inputs_of(node), lambda n: op(n) in between | {"MatMul", "Einsum"}, _is_product, 24)
            if any(_is_product(n) for n in path):
                yield Match((node, *path), node, "attention scores lose their low bits when they are large")


def _is_product(node: ir.Node) -> bool:
    return op(node) in ("MatMul", "Einsum")


def _wide_sums(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A sum and the division that brings it back to size."""
    for node in nodes:
        if op(node) not in ("ReduceSum", "ReduceSumSquare", "CumSum"):
            continue
        path = forward([node], lambda n: op(n) in EXACT_OPS | {"Div", "Mul", "Sqrt"}, lambda n: op(n) in ("Div", "Sqrt"), 6)
        kept = [n for n in path if op(n) in ("Div", "Sqrt") or (op(n) == "Mul" and _shrinks(n))]
        between = [n for n in path if n not in kept and kept and _leads_to(n, kept)]
        if kept:
            yield Match((node, *between, *kept), node, f"the sum may pass {to.max:,.6g} before it is divided")


def _wide_means(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A mean whose kernel rounds the sum to half before it divides by the count."""
    for node in nodes:
        if op(node) != "ReduceMean" or not over_an_end(node):
            continue
        count = reduced_count(node)
        if count is None or count >= WIDE_MEAN:
            many = "an unknown number of" if count is None else f"{count:,}"
            yield Match((node,), node, MEAN_WHY[to].format(many))


def _shrinks(node: ir.Node) -> bool:
    factors = [constant(value) for value in node.inputs]
    return any(f is not None and f.dtype.kind == "f" and f.size and float(np.abs(f).max()) < 1 for f in factors)


def _scale_ups(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """A multiplication by a large constant, and the operator that brings the product back to size."""
    ends = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Sub", "Add", "ReduceMax"})
    for node in nodes:
        if op(node) not in ("Div", "Mul") or not any(True for _ in inputs_of(node)):
            continue
        factor = scalar(node.inputs[1])
        if factor is None and op(node) == "Mul":
            factor = scalar(node.inputs[0])
        if factor and op(node) == "Div":
            factor = 1 / factor
        if factor is not None and SCALE_UP <= abs(factor) <= to.max:
            after = forward([node], lambda n: op(n) in ends | EXACT_OPS, lambda n: op(n) in ends, 6)
            kept = [n for n in after if op(n) in ends]
            why = f"a factor of {factor:.6g} lifts numbers beyond {to.max / abs(factor):.3g} out of {to.half}'s range"
            yield Match((node, *kept), node, why, {"factor": factor})


def _quantised(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """What runs between DequantizeLinear and QuantizeLinear: a runtime fuses it into integer kernels, in FP32 only."""
    carried = LINEAR | BOUNDS | EXACT_OPS
    for node in nodes:
        if _is_quantiser(node, "QuantizeLinear"):
            path = backward(inputs_of(node), lambda n: op(n) in carried or _is_dequantised(n), _is_dequantised, 16)
            if any(_is_dequantised(n) for n in path):
                yield Match((node, *path), node, "it becomes an integer kernel, which runtimes fuse in FP32 only")
        elif _is_dequantised(node):
            yield Match((node,), node, "it reads dequantised activations, which runtimes fuse in FP32 only")


def _is_dequantised(node: ir.Node) -> bool:
    """Tell whether a node reads activations (no weights) that were quantised."""
    makers = [value.producer() for value in inputs_of(node)]
    return any(
        maker is not None and _is_quantiser(maker, "DequantizeLinear") and maker.inputs[0] is not None
        and not is_weight(maker.inputs[0])
        for maker in makers
    )  # fmt: skip


def _is_quantiser(node: ir.Node, kind: str) -> bool:
    """Tell whether a node quantises, or the reverse; ONNX Runtime's own operators of these names take 16 and 4 bits."""
    return node.op_type == kind and node.domain in ("", "com.microsoft")


PATTERNS: tuple[Pattern, ...] = (
    Pattern("norm", "squares and their sums inside a decomposed norm overflow, flush or lose their digits", True, _norms),
    Pattern("exp-sum", "exponentials and their sums overflow, or lose their digits", True, _exp_sums),
    Pattern("small-epsilon", "a tiny constant flushes, and the division by zero gives NaN", True, _small_epsilons, (FP16,)),
    Pattern("log", "a small argument flushes to zero, and its logarithm is −inf", True, _logs, (FP16,)),
    Pattern("log-sum", "the logarithm of 1 − p or 1 + x has lost p's or x's digits", True, _cancelling_logs, (BF16,)),
    Pattern("wide-sum", "a sum overflows before it is divided by a count", True, _wide_sums, (FP16,)),
    Pattern("wide-mean", "the sum inside a mean of many numbers overflows, or loses its digits", True, _wide_means),
    Pattern("scale-up", "a large factor lifts ordinary numbers beyond 65,504", True, _scale_ups, (FP16,)),
    Pattern("quantised", "integer kernels are fused from FP32 operators between QDQ pairs", True, _quantised),
    Pattern("shape-arithmetic", "positions, sizes and indices are exact only to 2,048 (BF16: 256)", True, shape_arithmetic),
    Pattern("unscaled", "inputs, large integers and doubles may pass 65,504 until something scales them", True, unscaled, (FP16,)),
    Pattern("mask-sum", "scores plus a large negative mask lose their bits, or overflow", True, mask_sums),
    Pattern("softmax-attention", "attention scores lose their low bits when they are large", False, _softmax_attention),
)
