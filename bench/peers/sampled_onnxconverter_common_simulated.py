"""onnxconverter-common's search as in ``sampled_onnxconverter_common.py``, but it sees a GPU's rounding.

The function that accepts a candidate asks halfconv's simulation, with all samples and the same tolerance. The search
shows it outputs only, so the candidate is taken from the converter that the search calls. Runs in halfconv's environment.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import timed
from onnxconverter_common import auto_mixed_precision, float16
from sampled_onnxconverter_common import feed_of, load_samples

from halfconv import validate
from halfconv.runtime_process import Session


def convert(source: str, output: str, samples: str, tolerance: float) -> dict[str, object]:
    """Convert one model."""
    plain, latest, answers = float16.convert_float_to_float16, [onnx.ModelProto()], []

    def remembered(*args: object, **more: object) -> onnx.ModelProto:
        latest[0] = plain(*args, **more)
        return latest[0]

    def accepted(reference: list[object], found: list[object]) -> bool:
        if reference is found:  # the search begins by comparing the FP32 outputs with themselves
            return True
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(latest[0], Path(folder, "candidate.onnx"))
            report = validate(source, Path(folder, "candidate.onnx"), samples=samples, tolerance={"rel_l2": tolerance})
        answers.append(report.passed)
        return report.passed

    float16.convert_float_to_float16 = remembered
    model = onnx.load(source)
    files = load_samples(samples)
    feed, _ = feed_of(model, files[:1])
    search = auto_mixed_precision.auto_convert_mixed_precision
    onnx.save(search(model, feed, validate_fn=accepted, keep_io_types=True), output)
    return {"feeds": len(files), "samples_used": len(files), "candidates": len(answers)}


if __name__ == "__main__":
    timed.sampled(convert, Session)
