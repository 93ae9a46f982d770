"""Small FP16 models into which operators of halfconv's own are put, and the same models in FP32, where answers must stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from halfconv.graph.duplicate import duplicate
from halfconv.graph.prepare import prepare
from halfconv.graph.protos import graphs_of
from halfconv.graph.rules import MS
from halfconv.kernels.operators import DOMAIN
from halfconv.kernels.stage import Placed, place
from tests.graph import model
from tests.runtime_helpers import Job, _run_in_child

Arrays = Mapping[str, np.ndarray]
RNG = np.random.default_rng(0)


def half(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers that FP16 holds."""
    return (RNG.standard_normal(shape) * scale).astype(np.float16)


def build(graph: str, weights: Arrays, *, opset: int = 20) -> ir.Model:
    """A model from text, with weights beside it, prepared."""
    made = model(graph, opset=opset, imports=f', "{MS}" : 1')
    for name, array in weights.items():
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        made.graph.register_initializer(value)
        for node in made.graph.all_nodes():
            for index, read in enumerate(node.inputs):
                if read is not None and read.name == name:
                    node.replace_input_with(index, value)
    prepare(made, fuse=False)
    return made


def widened(made: ir.Model) -> onnx.ModelProto:
    """The same model in FP32: bodies of functions name no types."""
    proto = ir.to_proto(made)
    for graph in graphs_of(proto.graph):
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in (attribute for node in graph.node if node.op_type == "Cast" for attribute in node.attribute):
            if attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        del graph.value_info[:]
    return proto


def answers(proto: onnx.ModelProto, feeds: Arrays, level: str = "DISABLE_ALL") -> dict[str, np.ndarray]:
    """Run a model in a process of its own."""
    got = _run_in_child(Job(proto.SerializeToString(), [dict(feeds)], level=level))
    assert got.loads, got.failure
    return got.outputs[0]


def placed(graph: str, feeds: Arrays, weights: Arrays, *, opset: int = 20) -> tuple[ir.Model, Placed]:
    """Put the operators in, and require that the model is valid, and that its FP32 answer stays."""
    before = build(graph, weights, opset=opset)
    after = duplicate(before)
    done = place(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in feeds.items()}
    want, got = answers(widened(before), wide), answers(widened(after), wide)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert np.linalg.norm(got[name] - value) <= 1e-5 * np.linalg.norm(value), name
    assert {name for _, name, _ in after.functions} == done.operators.keys()
    assert (DOMAIN in after.opset_imports) == bool(done.operators)
    return after, done


def kinds(made: ir.Model) -> Counter[str]:
    """How many nodes of each operator there are; ours with their domain."""
    return Counter((f"{node.domain}." if node.domain == DOMAIN else "") + node.op_type for node in made.graph)


def own(**counts: int) -> dict[str, int]:
    """Counts of operators of ours, as `kinds` writes them."""
    return {f"{DOMAIN}.{name}": count for name, count in counts.items()}
