"""Numbers as they arrive: FP32 inputs of the model, and integers and doubles, before anything has brought them to size.

A model that scales, normalises or takes the root of what it is given may be given any size: 16-bit samples, microseconds, pixel
counts. In half these end at 65,504 before the scaling is reached, so it stays FP32, with what lies in front of it. So does what
returns such numbers as they are: between FP32 inputs and outputs, half would cost Casts for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from halfconv.graph.names import subgraphs
from halfconv.graph.typegroups import is_float
from halfconv.precision.blocklist import DEFAULT_OPS
from halfconv.precision.cost import EXACT_OPS
from halfconv.precision.flow import SELECTION_OPS, inputs_of, op, scalar
from halfconv.precision.formats import HalfFormat
from halfconv.precision.masks import SAFE_SINKS
from halfconv.precision.match import Match

__all__ = ["WIDE", "unscaled"]

#: Types whose numbers may lie beyond half's range.
WIDE = frozenset(
    {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.DOUBLE}
)  # fmt: skip
#: Operators whose result is as large as what they read.
CARRIERS = (SELECTION_OPS | EXACT_OPS | {"Abs", "Add", "Neg", "ReduceMean", "ReduceSum", "Sub", "Sum"}) - {"If", "Loop", "Scan"}
#: Operators whose result has a size of its own. Mul and Pow are among them where they do not square.
SCALERS = frozenset(
    {"BatchNormalization", "Div", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax",
     "LpNormalization", "MeanVarianceNormalization", "Mul", "Pow", "RMSNormalization", "Reciprocal",
     "SimplifiedLayerNormalization", "Softmax", "Sqrt"}
)  # fmt: skip
#: Operators to which a number beyond half's range is as good as infinity, or that stay FP32 anyway.
HARMLESS = SAFE_SINKS | {row.op for row in DEFAULT_OPS}


class _Walk:
    """Follows what arrives through the operators that leave it as large as it is.

    Attributes:
        parent: Source -> another one that it meets in a node.
        raw: Value that arrived, or is as large -> the source it belongs to.
        scaled: Values made of such values that have a size of their own.
        nodes: What carries or scales numbers: the node, their source, and whether it scales them.
        read: Sources that something else reads as they are: in half, a Cast would overflow in front of it anyway.
        ends: Source -> a node that makes a result of the model, of which FP32 holds any size.
    """

    def __init__(self, bodies: Collection[ir.Graph]) -> None:
        self.bodies = bodies
        self.parent: dict[ir.Value, ir.Value] = {}
        self.raw: dict[ir.Value, ir.Value] = {}
        self.scaled: set[ir.Value] = set()
        self.nodes: list[tuple[ir.Node, ir.Value, bool]] = []
        self.read: set[ir.Value] = set()
        self.ends: dict[ir.Value, ir.Node] = {}

    def find(self, source: ir.Value) -> ir.Value:
        """Return the one that stands for all sources that meet."""
        while self.parent.setdefault(source, source) is not source:
            source = self.parent[source]
        return source

    def carry(self, node: ir.Node, source: ir.Value) -> None:
        """Take a node's results for as large as a source."""
        self.nodes.append((node, source, False))
        for output in node.outputs:
            if is_float(output):
                self.raw[output] = source
                if output.is_graph_output() and node.graph in self.bodies:
                    self.read.add(source)
                elif output.is_graph_output():
                    self.ends[source] = node

    def visit(self, node: ir.Node) -> None:
        """Say what a node does with the numbers that arrive."""
        reads = list(inputs_of(node))
        arriving = [value for value in reads if value in self.raw]
        if not arriving:
            if reads and all(value in self.scaled for value in reads) and op(node) in CARRIERS | SCALERS:
                self.scaled.update(node.outputs)
            return
        first = self.find(self.raw[arriving[0]])
        alone = all(value in self.raw or value in self.scaled for value in reads)
        if alone and (op(node) in CARRIERS or _squares(node, arriving)):
            for value in arriving[1:]:
                self.parent[self.find(self.raw[value])] = first
            self.carry(node, first)
        elif alone and op(node) in SCALERS:
            self.scaled.update(node.outputs)
            for value in arriving:
                self.nodes.append((node, self.raw[value], True))
        elif op(node) not in HARMLESS and any(is_float(output) for output in node.outputs):
            self.read.update(self.raw[value] for value in arriving)


def _squares(node: ir.Node, arriving: Sequence[ir.Value]) -> bool:
    """Tell whether a product or power makes large numbers larger."""
    if op(node) == "Mul":
        return len(arriving) > 1
    exponent = scalar(node.inputs[1]) if op(node) == "Pow" else 0.0
    return exponent is None or abs(exponent) > 1


def unscaled(nodes: Sequence[ir.Node], to: HalfFormat) -> Iterator[Match]:
    """Yield what scales numbers as they arrive, or returns them, and what lies in front; one match for sources that meet."""
    bodies = {body for node in nodes for _, body in subgraphs(node)}
    walk = _Walk(bodies)
    inputs = {value for node in nodes for value in inputs_of(node) if value.is_graph_input() and value.graph not in bodies}
    walk.raw.update((value, value) for value in inputs)
    for node in nodes:
        if op(node) == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in WIDE and is_float(node.outputs[0]):
            walk.carry(node, node.outputs[0])
        else:
            walk.visit(node)
    unusable = {walk.find(source) for source in walk.read}
    found: dict[ir.Value, dict[ir.Node, bool]] = {}
    for node, source, scales in walk.nodes:
        if (known := walk.find(source)) not in unusable:
            of = found.setdefault(known, {})
            of[node] = of.get(node, False) or scales
    sources: dict[ir.Value, list[ir.Value]] = {}
    for source in dict.fromkeys(walk.raw.values()):
        sources.setdefault(walk.find(source), []).append(source)
    ends = {walk.find(source): node for source, node in walk.ends.items()}
    for known, of in found.items():
        culprit = next((node for node, scales in of.items() if scales), ends.get(known))
        if culprit is None:
            continue
        own = sources[known]
        names = frozenset(value.name or "" for value in own) if inputs.issuperset(own) else frozenset()
        what = "inputs" if names else "integers or doubles"
        until = f"before {culprit.op_type} brings them to size" if of[culprit] else f"up to {culprit.op_type}, which is returned"
        yield Match(tuple(of), culprit, f"{what} may pass {to.max:,.6g} {until}", inputs=names)

