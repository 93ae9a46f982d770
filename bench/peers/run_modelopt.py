"""NVIDIA modelopt: AutoCast as its command line runs it, ``python -m modelopt.onnx.autocast --keep_io_types``.

It runs the model once on random inputs in ONNX Runtime's CPU provider, to find values out of range.
"""

import timed
from modelopt.onnx.autocast import convert_to_mixed_precision
from modelopt.onnx.utils import save_onnx


def convert(source: str, output: str) -> None:
    """Convert one model."""
    save_onnx(convert_to_mixed_precision(source, keep_io_types=True), output)


if __name__ == "__main__":
    timed.main(convert)
