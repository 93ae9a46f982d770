"""NVIDIA modelopt: AutoCast as its command line runs it, ``python -m modelopt.onnx.autocast --keep_io_types``.

It runs the model once in ONNX Runtime's CPU provider, to find values out of range: on random inputs, or on the file of samples that
is the fourth argument, as ``--calibration_data``.
"""

import sys

import timed
from modelopt.onnx.autocast import convert_to_mixed_precision
from modelopt.onnx.utils import save_onnx


def convert(source: str, output: str) -> None:
    """Convert one model."""
    samples = sys.argv[4] if len(sys.argv) > 4 else None
    save_onnx(convert_to_mixed_precision(source, keep_io_types=True, calibration_data=samples), output)


if __name__ == "__main__":
    timed.main(convert)
