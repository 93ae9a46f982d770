"""Values inside branches and bodies are compared: at every iteration, and in the branches that samples take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

import halfconv
from tests import zoo
from tests.random_graphs import RandomModel, random_models

NESTED = """
(float[4] x, bool flag) => (float[4] y) <float[4] k = {300, 300, 300, 300}> {
    a = Relu(x)
    [outer] y = If (flag) <
        then_branch = big () => (float[4] t) {
            p = Mul(a, k)
            c = ReduceMax <keepdims = 0> (a)
            z = Sub(c, c)
            same = Equal(z, z)
            [inner] q = If (same) <
                then_branch = g1 () => (float[4] u) { v = Mul(p, k) u = Sqrt(v) },
                else_branch = g2 () => (float[4] w) { w = Neg(p) }
            >
            t = Div(q, k)
        },
        else_branch = small () => (float[4] e) { e = Neg(a) }
    >
}"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("branches")
    return made(folder, NESTED)


def sample(flag: bool, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.array([1, 2, 3, 4], np.float32) * np.float32(scale), "flag": np.array(flag)}


def layers(pair: tuple[Path, Path], *samples: dict[str, np.ndarray]) -> tuple[dict[str, Any], Any]:
    report = halfconv.validate(*pair, samples=list(samples), layers=True)
    return {layer.value: layer for layer in report.layers or ()}, report


def test_values_of_the_branch_taken_are_compared_under_their_ids(pair: tuple[Path, Path]) -> None:
    found, _ = layers(pair, sample(True, 0.01))
    assert {"a", "outer.then_branch/p", "outer.then_branch/inner.then_branch/v"} <= set(found)
    assert not any("else_branch" in value for value in found)
    assert found["outer.then_branch/p"].reference_absmax == pytest.approx(12, rel=1e-3)


def test_an_overflow_inside_a_nested_branch_is_named(pair: tuple[Path, Path]) -> None:
    found, report = layers(pair, sample(True))
    assert not report.passed
    assert "overflows" in report.first_bad and "inner.then_branch/v" in report.first_bad
    assert found["outer.then_branch/inner.then_branch/v"].new_inf == 4
    assert found["outer.then_branch/p"].new_inf == 0


def test_the_other_branch_is_taken_where_the_samples_say_so(pair: tuple[Path, Path]) -> None:
    found, report = layers(pair, sample(False))
    assert report.passed
    assert not any("then_branch" in value for value in found)


def test_samples_that_take_different_branches_are_compared_in_each(pair: tuple[Path, Path]) -> None:
    found, _ = layers(pair, sample(True, 0.01), sample(False))
    assert {"a", "outer.then_branch/p", "outer.else_branch/e"} <= set(found)
    assert found["outer.then_branch/p"].reference_absmax == pytest.approx(12, rel=1e-3)
    assert found["outer.else_branch/e"].reference_absmax == 4
    assert list(found).index("outer.then_branch/p") < list(found).index("y")


def test_a_branch_that_only_one_model_takes_is_not_compared(tmp_path: Path) -> None:
    """In half 1.0001 is 1, so that the candidate takes the other branch."""
    text = """
    (float[4] x) => (float[4] y) <float[1] one = {1}> {
        a = Relu(x) m = ReduceMax <keepdims = 0> (a) flag = Greater(m, one)
        [outer] y = If (flag) <
            then_branch = g1 () => (float[4] t) { p = Exp(a) t = Neg(p) },
            else_branch = g2 () => (float[4] e) { q = Sqrt(a) e = Neg(q) }
        >
    }"""
    found, report = layers(made(tmp_path, text), {"x": np.full(4, 1.0001, np.float32)})
    assert not report.passed and not any("branch" in value for value in found)


def made(folder: Path, text: str, **changes: Any) -> tuple[Path, Path]:
    """Save a model, and its conversion with everything in half."""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {text}'), folder / "model.onnx")
    whole = ["Mul", "Sqrt", "Div", "Relu", "Neg", "Exp", "Greater", "ReduceMax", "Add", "Sub", "Tanh", "ReduceSum"]
    options: dict[str, Any] = {"block_list": "none", "allow_ops": whole, "check": False, **changes}
    used = {node.op_type for node in ir.traversal.RecursiveGraphIterator(ir.load(folder / "model.onnx").graph)}
    options["allow_ops"] = [op for op in options["allow_ops"] if op in used]
    halfconv.convert(folder / "model.onnx", folder / "half.onnx", **options)
    return folder / "model.onnx", folder / "half.onnx"


#: Each gives the values of p, of all iterations, as ps: what is measured inside must be what is measured of the output.
BODIES = {
    "a loop": """
        (float[4] x, int64 n) => (float[4] y, float[k, 4] ps) <float[4] w = {0.3, 0.7, 1.1, 1.3}, bool yes = {1}> {
            a = Tanh(x)
            [body] y, ps = Loop (n, yes, a) <body = g (int64 i, bool go, float[4] s) => (bool go2, float[4] t, float[4] p2) {
                p = Mul(s, w) p2 = Identity(p) q = Exp(p) t = Tanh(q) go2 = Identity(go)
            }>
        }""",
    "a loop that a condition ends": """
        (float[4] x, int64 n) => (float[4] y, float[k, 4] ps)
        <float[4] w = {0.3, 0.7, 1.1, 1.3}, float limit = {2.0}, bool yes = {1}> {
            a = Tanh(x)
            [body] y, ps = Loop (, yes, a) <body = g (int64 i, bool go, float[4] s) => (bool go2, float[4] t, float[4] p2) {
                p = Mul(s, w) p2 = Identity(p) t = Mul(s, w)
                m = ReduceMax <keepdims = 0> (t) c = Sub(limit, m) d = Neg(c) go2 = Less(d, c)
            }>
        }""",
    "a scan": """
        (float[4] x, float[3, 4] rows) => (float[4] y, float[k, 4] ps) <float[4] w = {0.3, 0.7, 1.1, 1.3}> {
            a = Tanh(x) steps = Mul(rows, w) b = Exp(steps)
            [body] y, ps = Scan <num_scan_inputs = 1, body = g (float[4] s, float[4] r) => (float[4] t, float[4] p2) {
                u = Mul(s, w) p = Add(u, r) p2 = Identity(p) t = Tanh(p)
            }> (a, b)
        }""",
    "a branch in a loop": """
        (float[4] x, int64 n) => (float[4] y, float[k, 4] ps)
        <float[4] w = {0.3, 0.7, 1.1, 1.3}, bool yes = {1}, int64 two = {2}, int64 one = {1}> {
            a = Tanh(x)
            [body] y, ps = Loop (n, yes, a) <body = g (int64 i, bool go, float[4] s) => (bool go2, float[4] t, float[4] p2) {
                r = Mod(i, two) odd = Equal(r, one)
                p = Mul(s, w) p2 = Identity(p)
                [inner] u = If (odd) <
                    then_branch = g1 () => (float[4] v) { z = Exp(p) v = Sqrt(z) },
                    else_branch = g2 () => (float[4] v) { z = Neg(p) v = Exp(z) }
                >
                t = Tanh(u) go2 = Identity(go)
            }>
        }""",
    "a loop in a loop": """
        (float[4] x, int64 n) => (float[4] y, float[k, 4] ps) <float[4] w = {0.3, 0.7, 1.1, 1.3}, bool yes = {1}> {
            a = Tanh(x)
            [body] y, ps = Loop (n, yes, a) <body = g (int64 i, bool go, float[4] s) => (bool go2, float[4] t, float[4] p2) {
                [inner] u, all = Loop (i, go, s) <body = h (int64 j, bool on, float[4] c) => (bool on2, float[4] d, float[4] e) {
                    p = Mul(c, w) e = Identity(p) q = Exp(p) d = Tanh(q) on2 = Identity(on)
                }>
                p2 = Identity(u) t = Tanh(u) go2 = Identity(go)
            }>
        }""",
}  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("case", BODIES)
def test_what_is_measured_inside_is_what_the_output_shows(tmp_path: Path, case: str, count: int) -> None:
    models = made(tmp_path, BODIES[case])
    feeds: dict[str, np.ndarray] = {"x": np.array([0.1, 0.9, -2, 3], np.float32)}
    feeds |= {"rows": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)} if "rows" in BODIES[case] else {"n": np.array(count)}
    found, report = layers(models, feeds)
    shown = {output.name: output.measures for output in report.outputs}["ps"]
    if "ends" in case or "rows" in BODIES[case]:
        count = 1
    inside = "body.body/inner.body/d" if case == "a loop in a loop" else "body.body/p"
    if not count or (count == 1 and case == "a loop in a loop"):
        assert inside not in found
        return
    layer = found[inside]
    assert list(found).index(inside) < list(found).index("y")
    if case == "a loop in a loop":
        assert found["body.body/p2"].rel_l2 == pytest.approx(shown.rel_l2, rel=1e-6)
        assert layer.reference_absmax >= found["body.body/p2"].reference_absmax
        assert 0 < layer.rel_l2 < 1e-2
        return
    assert layer.rel_l2 == pytest.approx(shown.rel_l2, rel=1e-3)
    assert layer.reference_absmax == pytest.approx(shown.absmax)
    if case == "a branch in a loop":
        assert "body.body/inner.else_branch/z" in found
        assert ("body.body/inner.then_branch/z" in found) is (count > 1)


def test_an_overflow_in_a_body_is_named(tmp_path: Path) -> None:
    text = """
    (float[4] x) => (float[4] y) <float[4] w = {300, 300, 300, 300}, bool yes = {1}, int64 n = {3}> {
        a = Relu(x)
        [body] y = Loop (n, yes, a) <body = g (int64 i, bool go, float[4] s) => (bool go2, float[4] t) {
            [burst] p = Mul(s, w) q = Sqrt(p) t = Sqrt(q) go2 = Identity(go)
        }>
    }"""
    found, report = layers(made(tmp_path, text), {"x": np.full(4, 200, np.float32)}, {"x": np.full(4, 400, np.float32)})
    assert not report.passed
    assert "burst overflows: its result reaches 120,000 (> 65,504)" in report.first_bad and "body.body/p" in report.first_bad
    assert found["body.body/p"].new_inf == 12  # it stays infinite


def test_a_sequence_map_is_compared_inside(tmp_path: Path) -> None:
    text = """
    (float[4] x) => (float[n, 4] y) <float[4] w = {0.3, 0.7, 1.1, 1.3}> {
        a = Tanh(x) b = Exp(a) s = SequenceConstruct(a, b)
        [each] r = SequenceMap <body = g (float[4] e) => (float[4] t) { p = Mul(e, w) t = Tanh(p) }> (s)
        y = ConcatFromSequence <axis = 0, new_axis = 1> (r)
    }"""
    found, _ = layers(made(tmp_path, text), {"x": np.array([0.1, 0.9, -2, 3], np.float32)})
    assert found["each.body/p"].reference_absmax == pytest.approx(1.3 * np.exp(np.tanh(3)), rel=1e-3)


@pytest.mark.parametrize("renamed", ["node", "outputs"])
def test_converters_may_rename_the_node_or_its_outputs(tmp_path: Path, renamed: str) -> None:
    models = made(tmp_path, BODIES["a loop"])
    half = onnx.load(models[1])
    loop = next(node for node in half.graph.node if node.op_type == "Loop")
    if renamed == "node":
        loop.name = "another"
    else:
        given = set(loop.output)
        for node in half.graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{name}_new" if name in given else name for name in names]
        made_now = {name for node in half.graph.node for name in node.output}
        for output in half.graph.output:
            if output.name not in made_now:
                half.graph.node.append(onnx.helper.make_node("Identity", [f"{output.name}_new"], [output.name]))
        del half.graph.value_info[:]
    onnx.save(half, models[1])
    found, _ = layers(models, {"x": np.array([0.1, 0.9, -2, 3], np.float32), "n": np.array(3)})
    layer = found["body.body/p"]
    assert (layer.op, layer.dtype) == ("Mul", "float16") and 0 < layer.rel_l2 < 1e-2


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(random_models(steps=8, depth=2))
def test_random_graphs_can_be_compared_inside(made: RandomModel) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        model = ir.from_proto(made.model)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            node.name = None if node.name == "twin" else node.name  # ONNX Runtime takes a name only once
        ir.save(model, path)
        half = halfconv.convert(path, Path(name) / "half.onnx", check=False).output
        report = halfconv.validate(path, half, samples=[made.feeds], layers=True)
    assert not any("could not be compared" in warning for warning in report.warnings), report.warnings


@pytest.mark.slow
def test_a_real_network_inside_an_if_is_compared(tmp_path: Path) -> None:
    result = halfconv.convert(zoo.model("silero_vad"), tmp_path / "half.onnx", check=False)
    report = halfconv.validate(zoo.model("silero_vad"), result.output, samples=zoo.samples("silero_vad")[:1], layers=True)
    assert report.layers is not None and len(report.layers) > 50
    assert {"LSTM", "Conv"} <= {layer.op for layer in report.layers}
