"""Prove this package here, on the CPU: its files are whole, and both models give the recorded outputs.

    python verify.py

The FP32 twin in ORT format must give them to 1e-3, the half-precision model within the recorded tolerance.
Exit code 0: they do. 1: they do not. 2: a file or the runtime cannot be used.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the package stays as it was copied
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
#: What FP32 sums in another order may change, on outputs near zero, too.
FP32 = {"rel_l2": 1e-3, "agreement": 1.0, "new_nan": 0.0, "new_inf": 0.0, "mismatched": 0.0}


def runner(session):
    """Return what runs a session on inputs by name."""
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def prove(manifest, recording):
    """Run both models."""
    import onnxruntime

    from vendored.deploy.manifest import require_version
    from vendored.deploy.verifying import compare
    from vendored.errors import InputError

    require_version(manifest, onnxruntime.__version__)
    level = (manifest["profile"] or {}).get("graph_optimization", "ORT_ENABLE_ALL")
    models = ((f"{manifest['name']}.fp32.ort", "ORT_ENABLE_ALL", FP32), (manifest["model"], level, None))
    found = {}
    for name, optimization, tolerance in models:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimization)
        try:
            session = onnxruntime.InferenceSession(HERE / "model" / name, options, providers=["CPUExecutionProvider"])
            found[name] = compare(recording, runner(session), tolerance)
        except InputError:
            raise
        except Exception as error:  # whatever the runtime raises is told in one line
            words = " ".join(str(error).split())[:400]
            raise InputError(
                f"{name} does not run in onnxruntime {onnxruntime.__version__}: {words}", "pip install -r requirements.txt"
            ) from None
    return found


if __name__ == "__main__":
    try:
        from vendored.deploy.verifying import main
    except ImportError as error:
        print(f"verify: {error}; try: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(HERE, prove))
