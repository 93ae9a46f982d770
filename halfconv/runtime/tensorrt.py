"""What ONNX Runtime's TensorRT provider is told: pure functions from wishes to its options.

Never run here: TensorRT's libraries were not at hand. Names and forms are those that onnxruntime-gpu 1.31.1 itself knows.

**Precision.** The provider builds a strongly typed network, whose tensors have the types of the model and no others, unless it is
told to choose FP16, BF16 or INT8 by itself. So these are always off: what halfconv's plan keeps in FP32 stays so.

**Caches.** An engine fits one model, one runtime and one range of shapes, but the provider names its file after the graph's names:
new weights, or another level, would find the old engine. So each has a folder of its own in the caller's folder. Timings of kernels
belong to the GPU alone, and lie in the folder itself. TensorRT loads what lies there: only its user should be able to write there.

**Shapes.** The range that an engine is built for is given for all inputs; else TensorRT takes the first ones, and builds anew when
others come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

__all__ = ["BUILDER_LEVELS", "EngineOptions", "engine_folder", "engine_options", "unspeakable"]

#: From quickest to build to quickest to run; TensorRT's default is 3.
BUILDER_LEVELS = range(6)
#: The provider's truth values; it takes no others.
TRUE, FALSE = "True", "False"
#: Whatever else chooses a precision by itself is off.
TYPED = {"trt_fp16_enable": FALSE, "trt_bf16_enable": FALSE, "trt_int8_enable": FALSE}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How TensorRT builds its engines, and where it keeps them.

    Attributes:
        cache: The folder for engines and timings, made if it is not there; None keeps nothing, and each session builds anew.
        builder_level: How hard it searches, 0 to 5; None leaves it to TensorRT.
        shapes: Sets of shapes, each input -> dimensions, that the engine is for: all between the smallest and the largest
            dimensions, and best for the last set. Empty takes the run profile's buckets, or else what TensorRT sees first.

    Raises:
        UsageError: The level is none, or the sets differ in their inputs or in how many dimensions these have.
    """

    cache: str | Path | None = None
    builder_level: int | None = None
    shapes: Sequence[Mapping[str, Sequence[int]]] = ()

    def __post_init__(self) -> None:
        if self.builder_level is not None and self.builder_level not in BUILDER_LEVELS:
            raise UsageError(f"builder level {self.builder_level!r}", f"{BUILDER_LEVELS[0]} to {BUILDER_LEVELS[-1]}")
        if len({tuple((name, len(dims)) for name, dims in sorted(shapes.items())) for shapes in self.shapes}) > 1:
            raise UsageError("the engine's shapes are of different inputs", "the same inputs in all of them")


def engine_options(engine: EngineOptions, folder: Path | None = None) -> dict[str, str]:
    """Return the provider's options.

    Args:
        engine: What is wished.
        folder: The engine's own folder, as `engine_folder` names it; None for no cache.

    Returns:
        Name -> value, both as the provider takes them.
    """
    found = dict(TYPED)
    if engine.cache is not None and folder is not None:
        found |= {"trt_engine_cache_enable": TRUE, "trt_engine_cache_path": str(folder)}
        found |= {"trt_timing_cache_enable": TRUE, "trt_timing_cache_path": str(engine.cache)}
    if engine.builder_level is not None:
        found["trt_builder_optimization_level"] = str(engine.builder_level)
    if engine.shapes and not unspeakable(engine.shapes):
        found |= _range(engine.shapes)
    return found


def engine_folder(engine: EngineOptions, model: str, runtime: str) -> Path | None:
    """Return the folder for a model's engine; None without a cache.

    Args:
        engine: What is wished.
        model: The model's SHA-256.
        runtime: ONNX Runtime's version.
    """
    if engine.cache is None:
        return None
    told = sorted((engine_options(engine) | {"model": model, "runtime": runtime}).items())
    return Path(engine.cache) / hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def unspeakable(shapes: Sequence[Mapping[str, Sequence[int]]]) -> list[str]:
    """Return the inputs whose names the provider would read wrongly in its list of shapes."""
    return sorted({name for known in shapes for name in known if ":" in name or "," in name})


def _range(shapes: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, str]:
    names = [name for name, dims in shapes[0].items() if len(dims)]

    def text(choose: Mapping[str, Sequence[int]]) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, choose[name]))}" for name in names)

    least, most = (
        {name: [choose(dims) for dims in zip(*(known[name] for known in shapes), strict=True)] for name in names}
        for choose in (min, max)
    )
    if not names:
        return {}
    return {"trt_profile_min_shapes": text(least), "trt_profile_opt_shapes": text(shapes[-1]), "trt_profile_max_shapes": text(most)}
