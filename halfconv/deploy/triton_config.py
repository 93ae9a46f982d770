"""``config.pbtxt`` of a model for NVIDIA Triton's ONNX Runtime backend.

The names are those of Triton's ``model_config.proto`` and of the backend's README
(https://github.com/triton-inference-server/onnxruntime_backend). Where the two leave a question open, the backend's source (main,
June 2026) decides: it compares the dimensions of outputs with those that ONNX Runtime reports, and of four of CUDA's options it
takes what ``parameters`` says, or the default, and never what stands under ``execution_accelerators``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfconv.deploy.oip import TYPES
from halfconv.deploy.pbtxt import Word, render
from halfconv.runtime.settings import CUDA, Profile

__all__ = ["Batching", "Settings", "Tensor", "Warmup", "config_text", "model_type"]

TENSORRT = "TensorrtExecutionProvider"
#: What a model is converted for -> where its instances run; others go where Triton has room.
INSTANCES = {"cpu": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}
#: ONNX Runtime's levels of optimisation -> ``optimization.graph.level``; all optimisations are the default.
LEVELS = {"ORT_ENABLE_EXTENDED": 1, "ORT_ENABLE_BASIC": -1, "ORT_DISABLE_ALL": 2}
#: Options of the CUDA provider that the backend reads from ``parameters``, and its numbers for their values.
PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "cudnn_conv_algo_search": {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"},
    "arena_extend_strategy": {"kNextPowerOfTwo": "0", "kSameAsRequested": "1"},
    "do_copy_in_default_stream": {"True": "1", "true": "1", "False": "0", "false": "0"},
    "gpu_mem_limit": {},
}
#: Options of TensorRT that the backend calls by another name.
TENSORRT_NAMES = {"trt_max_workspace_size": "max_workspace_size_bytes"}
#: Microseconds that a request may wait for others to run with.
QUEUE_DELAY = 500
#: Rows of a batch where the profile names no sizes.
MAX_BATCH = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as ONNX Runtime reports it.

    Attributes:
        name: Its name.
        dtype: numpy's name of its element type.
        dims: Its dimensions; a free one is -1.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are put together.

    Attributes:
        most: Rows of the largest batch; 0 for no batching.
        preferred: Sizes that run at once.
        delay: Microseconds that a request may wait for others.
    """

    most: int = 0
    preferred: tuple[int, ...] = ()
    delay: int = QUEUE_DELAY


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request that Triton runs before a model counts as ready.

    Attributes:
        name: What the log calls it.
        rows: Rows, of which each is the one in the files.
        files: Input, with its dimensions without the batch's -> file in the folder ``warmup``.
    """

    name: str
    rows: int
    files: tuple[tuple[Tensor, str], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says beside inputs and outputs.

    Attributes:
        name: The model's name.
        target: What it was converted for.
        to: ``fp16`` or ``bf16``.
        batching: How requests are put together.
        instances: Instances on each device.
    """

    name: str
    target: str
    to: str
    batching: Batching
    instances: int = 1


def model_type(dtype: str) -> str:
    """Return Triton's name of an element type: ``TYPE_FP16``."""
    return f"TYPE_{TYPES[dtype]}"


def config_text(
    settings: Settings, inputs: Sequence[Tensor], outputs: Sequence[Tensor], profile: Profile | None = None,
    warmups: Sequence[Warmup] = (),
) -> str:  # fmt: skip
    """Write the configuration.

    Args:
        settings: See `Settings`.
        inputs: The inputs.
        outputs: The outputs.
        profile: The run profile, whose options are followed; None without one.
        warmups: What runs first.
    """
    batched = settings.batching.most > 0
    message: dict[str, Any] = {
        "name": settings.name, "backend": "onnxruntime", "default_model_filename": "model.onnx",
        "max_batch_size": settings.batching.most,
        "input": [_tensor(tensor, batched) for tensor in inputs], "output": [_tensor(tensor, batched) for tensor in outputs],
        "instance_group": {"kind": Word(INSTANCES.get(settings.target, "KIND_AUTO")), "count": settings.instances},
    }  # fmt: skip
    if batched:
        message["dynamic_batching"] = {
            "preferred_batch_size": list(settings.batching.preferred), "max_queue_delay_microseconds": settings.batching.delay,
        }  # fmt: skip
    return _HEAD + render(message | _optimization(settings, profile) | {"model_warmup": [_warmup(one) for one in warmups]})


_HEAD = "# Written by halfconv. The names are explained in Triton's model_config.proto and in its ONNX Runtime backend's README.\n"


def _tensor(tensor: Tensor, batched: bool) -> dict[str, Any]:
    dims = list(tensor.dims[1:] if batched else tensor.dims)
    entry: dict[str, Any] = {"name": tensor.name, "data_type": Word(model_type(tensor.dtype)), "dims": dims or [1]}
    if not dims:  # Triton has no scalars: what clients send and get has one element more in its shape
        entry["reshape"] = {}
    return entry


def _optimization(settings: Settings, profile: Profile | None) -> dict[str, Any]:
    """Return what the profile, and the hardware, ask of ONNX Runtime."""
    optimization: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    if profile is not None and profile.level in LEVELS:
        optimization["graph"] = {"level": LEVELS[profile.level]}
    if settings.target != "cpu":
        accelerators = []
        if settings.target == "tensorrt":
            accelerators.append(_accelerator("tensorrt", _tensorrt(settings, profile)))
        options = dict(profile.options.get(CUDA, {})) if profile is not None else {}
        parameters = {key: PARAMETERS[key].get(options.pop(key), value) for key, value in [*options.items()] if key in PARAMETERS}
        if options:
            accelerators.append(_accelerator("cuda", options))
        if accelerators:
            optimization["execution_accelerators"] = {"gpu_execution_accelerator": accelerators}
    found: dict[str, Any] = {"optimization": optimization} if optimization else {}
    if parameters:
        found["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in sorted(parameters.items())]
    return found


def _tensorrt(settings: Settings, profile: Profile | None) -> dict[str, str]:
    options = {"precision_mode": settings.to.upper()}
    if profile is not None:
        if any(bucket.cuda_graph for bucket in profile.buckets):
            options["trt_cuda_graph_enable"] = "1"
        options |= {TENSORRT_NAMES.get(key, key): value for key, value in profile.options.get(TENSORRT, {}).items()}
    return options


def _accelerator(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "parameters": [{"key": key, "value": _plain(value)} for key, value in sorted(options.items())]}


def _plain(value: str) -> str:
    """Return a truth value as the backend reads it."""
    return {"True": "1", "False": "0"}.get(value, value)


def _warmup(warmup: Warmup) -> dict[str, Any]:
    return {
        "name": warmup.name, "batch_size": warmup.rows,
        "inputs": [
            {
                "key": tensor.name,
                "value": {
                    "data_type": Word(model_type(tensor.dtype)), "dims": list(tensor.dims) or [1], "input_data_file": file,
                },
            }
            for tensor, file in warmup.files
        ],
    }  # fmt: skip
