"""Simulate a GPU's half-precision rounding: an FP32 model, for the CPU, that rounds where the half model rounds."""
from __future__ import annotations
from pathlib import Path
import onnx_ir as ir
from onnx_ir.passes import common
from halfconv.drift.folds import FoldPass
from halfconv.drift.fusions import FusePass
from halfconv.drift.widen import WidenPass
from halfconv.graph.prepare import prepare
from halfconv.model import load
def simulated_bytes(path):
    source = load(path)
    prepare(source.model, label=str(path), fuse=False)
    FoldPass()(source.model)
    fuse = FusePass()
    fuse(source.model)
    common.RemoveUnusedNodesPass()(source.model)
    WidenPass(fuse.inside)(source.model)
    source.model.ir_version=10
    return ir.to_proto(source.model).SerializeToString()
