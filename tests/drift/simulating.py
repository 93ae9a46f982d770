"""What tests of the simulation share: half models from text, their simulation, and a session that runs it as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from halfconv.drift.simulate import Simulation, simulate
from halfconv.model import load
from tests.runtime_helpers import Failure, Job, Outcome, _run_in_child, isolate

Array = np.ndarray[Any, Any]
TYPES = {"fp16": (TensorProto.FLOAT16, np.float16, "float16"), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, "bfloat16")}


def h(x: Any, to: str = "fp16") -> Array:
    """Round to half and return FP32: one step of arithmetic in half."""
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float32).astype(TYPES[to][1]).astype(np.float32)


def half_model(
    body: str,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    *,
    weights: Mapping[str, Any] | None = None,
    opset: int = 20,
    ir_version: int = 10,
    to: str = "fp16",
    wide: Sequence[str] = (),
) -> onnx.ModelProto:
    """A half-precision model: the nodes as text, half inputs (those of `wide` are FP32), and float arrays as half weights."""
    kind, numpy_type, _ = TYPES[to]
    graph = onnx.parser.parse_graph(f"g () => () {{ {body} }}")
    for attribute in (a for node in graph.node for a in node.attribute if a.t.data_type == TensorProto.FLOAT):
        values = numpy_helper.to_array(attribute.t)
        attribute.t.CopyFrom(helper.make_tensor("", kind, values.shape, values.astype(numpy_type).tobytes(), raw=True))
    made = []
    for name, value in (weights or {}).items():
        array = np.asarray(value)
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                data = array.astype(np.float32).astype(numpy_type)
            made.append(helper.make_tensor(name, kind, data.shape, data.tobytes(), raw=True))
        else:
            made.append(numpy_helper.from_array(array, name))
    entries = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if name in wide else kind, shape) for name, shape in inputs.items()
    ]
    proto = helper.make_graph(
        list(graph.node), "g", entries, [helper.make_tensor_value_info(name, kind, None) for name in outputs], made
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = onnx.shape_inference.infer_shapes(helper.make_model(proto, opset_imports=imports, ir_version=ir_version))
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
            value.type.tensor_type.ClearField("shape")
    return model


def simulated(model: onnx.ModelProto | str) -> Simulation:
    """The simulation of a model in memory or as text."""
    proto = onnx.parser.parse_model(model) if isinstance(model, str) else model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return simulate(load(path))


def proto_of(simulation: Simulation) -> onnx.ModelProto:
    return ir.to_proto(simulation.model)


def ops_of(simulation: Simulation) -> list[str]:
    """Operators of all scopes but for Casts and Constants."""
    nodes = ir.traversal.RecursiveGraphIterator(simulation.model.graph)
    return [node.op_type for node in nodes if node.op_type not in ("Cast", "Constant")]


def outcome(model: Simulation | onnx.ModelProto, feeds: Mapping[str, Any]) -> Outcome:
    """Run a simulation, without any optimisation, in a child process."""
    data = (proto_of(model) if isinstance(model, Simulation) else model).SerializeToString()
    answer = isolate(_run_in_child, [Job(data, [dict(feeds)], level="DISABLE_ALL")], workers=1)[0]
    return Outcome(failure=answer) if isinstance(answer, Failure) else answer


def run(model: Simulation | onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a simulation."""
    got = outcome(model, feeds)
    assert got.failure is None, got.failure
    result: dict[str, Any] = got.outputs[0]
    return result


def result(model: onnx.ModelProto | str, feeds: Mapping[str, Any], output: str = "y") -> Any:
    """One result of the simulation of a model."""
    return run(simulated(model), feeds)[output]


def same(got: Any, want: Any) -> None:
    """Check that arrays agree bit for bit; NaN agrees with NaN, and a zero with a zero of the other sign."""
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want, np.float32))
