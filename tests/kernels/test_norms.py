"""LayerNorm of halfconv's own: where it is put in, why it is not, and that what runs without its kernel is ONNX Runtime's norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

import halfconv
from halfconv.kernels.norms import WIDEST
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.stage import place
from halfconv.runtime_process import RuntimeProcess
from tests import exports
from tests.kernels import Arrays, build, half, kinds, own, placed
from tests.kernels.compiled import compiled
from tests.kernels.hard_rows import hard_rows
from tests.kernels.test_substitution import ONES

X = {"x": half(2, 5, 24, scale=3)}
NORM = {"g": half(24), "b": half(24)}


def norm(call: str, *, shape: str = "n,5,24", more: str = "") -> str:
    return f"(float16[{shape}] x) => (float16[{shape}] y{more}) {{ {call} }}"


@pytest.mark.parametrize("attributes", ["", "<axis = -1>", "<axis = 2>", "<epsilon = 0.01>", "<axis = 2, stash_type = 1>"])
def test_a_norm_over_the_last_axis_is_ours(attributes: str) -> None:
    made, done = placed(norm(f"y = LayerNormalization{attributes}(x, g, b)"), X, NORM)
    assert kinds(made) == own(LayerNorm=1) and done.operators == {"LayerNorm": 1} and not done.refused and not done.copies
    (node,) = made.graph
    assert node.attributes["epsilon"].as_float() == pytest.approx(0.01 if "0.01" in attributes else 1e-5)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 3, 4, 24), (2, 1, 2, 2, 24)])
def test_of_any_rank(shape: tuple[int, ...]) -> None:
    text = ",".join(map(str, shape))
    made, _ = placed(norm("y = LayerNormalization(x, g, b)", shape=text), {"x": half(*shape)}, NORM)
    assert kinds(made) == own(LayerNorm=1)


def test_without_a_shift_it_is_zero() -> None:
    made, _ = placed(norm("a = LayerNormalization(x, g)\n y = LayerNormalization(a, g)"), X, {"g": NORM["g"]})
    assert kinds(made) == own(LayerNorm=2)
    first, second = made.graph
    assert first.inputs[2] is second.inputs[2]  # stored once


@pytest.mark.parametrize(("width", "count"), [(8, 1), (WIDEST, 1), (WIDEST + 8, 0), (20, 0)])
def test_the_kernel_takes_rows_in_multiples_of_16_bytes_up_to_a_width(width: int, count: int) -> None:
    graph = norm("y = LayerNormalization(x, g)", shape=f"n,{width}")
    made, done = placed(graph, {"x": half(3, width)}, {"g": half(width)})
    assert kinds(made) == (own(LayerNorm=1) if count else {"LayerNormalization": 1})
    reason = f"it is over {width} values, not a multiple of 8 up to {WIDEST}"
    assert [refusal.reason for refusal in done.refused] == [reason] * (1 - count)


@pytest.mark.parametrize(
    ("graph", "weights", "reason"),
    [
        (norm("y = LayerNormalization<axis = 1>(x, g)"), {"g": half(5, 24)}, "it is not over the last axis alone"),
        (norm("y, m = LayerNormalization(x, g)", more=", float[n,5,1] m"), {"g": half(24)}, "its statistics are read"),
        (norm("y, m = LayerNormalization(x, g)\n z = Neg(m)", more=", float[n,5,1] z"), {"g": half(24)}, "its statistics are read"),
        (norm("y = LayerNormalization(x, g)"), {"g": half(1)},
         "its scale and shift are not FP16 vectors of the model, with a number for each channel"),
        (norm("y = LayerNormalization(x, g, b)"), {"g": half(24), "b": half(1)},
         "its scale and shift are not FP16 vectors of the model, with a number for each channel"),
        (norm("g = ReduceMean<keepdims = 0>(x, axes)\n y = LayerNormalization(x, g)"), {"axes": np.array([0, 1])},
         "its scale and shift are not FP16 vectors of the model, with a number for each channel"),
        (norm("s = Neg(x)\n t = Add(x, s)\n y = LayerNormalization(t, g)"), {"g": half(24)},
         "ONNX Runtime computes the sum before it in the same kernel"),
    ],
    ids=["two axes", "statistics", "statistics inside", "one scale", "one shift", "computed", "sum"],
)  # fmt: skip
def test_why_a_norm_is_left(graph: str, weights: Arrays, reason: str) -> None:
    made, done = placed(graph, X, weights)
    assert [(refusal.fusion, refusal.reason) for refusal in done.refused] == [("LayerNorm", reason)]
    assert kinds(made)["LayerNormalization"] == 1 and not done.operators


def test_statistics_in_fp16_are_not_ours() -> None:
    made = build(norm("y = LayerNormalization<stash_type = 10>(x, g)"), {"g": half(24)})
    done = place(made)
    assert [refusal.reason for refusal in done.refused] == ["it asks for statistics in another type than FP32"]


def test_norms_of_other_types_are_nobodys_business() -> None:
    made = build("(float[n,24] x) => (float[n,24] y) { y = LayerNormalization(x, g) }", {"g": np.ones(24, np.float32)})
    done = place(made)
    assert not done.operators and not done.refused and kinds(made) == {"LayerNormalization": 1}


@pytest.mark.parametrize(
    "body",
    ["t = Add(x, p)\n y = LayerNormalization(t, g)", "s = Neg(x)\n t = Add(x, s)\n n = LayerNormalization(t, g)\n y = Mul(n, t)"],
    ids=["positions", "read by others"],
)
def test_behind_a_sum_that_onnx_runtime_computes_alone_it_is_ours(body: str) -> None:
    weights = {"g": half(24)} | ({"p": half(1, 5, 24)} if "p)" in body else {})
    made, _ = placed(norm(body), X, weights)
    assert kinds(made)[f"{DOMAIN}.LayerNorm"] == 1


@pytest.mark.parametrize("same", [True, False])
def test_onnx_runtime_takes_a_sum_into_the_norm_where_the_rule_says_so(same: bool, tmp_path: Path) -> None:
    """The rule leaves those norms, and only those: here in FP32, which its CPU provider has kernels for."""
    side = "n,5,24" if same else "1,5,24"
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g '
        f"(float[n,5,24] x, float[{side}] p, float[24] g) => (float[n,5,24] y) {{ t = Add(x, p)\n y = LayerNormalization(t, g) }}"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert found == ({"SkipLayerNormalization"} if same else {"Add", "LayerNormalization"})


def test_behind_a_convolution_and_by_itself() -> None:
    graph = (
        "(float16[n,8,6,4] x) => (float16[n,6,4,8] y) { d = Conv<group = 8, pads = [1,1,1,1]>(x, w)\n"
        "t = Transpose<perm = [0,2,3,1]>(d)\n l = LayerNormalization<axis = 3>(t, g)\n y = LayerNormalization(l, g) }"
    )
    made, done = placed(graph, {"x": half(2, 8, 6, 4)}, {"w": half(8, 1, 3, 3), "g": half(8)})
    assert done.operators == {"DepthwiseConvNorm": 1, "LayerNorm": 1} and kinds(made)["LayerNormalization"] == 0


def test_a_norm_in_a_branch_is_put_in_there() -> None:
    branch = "g1 () => (float16[n,5,24] t) { t = LayerNormalization(x, g) }"
    other = "g2 () => (float16[n,5,24] e) { e = Neg(x) }"
    graph = "(float16[n,5,24] x, bool c) => (float16[n,5,24] y) { y = If(c) <then_branch = %s, else_branch = %s> }"
    _, done = placed(graph % (branch, other), X | {"c": np.array(True)}, {"g": half(24)})
    assert done.operators == {"LayerNorm": 1}


def test_an_older_library_without_the_kernel_runs_the_definition(tmp_path: Path) -> None:
    """So adding an operator needs no new version of the library: what it lacks is inlined, what it has is run."""
    library = compiled(tmp_path, DOMAIN, "Linear", 3, TensorProto.FLOAT16, ONES)
    graph = "(float16[n,24] x) => (float16[n,24] y, float16[n,16] z) { y = LayerNormalization(x, g, b)\n "
    graph += "p = MatMul(x, w)\n z = Add(p, c) }"
    made = build(graph, NORM | {"w": half(24, 16), "c": half(16)})
    assert place(made).operators == {"Linear": 1, "LayerNorm": 1}
    x = half(3, 24)
    with RuntimeProcess(60) as process:
        session = process.open(ir.to_proto(made).SerializeToString(), "ORT_ENABLE_ALL", "CPUExecutionProvider", library=library)
        assert session.problem == ""
        y, z = session.run(["y", "z"], {"x": x})
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * NORM["g"] + NORM["b"]
    assert (z == 1).all() and np.linalg.norm(y - want) <= 1e-3 * np.linalg.norm(want)


def test_the_definition_holds_on_hard_rows() -> None:
    hard_rows("CPUExecutionProvider")


def _convnext(attention: str) -> Any:
    """Four stages and a head, as in ConvNeXt-T: a norm by itself in the stem, before each further stage, and before the head."""
    import transformers

    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_stages": 4, "image_size": 64, "num_labels": 8}
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes))


def _images() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"pixel_values": random.standard_normal((batch, 3, 64, 64)).astype(np.float32)} for batch in (2, 3)]


@pytest.mark.slow
def test_convnext_gets_its_five_norms_and_drifts_as_with_onnx_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exports.RECIPES, "four", exports.Recipe(_convnext, _images, ("batch",), ("eager", "eager")))
    source, samples = exports.make("four_dynamo", tmp_path)
    ours = halfconv.convert(source, tmp_path / "ours.onnx", target="cuda", samples=samples, kernels=True)
    assert ours.kernels is not None and ours.kernels.operators["LayerNorm"] == 5 == ours.kernels.operators["DepthwiseConvNorm"]
    proto = onnx.load(ours.output)
    assert not [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    # The same file with ONNX Runtime's norm in the place of each of ours.
    for node in proto.graph.node:
        if node.domain == DOMAIN and node.op_type == "LayerNorm":
            node.domain, node.op_type = "", "LayerNormalization"
    onnx.save(proto, tmp_path / "theirs.onnx")
    reports = [halfconv.validate(source, tmp_path / f"{name}.onnx", samples=samples) for name in ("ours", "theirs")]
    first, second = (report.outputs[0].measures.rel_l2 for report in reports)
    assert first is not None and 0 < first < 1e-2 and first == second
