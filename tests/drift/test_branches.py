"""Values inside the branches of an If are compared, where all samples take the same branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import halfconv
from halfconv.drift.branches import TakeBranchesPass, taken_branches
from halfconv.graph.prepare import prepare
from halfconv.model import load
from halfconv.samples import Sample
from tests import zoo

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
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {NESTED}')
    onnx.save(model, folder / "model.onnx")
    options: dict[str, Any] = {"block_list": "none", "allow_ops": ["Mul", "Sqrt", "Div", "Relu", "Neg"], "check": False}
    halfconv.convert(folder / "model.onnx", folder / "half.onnx", **options)
    return folder / "model.onnx", folder / "half.onnx"


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


def test_samples_that_take_different_branches_leave_the_if_whole(pair: tuple[Path, Path]) -> None:
    found, _ = layers(pair, sample(True, 0.01), sample(False))
    assert "a" in found and not any("branch" in value for value in found)


def test_the_pass_gives_what_the_if_gives(pair: tuple[Path, Path]) -> None:
    from tests.runtime_helpers import run

    def reference() -> ir.Model:
        model = load(pair[0]).model
        prepare(model, fuse=False)
        return model

    for flag in (True, False):
        feeds = sample(flag)
        taken = taken_branches(reference, [Sample("s", feeds)])
        assert taken == ({"outer": True, "inner": True} if flag else {"outer": False})
        model = reference()
        assert TakeBranchesPass(taken)(model).modified
        assert not any(node.op_type == "If" for node in ir.traversal.RecursiveGraphIterator(model.graph))
        model.graph.outputs[0].name = "y"
        got, want = run(ir.to_proto(model), [feeds]), run(pair[0], [feeds])
        assert got.loads, got.failure
        np.testing.assert_array_equal(next(iter(got.outputs[0].values())), want.outputs[0]["y"])


@pytest.mark.slow
def test_a_real_network_inside_an_if_is_compared(tmp_path: Path) -> None:
    result = halfconv.convert(zoo.model("silero_vad"), tmp_path / "half.onnx", check=False)
    report = halfconv.validate(zoo.model("silero_vad"), result.output, samples=zoo.samples("silero_vad")[:1], layers=True)
    assert report.layers is not None and len(report.layers) > 50
    assert {"LSTM", "Conv"} <= {layer.op for layer in report.layers}
