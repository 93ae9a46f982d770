"""Load a model in ONNX Runtime, in a process of its own: ``python load_check.py MODEL LEVEL PROVIDER MEMORY [mapped]``.

A session on a converted model may end the process (ONNX Runtime 1.32 does so at ORT_ENABLE_ALL on some valid FP16 models), so
`halfconv.check` opens none itself. The answer is one line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys

LEVELS = ("ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def load(path: str, level: str, provider: str, memory: str, mapped: str = "") -> dict[str, str]:
    """Open a session and describe it.

    Args:
        path: Model file.
        level: A name of `LEVELS`.
        provider: Execution provider; CPU is always the fallback.
        memory: Bytes that this process may have of its own: folding constants may make gigabytes of a few bytes. 0 for no limit.
        mapped: If not empty, weights in external files stay there, mapped into memory: what would copy them is left out.

    Returns:
        ``{"error": text}``, empty if it loaded; with ``"version"``, ONNX Runtime's.
    """
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls") and provider != "CPUExecutionProvider":
        onnxruntime.preload_dlls()
    if int(memory):
        with contextlib.suppress(ImportError, ValueError):  # Windows has no such limit; a lower one may hold already
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    left_out = []
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
        left_out = ["ConstantFolding"]
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=left_out)
        if provider not in session.get_providers():
            return {"error": f"{provider} did not load", "version": onnxruntime.__version__}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "version": onnxruntime.__version__}
    return {"error": "", "version": onnxruntime.__version__}


if __name__ == "__main__":
    print(json.dumps(load(*sys.argv[1:6])))
