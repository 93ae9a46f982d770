"""Raising the opset: only where it changes nothing but the number."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from halfconv.graph.lift import STEPS, LiftClipPass, lift
from tests.graph import model
from tests.runtime_helpers import run

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"
STATS = "<float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>"
ROI = "(float[1,1,8,8] x, float[n,4] r, int64[n] i) => (float[n,1,1,1] y) {{ y = RoiAlign {} (x, r, i) }}"
BRANCH = (
    "(float[2] x, bool c) => (float[2] y) {{ y = If(c) <then_branch = g () => (float[2] t) {{ t = {} (x) }},"
    " else_branch = h () => (float[2] e) {{ e = Relu(x) }}> }}"
)


@pytest.mark.parametrize("opset", range(8, 17))
def test_every_step_that_is_known_is_taken(opset: int) -> None:
    made = model(RELU, opset=opset)
    assert lift(made, 17) and made.opset_imports[""] == 17


def test_the_wanted_opset_and_newer_ones_stay() -> None:
    for opset in (17, 18, 21):
        made = model(RELU, opset=opset)
        assert lift(made, 17) and made.opset_imports[""] == opset


def test_a_step_that_is_not_known_is_not_taken() -> None:
    made = model(RELU, opset=7)
    assert 7 not in STEPS
    assert not lift(made, 17) and made.opset_imports[""] == 7


X34 = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8 - 1


@pytest.mark.parametrize(
    "opset,wanted,body",
    [
        (9, 12, "y = Clip <min = -0.5, max = 0.75> (x)"),
        (9, 12, "y = Clip <max = 0.75> (x)"),
        (10, 12, "y = Clip (x)"),
        (9, 17, "y = Slice <starts = [1, 0], ends = [3, 2], axes = [1, 2]> (x)"),
        (9, 17, "y = Slice <starts = [0, 1], ends = [2, 3]> (x)"),
        (9, 17, "y, i = TopK <k = 2, axis = 2> (x)"),
        (11, 17, "y = Dropout <ratio = 0.5> (x)"),
        (12, 17, "y = Softmax <axis = 2> (x)"),
        (12, 17, "y = LogSoftmax <axis = -1> (x)"),
        (12, 17, "y = ReduceSum <axes = [1], keepdims = 0> (x)"),
        (12, 17, "y = ReduceSum (x)"),
        (12, 17, "y, z = Split <axis = 2, split = [1, 3]> (x)"),
        (12, 17, "y, z = Split <axis = 2> (x)"),
        (12, 17, "a = Unsqueeze <axes = [0, 2]> (x)\n y = Squeeze <axes = [0]> (a)"),
    ],
)
def test_a_rewritten_step_gives_the_same_answers(opset: int, wanted: int, body: str) -> None:
    outputs = ", ".join(f"float[{'?,' * 3}?] {name}" for name in ("y", "z") if f"{name} =" in body or f"{name}," in body)
    graph = f"(float[2,3,4] x) => ({outputs}) {{ {body} }}"
    source = ir.to_proto(model(graph, opset=opset))
    del source.graph.output[:]
    for name in ("y", "z"):
        if f"{name} =" in body or f"{name}," in body:
            source.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    inferred = onnx.shape_inference.infer_shapes(source)
    made = ir.from_proto(inferred)
    assert lift(made, wanted) and made.opset_imports[""] == wanted
    lifted = ir.to_proto(made)
    onnx.checker.check_model(lifted, full_check=True)
    before, after = run(inferred, [{"x": X34}]), run(lifted, [{"x": X34}])
    assert before.loads and after.loads, (before.failure, after.failure)
    for name, want in before.outputs[0].items():
        np.testing.assert_array_equal(after.outputs[0][name], want)


@pytest.mark.parametrize("body", ["y = Softmax (x)", "y = Softmax <axis = 1> (x)", "y = Hardmax <axis = 0> (x)"])
def test_a_softmax_over_several_axes_keeps_the_opset(body: str) -> None:
    made = model(f"(float[2,3,4] x) => (float[2,3,4] y) {{ {body} }}", opset=12)
    assert not lift(made, 17) and made.opset_imports[""] == 12


def test_batch_normalization_that_trains_keeps_the_opset() -> None:
    graph = f"(float[1,2,3] x) => (float[1,2,3] y, float[2] om) {STATS} {{ y, om, ov, sm, sv = BatchNormalization(x, s, b, m, v) }}"
    made = model(graph, opset=13)
    assert not lift(made, 17) and made.opset_imports[""] == 13


def test_batch_normalization_that_only_infers_does_not() -> None:
    made = model(f"(float[1,2,3] x) => (float[1,2,3] y) {STATS} {{ y = BatchNormalization(x, s, b, m, v) }}", opset=13)
    assert lift(made, 17)


def test_roi_align_whose_mode_is_not_written_keeps_the_opset() -> None:
    """16 changed the default of coordinate_transformation_mode."""
    made = model(ROI.format('<mode = "avg">'), opset=15)
    assert not lift(made, 17) and made.opset_imports[""] == 15
    made = model(ROI.format('<mode = "avg">'), opset=16)
    assert lift(made, 17)


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
def test_roi_align_whose_mode_is_written_does_not(mode: str) -> None:
    made = model(ROI.format(f'<coordinate_transformation_mode = "{mode}">'), opset=16)
    assert lift(made, 17)


def test_foreign_operators_of_the_same_name_do_not_matter() -> None:
    made = model("(float[2] x) => (float[2] y) { y = my.domain.Dropout(x) }", opset=11, imports=', "my.domain" : 1')
    assert lift(made, 12)


@pytest.mark.parametrize(
    "graph,opset,after",
    [
        ("(float[2] x) => (float[2] y) { y = Clip(x) }", 11, 12),
        (BRANCH.format("Clip"), 11, 12),
        (RELU, 11, 11),
        ("(float[2] x) => (float[2] y) { a = Dropout(x)\n y = Clip(a) }", 11, 12),
        ("(float[2] x) => (float[2] y) { y = Clip <min = 0.0> (x) }", 10, 12),
        ("(float[2] x) => (float[2] y) { y = Clip(x) }", 13, 13),
    ],
)
def test_an_old_clip_becomes_clip_at_12(graph: str, opset: int, after: int) -> None:
    made = model(graph, opset=opset)
    LiftClipPass()(made)
    assert made.opset_imports[""] == after
