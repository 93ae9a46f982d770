"""Simulate a GPU's half-precision rounding: an FP32 model, for the CPU, that rounds where the half model rounds.

The steps are those of ONNX Runtime when it loads the model for CUDA: inline what has no kernel, remove Identity, fold weights,
fuse; then every half value that still leaves a kernel is rounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from halfconv.drift.folds import FoldPass, RemoveIdentityPass
from halfconv.drift.functions import ExpandFunctionsPass, RaiseOpsetPass
from halfconv.drift.fusions import FusePass
from halfconv.drift.kernels import CUDA_ONLY, HALF_TYPES, unmodelled
from halfconv.drift.widen import WidenPass
from halfconv.errors import UnsupportedModel
from halfconv.graph.prepare import prepare
from halfconv.graph.raise_opset import BF16_OPSET
from halfconv.model import SourceModel

__all__ = ["Simulation", "simulate"]

FORMATS = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
#: The newest IR version that ONNX Runtime 1.18 reads.
IR_VERSION = 10


@dataclass(slots=True)
class Simulation:
    """An FP32 model that stands for a half-precision one.

    Attributes:
        model: The FP32 model: its interface is the half model's with FP32 in place of half.
        half: Place of each value that was half -> the format that it is rounded to.
        to: ``fp16`` or ``bf16``, whichever holds more values; "" if the model has none.
        fused: Transformer of ONNX Runtime -> how often the simulation applies it.
        unmodelled: A sentence for each operator whose half kernel the simulation does not model.
    """

    model: ir.Model
    half: dict[str, ir.DataType]
    to: str
    fused: dict[str, int] = field(default_factory=dict)
    unmodelled: tuple[str, ...] = ()


def simulate(source: SourceModel, *, as_written: bool = False) -> Simulation:
    """Build the simulation of a model; the loaded model is used up.

    Args:
        source: A loaded model in FP16 or BF16, whole or mixed. An FP32 model simulates as itself.
        as_written: Whether to leave out what ONNX Runtime folds and fuses when it loads the model: another runtime, or a
            session without optimisation, rounds every value of the file.

    Returns:
        The simulation.

    Raises:
        UnsupportedModel: A function cannot be inlined, or an operator can only be run by a GPU.
        InputError: The graph is damaged.
    """
    model = source.model
    prepare(model, label=str(source.path), fuse=False)
    if ExpandFunctionsPass()(model).modified:
        prepare(model, label=str(source.path), fuse=False)
    held = (value.dtype for graph in model.graphs() for node in graph for value in node.outputs)
    found = Counter(dtype for dtype in held if dtype is not None and dtype in HALF_TYPES)
    _check_kernels(model, str(source.path))
    missing = unmodelled(model)
    fuse = FusePass()
    if found:
        RaiseOpsetPass()(model)
        RemoveIdentityPass()(model)
        if not as_written:
            FoldPass()(model)
            fuse(model)
        common.RemoveUnusedNodesPass()(model)
    widen = WidenPass(fuse.inside)
    widen(model)
    if model.opset_imports.get("") == BF16_OPSET:
        # That opset gave operators nothing but types, which are gone; the CPU provider lacks some of its kernels (RoiAlign).
        model.opset_imports[""] = BF16_OPSET - 1
    model.ir_version = min(model.ir_version, IR_VERSION) if model.opset_imports.get("", 0) < 23 else model.ir_version
    found = found or Counter(widen.half.values())
    to = FORMATS[found.most_common(1)[0][0]] if found else ""
    return Simulation(model, widen.half, to, fuse.counts, missing)


def _check_kernels(model: ir.Model, label: str) -> None:
    """Refuse an operator that the CPU provider has no kernel for, and the simulation no definition."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        form = _unknown_to_cpu(node) if node.domain == "com.microsoft" else ""
        if form:
            raise UnsupportedModel(
                f"{label}: node '{node.name or ''}': ONNX Runtime has {form} for CUDA only, so that it cannot be simulated",
                "--on cuda",
            )


def _unknown_to_cpu(node: ir.Node) -> str:
    """Name an operator of com.microsoft, or a form of one, that only CUDA has; "" if it is none."""
    if node.op_type in CUDA_ONLY:
        return node.op_type
    if node.op_type != "Attention":
        return ""
    if node.attributes.get_int("do_rotary", False):
        return "Attention with do_rotary"
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    whole = mask is not None and mask.shape is not None and mask.shape.rank() == 4
    return "Attention with a mask of rank 4" if whole else ""
