"""Random valid FP32 models for hypothesis, with a bound of what half precision may change in each value.

Every value carries the largest magnitude that it can have and the largest error that rounding to half anywhere before it can
cause, both by plain interval arithmetic. An error of `FRAGILE` means that rounding can change the value entirely (an integer
that was a float, a comparison); such a value is computed but not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

FRAGILE = math.inf
#: Error of rounding a number of order 1 to half, once on the way into an operator and once on the way out.
ROUND = 2.0**-10
SHAPE = (3, 4)
IMAGE = (1, 2, 4, 4)
KINDS = {"f": TensorProto.FLOAT, "d": TensorProto.DOUBLE, "i": TensorProto.INT64, "b": TensorProto.BOOL}
#: What a value may be called: its number, and the one before.
NAMES = ("v{0}", "layer.{0}/out:0", "wert ü {0}", "v{1}_fp16", "v{1}_fp32", "Cast_v{1}_fp16", "/b.{0}/")
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Val(NamedTuple):
    """A value: its name, kind (a key of KINDS), shape, largest magnitude, and largest error in half."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bound: float = 1.0
    error: float = 0.0


@dataclass
class Scope:
    """A graph under construction."""

    depth: int
    seen: list[Val]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    made: list[Val] = field(default_factory=list)


@dataclass
class RandomModel:
    """A model, inputs for it, and what its outputs may drift by."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    outputs: list[Val]
    weights: list[np.ndarray]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what hypothesis prints for a failure
        printer.text(onnx.printer.to_text(self.model))


class Builder:
    """Builds one model from hypothesis' draws."""

    def __init__(self, draw: Draw, steps: int, depth: int):
        self.draw, self.depth = draw, depth
        self.opset: int = draw(st.sampled_from([13, 17, 18, 21]))
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))
        self.steps, self.count = steps, 0
        self.arrays: list[np.ndarray] = []
        self.scope = Scope(0, [])

    # --- parts ------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        self.count += 1
        return str(self.draw(st.sampled_from(NAMES))).format(self.count, self.count - 1)

    def node(self, op: str, inputs: list[Val | str], *outputs: tuple[Any, ...], domain: str = "", **attributes: Any) -> list[Val]:
        """Add a node; each output is (kind, shape, bound, error) and gets a name."""
        names = [value if isinstance(value, str) else value.name for value in inputs]
        made = [Val(self.name(), *output) for output in outputs]
        made = [v._replace(error=v.error if v.error < 0.25 * max(1.0, v.bound) else FRAGILE) for v in made]
        called = self.draw(st.sampled_from(["", "", "twin", f"node {self.count}", f"/m.{self.count}/{op}"]))
        self.scope.nodes.append(helper.make_node(op, names, [v.name for v in made], called, domain=domain, **attributes))
        self.scope.made += made
        self.scope.seen = self.scope.seen + made
        return made

    def op(
        self, op: str, inputs: list[Val | str], like: Val, gain: float = 1.0, bound: float | None = None, **attributes: Any
    ) -> Val:
        """Add a node of one float output of a value's shape, whose error is a gain times the input's."""
        limit = like.bound if bound is None else bound
        error = gain * like.error + ROUND * max(limit, like.bound)
        return self.node(op, inputs, ("f", like.shape, limit, error), **attributes)[0]

    def constant(self, array: np.ndarray) -> str:
        """Store a constant as an initializer of the current graph, or as a Constant node."""
        self.count += 1
        name = f"const{self.count}"
        if self.draw(st.booleans()):
            self.scope.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.scope.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def weight(self, shape: tuple[int, ...], scale: float = 1.0) -> Val:
        """Return a weight that is visible here, or a new one with content of its own."""
        known = [v for v in self.scope.seen if v.kind == "w" and v.shape == shape and v.bound == scale]
        if known and self.draw(st.booleans()):
            return known[self.draw(st.integers(0, len(known) - 1))]
        array = self.rng.uniform(0.1, 1.0, shape) * self.rng.choice([-1, 1], shape) * scale
        array = np.asarray(array, np.float32)
        self.arrays.append(array)
        made = Val(self.constant(array), "w", shape, scale, scale * ROUND)
        self.scope.seen = [*self.scope.seen, made]
        return made

    def pick(self, kind: str = "f", fits: Callable[[Val], bool] = lambda value: True) -> Val | None:
        found = [v for v in self.scope.seen if v.kind == kind and fits(v)]
        return found[-1 - self.draw(st.integers(0, min(len(found), 12) - 1))] if found else None

    def calm(self, value: Val, limit: float = 4.0) -> Val:
        return value if value.bound <= limit else self.op("Tanh", [value], value, bound=1.0)

    def any(self, limit: float = 4.0) -> Val:
        value = self.pick()
        assert value is not None
        return self.calm(value, limit)

    def plain(self, limit: float = 4.0) -> Val:
        """Return a value of the standard shape."""
        value = self.pick(fits=lambda v: v.shape == SHAPE)
        assert value is not None
        return self.calm(value, limit)

    # --- operators --------------------------------------------------------------------------------------------------

    def unary(self) -> None:
        x = self.any()
        op, bound = self.draw(st.sampled_from([
            ("Relu", x.bound), ("Tanh", 1), ("Sigmoid", 1), ("Neg", x.bound), ("Abs", x.bound), ("Erf", 1), ("Identity", x.bound),
            ("LeakyRelu", x.bound), ("Softplus", x.bound + 1), ("Elu", x.bound), ("Softsign", 1), ("Dropout", x.bound),
            ("HardSigmoid", 1), ("Sin", 1),
        ]))  # fmt: skip
        self.op(op, [x], x, 1.2, float(bound))

    def binary(self) -> None:
        x, op = self.any(), self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min"]))
        y = self.pick(fits=lambda v: v.shape == x.shape and v.bound <= 4)
        if y is None or self.draw(st.booleans()):
            y = self.weight(self.draw(st.sampled_from([x.shape, x.shape[-1:], ()])))
        bound = {"Mul": x.bound * y.bound, "Max": max(x.bound, y.bound), "Min": max(x.bound, y.bound)}.get(op, x.bound + y.bound)
        error = x.bound * y.error + y.bound * x.error if op == "Mul" else x.error + y.error
        pair = [x, y] if self.draw(st.booleans()) else [y, x]
        self.node(op, pair, ("f", x.shape, bound, error + ROUND * bound))

    def divide(self) -> None:
        x, y = self.any(), self.any(2.0)
        y = y if y.shape == x.shape else x
        square = self.node("Mul", [y, y], ("f", y.shape, y.bound**2, 2 * y.bound * y.error + ROUND * y.bound**2))[0]
        below = self.op("Add", [square, self.constant(np.float32(1.0))], square, bound=square.bound + 1)
        self.node("Div", [x, below], ("f", x.shape, x.bound, x.error + x.bound * below.error + ROUND * x.bound))

    def functions(self) -> None:
        x = self.any(2.0)
        kind = self.draw(st.sampled_from(["Exp", "Sqrt", "Log", "Pow", "Reciprocal"]))
        if kind == "Exp":
            self.op(kind, [x], x, math.exp(x.bound), math.exp(x.bound))
        elif kind == "Pow":
            self.op(kind, [x, self.constant(np.float32(2.0))], x, 2 * x.bound, x.bound**2)
        else:
            size = self.op("Abs", [x], x)
            above = self.op("Add", [size, self.constant(np.float32(0.5))], size, bound=size.bound + 0.5)
            self.op(kind, [above], above, 4.0, max(2.0, above.bound))

    def matmul(self) -> None:
        x, kind = self.plain(), self.draw(st.sampled_from(["MatMul", "Gemm", "Einsum"]))
        w = self.weight((4, 4), 0.25)
        bound, error = x.bound, x.error + 4 * x.bound * w.error + 4 * ROUND * x.bound
        if kind == "Gemm":
            bias = self.weight((4,))
            self.node("Gemm", [x, w, bias], ("f", SHAPE, bound + 1, error + 2 * ROUND))
        elif kind == "Einsum":
            self.node("Einsum", [x, w], ("f", SHAPE, bound, error), equation="ij,jk->ik")
        else:
            self.node("MatMul", [x, w], ("f", SHAPE, bound, error))

    def conv(self) -> None:
        x = self.pick(fits=lambda v: v.shape == IMAGE)
        if x is None:
            flat = self.weight(IMAGE)
            return self.op("Tanh", [flat], flat) and None
        x = self.calm(x)
        if self.draw(st.booleans()):
            w = self.weight((2, 2, 1, 1), 0.5)
            error = x.error + 2 * x.bound * w.error + 2 * ROUND * x.bound
            return self.node("Conv", [x, w], ("f", IMAGE, x.bound, error)) and None
        kind = self.draw(st.sampled_from(["BatchNormalization", "MaxPool", "GlobalAveragePool", "Resize", "InstanceNormalization"]))
        if kind == "BatchNormalization":
            parts = [self.constant(np.array(c, np.float32)) for c in ([1.0, 0.5], [0.1, -0.2], [0.3, 0.1], [1.0, 2.0])]
            self.op(kind, [x, *parts], x, 1.5, x.bound + 1)
        elif kind == "MaxPool":
            self.op(kind, [x], x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "GlobalAveragePool":
            self.node(kind, [x], ("f", (1, 2, 1, 1), x.bound, x.error + 2 * ROUND * x.bound))
        elif kind == "Resize":
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.node(kind, [x, "", scales], ("f", (1, 2, 8, 8), x.bound, x.error + ROUND * x.bound), mode="nearest")
        else:
            parts = [self.constant(np.array(c, np.float32)) for c in ([1.0, 0.5], [0.1, -0.2])]
            self.op(kind, [x, *parts], x, 10.0, 8.0, epsilon=0.1)

    def softmax(self) -> None:
        x, seen = self.any(), self.scope.seen
        mask = self.draw(st.sampled_from([None, "where", "add", "row"]))
        if mask and x.shape == SHAPE:
            keep = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0 if mask == "row" else 1, 0, 0, 0]], bool)
            low = float(self.draw(st.sampled_from([-3.4028235e38, -1e9, -1e4, -65504.0])))
            if mask == "add":
                x = self.op("Add", [x, self.constant(np.where(keep, 0, low).astype(np.float32))], x)
            else:
                x = self.op("Where", [self.constant(keep), x, self.constant(np.float32(low))], x)
        made = self.op("Softmax" if x.shape else "Sigmoid", [x], x, 2.0, 1.0, **{"axis": -1} if x.shape else {})
        self.scope.seen = [*seen, made]  # nothing else reads masked scores
        self.scope.made = [v for v in self.scope.made if v is not x or not mask]

    def norm(self) -> None:
        """A LayerNorm or RMSNorm, as one operator or decomposed."""
        x = self.plain()
        epsilon, gain = self.draw(st.sampled_from([(0.1, 8.0), (1e-5, FRAGILE), (1e-12, FRAGILE)]))
        error = gain * (x.error + ROUND * x.bound) if x.error < FRAGILE else FRAGILE
        scale, bias = self.weight((4,)), self.weight((4,))
        if self.opset >= 17 and self.draw(st.booleans()):
            return self.node("LayerNormalization", [x, scale, bias], ("f", SHAPE, 3.0, error), epsilon=epsilon) and None

        def mean(value: Val) -> Val:
            result = ("f", (3, 1), value.bound, FRAGILE)
            if self.opset >= 18:
                return self.node("ReduceMean", [value, self.constant(np.array([-1]))], result)[0]
            return self.node("ReduceMean", [value], result, axes=[-1])[0]

        centred = x if self.draw(st.booleans()) else self.node("Sub", [x, mean(x)], ("f", SHAPE, 2 * x.bound, FRAGILE))[0]
        if self.draw(st.booleans()):
            square = self.node("Pow", [centred, self.constant(np.float32(2.0))], ("f", SHAPE, 64.0, FRAGILE))[0]
        else:
            square = self.node("Mul", [centred, centred], ("f", SHAPE, 64.0, FRAGILE))[0]
        safe = self.node("Add", [mean(square), self.constant(np.float32(epsilon))], ("f", (3, 1), 65.0, FRAGILE))[0]
        root = self.node("Sqrt", [safe], ("f", (3, 1), 9.0, FRAGILE))[0]
        normal = self.node("Div", [centred, root], ("f", SHAPE, 2.0, error))[0]
        scaled = self.node("Mul", [normal, scale], ("f", SHAPE, 2.0, error))[0]
        self.node("Add", [scaled, bias], ("f", SHAPE, 3.0, error))

    def reduce(self) -> None:
        x, op = self.plain(), self.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2", "CumSum"]))
        bound, gain = (x.bound, 1.0) if op in ("ReduceMean", "ReduceMax") else (4 * x.bound, 4.0)
        output = ("f", (3, 1), bound, gain * (x.error + ROUND * x.bound))
        if op == "CumSum":
            self.op(op, [x, self.constant(np.int64(1))], x, 4.0, bound)
        elif op == "ReduceSum" or self.opset >= 18:
            self.node(op, [x, self.constant(np.array([1]))], output)
        else:
            self.node(op, [x], output, axes=[1])

    def move(self) -> None:
        x = self.any(8.0)
        kind = self.draw(st.sampled_from(["Transpose", "Reshape", "Concat", "Split", "Gather", "Expand", "Pad", "TopK", "Clip"]))
        size, rest = math.prod(x.shape), (x.bound, x.error + ROUND * x.bound)
        if kind == "Transpose":
            self.node(kind, [x], ("f", x.shape[::-1], *rest))
        elif kind == "Reshape":
            self.node(kind, [x, self.constant(np.array([-1]))], ("f", (size,), *rest))
        elif kind == "Concat" and x.shape:
            if size <= 64:
                parts = [x, x] if self.draw(st.booleans()) else [x, self.weight(x.shape)]
                self.node(kind, parts, ("f", (2 * x.shape[0], *x.shape[1:]), max(1, x.bound), rest[1] + ROUND), axis=0)
        elif kind == "Split" and x.shape and x.shape[-1] % 2 == 0:
            half = (*x.shape[:-1], x.shape[-1] // 2)
            sizes = self.constant(np.array([half[-1]] * 2))
            self.node(kind, [x, sizes], ("f", half, *rest), ("f", half, *rest), axis=-1)
        elif kind == "Gather" and x.shape:
            self.node(kind, [x, self.constant(np.array([0, 0, 0]))], ("f", (3, *x.shape[1:]), *rest), axis=0)
        elif kind == "Expand":
            self.node(kind, [x, self.constant(np.array([1]))], ("f", x.shape, *rest))
        elif kind == "Pad" and x.shape == SHAPE:
            filler = self.constant(np.float32(0.5))
            self.node(kind, [x, self.constant(np.array([0, 1, 0, 0])), filler], ("f", (3, 5), max(1, x.bound), rest[1]))
        elif kind == "TopK" and x.shape:
            top = self.constant(np.array([1]))
            self.node(kind, [x, top], ("f", (*x.shape[:-1], 1), *rest), ("i", (*x.shape[:-1], 1), 99.0, FRAGILE))
        elif kind == "Clip":
            low = float(self.draw(st.sampled_from([-0.5, -3.4028235e38, -70000.0])))
            self.node(kind, [x, self.constant(np.float32(low))], ("f", x.shape, max(0.5, x.bound), rest[1]))

    def cast(self) -> None:
        """To another type, something computed there, and back."""
        kind = self.draw(st.sampled_from(["d", "i", "b", "half", "float", "from int", "from bool"]))
        if kind in ("from int", "from bool"):
            x = self.pick("i" if kind == "from int" else "b")
            if x is not None:
                self.node("Cast", [x], ("f", x.shape, x.bound, x.error + ROUND * x.bound), to=TensorProto.FLOAT)
            return
        x = self.any()
        rest = (x.bound, x.error + ROUND * x.bound)
        if kind == "d":
            wide = self.node("Cast", [x], ("d", x.shape, *rest), to=TensorProto.DOUBLE)[0]
            wide = self.node(self.draw(st.sampled_from(["Relu", "Neg", "Abs"])), [wide], ("d", x.shape, *rest))[0]
            self.node("Cast", [wide], ("f", x.shape, *rest), to=TensorProto.FLOAT)
        elif kind == "half":
            self.count += 1
            name = f"narrow{self.count}"
            self.scope.nodes.append(helper.make_node("Cast", [x.name], [name], to=TensorProto.FLOAT16))
            self.node("Cast", [name], ("f", x.shape, *rest), to=TensorProto.FLOAT)
        elif kind == "float":
            self.node("Cast", [x], ("f", x.shape, *rest), to=TensorProto.FLOAT)
        else:
            made = self.node("Cast", [x], (kind, x.shape, x.bound, FRAGILE), to=KINDS[kind])[0]
            self.node("Cast", [made], ("f", x.shape, x.bound, FRAGILE), to=TensorProto.FLOAT)

    def where(self) -> None:
        x = self.plain()
        y = self.pick(fits=lambda v: v.shape == SHAPE and v.bound <= 4) or self.weight(SHAPE)
        condition = self.pick("b", lambda v: v.shape in ((), SHAPE))
        if condition is None or self.draw(st.booleans()):
            condition = self.node("Greater", [x, y], ("b", SHAPE, 1.0, FRAGILE))[0]
        bound = max(x.bound, y.bound)
        self.node("Where", [condition, x, y], ("f", SHAPE, bound, max(x.error, y.error, condition.error) + ROUND * bound))

    def shapes(self) -> None:
        """Sizes and integers that meet floats."""
        x = self.any(2.0)
        kind = self.draw(st.sampled_from(["size", "constant", "arg", "sequence"]))
        rest = (x.bound, x.error + ROUND * x.bound)
        if kind == "size":
            shape = self.node("Shape", [x], ("i", (len(x.shape),), 99.0, 0.0))[0]
            if x.shape:
                first = self.node("Gather", [shape, self.constant(np.int64(0))], ("i", (), 99.0, 0.0))[0]
                number = self.node("Cast", [first], ("f", (), 99.0, 0.0), to=TensorProto.FLOAT)[0]
                self.node("Div", [x, number], ("f", x.shape, *rest))
        elif kind == "constant":
            shape = self.node("Shape", [x], ("i", (len(x.shape),), 99.0, 0.0))[0]
            value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.3])
            filled = self.node("ConstantOfShape", [shape], ("f", x.shape, 0.3, ROUND), value=value)[0]
            self.node("Add", [x, filled], ("f", x.shape, x.bound + 0.3, rest[1] + 2 * ROUND))
        elif kind == "arg" and x.shape:
            self.node("ArgMax", [x], ("i", (1, *x.shape[1:]), 99.0, FRAGILE))
        elif kind == "sequence":
            self.count += 1
            name = f"list{self.count}"
            self.scope.nodes.append(helper.make_node("SequenceConstruct", [x.name, x.name], [name]))
            self.node("SequenceAt", [name, self.constant(np.int64(1))], ("f", x.shape, *rest))

    # --- subgraphs --------------------------------------------------------------------------------------------------

    def body(self, name: str, inputs: list[Val], build: Callable[[], list[Val]]) -> tuple[onnx.GraphProto, list[Val]]:
        """Build a graph that sees the outer values; `build` returns its results."""
        outer, self.scope = self.scope, Scope(self.scope.depth + 1, [*self.scope.seen, *inputs])
        results = build()
        inner, self.scope = self.scope, outer
        graph = helper.make_graph(
            inner.nodes, name, [info(v) for v in inputs], [info(v) for v in results], initializer=inner.initializers
        )
        return graph, results

    def some(self) -> None:
        for _ in range(self.draw(st.integers(0, 4))):
            self.step()

    def fresh(self, bound: float | None = None) -> Val:
        """Compute a value of the standard shape in this very graph."""
        x = self.plain()
        op = "Tanh" if bound is not None else self.draw(st.sampled_from(["Identity", "Tanh", "Relu"]))
        return self.op(op, [x], x, bound=bound)

    def branch(self) -> None:
        condition = self.pick("b", lambda v: v.shape == () and v.error == 0)
        if condition is None or self.scope.depth >= self.depth:
            return
        many, start = self.draw(st.integers(1, 2)), self.count

        def build() -> list[Val]:
            self.some()
            if self.draw(st.integers(0, 5)) == 0:
                array = self.rng.uniform(0.1, 1.0, SHAPE).astype(np.float32)
                self.arrays.append(array)
                self.count += 1
                self.scope.initializers.append(numpy_helper.from_array(array, f"own{self.count}"))
                return [Val(f"own{self.count}", "f", SHAPE, 1.0, ROUND), *(self.fresh() for _ in range(many - 1))]
            return [self.fresh() for _ in range(many)]

        then, first = self.body("then", [], build)
        end = self.count
        self.count = start  # the branches use the same names
        other, second = self.body("else", [], build)
        self.count = max(end, self.count)
        outputs = [("f", SHAPE, max(a.bound, b.bound), max(a.error, b.error) + ROUND) for a, b in zip(first, second, strict=True)]
        self.node("If", [condition], *outputs, then_branch=then, else_branch=other)

    def loop(self) -> None:
        if self.scope.depth >= self.depth:
            return
        starts = [self.plain(1.0) for _ in range(self.draw(st.integers(1, 2)))]
        allowed = 0.02 if all(v.error <= 0.02 for v in starts) else FRAGILE
        step, going = Val(self.name(), "i", (), 2.0), Val(self.name(), "b", ())
        carried = [Val(self.name(), "f", SHAPE, 1.0, allowed) for _ in starts]

        def build() -> list[Val]:
            self.some()
            again = self.node("Identity", [going], ("b", (), 1.0, 0.0))[0]
            return [again, *(self.fresh(1.0) for _ in carried), self.fresh()]

        graph, results = self.body("body", [step, going, *carried], build)
        states, scanned = results[1:-1], results[-1]
        error = allowed if all(v.error <= allowed for v in states) else FRAGILE
        outputs = [("f", SHAPE, 1.0, error) for _ in states]
        count = self.draw(st.integers(1, 3))
        last = ("f", (count, *SHAPE), scanned.bound, FRAGILE if error == FRAGILE else scanned.error)
        trips, true = self.constant(np.int64(count)), self.constant(np.array(True))
        self.node("Loop", [trips, true, *starts], *outputs, last, body=graph)

    def scan(self) -> None:
        if self.scope.depth >= self.depth:
            return
        state, rows = self.plain(1.0), self.plain()
        allowed = 0.02 if state.error <= 0.02 else FRAGILE
        held, row = Val(self.name(), "f", SHAPE, 1.0, allowed), Val(self.name(), "f", (4,), rows.bound, rows.error)

        def build() -> list[Val]:
            self.some()
            both = self.node("Add", [held, row], ("f", SHAPE, 1 + row.bound, held.error + row.error + ROUND))[0]
            return [self.op("Tanh", [both], both, bound=1.0), self.fresh()]

        graph, (after, out) = self.body("body", [held, row], build)
        error = allowed if after.error <= allowed else FRAGILE
        last = ("f", (3, *SHAPE), out.bound, FRAGILE if error == FRAGILE else out.error)
        self.node("Scan", [state, rows], ("f", SHAPE, 1.0, error), last, body=graph, num_scan_inputs=1)

    # --- the model --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        kinds = [self.unary, self.binary, self.divide, self.functions, self.matmul, self.conv, self.softmax, self.norm,
                 self.reduce, self.move, self.cast, self.where, self.shapes]  # fmt: skip
        kinds += [self.branch, self.loop, self.scan] if self.scope.depth < self.depth else []
        kinds[self.draw(st.integers(0, len(kinds) - 1))]()

    def build(self) -> RandomModel:
        inputs = [Val("x", "f", SHAPE, 1.0, ROUND), Val("pixels", "f", IMAGE, 1.0, ROUND), Val("flag", "b", ()),
                  Val("mask", "b", SHAPE), Val("whole", "i", SHAPE, 5.0), Val("wide", "d", SHAPE)]  # fmt: skip
        self.scope.seen = list(inputs)
        for _ in range(self.draw(st.integers(max(1, self.steps // 2), self.steps))):
            self.step()
        made = [v for v in self.scope.made if not v.name.startswith("const")]
        if not made:
            self.unary()
            made = self.scope.made
        chosen = [made[-1], *self.draw(st.lists(st.sampled_from(made), max_size=4))]
        chosen += self.draw(st.lists(st.sampled_from(inputs), max_size=1))
        stored = {tensor.name for tensor in self.scope.initializers}
        held = [v._replace(kind="f") for v in self.scope.seen if v.kind == "w" and v.name in stored]
        chosen += self.draw(st.lists(st.sampled_from(held), max_size=1)) if held else []
        outputs = list({v.name: v for v in chosen}.values())
        graph = helper.make_graph(
            self.scope.nodes, "main", [info(v) for v in inputs], [info(v) for v in outputs], initializer=self.scope.initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        rng = self.rng
        feeds = {
            "x": rng.uniform(-1, 1, SHAPE).astype(np.float32), "pixels": rng.uniform(-1, 1, IMAGE).astype(np.float32),
            "flag": np.array(rng.integers(0, 2), bool), "mask": rng.integers(0, 2, SHAPE).astype(bool),
            "whole": rng.integers(-5, 5, SHAPE), "wide": rng.uniform(-1, 1, SHAPE),
        }  # fmt: skip
        return RandomModel(model, feeds, outputs, self.arrays)


def info(value: Val) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, KINDS[value.kind], value.shape)


@st.composite
def random_models(draw: Draw, steps: int = 10, depth: int = 2) -> RandomModel:
    """Models of up to so many steps, each of one to ten nodes, with subgraphs nested so deep."""
    return Builder(draw, steps, depth).build()
