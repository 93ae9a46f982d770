"""Integers that no input decides are computed once: which, that the answer stays, that shapes become known, and what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import halfconv
from halfconv.graph.prepare import prepare
from tests.graph import model, ops
from tests.graph.test_fusions import Arrays, build, fuse, normal

NAME = "Constant"
X = {"x": normal(2, 12)}


def reshaped(body: str, weights: Arrays, opset: int = 17) -> list[str]:
    """Operators that are left of a Reshape to a shape that is computed."""
    made, done = fuse(f"(float[2,12] x) => (float[n,m] y) {{ {body}\n y = Reshape(x, s) }}", X, weights, opset=opset)
    assert done.fusions.get(NAME, 0) == (ops(made) == ["Reshape"])
    if ops(made) == ["Reshape"]:
        assert [*made.graph.outputs[0].shape] == [4, 6], "the shape is known now"
    return ops(made)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


FORMS: dict[str, tuple[str, Arrays, int]] = {
    "Add": ("s = Add(a, b)", {"a": numbers(1, 5), "b": np.array(3) + numbers(0, -2)}, 17),
    "Add of one": ("s = Add(a, b)", {"a": numbers(3, 5), "b": np.array(1)}, 17),
    "Sub": ("s = Sub(a, b)", {"a": numbers(5, 8), "b": numbers(1, 2)}, 17),
    "Mul": ("s = Mul(a, b)", {"a": numbers(2, -3), "b": numbers(2, -2)}, 17),
    "Mul that overflows": ("s = Mul(a, b)", {"a": numbers(2**62 + 1, 6), "b": numbers(4, 1)}, 17),
    "Cast": ("c = Cast<to = 6>(a)\n s = Cast<to = 7>(c)", {"a": numbers(4, 6)}, 17),
    "Cast of int32": ("s = Cast<to = 7>(a)", {"a": np.array([4, 6], np.int32)}, 17),
    "Concat": ("s = Concat<axis = 0>(a, b)", {"a": numbers(4), "b": numbers(6)}, 17),
    "ConstantOfShape": ("o = ConstantOfShape<value = int64[1] {4}>(a)\n s = Add(o, b)", {"a": numbers(2), "b": numbers(0, 2)}, 17),
    "ConstantOfShape of none": ("o = ConstantOfShape<value = int64[1] {4}>(a)\n s = Add(o, b)",
                                {"a": np.zeros(0, np.int64), "b": numbers(0, 2)}, 17),
    "Gather": ("s = Gather(a, b)", {"a": numbers(6, 7, 4), "b": numbers(-1, 0)}, 17),
    "Identity": ("c = Add(a, b)\n s = Identity(c)", {"a": numbers(4, 5), "b": numbers(0, 1)}, 17),
    "Reshape": ("s = Reshape(a, b)", {"a": np.array([[4, 6]]), "b": numbers(-1)}, 17),
    "Slice": ("s = Slice(a, b, c)", {"a": numbers(1, 4, 6), "b": numbers(1), "c": numbers(2**63 - 1)}, 17),
    "Slice backwards": ("s = Slice(a, b, c, d, b)",
                        {"a": numbers(6, 4), "b": numbers(-1), "c": numbers(-(2**63)), "d": numbers(0)}, 17),
    "Slice with attributes": ("s = Slice<starts = [1], ends = [3], axes = [0]>(a)", {"a": numbers(1, 4, 6)}, 9),
    "Squeeze": ("s = Squeeze(a, b)", {"a": np.array([[4], [6]]), "b": numbers(1)}, 17),
    "Squeeze with an attribute": ("s = Squeeze<axes = [1]>(a)", {"a": np.array([[4], [6]])}, 11),
    "Transpose": ("t = Transpose<perm = [1,0]>(a)\n s = Reshape(t, b)", {"a": np.array([[4], [6]]), "b": numbers(2)}, 17),
    "Unsqueeze": ("g = Gather(a, b)\n u = Unsqueeze(g, b0)\n s = Concat<axis = 0>(u, c)",
                  {"a": numbers(1, 4), "b": np.array(1), "b0": numbers(0), "c": numbers(6)}, 17),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_computed_once(form: str) -> None:
    body, weights, opset = FORMS[form]
    assert reshaped(body, weights, opset) == ["Reshape"]


@pytest.mark.parametrize(
    "body,weights",
    [
        ("f = Add(a, b)\n s = Cast<to = 7>(f)", {"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}),
        ("d = Div(a, b)\n s = Neg(d)", {"a": numbers(-8, -12), "b": numbers(2, 2)}),
        ("l = Concat<axis = 0>(a, b)\n s = Slice(l, zero, two)",
         {"a": numbers(4, 6), "b": np.zeros(63, np.int64), "zero": numbers(0), "two": numbers(2)}),
        ("o = ConstantOfShape<value = int64[1] {4}>(a)\n p = Slice(o, zero, two)\n s = Add(p, b)",
         {"a": numbers(65), "b": numbers(0, 2), "zero": numbers(0), "two": numbers(2)}),
    ],
    ids=["floating point", "other operators", "many read", "many made"],
)  # fmt: skip
def test_other_computations_are_left(body: str, weights: Arrays) -> None:
    assert len(reshaped(body, weights)) > 1


def test_what_an_input_decides_is_left() -> None:
    text = "(float[2,12] x, int64[2] a) => (float[n,m] y, int64[1] z) { s = Add(a, b)\n y = Reshape(x, s)\n z = Add(b, b) }"
    made, done = fuse(text, X | {"a": numbers(3, 5)}, {"b": numbers(1)})
    assert ops(made) == ["Add", "Reshape", "Add"] and not done.fusions, "nor is a result of the model"


@pytest.mark.parametrize("sizes", [(10**12,), (10**6, 10**6), (2**62, 4), (-1,), (-1, -1)])
def test_what_would_be_large_or_is_wrong_is_not_computed(sizes: tuple[int, ...]) -> None:
    text = "(float[2,12] x) => (float[n,m] y) { o = ConstantOfShape<value = int64[1] {4}>(a)\n y = Expand(x, o) }"
    made = build(text, {"a": numbers(*sizes)})
    assert not prepare(made, target="cuda").fusions and ops(made) == ["ConstantOfShape", "Expand"]


@pytest.mark.parametrize(
    "body,weights",
    [("s = Reshape(a, b)", {"a": numbers(4, 6), "b": numbers(5)}), ("s = Gather(a, b)", {"a": numbers(4, 6), "b": numbers(2)}),
     ("s = Slice(a, b, b, b, b)", {"a": numbers(4, 6), "b": numbers(0)}),
     ("s = Transpose<perm = [3]>(a)", {"a": numbers(4, 6)})],
    ids=["shape", "place", "step", "axes"],
)  # fmt: skip
def test_what_cannot_be_computed_stays_for_the_checker(body: str, weights: Arrays) -> None:
    made = build(f"(float[2,12] x) => (float[n,m] y) {{ {body}\n y = Reshape(x, s) }}", weights)
    assert not prepare(made, target="cuda").fusions and len(ops(made)) == 2


def test_a_result_is_stored_once_for_all_its_readers_also_in_branches() -> None:
    text = (
        "(float[2,12] x, bool c) => (float[n,m] y) { a = Constant<value_ints = [3, 5]>()\n o = Constant<value_int = 1>()\n"
        " s = Add(a, o)\n r = Reshape(x, s)\n y = If(c) <then_branch = g () => (float[n,m] z) { t = Add(s, o)\n q = Sub(t, o)\n"
        " z = Reshape(x, q) }, else_branch = h () => (float[n,m] w) { w = Relu(r) }> }"
    )
    made, done = fuse(text, X | {"c": np.array(True)})
    assert sorted(ops(made)) == ["If", "Relu", "Reshape", "Reshape"] and done.fusions == {NAME: 2}
    held = [value.const_value for value in made.graph.initializers.values()]
    assert [tensor.numpy().tolist() for tensor in held if tensor is not None] == [[4, 6]] * 2


def test_other_targets_keep_them() -> None:
    text = "(float[2,12] x) => (float[n,m] y) { s = Add(a, b)\n y = Reshape(x, s) }"
    for target in ("portable", "cpu", "web", "coreml"):
        made, done = fuse(text, X, {"a": numbers(3, 5), "b": numbers(1)}, target=target)
        assert ops(made) == ["Add", "Reshape"] and not done.fusions


def test_many_nodes_are_no_recursion_and_take_little_memory() -> None:
    count = 3000
    chain = "\n".join(f"s{i + 1} = {'Add' if i % 2 else 'Sub'}(s{i}, o)" for i in range(count))
    text = f"(float[2,12] x) => (float[n,m] y) {{ s0 = Identity(a)\n {chain}\n y = Reshape(x, s{count}) }}"
    made = build(text, {"a": numbers(4, 6), "o": numbers(1)})
    assert prepare(made, target="cuda").fusions == {NAME: 1} and ops(made) == ["Reshape"]


def test_a_shape_that_the_model_promises_stays(tmp_path: Path) -> None:
    """The result's free sizes are known now; the file still promises what the source does."""
    ir.save(build("(float[2,12] x) => (float[n,m] y) { s = Add(a, b)\n r = Reshape(x, s)\n y = Relu(r) }",
                  {"a": numbers(3, 5), "b": numbers(1)}), tmp_path / "m.onnx")  # fmt: skip
    result = halfconv.convert(tmp_path / "m.onnx", tmp_path / "h.onnx", target="cuda", samples=[X])
    assert result.check is not None and result.check.loaded and result.drift is not None and result.drift.passed
    before, after = (ir.load(tmp_path / name).graph.outputs[0].shape for name in ("m.onnx", "h.onnx"))
    assert before == after


def test_a_rule_that_names_one_leaves_all(tmp_path: Path) -> None:
    text = "(float[2,12] x) => (float[n,m] y) { [sum] s = Add(a, b)\n r = Reshape(x, s)\n y = Relu(r) }"
    ir.save(build(text, {"a": numbers(3, 5), "b": numbers(1)}), tmp_path / "m.onnx")
    result = halfconv.convert(tmp_path / "m.onnx", tmp_path / "h.onnx", target="cuda", samples=[X], block_nodes=["sum"])
    assert f"{NAME} is not fused: --block-node sum names what it would take up" in result.warnings
    assert "Add" in ops(ir.load(tmp_path / "h.onnx"))


def test_the_model_is_typed_as_before() -> None:
    """Inference a second time makes no tensor of a sequence."""
    text = (
        "(float[2,12] x) => (float[n,m] y) { a = Constant<value_ints = [3, 5]>()\n b = Constant<value_int = 1>()\n s = Add(a, b)\n"
        " r = Reshape(x, s)\n q = SplitToSequence(r)\n i = Constant<value_int = 0>()\n y = SequenceAt(q, i) }"
    )
    made = model(text)
    assert prepare(made, target="cuda").fusions == {NAME: 1}
    sequence = next(node.outputs[0] for node in made.graph if node.op_type == "SplitToSequence")
    assert isinstance(sequence.type, ir.SequenceType)
