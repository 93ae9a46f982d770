"""A committed plan: what planning makes of a small model, as text that shows in review what a change of the rules changes.

``python -m tests.precision.test_golden`` writes it again.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from halfconv.plan_file import read_plan
from halfconv.planning import plan_model

GOLDEN = Path(__file__).parents[1] / "golden" / "attention.plan.json"


def attention() -> onnx.ModelProto:
    """One block: projections, masked scores, Softmax, a decomposed norm, a gate with a branch, and a choice of the best."""
    node, info = helper.make_node, helper.make_tensor_value_info
    weight = np.linspace(-0.5, 0.5, 256, dtype=np.float32).reshape(16, 16)
    branch = helper.make_graph(
        [node("Exp", ["normed"], ["grown"], "grow"), node("Tanh", ["grown"], ["gated"], "gate")],
        "gated", [], [info("gated", TensorProto.FLOAT, None)],
    )  # fmt: skip
    plain = helper.make_graph(
        [node("Identity", ["normed"], ["kept"], "keep")], "plain", [], [info("kept", TensorProto.FLOAT, None)]
    )
    nodes = [
        *(node("MatMul", ["x", f"w{name}"], [name], f"proj_{name}") for name in "qkv"),
        node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], "scores"),
        node("Add", ["scores", "mask"], ["masked"], "mask"),
        node("Softmax", ["masked"], ["share"], "share", axis=-1),
        node("MatMul", ["share", "v"], ["mixed"], "mix"),
        node("Add", ["x", "mixed"], ["sum"], "residual"),
        node("ReduceMean", ["sum"], ["mean"], "norm/mean", axes=[-1]),
        node("Sub", ["sum", "mean"], ["centred"], "norm/centre"),
        node("Mul", ["centred", "centred"], ["squares"], "norm/square"),
        node("ReduceMean", ["squares"], ["variance"], "norm/variance", axes=[-1]),
        node("Add", ["variance", "epsilon"], ["safe"], "norm/epsilon"),
        node("Sqrt", ["safe"], ["deviation"], "norm/root"),
        node("Div", ["centred", "deviation"], ["normed"], "norm/divide"),
        node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=plain),
        node("ArgMax", ["mixed"], ["best"], "best", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [info("x", TensorProto.FLOAT, ["n", 8, 16]), info("flag", TensorProto.BOOL, [])],
        [info("y", TensorProto.FLOAT, ["n", 8, 16]), info("best", TensorProto.INT64, ["n", 8, 1])],
        [
            *(numpy_helper.from_array(weight * scale, f"w{name}") for name, scale in zip("qkv", (1, 2, 3), strict=True)),
            numpy_helper.from_array(np.triu(np.full((8, 8), -1e9, np.float32), 1), "mask"),
            numpy_helper.from_array(np.array(1e-9, np.float32), "epsilon"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def planned(folder: Path) -> str:
    path = folder / "attention.onnx"
    path.write_bytes(attention().SerializeToString(deterministic=True))
    plan = plan_model(path, fuse=False).plan
    assert plan.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # What another version of onnx writes in the file says nothing of the plan.
    return plan.to_json().replace(plan.source_sha256, "0" * 64)


def test_the_plan_is_that_of_the_committed_file(folder: Path) -> None:
    assert planned(folder) == GOLDEN.read_text("utf-8"), "python -m tests.precision.test_golden writes it again"


def test_the_committed_plan_replays_on_the_model(folder: Path) -> None:
    golden = read_plan(GOLDEN)
    onnx.save(attention(), folder / "m.onnx")
    again = plan_model(folder / "m.onnx", plan=GOLDEN).plan
    assert again.fingerprint() == golden.fingerprint() and again.values == golden.values


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(planned(Path(scratch)), "utf-8")
