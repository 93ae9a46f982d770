"""onnxruntime.transformers: its optimizer, then its converter, as its command line does with ``--float16 --use_gpu``.

A fourth argument is the type of model, ``bert`` or ``vit:HEADS:WIDTH``. On a machine without a GPU the optimizer fuses for one all
the same, but ONNX Runtime's own optimisations before that are those of the CPU provider.
"""

import sys

import onnxruntime
import timed
from onnxruntime.transformers.optimizer import optimize_model


def convert(source: str, output: str) -> None:
    """Optimize and convert one model."""
    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if gpu:
        onnxruntime.preload_dlls()
    kind, heads, width = ((sys.argv[4:] or ["bert"])[0] + ":0:0").split(":")[:3]
    model = optimize_model(source, model_type=kind, num_heads=int(heads), hidden_size=int(width), use_gpu=gpu)
    model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(output)


if __name__ == "__main__":
    timed.main(convert)
