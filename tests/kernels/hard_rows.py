"""Rows that are hard for a norm, computed in a process; this imports little, as it runs on bare machines with a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Rows that are hard for a norm, several of each, beside rows that are not: what they give must not reach their neighbours.
HARD = """
import sys
import numpy as np, onnx, onnxruntime
import onnx_ir as ir
from halfconv.kernels.operators import DOMAIN, define
library, provider = sys.argv[1:]
if provider.startswith("CUDA"): onnxruntime.preload_dlls()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if library: options.register_custom_ops_library(library)
random = np.random.default_rng(0)
for width in (8, 96, 104, 192, 384, 768, 1024, 1280, 4096):
    value = lambda name, shape: onnx.helper.make_tensor_value_info(name, 10, shape)
    node = onnx.helper.make_node("LayerNorm", ["x", "g", "b"], ["y"], domain=DOMAIN, epsilon=1e-6)
    graph = onnx.helper.make_graph([node], "g", [value("x", ["n", width]), value("g", [width]), value("b", [width])],
                                   [value("y", ["n", width])])
    imports = [onnx.helper.make_opsetid(*both) for both in ((DOMAIN, 1), ("", 20))]
    function = ir.serde.serialize_function(define("LayerNorm", 20))
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[function]).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    g, b = random.standard_normal((2, width)).astype(np.float16)
    last = np.arange(width) == width - 1
    kinds = [np.full(width, 6e4), np.full(width, 0.1), np.full(width, -65504), np.zeros(width), np.where(last, 65504, 0),
             np.where(np.arange(width) % 2, 6e4, -6e4), 6e4 + 32 * np.round(random.standard_normal(width)),
             1e3 + random.standard_normal(width), random.standard_normal(width) * 1e-3, random.standard_normal(width)]
    rows = np.array(kinds * 7 + kinds[:3], np.float16)  # an odd number, and more than one block of short rows
    run = lambda x: session.run(None, {"x": x, "g": g, "b": b})[0]
    x = rows.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * g.astype(np.float64) + b
    y = run(rows).astype(np.float64)
    assert (np.abs(y - want) <= 1e-3 * np.maximum(np.abs(want), 1)).all(), (width, np.abs(y - want).max(-1)[:10])
    same = (rows == rows[:, :1]).all(-1)
    assert same.sum() == 31 and (y[same] == b).all(), width  # what has no variance is the shift, to the bit
    for wrong in (np.nan, np.inf):
        broken = rows.copy()
        broken[11, width // 2] = wrong
        z = run(broken).astype(np.float64)
        assert np.isnan(z[11]).all() and np.array_equal(np.delete(z, 11, 0), np.delete(y, 11, 0)), width
    assert run(rows[:0]).shape == (0, width)
print("held")
"""


def hard_rows(provider: str, library: Path | None = None) -> None:
    """Norms of rows of one number each, of large ones, of one far from all others; beside a row that is broken; and of no rows."""
    command = [sys.executable, "-c", HARD, str(library or ""), provider]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith("held\n"), done.stderr[-2000:]
