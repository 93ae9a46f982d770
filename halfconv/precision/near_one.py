"""Logarithms of sums and differences with a constant: log(1 − p), log(1 + x).

With 8 bits a probability beyond 0.998 is 1, the difference 0 and its logarithm −inf; and 1 + x is 1 for x below 0.0039. FP16 needs
no such rule, because there every logarithm stays FP32 with what computes its argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.flow import backward, inputs_of, op, scalar

__all__ = ["cancelling_sums"]

#: A constant below this only bounds the argument.
BOUND = 1e-3
BOUNDS = frozenset({"Clip", "Max", "Min"})
SUMS = frozenset({"Add", "Sub"})


def cancelling_sums(node: ir.Node) -> Sequence[ir.Node]:
    """Return the sums with a constant that make a logarithm's argument, and what bounds or moves it on the way."""
    if op(node) != "Log":
        return ()
    path = backward(inputs_of(node), lambda n: op(n) in SUMS | BOUNDS | EXACT_OPS, _is_shifted, 8)
    return path if any(_is_shifted(n) for n in path) else ()


def _is_shifted(node: ir.Node) -> bool:
    numbers = [scalar(value) for value in node.inputs] if op(node) in SUMS else []
    return any(number is not None and abs(number) > BOUND for number in numbers)
