"""What is known of the sizes of values, beyond what shape inference finds: which axes have the same size, whatever it is.

TorchScript exports compute shapes from shapes (``Shape → Gather → Unsqueeze → Concat → Reshape``), and inference gives every result
a new name. Here an axis is followed up through the operators that keep it, to a number, a name, or the first value that has it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from halfconv.graph.reductions import axes_of
from halfconv.graph.typegroups import is_weight

__all__ = ["Learned", "Size", "Sizes", "perm_of"]

#: A size: a number, a name that the model declares, or the value and axis that it comes from.
Size = int | str | tuple[ir.Value, int]
#: (value, axis) -> size.
Learned = dict[tuple[ir.Value, int], Size]
#: How far an axis is followed up.
DEPTH = 100
#: Operators whose first output has the shape of their first input.
SAME = frozenset({
    "BatchNormalization", "BiasGelu", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "Identity", "IsNaN",
    "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "QuickGelu", "RMSNormalization", "Reciprocal", "Relu",
    "Sigmoid", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "Sqrt", "Tanh",
})  # fmt: skip
#: Operators that broadcast their inputs.
BROADCAST = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where"})
#: Operators whose other outputs have that shape, too.
SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
#: Operators of which axes 0 and 1 are those of the first input.
ATTENTION = frozenset({"Attention", "MultiHeadAttention"})
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
#: Operators that compute a size from others.
ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class Sizes:
    """Looks sizes up, and remembers them.

    Args:
        learned: What is known from elsewhere than the graph; more is added to it.
    """

    def __init__(self, learned: Learned | None = None) -> None:
        self._learned: Learned = {} if learned is None else learned
        self._known: Learned = {}
        self._owners: dict[str, tuple[ir.Value, int]] = {}

    def of(self, value: ir.Value) -> list[Size] | None:
        """Return the sizes of all axes; None if the rank is unknown."""
        if value.shape is None:
            node = value.producer()
            return self._reshaped(node, DEPTH) if node is not None and node.op_type == "Reshape" and not node.domain else None
        return [self.size(value, axis) for axis in range(value.shape.rank())]

    def learn(self, value: ir.Value, sizes: Sequence[Size]) -> None:
        """Take note of a value's sizes, where something else than its producer tells them."""
        self._learned.update({(value, axis): size for axis, size in enumerate(sizes)})

    def owner(self, size: Size) -> tuple[ir.Value, int] | None:
        """Return the value and axis furthest up that were seen to have a size."""
        return self._owners.get(size) if isinstance(size, str) else size if isinstance(size, tuple) else None

    def forget(self, value: ir.Value) -> None:
        """Forget a value's sizes: its layout changes."""
        for known in (self._known, self._learned):
            for key in [key for key in known if key[0] is value]:
                del known[key]

    def size(self, value: ir.Value, axis: int, depth: int = DEPTH) -> Size:
        """Return the size of an axis, counted from the front."""
        key = (value, axis)
        if key in self._learned:
            return self._learned[key]
        if key in self._known:
            return self._known[key]
        given = value.shape[axis] if value.shape is not None and axis < value.shape.rank() else None
        if isinstance(given, int):
            return given
        if depth == 0:
            return key
        found = self._above(value, axis, depth - 1)
        if found is None:
            found = key
            if isinstance(given, ir.SymbolicDim) and given.value:
                found = given.value
                self._owners.setdefault(found, key)
        self._known[key] = found
        return found

    def together(self, first: ir.Value, second: ir.Value) -> list[Size | None] | None:
        """Return the sizes of what two values give that are broadcast together; None where a size is not known."""
        sides = self.of(first), self.of(second)
        if sides[0] is None or sides[1] is None:
            return None
        rank = max(map(len, sides))  # type: ignore[arg-type]
        pairs = zip(*([1] * (rank - len(side)) + list(side) for side in sides if side is not None), strict=True)
        return [a if a == b or b == 1 else b if a == 1 else None for a, b in pairs]

    def elements(self, value: ir.Value | None, depth: int = DEPTH) -> list[Size] | None:
        """Return the elements of a value of integers, such as a shape; None if they are not known at all."""
        if value is None or depth == 0:
            return None
        if is_weight(value):
            tensor = value.const_value
            if tensor is None or tensor.size > 16 or tensor.shape.rank() > 1 or tensor.dtype not in INTEGERS:
                return None
            return [int(number) for number in tensor.numpy().reshape(-1)]
        node = value.producer()
        if node is None or node.domain:
            return None
        return self._elements(node, depth - 1)

    def _elements(self, node: ir.Node, depth: int) -> list[Size] | None:
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and first is not None and first.shape is not None:
            rank = first.shape.rank()
            start, end, _ = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)).indices(rank)
            return [self.size(first, axis, depth) for axis in range(start, end)]
        if node.op_type == "Concat":
            parts = [self.elements(value, depth) for value in node.inputs]
            return None if None in parts else [size for part in parts if part is not None for size in part]
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
            given = self.elements(first, depth)
            return given if node.op_type != "Unsqueeze" or given is None or len(given) == 1 else None
        if node.op_type == "Reshape":
            given, shape = self.elements(first, depth), self.elements(node.inputs[1], depth)
            return given if shape is not None and len(shape) <= 1 else None
        if node.op_type in ARITHMETIC:
            sides = [self.elements(read, depth) for read in node.inputs]
            return _computed(node.op_type, sides[0], sides[1])
        if node.op_type == "Where":  # the shape of an Expand, where −1 stands for 1
            test, given = node.inputs[0].producer() if node.inputs[0] is not None else None, self.elements(node.inputs[2], depth)
            if test is None or test.op_type != "Equal" or test.inputs[0] is not node.inputs[2] or given is None:
                return None
            return [1 if size == -1 else size for size in given]
        if node.op_type in ("Gather", "Slice"):
            given, picked = self.elements(first, depth), [self.elements(value, depth) for value in node.inputs[1:]]
            numbers = [part[0] if part is not None and len(part) == 1 else None for part in picked]
            if given is None or not numbers or not all(isinstance(number, int) for number in numbers):
                return None
            chosen = [number for number in numbers if isinstance(number, int)]
            if node.op_type == "Gather":
                return [given[chosen[0]]] if -len(given) <= chosen[0] < len(given) else None
            if len(chosen) < 2 or (len(chosen) > 2 and chosen[2] != 0) or (len(chosen) > 3 and chosen[3] != 1):
                return None
            return given[chosen[0] : chosen[1]]
        return None

    def _above(self, value: ir.Value, axis: int, depth: int) -> Size | None:
        """Return an axis's size from the inputs of the node that makes the value."""
        node = value.producer()
        if node is None or node.domain not in DOMAINS or not node.inputs:
            return None
        if value is not node.outputs[0] and node.op_type not in ("Split", *SKIPS):
            return None
        first = node.inputs[0]
        if node.op_type in BROADCAST and not node.domain:
            return self._broadcast(node, value, axis, depth)
        if first is None or first.shape is None:
            return None
        rank = first.shape.rank()
        if node.op_type in SAME or (node.op_type in ATTENTION and axis < 2 and rank == 3):
            return self.size(first, axis, depth)
        if node.domain == "com.microsoft":
            return None
        return self._moved(node, value, first, axis, rank, depth)

    def _moved(self, node: ir.Node, value: ir.Value, first: ir.Value, axis: int, rank: int, depth: int) -> Size | None:
        """As `_above`, for operators that move axes."""
        second = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type == "MatMul" and second is not None and second.shape is not None:
            return self._product(first, rank, second, second.shape.rank(), axis, depth)
        if node.op_type == "Conv" and (axis == 0 or (axis > 1 and _keeps(node, second, axis - 2, rank - 2))):
            return self.size(first, axis, depth)
        if node.op_type.startswith("Reduce") and node.attributes.get_int("keepdims", True):
            axes = axes_of(node)
            return None if not axes else 1 if axis in {place % rank for place in axes} else self.size(first, axis, depth)
        if node.op_type == "Transpose":
            return self.size(first, perm_of(node, rank)[axis], depth)
        if node.op_type == "Reshape":
            sizes = self._reshaped(node, depth)
            return sizes[axis] if sizes is not None and axis < len(sizes) and sizes[axis] != (value, axis) else None
        if node.op_type == "Gather" and second is not None and second.shape is not None:
            place, picked = node.attributes.get_int("axis", 0) % rank, second.shape.rank()
            if place <= axis < place + picked:
                return self.size(second, axis - place, depth)
            return self.size(first, axis if axis < place else axis - picked + 1, depth)
        if node.op_type in ("Split", "Concat"):
            if node.attributes.get_int("axis", 0) % rank != axis:
                return self.size(first, axis, depth)
            if node.op_type == "Split":
                if second is None:
                    whole, count = self.size(first, axis, depth), len(node.outputs)
                    return whole // count if isinstance(whole, int) and whole % count == 0 else None
                parts, place = self.elements(second, depth), list(node.outputs).index(value)
                return parts[place] if parts is not None and place < len(parts) else None
            parts = [self.size(read, axis, depth) for read in node.inputs if read is not None and read.shape is not None]
            known = [size for size in parts if isinstance(size, int)]
            return sum(known) if len(known) == len(node.inputs) else None
        if node.op_type == "Expand" and axis < rank and value.shape is not None and value.shape.rank() == rank:
            size, wanted = self.size(first, axis, depth), self.elements(second, depth)
            if wanted is None or len(wanted) != rank:
                return None
            return size if wanted[axis] in (1, -1, size) else wanted[axis] if size == 1 else None
        if node.op_type == "Unsqueeze" and value.shape is not None:
            axes = self._axes(node, value.shape.rank(), depth)
            if axes is None:
                return None
            return 1 if axis in axes else self.size(first, axis - sum(place < axis for place in axes), depth)
        if node.op_type == "Squeeze":
            axes = self._axes(node, rank, depth)
            kept = [place for place in range(rank) if axes is not None and place not in axes]
            return self.size(first, kept[axis], depth) if axis < len(kept) else None
        if node.op_type == "Slice" and len(node.inputs) > 2:
            axes = self._axes(node, rank, depth, 3)
            if axes is not None and axis not in axes:
                return self.size(first, axis, depth)
            return self._sliced(node, axes, axis, self.size(first, axis, depth), depth)
        return None

    def _product(self, first: ir.Value, rank: int, second: ir.Value, other: int, axis: int, depth: int) -> Size | None:
        """Return the size of an axis of a product of matrices."""
        if rank < 2 or other < 2 or axis >= max(rank, other):
            return None
        if other == 2 and axis < rank - 1:
            return self.size(first, axis, depth)
        if rank != other:
            return None
        if axis >= rank - 2:
            return self.size(first if axis == rank - 2 else second, axis, depth)
        sides = {self.size(value, axis, depth) for value in (first, second)} - {1}
        return 1 if not sides else sides.pop() if len(sides) == 1 else None

    def _axes(self, node: ir.Node, rank: int, depth: int, place: int = 1) -> list[int] | None:
        """Return a node's axes, counted from the front."""
        if "axes" in node.attributes:
            return [axis % rank for axis in node.attributes["axes"].as_ints()]
        axes = self.elements(node.inputs[place], depth) if len(node.inputs) > place else None
        return [axis % rank for axis in axes if isinstance(axis, int)] if axes is not None and rank else None

    def _sliced(self, node: ir.Node, axes: list[int] | None, axis: int, size: Size, depth: int) -> Size | None:
        """Return the size of an axis that a Slice cuts."""
        parts = [self.elements(read, depth) for read in (*node.inputs[1:3], *node.inputs[4:5])]
        if axes is None or axes != [axis] or not isinstance(size, int) or any(part is None or len(part) != 1 for part in parts):
            return None
        numbers = [part[0] for part in parts if part is not None and isinstance(part[0], int)]
        step = numbers[2] if len(numbers) > 2 else 1
        return len(range(*slice(numbers[0], numbers[1], step).indices(size))) if len(numbers) == len(parts) and step > 0 else None

    def _broadcast(self, node: ir.Node, value: ir.Value, axis: int, depth: int) -> Size | None:
        """Return the one size that the inputs have along an axis, apart from 1."""
        if value.shape is None or any(read is None or read.shape is None for read in node.inputs):
            return None
        found = set()
        for read in node.inputs:
            assert read is not None and read.shape is not None
            place = axis - value.shape.rank() + read.shape.rank()
            if place >= 0:
                found.add(self.size(read, place, depth))
        found.discard(1)
        return 1 if not found else found.pop() if len(found) == 1 else None

    def _reshaped(self, node: ir.Node, depth: int) -> list[Size] | None:
        """Return the sizes of a Reshape's output."""
        source, shape = node.inputs[0], self.elements(node.inputs[1], depth)
        if source is None or shape is None:
            return None
        output = node.outputs[0]
        before = [self.size(source, axis, depth) for axis in range(source.shape.rank())] if source.shape is not None else None
        copies = not node.attributes.get_int("allowzero", 0)
        sizes: list[Size] = []
        for axis, size in enumerate(shape):
            if size == 0 and copies:
                sizes.append(before[axis] if before is not None and axis < len(before) else (output, axis))
            else:
                sizes.append((output, axis) if size == -1 else size)
        if shape.count(-1) == 1 and before is not None:
            place = shape.index(-1)
            rest = _quotient(before, [size for axis, size in enumerate(sizes) if axis != place])
            sizes[place] = (output, place) if rest is None else rest
        return sizes


def perm_of(transpose: ir.Node, rank: int) -> list[int]:
    """Return the axes of a Transpose of a tensor of this rank."""
    return list(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else list(range(rank))[::-1]


def _keeps(conv: ir.Node, weight: ir.Value | None, axis: int, rank: int) -> bool:
    """Tell whether a convolution leaves the size of a spatial axis as it is."""
    attributes = conv.attributes
    strides, dilations = (attributes[n].as_ints() if n in attributes else [1] * rank for n in ("strides", "dilations"))
    kernel = weight.shape[axis + 2] if weight is not None and weight.shape is not None else None
    if strides[axis] != 1 or not isinstance(kernel, int):
        return False
    kind = attributes.get_string("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        return True
    pads = attributes["pads"].as_ints() if "pads" in attributes and kind != "VALID" else [0] * 2 * rank
    return pads[axis] + pads[axis + rank] == (kernel - 1) * dilations[axis]


def _computed(op: str, first: list[Size] | None, second: list[Size] | None) -> list[Size] | None:
    """Return a size computed from two others that are numbers."""
    if first is None or second is None or len(first) != 1 or len(second) != 1:
        return None
    a, b = first[0], second[0]
    if not isinstance(a, int) or not isinstance(b, int) or (op == "Div" and b == 0):
        return None
    return [a + b if op == "Add" else a - b if op == "Sub" else a * b if op == "Mul" else int(a / b)]


def _quotient(whole: Sequence[Size], parts: Sequence[Size]) -> Size | None:
    """Return what is left of a product of sizes, divided by others, if that is one size."""
    symbols = Counter(size for size in whole if not isinstance(size, int))
    others = Counter(size for size in parts if not isinstance(size, int))
    if others - symbols:
        return None
    left = list((symbols - others).elements())
    number, by = (math.prod(size for size in sizes if isinstance(size, int)) for sizes in (whole, parts))
    if by == 0 or number % by:
        return None
    if not left:
        return number // by
    return left[0] if len(left) == 1 and number == by else None
