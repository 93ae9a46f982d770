"""LSTM, GRU and RNN as cuDNN computes them in half: every gate, state and product of a step is rounded.

Found by comparing candidates with an H100, step by step. The first step of an RNN agrees to 99.9 %; later steps depend on the
order of sums inside matrix products, which the state carries on, and agree in distribution. cuDNN has no tanh of its own in
half: it computes 2·sigmoid(2x) − 1, whose error near 0 is absolute, which is why a recurrent layer drifts more than its
roundings suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from halfconv.drift.builder import Builder

__all__ = ["expand_recurrent", "recurrent_on_gpu"]

_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
#: What a file declares may be anything.
MAX_HIDDEN = 1 << 20
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent_on_gpu(node: ir.Node) -> bool:
    """Tell whether the CUDA provider runs a recurrent node; it leaves the others to the CPU, which computes in FP32."""
    wanted = _DEFAULTS[node.op_type]
    given = tuple(name.lower() for name in node.attributes["activations"].as_strings()) if "activations" in node.attributes else ()
    directions = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    if given and given != wanted * directions:
        return False
    if node.op_type == "GRU" and not node.attributes.get_int("linear_before_reset", 0):
        return False
    peepholes = len(node.inputs) > 7 and node.inputs[7] is not None
    lengths = len(node.inputs) > 4 and node.inputs[4] is not None
    flags = any(node.attributes.get_int(name, 0) for name in ("input_forget", "layout"))
    return _hidden(node) > 0 and not (peepholes or lengths or flags or "clip" in node.attributes)


def _hidden(node: ir.Node) -> int:
    """Return the size of the hidden state, 0 if it is unknown."""
    r = node.inputs[2]
    known = r.shape[-1] if r is not None and r.shape is not None and r.shape.rank() else None
    size = node.attributes.get_int("hidden_size", known if isinstance(known, int) else 0)
    return size if size <= MAX_HIDDEN else 0


def _sigmoid(b: Builder, x: ir.Value) -> ir.Value:
    return b.half("Div", 1.0, b.half("Add", b.half("Exp", b.wide("Neg", x)), 1.0))


def _tanh(b: Builder, x: ir.Value) -> ir.Value:
    return b.half("Sub", b.wide("Mul", 2.0, _sigmoid(b, b.wide("Mul", 2.0, x))), 1.0)


class _Direction:
    """One direction of a node: its slices of the weights, and the Scan that runs it."""

    def __init__(self, b: Builder, node: ir.Node, index: int, hidden: int):
        self.b, self.node, self.hidden, self.index = b, node, hidden, index
        self.gates = _GATES[node.op_type]
        self.reverse = index == 1 or node.attributes.get_string("direction", "forward") == "reverse"
        self.w = self._part(1)
        self.r = self._part(2)
        biased = len(node.inputs) > 3 and node.inputs[3] is not None
        both = self._part(3) if biased else b.constant(np.zeros(2 * self.gates * hidden, np.float32))
        self.wb = self._slice(both, 0, self.gates * hidden)
        self.rb = self._slice(both, self.gates * hidden, 2 * self.gates * hidden)

    def _part(self, slot: int) -> ir.Value:
        value = self.node.inputs[slot]
        assert value is not None
        return self.b.wide("Gather", value, self.b.constant(np.int64(self.index)), axis=0)

    def _slice(self, value: ir.Value, start: int, stop: int, axis: int = 0) -> ir.Value:
        return self.b.slice(value, start, stop, axis)

    def run(self, x: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        """Return the hidden states of all steps, [steps, batch, hidden], and the final states, [batch, hidden] each."""
        b = self.b
        projected = b.half("MatMul", x, b.wide("Transpose", self.w, perm=[1, 0]))
        r = b.wide("Transpose", self.r, perm=[1, 0])
        inner = Builder(b.to, f"{b.stem}/step{self.index}", b.opset)
        carried = [ir.val(f"{inner.stem}/state{i}", ir.DataType.FLOAT) for i in range(len(states))]
        step = ir.val(f"{inner.stem}/x", ir.DataType.FLOAT)
        outer, self.b = self.b, inner
        after = getattr(self, f"_{self.node.op_type.lower()}")(step, carried, r)
        self.b = outer
        shown = inner.wide("Identity", after[0])
        for value in (*carried, step, *after, shown):
            value.shape = ir.Shape([None, None])  # [batch, hidden]: a Scan wants to know the rank
        body = ir.Graph([*carried, step], [*after, shown], nodes=inner.nodes, name=inner.stem, opset_imports={"": b.opset})
        attributes: dict[str, Any] = {
            "body": body, "num_scan_inputs": 1, "scan_input_directions": [int(self.reverse)],
            "scan_output_directions": [int(self.reverse)],
        }  # fmt: skip
        outputs = self.b.several("Scan", [*states, projected], len(states) + 1, **attributes)
        return outputs[-1], list(outputs[:-1])

    def _before(self, x: ir.Value, h: ir.Value, r: ir.Value) -> ir.Value:
        """Gates before activation: the product with the state is added to the input's, then one bias, then the other."""
        b = self.b
        summed = b.half("Add", x, b.wide("MatMul", h, r))
        return b.half("Add", b.half("Add", summed, self.wb), self.rb)

    def _rnn(self, x: ir.Value, states: list[ir.Value], r: ir.Value) -> list[ir.Value]:
        return [_tanh(self.b, self._before(x, states[0], r))]

    def _lstm(self, x: ir.Value, states: list[ir.Value], r: ir.Value) -> list[ir.Value]:
        b, n = self.b, self.hidden
        before = self._before(x, states[0], r)
        i, o, f, c = (self._slice(before, k * n, (k + 1) * n, 1) for k in range(4))
        new = b.half("Mul", _sigmoid(b, i), _tanh(b, c))
        cell = b.round(b.wide("Add", b.wide("Mul", _sigmoid(b, f), states[1]), new))
        return [b.half("Mul", _sigmoid(b, o), _tanh(b, cell)), cell]

    def _gru(self, x: ir.Value, states: list[ir.Value], r: ir.Value) -> list[ir.Value]:
        b, n, h = self.b, self.hidden, states[0]
        product = b.wide("MatMul", h, r)
        before = b.half("Add", b.half("Add", b.half("Add", x, product), self.wb), self.rb)
        z, reset = (_sigmoid(b, self._slice(before, k * n, (k + 1) * n, 1)) for k in range(2))
        bias_w, bias_r = (self._slice(bias, 2 * n, 3 * n) for bias in (self.wb, self.rb))
        own = b.half("Add", self._slice(x, 2 * n, 3 * n, 1), bias_w)
        state = b.half("Add", b.round(self._slice(product, 2 * n, 3 * n, 1)), bias_r)
        new = _tanh(b, b.round(b.wide("Add", own, b.wide("Mul", reset, state))))
        kept = b.half("Mul", z, h)
        return [b.round(b.wide("Add", b.wide("Mul", b.half("Sub", 1.0, z), new), kept))]


def expand_recurrent(b: Builder, node: ir.Node) -> list[ir.Value]:
    """Write a recurrent node as Scans; see `recurrent_on_gpu`.

    Args:
        b: The builder.
        node: An LSTM, GRU or RNN: X [steps, batch, input], W [directions, gates·hidden, input],
            R [directions, gates·hidden, hidden], B [directions, 2·gates·hidden], initial states [directions, batch, hidden].

    Returns:
        Y [steps, directions, batch, hidden] and the final states [directions, batch, hidden].
    """
    x, hidden = node.inputs[0], _hidden(node)
    assert x is not None
    directions = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    count = 2 if node.op_type == "LSTM" else 1
    runs = []
    for index in range(directions):
        direction = _Direction(b, node, index, hidden)
        states = []
        for slot in range(5, 5 + count):
            given = node.inputs[slot] if len(node.inputs) > slot else None
            if given is not None:
                states.append(b.wide("Gather", given, b.constant(np.int64(index)), axis=0))
            else:
                shape = b.typed(ir.DataType.INT64, "Shape", x)
                batch = b.typed(ir.DataType.INT64, "Gather", shape, b.constant(np.array([1], np.int64)))
                wanted = b.typed(ir.DataType.INT64, "Concat", batch, b.constant(np.array([hidden], np.int64)), axis=0)
                states.append(b.wide("Expand", 0.0, wanted))
        runs.append(direction.run(x, states))

    def stacked(values: list[ir.Value], axis: int) -> ir.Value:
        return b.wide("Concat", *(b.unsqueeze(value, axis) for value in values), axis=axis)

    outputs = [stacked([run[0] for run in runs], 1)]
    outputs += [stacked([run[1][k] for run in runs], 0) for k in range(count)]
    return outputs
