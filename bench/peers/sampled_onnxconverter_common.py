"""onnxconverter-common: ``auto_convert_mixed_precision``, whose search stops where a function of ours accepts the outputs.

It takes one feed, and runs every candidate in ONNX Runtime's CPU provider. The function accepts what halfconv's gate
would: rel_l2 within the tolerance for every output, and no new NaN or infinity. The feed is all samples stacked along
their first axis where the model leaves that free for all inputs, so that they are one batch; else the first sample.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import timed
from onnxconverter_common import auto_mixed_precision

Feed = dict[str, np.ndarray]


def free_first_axis(model: onnx.ModelProto) -> bool:
    """Tell whether every input's first axis has no fixed length."""
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in weights]
    return all(len(dims) > 0 and dims[0].dim_value <= 0 for dims in shapes)


def feed_of(model: onnx.ModelProto, samples: list[Feed]) -> tuple[Feed, int]:
    """Make the one feed that the search takes.

    Args:
        model: The FP32 model.
        samples: All samples.

    Returns:
        The feed, and how many samples are in it.
    """
    shapes = {tuple((name, array.shape[1:]) for name, array in sorted(sample.items())) for sample in samples}
    if len(shapes) == 1 and free_first_axis(model):
        return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}, len(samples)
    return samples[0], 1


def drift(reference: np.ndarray, found: np.ndarray) -> float:
    """The rel_l2 of one output as halfconv defines it; infinite if there is a new NaN or infinity."""
    wanted, got = (np.asarray(array, np.float64) for array in (reference, found))
    finite = np.isfinite(wanted)
    wanted, got = wanted[finite], got[finite]
    if not np.isfinite(got).all():
        return float("inf")
    energy = (wanted**2).sum()
    return float(np.sqrt(((got - wanted) ** 2).sum() / energy)) if energy else float(np.abs(got).max(initial=0))


def load_samples(folder: str) -> list[Feed]:
    """Read all samples, in the order of their numbers."""
    files = sorted(Path(folder).glob("*.npz"), key=lambda path: (len(path.name), path.name))
    return [dict(np.load(path)) for path in files]


def convert(source: str, output: str, samples: str, tolerance: float) -> dict[str, object]:
    """Convert one model."""
    seen: list[float] = []

    def accepted(reference: list[np.ndarray], found: list[np.ndarray]) -> bool:
        seen.append(max(drift(*pair) for pair in zip(reference, found, strict=True)))
        return seen[-1] <= tolerance

    model = onnx.load(source)
    feed, used = feed_of(model, load_samples(samples))
    search = auto_mixed_precision.auto_convert_mixed_precision
    onnx.save(search(model, feed, validate_fn=accepted, keep_io_types=True), output)
    return {"feeds": 1, "samples_used": used, "candidates": len(seen) - 1, "own_rel_l2": seen[-1]}


if __name__ == "__main__":
    timed.sampled(convert)
