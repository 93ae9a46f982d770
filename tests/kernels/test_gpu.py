"""The CUDA kernels give what the functions say, in a process's first run as in later ones, and in a CUDA graph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from halfconv.runtime.kernels import library
from tests.kernels.hard_rows import hard_rows

pytestmark = pytest.mark.gpu

#: Operator -> shapes of X, of other inputs, and attributes. Odd sizes, more than one tile, more than one image.
CASES = [
    ("Linear", [[3, 67, 64], [64, 72], [72]], {}),
    ("LinearRelu", [[129, 64], [64, 8], [8]], {}),
    ("LinearGelu", [[5, 40, 192], [192, 768], [768]], {}),
    ("LinearGelu", [[1, 8], [8, 8], [8]], {}),
    ("LinearAdd", [[2, 9, 7, 96], [96, 24], [24], [2, 9, 7, 24]], {}),
    ("LinearAddRelu", [[200, 256], [256, 64], [64], [200, 64]], {}),
    ("Conv", [[2, 15, 11, 16], [24, 3, 3, 16], [24]], {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1]}),
    ("Conv", [[1, 12, 12, 8], [16, 2, 2, 8], [16]], {"strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1]}),
    ("ConvRelu", [[2, 14, 14, 32], [32, 3, 3, 32], [32]], {"strides": [1, 1], "pads": [0, 1, 2, 1], "dilations": [1, 1]}),
    ("ConvAdd", [[1, 9, 9, 8], [8, 3, 3, 8], [8], [1, 9, 9, 8]], {"strides": [1, 1], "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ("ConvAddRelu", [[2, 8, 6, 64], [64, 1, 1, 64], [64], [2, 4, 3, 64]],
     {"strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1]}),
    *[("DepthwiseConv", [[2, 17, 9, c], [k, k, 1, c], [c]], {"pads": [k // 2] * 4, "group": c})
      for k, c in ((3, 8), (3, 40), (5, 96), (7, 200))],
    ("DepthwiseConv", [[65537, 1, 2, 8], [3, 3, 1, 8], [8]], {"pads": [1] * 4, "group": 8}),  # more images than one grid has
    *[("DepthwiseConvNorm", [[2, 10, 15, c], [7, 7, 1, c], [c], [c], [c]], {"pads": [3] * 4, "group": c, "epsilon": 1e-6})
      for c in (8, 96, 768, 1024)],
    *[("LayerNorm", [[*rows, c], [c], [c]], {"epsilon": 1e-6})
      for rows, c in (((1,), 8), ((3, 67), 96), ((2, 5, 7), 96), ((37,), 104), ((5, 9), 192), ((2, 3, 11), 384), ((33,), 768),
                      ((7, 1), 1000), ((2, 13), 1024), ((), 1024), ((3,), 1032), ((5,), 1280), ((3, 3), 1536), ((2,), 2048),
                      ((7,), 4096))],
    ("PackedAttention", [[3, 50, 3 * 64]], {"num_heads": 2, "scale": 0.2}),
    ("PackedAttention", [[3, 50, 3 * 64]], {"num_heads": 2, "scale": 0.05}),
    ("PackedAttention", [[1, 197, 3 * 128]], {"num_heads": 1, "scale": 0.1}),
    ("PackedAttentionBias", [[2, 33, 3 * 64], [2, 1, 33, 33]], {"num_heads": 4, "scale": 0.25}),
    ("PackedAttentionBias", [[2, 33, 3 * 64], [1, 4, 33, 33]], {"num_heads": 4, "scale": 0.25}),
]  # fmt: skip

#: Runs in a process of its own, as what goes wrong may do so in its first run only.
PROGRAM = """
import json, sys
import numpy as np, onnx, onnxruntime
import onnx_ir as ir
from halfconv.kernels.operators import DOMAIN, OPERATORS, define
onnxruntime.preload_dlls()
library, cases = sys.argv[1], json.loads(sys.argv[2])
random, found = np.random.default_rng(0), []
for name, shapes, attributes in cases:
    row = OPERATORS[name]
    arrays = {key: random.standard_normal(shape).astype(np.float16) for key, shape in zip(row.inputs, shapes, strict=True)}
    if "W" in arrays:
        arrays["W"] /= np.float16(np.sqrt(arrays["W"][..., 0].size if "Conv" in name else arrays["W"].shape[0]))
    def model(kind):
        value = lambda key: onnx.helper.make_tensor_value_info(key, kind, arrays[key].shape)
        outs = ["Y", "Y2"]
        nodes = [onnx.helper.make_node(name, list(row.inputs), [out], domain=DOMAIN, **attributes) for out in outs]
        graph = onnx.helper.make_graph(nodes, "g", [value(key) for key in row.inputs],
                                       [onnx.helper.make_tensor_value_info(out, kind, None) for out in outs])
        imports = [onnx.helper.make_opsetid(*both) for both in ((DOMAIN, 1), ("", 20), ("com.microsoft", 1))]
        function = ir.serde.serialize_function(define(name, 20))
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[function]).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wide = {key: array.astype(np.float32) for key, array in arrays.items()}
    wanted = onnxruntime.InferenceSession(model(1), options, providers=["CPUExecutionProvider"]).run(["Y"], wide)[0]
    options.register_custom_ops_library(library)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # else both nodes are one
    session = onnxruntime.InferenceSession(model(10), options, providers=["CUDAExecutionProvider"], enable_fallback=0)
    far = lambda y: float(np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted))
    drifts = [far(y) for _ in range(2) for y in session.run(["Y", "Y2"], arrays)]
    graph = onnxruntime.InferenceSession(model(10), options, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    zeros = lambda shape: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float16), "cuda", 0)
    binding, out = graph.io_binding(), [zeros(wanted.shape), zeros(wanted.shape)]
    values = {key: zeros(array.shape) for key, array in arrays.items()}
    for key, value in values.items(): binding.bind_ortvalue_input(key, value)
    for key, value in zip(["Y", "Y2"], out): binding.bind_ortvalue_output(key, value)
    graph.run_with_iobinding(binding)  # captured on zeros
    for key, value in values.items(): value.update_inplace(arrays[key])
    graph.run_with_iobinding(binding)
    found.append([name, drifts, [far(value.numpy()) for value in out]])
print(json.dumps(found))
"""


def test_kernels_compute_what_the_functions_say() -> None:
    made = library()
    if made is None:
        pytest.skip("no library of kernels; halfconv kernels build makes it")
    command = [sys.executable, "-c", PROGRAM, str(made), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row[0] for row in found] == [case[0] for case in CASES]
    # One or two roundings of the result, 2.1e-4 each for normal numbers; attention also rounds what it multiplies.
    assert {name: max(*drifts, *graphed) for name, drifts, graphed in found if not max(*drifts, *graphed) < 5e-4} == {}


def test_a_norm_holds_on_hard_rows() -> None:
    made = library()
    if made is None:
        pytest.skip("no library of kernels; halfconv kernels build makes it")
    hard_rows("CUDAExecutionProvider", made)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed; this needs no GPU, but minutes")
def test_kernels_compile(tmp_path: Path) -> None:
    from halfconv.errors import EnvironmentProblem
    from halfconv.kernels.build import build

    try:
        made = build(output=tmp_path / "library.so")
    except EnvironmentProblem as error:
        if "no folder has" in str(error):
            pytest.skip(f"headers are not installed: {error}")
        raise
    assert b"RegisterCustomOps" in made.read_bytes()
