"""LSTM, GRU and RNN step by step against numpy in which every gate, state and product is rounded; other forms stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.drift.simulating import Array, h, half_model, ops_of, run, same, simulated
from tests.runtime_helpers import run as run_file

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def sigmoid(x: Array) -> Array:
    return h(np.float32(1) / h(h(np.exp(-x)) + np.float32(1)))


def tanh(x: Array) -> Array:
    return h(2 * sigmoid(2 * x) - 1)


@dataclass
class Layer:
    """A recurrent node's arrays, [directions, …], already half numbers."""

    op: str
    x: Array
    w: Array
    r: Array
    b: Array | None = None
    h0: Array | None = None
    c0: Array | None = None
    direction: str = "forward"

    @property
    def hidden(self) -> int:
        return self.r.shape[-1]

    def reference(self) -> dict[str, Array]:
        """Y, the last hidden states and the last cell states."""
        ys, hs, cs = [], [], []
        for d in range(self.w.shape[0]):
            reverse = d == 1 or self.direction == "reverse"
            state = self.h0[d] if self.h0 is not None else np.zeros((self.x.shape[1], self.hidden), np.float32)
            cell = self.c0[d] if self.c0 is not None else np.zeros_like(state)
            both = self.b[d] if self.b is not None else np.zeros(2 * GATES[self.op] * self.hidden, np.float32)
            bias_w, bias_r = np.split(both, 2)
            rows = []
            for x in self.x[::-1] if reverse else self.x:
                state, cell = self.step(h(x @ self.w[d].T), state, cell, self.r[d], bias_w, bias_r)
                rows.append(state)
            ys.append(np.stack(rows[::-1] if reverse else rows))
            hs.append(state)
            cs.append(cell)
        return {"y": np.stack(ys, 1), "h": np.stack(hs), "c": np.stack(cs)}

    def step(self, x: Array, state: Array, cell: Array, r: Array, bias_w: Array, bias_r: Array) -> tuple[Array, Array]:
        n, product = self.hidden, state @ r.T
        before = h(h(h(x + product) + bias_w) + bias_r)
        if self.op == "RNN":
            return tanh(before), cell
        if self.op == "LSTM":
            i, o, f, c = np.split(before, 4, axis=1)
            cell = h(sigmoid(f) * cell + h(sigmoid(i) * tanh(c)))
            return h(sigmoid(o) * tanh(cell)), cell
        z, reset = sigmoid(before[:, :n]), sigmoid(before[:, n : 2 * n])
        own = h(x[:, 2 * n :] + bias_w[2 * n :])
        new = tanh(h(own + reset * h(h(product[:, 2 * n :]) + bias_r[2 * n :])))
        return h(h(1 - z) * new + h(z * state)), cell

    def model(self, attributes: str = "", **more: Any) -> Any:
        slots = {
            "x": self.x,
            "w": self.w,
            "r": self.r,
            "b": self.b,
            "n": more.get("n"),
            "h0": self.h0,
            "c0": self.c0,
            "p": more.get("p"),
        }
        if self.op != "LSTM":
            del slots["c0"], slots["p"]
        names = [name if array is not None else "" for name, array in slots.items()]
        while not names[-1]:
            names.pop()
        outputs = ("y", "h", "c") if self.op == "LSTM" else ("y", "h")
        reset = ", linear_before_reset = 1" if self.op == "GRU" and "linear" not in attributes else ""
        text = f'<hidden_size = {self.hidden}, direction = "{self.direction}"{reset}{attributes}>'
        body = f"{', '.join(outputs)} = {self.op}{text}({', '.join(names)})"
        weights = {name: array for name, array in slots.items() if array is not None and name != "x"}
        return half_model(
            body, {"x": list(self.x.shape)}, outputs, weights=weights, opset=more.get("opset", 17), to=more.get("to", "fp16")
        )


def layer(
    op: str, direction: str = "forward", steps: int = 4, batch: int = 2, size: int = 3, hidden: int = 5, *, seed: int = 0,
    bias: bool = True, states: bool = False, scale: float = 1.0,
) -> Layer:  # fmt: skip
    rng = np.random.default_rng(seed)
    directions = 2 if direction == "bidirectional" else 1

    def normal(*shape: int) -> Array:
        return h(rng.standard_normal(shape) * scale)

    return Layer(
        op, normal(steps, batch, size),
        normal(directions, GATES[op] * hidden, size), normal(directions, GATES[op] * hidden, hidden),
        normal(directions, 2 * GATES[op] * hidden) if bias else None, normal(directions, batch, hidden) if states else None,
        normal(directions, batch, hidden) if states and op == "LSTM" else None, direction,
    )  # fmt: skip


def check(made: Layer, **more: Any) -> None:
    simulation = simulated(made.model(**more))
    assert made.op not in ops_of(simulation)
    got, want = run(simulation, {"x": made.x}), made.reference()
    for name, value in got.items():
        same(value, h(value))
        # Sums of products in another order, and exp, may move a rounding; the states carry it on.
        np.testing.assert_allclose(value, want[name], atol=4e-3, rtol=4e-3)
        assert (value != want[name]).mean() <= 0.2, name


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("states", [True, False])
def test_every_direction_bias_and_state(op: str, direction: str, bias: bool, states: bool) -> None:
    check(layer(op, direction, bias=bias, states=states))


@pytest.mark.parametrize("op", GATES)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    size=st.integers(1, 6),
    hidden=st.integers(1, 9),
    seed=st.integers(0, 99),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
)
def test_any_size(op: str, steps: int, batch: int, size: int, hidden: int, seed: int, direction: str) -> None:
    check(layer(op, direction, steps, batch, size, hidden, seed=seed, scale=0.5))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 22])
def test_every_opset(op: str, opset: int) -> None:
    check(layer(op), opset=opset)


@pytest.mark.parametrize("op", GATES)
def test_the_first_step_is_exact(op: str) -> None:
    """From a zero state no sum depends on its order."""
    made = layer(op, steps=1, size=1)
    got = run(simulated(made.model()), {"x": made.x})
    assert (got["y"] != made.reference()["y"]).mean() <= 0.05


@pytest.mark.parametrize("op", GATES)
def test_a_state_drifts_more_than_one_rounding_of_the_whole_would(op: str) -> None:
    """What a simulation that rounds results only does not see."""
    made = layer(op, steps=40, hidden=16, size=8, scale=0.3)
    wide = made.model()
    for tensor in wide.graph.initializer:
        array = np.frombuffer(tensor.raw_data, np.float16).astype(np.float32)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, array))
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    exact = run_file(wide, [{"x": made.x}]).outputs[0]["y"]
    drift = np.linalg.norm(run(simulated(made.model()), {"x": made.x})["y"] - exact)
    assert drift > 3 * np.linalg.norm(h(exact) - exact)


# --- what CUDA leaves to the CPU, which computes in FP32 and rounds its results ---------------------------------------


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LSTM", ', activations = ["Sigmoid", "Relu", "Tanh"]'),
        ("GRU", ', activations = ["HardSigmoid", "Tanh"]'),
        ("RNN", ', activations = ["Relu"]'),
        ("LSTM", ", clip = 1.0"),
        ("GRU", ", clip = 1.0"),
        ("RNN", ", clip = 1.0"),
        ("LSTM", ", input_forget = 1"),
        ("GRU", ", linear_before_reset = 0"),
    ],
)
def test_other_forms_stay_whole_and_are_rounded_once(op: str, attributes: str) -> None:
    made = layer(op)
    simulation = simulated(made.model(attributes))
    assert ops_of(simulation) == [op]
    for value in run(simulation, {"x": made.x}).values():
        same(value, h(value))


@pytest.mark.parametrize("op", GATES)
def test_given_lengths_keep_the_node_whole(op: str) -> None:
    made = layer(op)
    simulation = simulated(made.model(n=np.array([4, 2], np.int32)))
    assert ops_of(simulation) == [op]
    assert (run(simulation, {"x": made.x})["y"][2:, :, 1] == 0).all()


def test_peepholes_keep_the_node_whole() -> None:
    made = layer("LSTM")
    assert ops_of(simulated(made.model(p=np.ones((1, 15), np.float32)))) == ["LSTM"]


@pytest.mark.parametrize("op", GATES)
def test_the_default_activations_may_be_written_out(op: str) -> None:
    names = {"LSTM": '"Sigmoid", "Tanh", "Tanh"', "GRU": '"Sigmoid", "Tanh"', "RNN": '"Tanh"'}[op]
    assert op not in ops_of(simulated(layer(op).model(f", activations = [{names}]")))
    both = layer(op, "bidirectional").model(f", activations = [{names}, {names}]")
    assert op not in ops_of(simulated(both))


@pytest.mark.parametrize("op", GATES)
def test_bf16_has_no_kernel_on_cuda(op: str) -> None:
    assert ops_of(simulated(layer(op).model(to="bf16", opset=22))) == [op]


@pytest.mark.parametrize("op", GATES)
def test_results_that_nobody_names(op: str) -> None:
    made = layer(op)
    source = made.model()
    del source.graph.output[1:]
    node = source.graph.node[0]
    wanted = node.output[1]
    node.output[0] = ""
    del node.output[2:]
    source.graph.output[0].name = wanted
    del source.graph.value_info[:]
    same(run(simulated(source), {"x": made.x})[wanted], run(simulated(made.model()), {"x": made.x})["h"])


def test_a_recurrent_node_in_a_branch() -> None:
    made = layer("GRU")
    source = made.model()
    inner = helper.make_graph([source.graph.node[0]], "t", [], [source.graph.output[0]])
    outer = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    source.graph.ClearField("node")
    source.graph.node.append(outer)
    del source.graph.output[:]
    source.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT16, None))
    source.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    del source.graph.value_info[:]
    got = run(simulated(source), {"x": made.x, "c": np.array(True)})["z"]
    same(got, run(simulated(made.model()), {"x": made.x})["y"])
