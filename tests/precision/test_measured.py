"""What ranges decide: overflow and underflow into a pole stay FP32, with the number; what saturates or sums up may be half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import halfconv


def converted(folder: Path, text: str, *feeds: dict[str, Any], opset: int = 17, **options: Any) -> halfconv.ConvertResult:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {text}')
    onnx.save(model, folder / "m.onnx")
    return halfconv.convert(folder / "m.onnx", samples=list(feeds), fuse=False, **options)


def rules(result: halfconv.ConvertResult) -> dict[str, str]:
    return {entry.value: entry.rule for entry in result.fp32}


W = "float[8, 8] w = {" + ", ".join("0.25" if i % 9 else "1.0" for i in range(64)) + "}"
#: Two layers of a transformer's kind, with RMSNorm written out.
RMS = f"""(float[n, 8] x) => (float[n, 8] y)
<{W}, float two = {{2}}, float eps = {{1e-6}}, float[8] gain = {{1, 2, 1, 0.5, 1, 1, 1, 1}}> {{
    h = MatMul(x, w) p = Pow(h, two) m = ReduceMean <axes = [-1], keepdims = 1> (p) e = Add(m, eps) s = Sqrt(e) d = Div(h, s)
    g = Mul(d, gain) k = MatMul(g, w) r = Relu(k) o = MatMul(r, w) y = Add(o, x)
}}"""


def test_a_decomposed_rmsnorm_keeps_only_its_inside_in_fp32(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = converted(tmp_path, RMS, *({"x": rng.normal(0, 1e3, (4, 8)).astype(np.float32)} for _ in range(3)))
    assert found.drift is not None and found.drift.passed
    inside = {value for value, rule in rules(found).items() if rule != "io"}
    assert {"p", "m"} <= inside <= {"p", "m", "e", "s"}
    entry = next(entry for entry in found.fp32 if entry.value == "p")
    assert entry.rule == "overflow" and "65,504" in entry.reason
    assert found.plan is not None
    figures = next(dict(v.figures) for v in found.plan.values if v.id == "p")
    assert figures["absmax"] > 65504 and 0 < figures["overflow"] <= 1


def test_small_activations_clear_the_same_norm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = converted(tmp_path, RMS, *({"x": rng.normal(0, 1, (4, 8)).astype(np.float32)} for _ in range(3)))
    assert found.drift is not None and found.drift.passed
    assert set(rules(found).values()) <= {"io", "min-cut"}


GELU = """(float[n, 8] x) => (float[n, 8] y) <float a = {0.044715}, float b = {0.7978846}, float one = {1}, float half = {0.5}> {
    x2 = Mul(x, x) x3 = Mul(x2, x) i = Mul(x3, a) j = Add(x, i) k = Mul(j, b) t = Tanh(k)
    u = Add(t, one) v = Mul(x, u) y = Mul(v, half)
}"""


def test_what_a_tanh_saturates_may_overflow(tmp_path: Path) -> None:
    x = np.linspace(-120, 120, 64, dtype=np.float32).reshape(8, 8)
    found = converted(tmp_path, GELU, {"x": x})
    assert found.drift is not None and found.drift.passed
    assert set(rules(found).values()) <= {"io", "min-cut"}


def test_what_the_gates_of_an_lstm_saturate_may_overflow(tmp_path: Path) -> None:
    text = """(float[n, 8] x) => (float[n, 4] y) <float big = {1000}> {
        t = Tanh(x) k = Mul(x, big) g = Add(k, t) a, b = Split <axis = 1> (g) i = Sigmoid(a) o = Tanh(b) y = Mul(i, o) }"""
    found = converted(tmp_path, text, {"x": np.linspace(-120, 120, 64, dtype=np.float32).reshape(8, 8)}, opset=17)
    assert found.drift is not None and found.drift.passed
    assert set(rules(found).values()) <= {"io", "min-cut"}


SENTINELS = {
    "selected": """(float[n, 8] x, bool[n, 8] keep) => (float[n, 8] y) <float low = {-340000000000000000000000000000000000000}> {
        t = Tanh(x) m = Where(keep, t, low) y = Softmax(m) }""",
    "added": """(float[n, 8] x, bool[n, 8] keep) => (float[n, 8] y)
        <float low = {-340000000000000000000000000000000000000}, float one = {1}> {
        t = Tanh(x) f = Cast <to = 1> (keep) g = Sub(one, f) m = Mul(g, low) s = Softmax(m) y = Mul(s, t) }""",
}  # fmt: skip


@pytest.mark.parametrize("key", SENTINELS)
@pytest.mark.parametrize("given", [True, False])
def test_a_masks_sentinel_saturates_and_does_not_overflow(key: str, given: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, keep = rng.normal(0, 1, (4, 8)).astype(np.float32), rng.random((4, 8)) < 0.5
    keep[0] = False
    if given:
        found = converted(tmp_path, SENTINELS[key], {"x": x, "keep": keep}, half_io=True)
    else:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {SENTINELS[key]}')
        onnx.save(model, tmp_path / "m.onnx")
        found = halfconv.convert(tmp_path / "m.onnx", half_io=True)
    assert found.drift is not None and found.drift.passed
    assert "overflow" not in rules(found).values()


@pytest.mark.parametrize("tail", ["y = Sqrt(q)", "r = Neg(q) s = Tanh(r) y = Mul(q, s)", "y = Identity(q)"])
def test_what_nothing_saturates_may_not(tmp_path: Path, tail: str) -> None:
    text = f"(float[4] x) => (float[4] y) {{ a = Relu(x) q = Mul(a, a) {tail} }}"
    found = converted(tmp_path, text, {"x": np.array([1, 100, 300, 3], np.float32)})
    assert found.drift is not None and found.drift.passed
    if tail != "y = Identity(q)":
        assert rules(found)["q"] in ("overflow", "io")


def test_what_flushes_before_a_pole_stays(tmp_path: Path) -> None:
    text = """(float[4] x) => (float[4] y) { s = Mul(x, x) q = Sqrt(s) z = Abs(x) y = Div(z, q) }"""
    found = converted(tmp_path, text, {"x": np.array([1e-5, 2e-5, 1, 2], np.float32)})
    assert found.drift is not None and found.drift.passed
    assert rules(found)["s"] == "underflow" and rules(found)["q"] == "underflow"
    reason = next(entry.reason for entry in found.fp32 if entry.value == "s")
    assert "would become 0 in half" in reason and "Div" in reason and "%" in reason


def test_summands_may_flush_where_their_sum_does_not(tmp_path: Path) -> None:
    text = """(float[2, 8] x) => (float[2, 8] y) {
        a = Relu(x) e = Exp(x) s = ReduceSum <keepdims = 1> (e) t = Div(e, s) y = Add(t, a)
    }"""
    x = np.array([[-30, -20, 0, 1, 2, 0, 1, 2]] * 2, np.float32)
    found = converted(tmp_path, text, {"x": x})
    assert found.drift is not None and found.drift.passed
    assert "underflow" not in rules(found).values()


def test_headroom_is_left_for_larger_inputs(tmp_path: Path) -> None:
    text = "(float[4] x) => (float[4] y) { a = Relu(x) q = Mul(a, a) y = Sqrt(q) }"
    found = converted(tmp_path, text, {"x": np.array([1, 2, 3, 250], np.float32)})  # 62,500 fits, barely
    assert rules(found)["q"] == "overflow"
    smaller = converted(tmp_path, text, {"x": np.array([1, 2, 3, 200], np.float32)})
    assert "overflow" not in rules(smaller).values()


def test_an_allow_rule_beats_a_measurement_with_a_warning(tmp_path: Path) -> None:
    text = "(float[4] x) => (float[4] y) { a = Relu(x) q = Mul(a, a) y = Sqrt(q) }"
    with pytest.raises(halfconv.CheckFailed, match="tolerance is not met"):
        converted(tmp_path, text, {"x": np.array([1, 2, 3, 300], np.float32)}, allow_ops=["Mul", "Relu", "Sqrt"])
