"""What fusions by pattern share: a rule that looks at a node, and the means to put others in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.graph.fuse import FusionPass, put_in_place, remove_unread, scalar
from halfconv.graph.lift import Fresh
from halfconv.graph.sizes import Learned, Size, Sizes

__all__ = ["MS", "READ_BY_OTHERS", "Outcome", "Rewriter", "Rule", "RulePass", "is_transpose", "readers", "transposed"]

#: ONNX Runtime's own operators.
MS = "com.microsoft"
#: Said where an operator could be taken up, were its result not needed itself.
READ_BY_OTHERS = "its result is read by others, too"
#: How many nodes a scale is computed by, at most.
DEPTH = 12

#: What a rule says of a node: nothing to do with it, why it is not fused, or what fuses it and returns the node made.
Outcome = None | str | Callable[[], ir.Node]
Rule = Callable[[ir.Node, "Rewriter"], Outcome]


def readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def is_transpose(node: ir.Node | None, perm: tuple[int, ...]) -> bool:
    """Tell whether a node is a Transpose with these axes."""
    if node is None or node.op_type != "Transpose" or node.domain or "perm" not in node.attributes:
        return False
    return tuple(node.attributes["perm"].as_ints()) == perm


def transposed(value: ir.Value | None, *perm: int) -> ir.Value | None:
    """Return what a Transpose with these axes was given; None if none makes the value."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and is_transpose(node, perm) else None


class Rewriter:
    """Adds nodes to a model, with the types and sizes that later stages expect.

    Attributes:
        opset: The default domain's opset.
        sizes: What is known of sizes.
        shared: What was added once for many readers.
    """

    def __init__(self, model: ir.Model, learned: Learned | None = None):
        self.opset = model.opset_imports.get("", 0)
        self.sizes = Sizes(learned)
        self.shared: dict[object, ir.Value] = {}
        self._fresh = Fresh(model)
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def fresh(self, hint: str) -> str:
        """Return a name that no value has."""
        return self._fresh.name(hint)

    def constant(self, array: np.ndarray, hint: str) -> ir.Value:
        """Return an initializer with these numbers, the same for the same numbers."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._fresh.constant(array, hint)
        return self._constants[key]

    def lazy(
        self, compute: Callable[[], np.ndarray], shape: Sequence[int], hint: str, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:  # fmt: skip
        """Return an initializer that is computed when it is read."""
        name = self._fresh.name(hint)
        tensor = ir.LazyTensor(lambda: ir.Tensor(compute(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        self._fresh.graph.register_initializer(value)
        return value

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], before: ir.Node, hint: str, sizes: Sequence[Size | None] | None,
        attributes: Mapping[str, Any] | None = None, *, domain: str = "", dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:  # fmt: skip
        """Add a node before another, and return its output, named after the other's."""
        name = self._fresh.name(f"{before.outputs[0].name}_{hint}")
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=_shape(sizes))
        node = ir.node(
            op, list(inputs), attributes or {}, domain=domain, outputs=[value], name=name,
            metadata_props=dict(before.metadata_props),
        )  # fmt: skip
        before.prepend(node)
        return value

    def replace(
        self, last: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None, *,
        domain: str = "",
    ) -> ir.Node:  # fmt: skip
        """Put a node in the place of another, whose output keeps its name, and remove what only the other read."""
        node = ir.node(op, list(inputs), attributes or {}, domain=domain, metadata_props=dict(last.metadata_props))
        before = [value.producer() for value in last.inputs if value is not None]
        put_in_place(node, last)
        remove_unread(before)
        return node

    def number(self, value: ir.Value | None, depth: int = DEPTH) -> float | None:
        """Return a scalar that is a constant, or is computed from constants and known sizes, as a root of a head's size."""
        if value is None or depth == 0:
            return None
        known = scalar(value)
        if known is not None:
            return known
        node = value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Sqrt", "Reciprocal"):
            found = self.number(node.inputs[0], depth - 1)
            if found is None or (node.op_type in ("Sqrt", "Reciprocal") and found <= 0):
                return self._size_number(value) if found is None else None
            return math.sqrt(found) if node.op_type == "Sqrt" else 1 / found if node.op_type == "Reciprocal" else found
        if node.op_type in ("Div", "Mul"):
            first, second = (self.number(read, depth - 1) for read in node.inputs)
            if first is None or second is None or (node.op_type == "Div" and second == 0):
                return None
            return first / second if node.op_type == "Div" else first * second
        return self._size_number(value)

    def _size_number(self, value: ir.Value) -> float | None:
        found = self.sizes.elements(value)
        return float(found[0]) if found is not None and len(found) == 1 and isinstance(found[0], int) else None


def _shape(sizes: Sequence[Size | None] | None) -> ir.Shape | None:
    if sizes is None:
        return None
    return ir.Shape([size if isinstance(size, (int, str)) else None for size in sizes])


class RulePass(FusionPass):
    """Applies a rule wherever it matches.

    Args:
        anchors: Operators that the rule looks at.
        rule: The rule.
        missing: Why the target cannot run what the rule makes; then nothing is changed, and this is the reason everywhere.
        learned: What passes before it found out about sizes.
    """

    def __init__(self, anchors: Sequence[str], rule: Rule, missing: str = "", learned: Learned | None = None) -> None:
        super().__init__()
        self.anchors, self.rule, self.missing, self.learned = frozenset(anchors), rule, missing, learned

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        rewriter = None
        for node in list(self._anchored(model)):
            if node.graph is None:
                continue
            rewriter = rewriter or Rewriter(model, self.learned)
            outcome = self.rule(node, rewriter)
            if outcome is None:
                continue
            if isinstance(outcome, str) or self.missing:
                self.refused.append((node, self.missing or str(outcome)))
                continue
            made = outcome()
            self.made.append(made)
            if made.domain:
                model.opset_imports.setdefault(made.domain, 1)
        self.count = len(self.made)
        return ir.passes.PassResult(model, modified=bool(self.count))

    def _anchored(self, model: ir.Model) -> Iterator[ir.Node]:
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.op_type in self.anchors and node.domain in ("", "ai.onnx", MS):
                yield node
