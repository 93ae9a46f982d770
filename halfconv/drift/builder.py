"""Write FP32 nodes that compute as a half-precision kernel does, step by step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

__all__ = ["MS", "Builder", "Names", "first", "given", "i64", "rounded"]

#: ONNX Runtime's own domain.
MS = "com.microsoft"

FLOAT = ir.DataType.FLOAT


def rounded(array: Any, to: ir.DataType) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Round numbers to the nearest half number (ties to even), and return them in FP32.

    Args:
        array: Numbers.
        to: FLOAT16 or BFLOAT16.
    """
    half = np.float16 if to == ir.DataType.FLOAT16 else ml_dtypes.bfloat16
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(array, np.float32).astype(half).astype(np.float32)


def first(node: ir.Node, index: int = 0) -> ir.Value:
    """Return a node's input, which must be there."""
    value = node.inputs[index]
    assert value is not None
    return value


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Return a node's input, or None if it is left out."""
    return node.inputs[index] if len(node.inputs) > index else None


def i64(*numbers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a vector of whole numbers."""
    return np.array(numbers, np.int64)


class Names:
    """Gives out names that nothing in a model has.

    Args:
        taken: The names that the model has.
    """

    def __init__(self, taken: Iterable[str | None]):
        self._taken = {name for name in taken if name}
        self._stems = {name[: match.start()] for name in self._taken for match in re.finditer("/", name)}

    def value(self, wanted: str) -> str:
        """Return a free name: the wanted one, or it with a number."""
        name, number = wanted, 2
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def stem(self, wanted: str) -> str:
        """Return what names may begin with, before a slash, without meeting one that the model has."""
        stem, number = wanted, 2
        while stem in self._stems:
            stem, number = f"{wanted}_{number}", number + 1
        self._stems.add(stem)
        return stem


class Builder:
    """Collects the nodes that replace one node.

    Args:
        to: The half format.
        stem: What the names of new values begin with.
        opset: The model's opset of ONNX's own operators.
    """

    def __init__(self, to: ir.DataType, stem: str, opset: int):
        self.to, self.stem, self.opset = to, stem, opset
        self.nodes: list[ir.Node] = []

    def _add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        dtype: ir.DataType | None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        node = ir.node(op, inputs, attributes, num_outputs=outputs, domain=domain)
        for output in node.outputs:
            output.type = None if dtype is None else ir.TensorType(dtype)
            output.name = f"{self.stem}/{op}_{len(self.nodes)}_{output.index()}"
        self.nodes.append(node)
        return node

    def node(self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], outputs: int) -> ir.Node:
        """Add a node whose results are of any type: they are left untyped."""
        return self._add(op, inputs, attributes, None, outputs)

    def value(self, x: ir.Value | float) -> ir.Value:
        """Return a value; a number becomes a scalar constant, rounded to half."""
        if isinstance(x, ir.Value):
            return x
        return self.constant(rounded(x, self.to))

    def constant(self, array: Any) -> ir.Value:
        """Return a constant of an array's own type."""
        tensor = ir.Tensor(np.asarray(array))
        return self._add("Constant", [], {"value": tensor}, tensor.dtype).outputs[0]

    def wide(self, op: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
        """Compute in FP32; the result is not rounded."""
        return self._add(op, [self.value(x) for x in inputs], attributes, FLOAT).outputs[0]

    def several(
        self, op: str, inputs: Sequence[ir.Value | None], outputs: int, *, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Compute several FP32 results."""
        return self._add(op, inputs, attributes, FLOAT, outputs, domain).outputs

    def typed(self, dtype: ir.DataType, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Compute a result of another type."""
        return self._add(op, inputs, attributes, dtype).outputs[0]

    def test(self, op: str, *inputs: ir.Value | float) -> ir.Value:
        """Compare, with a boolean result."""
        return self._add(op, [self.value(x) for x in inputs], {}, ir.DataType.BOOL).outputs[0]

    def round(self, x: ir.Value) -> ir.Value:
        """Round to half and back."""
        down = self._add("Cast", [x], {"to": self.to.value}, self.to).outputs[0]
        return self._add("Cast", [down], {"to": FLOAT.value}, FLOAT).outputs[0]

    def half(self, op: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
        """Compute in FP32 and round the result to half: one step of arithmetic in half."""
        return self.round(self.wide(op, *inputs, **attributes))

    def reduce(self, op: str, x: ir.Value, axes: Sequence[int], keepdims: int) -> ir.Value:
        """Reduce in FP32; no axes mean all. The opset says whether axes are an attribute or an input."""
        if not axes:
            return self.wide(op, x, keepdims=keepdims)
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.wide(op, x, self.constant(np.array(axes, np.int64)), keepdims=keepdims)
        return self.wide(op, x, keepdims=keepdims, axes=list(axes))

    def slice(self, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        """Take part of an axis."""
        if self.opset < 10:
            return self.wide("Slice", x, starts=[start], ends=[stop], axes=[axis])
        return self.wide("Slice", x, *(self.constant(np.array([number], np.int64)) for number in (start, stop, axis)))

    def unsqueeze(self, x: ir.Value, axis: int) -> ir.Value:
        """Insert an axis of size 1."""
        if self.opset < 13:
            return self.wide("Unsqueeze", x, axes=[axis])
        return self.wide("Unsqueeze", x, self.constant(np.array([axis], np.int64)))

    def where(self, condition: ir.Value, yes: ir.Value | float, no: ir.Value | float) -> ir.Value:
        """Select."""
        return self.wide("Where", condition, yes, no)
