"""Static bounds: they hold for every input, and what they disprove is half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfconv.graph.names import Names
from halfconv.planning import plan_model
from halfconv.precision.bounds import static_bounds
from tests import zoo

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\nmain (float[4, 8] x) => (float[4, 8] y) '
WEIGHTS = """<float two = {2}, float ten = {10}, float low = {-10}, float high = {10}, float half = {0.5}, float tiny = {0.001},
    float one = {1}, float[1] many = {5000}, int64[1] last = {-1}>"""


def planned(body: str, folder: Path) -> dict[str, tuple[str, str]]:
    """Return value -> (dtype, rule)."""
    onnx.save(onnx.parser.parse_model(f"{HEAD} {WEIGHTS} {{ {body} }}"), folder / "m.onnx")
    plan = plan_model(folder / "m.onnx", half_io=True).plan
    return {value.id: (value.dtype, value.rule) for value in plan.values}


@pytest.mark.parametrize(
    "body",
    [
        "a = Clip(x, low, high) y = Exp(a)",
        "a = Tanh(x) b = Mul(a, ten) y = Exp(b)",
        "a = Sigmoid(x) b = Add(a, half) c = Reciprocal(b) y = Neg(c)",
        "a = Softmax(x) b = Max(a, tiny) c = Log(b) y = Neg(c)",
        "a = Sigmoid(x) b = ReduceSum(a, last) y = Add(x, b)",
        "a = Tanh(x) b = ReduceL1 <axes = [-1]> (a) y = Add(x, b)",
        "a = Softmax(x) b = ReduceLogSumExp <axes = [-1]> (a) y = Add(x, b)",
        "a = Tanh(x) b = Transpose <perm = [1, 0]> (a) c = Transpose <perm = [1, 0]> (b) y = Exp(c)",
        "a = Sigmoid(x) b = Mul(a, many) c = Tanh(b) y = Neg(c)",
    ],
)
def test_what_bounds_disprove_is_half(body: str, tmp_path: Path) -> None:
    found = planned(body, tmp_path)
    assert {dtype for dtype, _ in found.values()} == {"float16"}, found


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("y = Exp(x)", "block-list:Exp"),
        ("a = Clip(x, low, many) y = Exp(a)", "block-list:Exp"),
        ("a = Clip(x, low) y = Exp(a)", "block-list:Exp"),
        ("a = Tanh(x) b = Mul(a, a) c = Mul(b, many) d = Mul(c, two) y = Exp(d)", "block-list:Exp"),
        ("a = Sigmoid(x) y = Reciprocal(a)", "block-list:Reciprocal"),
        ("a = Relu(x) b = ReduceSum(a, last) y = Add(x, b)", "block-list:ReduceSum"),
        ("a = Tanh(x) b = Mul(a, many) c = ReduceSumSquare <axes = [-1]> (b) y = Add(x, c)", "block-list:ReduceSumSquare"),
        ("a = Mul(x, many) b = Tanh(a) y = Neg(b)", "scale-up"),
    ],
)
def test_what_bounds_do_not_disprove_stays(body: str, rule: str, tmp_path: Path) -> None:
    assert rule in {rule for _, rule in planned(body, tmp_path).values()}


OPS = st.sampled_from(
    ["Tanh({})", "Sigmoid({})", "Softmax({})", "Relu({})", "Neg({})", "Abs({})", "Erf({})", "Exp({})", "Sqrt({})", "Log({})",
     "Reciprocal({})", "Clip({}, low, high)", "Mul({}, two)", "Mul({}, low)", "Add({}, half)", "Sub(ten, {})", "Div({}, low)",
     "Div(one, {})", "Max({}, tiny)", "Min({}, one)", "Pow({}, two)", "Mul({}, {})", "Add({}, x)", "Concat <axis = 0> ({}, {})",
     "Transpose <perm = [1, 0]> ({})", "ReduceMax <axes = [-1], keepdims = 1> ({})", "ReduceSum({}, last)", "Softplus({})",
     "ReduceSumSquare <axes = [-1]> ({})", "ReduceL1 <axes = [-1]> ({})", "LogSoftmax({})", "HardSwish({})",
     "ReduceMean <axes = [-1]> ({})"]
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPS, min_size=1, max_size=7), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_bounds_hold_whatever_the_input(ops: list[str], scale: float, seed: int) -> None:
    names = ["x", *(f"v{number}" for number in range(len(ops)))]
    ops = [text if "x)" not in text or number == 0 else text.replace("x)", "half)") for number, text in enumerate(ops)]
    body = " ".join(f"{names[i + 1]} = {text.replace('{}', names[i])}" for i, text in enumerate(ops))
    outputs = ", ".join(f"float {name}" for name in names[1:])
    text = f'<ir_version: 8, opset_import: ["" : 17]>\nmain (float[4, 8] x) => ({outputs}) {WEIGHTS} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(seed).normal(0, scale, (4, 8)).astype(np.float32)
    values = dict(zip(names[1:], session.run(None, {"x": x}), strict=True))
    ir_model = ir.from_proto(model)
    bounds = static_bounds(Names.of(ir_model).nodes(), {})
    for value, (low, high) in bounds.items():
        given_value = values[value.name or ""]
        real = given_value[np.isfinite(given_value)].astype(np.float64)
        slack = 1e-4 * np.abs(real) + 1e-4
        assert (real >= low - slack).all() and (real <= high + slack).all(), (value.name, low, high, real.min(), real.max())


@pytest.mark.slow
@pytest.mark.parametrize("key", ["magika", "silero_vad_op18", "minilm_ts", "rapidocr_rec", "aecmos_16k"])
def test_bounds_hold_in_real_models(key: str) -> None:
    from halfconv.precision.range_run import measure_ranges
    from halfconv.samples import open_samples
    from halfconv.synthetic import input_specs

    plan = plan_model(zoo.model(key))
    model = plan.source.model
    samples = open_samples(zoo.samples(key)[:4], input_specs(model))
    ranges = measure_ranges(model, samples, plan.dtype, key)[0].values
    bounds = static_bounds(plan.names.nodes(), plan.weights)
    checked = [(ranges[plan.names.value[value]].absmax, max(abs(low), abs(high))) for value, (low, high) in bounds.items()
               if plan.names.value[value] in ranges]  # fmt: skip
    assert len(checked) >= 3
    assert all(absmax <= bound * 1.001 + 1e-6 for absmax, bound in checked)
