"""onnxconverter-common: ``float16.convert_float_to_float16``, used as its README shows, with ``keep_io_types=True``."""

import onnx
import timed
from onnxconverter_common import float16


def convert(source: str, output: str) -> None:
    """Convert one model."""
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), output)


if __name__ == "__main__":
    timed.main(convert)
