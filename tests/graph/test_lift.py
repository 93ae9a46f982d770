"""Raising the opset: only where it changes nothing but the number."""

from __future__ import annotations

import pytest

from halfconv.graph.lift import STEPS, LiftClipPass, lift
from tests.graph import model

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"
STATS = "<float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>"
ROI = "(float[1,1,8,8] x, float[n,4] r, int64[n] i) => (float[n,1,1,1] y) {{ y = RoiAlign {} (x, r, i) }}"
BRANCH = (
    "(float[2] x, bool c) => (float[2] y) {{ y = If(c) <then_branch = g () => (float[2] t) {{ t = {} (x) }},"
    " else_branch = h () => (float[2] e) {{ e = Relu(x) }}> }}"
)


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 15, 16])
def test_every_step_that_is_known_is_taken(opset: int) -> None:
    made = model(RELU, opset=opset)
    if opset == 12:  # 12 to 13 changes Softmax, Squeeze and more: not a step that halfconv takes
        assert not lift(made, 17) and made.opset_imports[""] == 12
    elif opset == 11:
        assert lift(made, 12) and made.opset_imports[""] == 12
    else:
        assert lift(made, 17) and made.opset_imports[""] == 17


def test_the_wanted_opset_and_newer_ones_stay() -> None:
    for opset in (17, 18, 21):
        made = model(RELU, opset=opset)
        assert lift(made, 17) and made.opset_imports[""] == opset


@pytest.mark.parametrize("opset", [7, 9, 10, 12])
def test_a_step_that_is_not_known_is_not_taken(opset: int) -> None:
    made = model(RELU, opset=opset)
    assert opset not in STEPS
    assert not lift(made, 17) and made.opset_imports[""] == opset


@pytest.mark.parametrize("inside", [False, True])
def test_dropout_at_11_keeps_the_opset(inside: bool) -> None:
    graph = BRANCH.format("Dropout") if inside else RELU.replace("Relu", "Dropout <ratio = 0.5>")
    made = model(graph, opset=11)
    assert not lift(made, 12) and made.opset_imports[""] == 11


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
        ("(float[2] x) => (float[2] y) { a = Dropout(x)\n y = Clip(a) }", 11, 11),
        ("(float[2] x) => (float[2] y) { y = Clip <min = 0.0> (x) }", 10, 10),
        ("(float[2] x) => (float[2] y) { y = Clip(x) }", 13, 13),
    ],
)
def test_clip_at_11_becomes_clip_at_12(graph: str, opset: int, after: int) -> None:
    made = model(graph, opset=opset)
    LiftClipPass()(made)
    assert made.opset_imports[""] == after
