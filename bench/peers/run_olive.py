"""Olive: its pass OnnxFloatToFloat16 on a model in a folder, with ``keep_io_types``."""

import os
import tempfile
from pathlib import Path

import timed

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # before it is imported

from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.float16_conversion import OnnxFloatToFloat16


def convert(source: str, output: str) -> None:
    """Convert one model; what the pass writes is moved to where the result is wanted."""
    settings = {"keep_io_types": True, "save_as_external_data": True, "all_tensors_to_one_file": True}
    converter = create_pass_from_dict(OnnxFloatToFloat16, settings, disable_search=True)
    target = Path(output)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(converter.run(ONNXModelHandler(model_path=source), str(Path(folder) / "made")).model_path)
        for path in made.parent.iterdir():
            path.rename(target.parent / (target.name if path == made else path.name))


if __name__ == "__main__":
    timed.main(convert)
