"""NVIDIA modelopt: AutoCast with samples, ``python -m modelopt.onnx.autocast --keep_io_types --calibration_data DIR``.

It takes no tolerance: one run over the samples tells what passes its default bound of 512, and that stays FP32.
"""

from pathlib import Path

import timed
from modelopt.onnx.autocast import convert_to_mixed_precision
from modelopt.onnx.utils import save_onnx


def convert(source: str, output: str, samples: str, tolerance: float) -> dict[str, object]:
    """Convert one model; the tolerance has no place in its interface."""
    save_onnx(convert_to_mixed_precision(source, keep_io_types=True, calibration_data=samples), output)
    return {"candidates": 0, "feeds": len(list(Path(samples).glob("*.npz")))}


if __name__ == "__main__":
    timed.sampled(convert)
