"""What a run profile (``MODEL.onnx.profile.json``) says, as far as this runtime can follow it.

When is a missing profile worth a warning? A warning that nobody can act on teaches people to switch warnings off, and with
``-W error`` it stops a program. So: a model that halfconv converted once had a profile beside it, and its loss in a copy or an
upload is a fault of the deployment: warned. A profile of another file, or one that cannot be read, was put there on purpose and
is not followed: warned. A model of any other origin never had one, and bytes have no neighbours: a note, no warning. A profile
that the caller names must be right, else it is an error. ``profile=False`` is silent.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, ProfileWarning
from .session_server import CPU, LEVELS

__all__ = ["CPU", "CUDA", "LEVELS", "PROVIDERS", "Bucket", "Profile", "digest", "find_profile", "read_profile"]

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
#: What callers say -> ONNX Runtime's providers, best first.
PROVIDERS: Mapping[str, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}
#: Options that a profile may set: those that change speed. Others hold addresses, paths or the device, which no file may say, or
#: choose a precision, which the model says.
OPTIONS: Mapping[str, frozenset[str]] = {
    CPU: frozenset(),
    CUDA: frozenset({
        "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace",
        "do_copy_in_default_stream", "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc",
        "sdpa_kernel", "tunable_op_enable", "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32",
    }),
    TENSORRT: frozenset({
        "trt_builder_optimization_level", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable",
        "trt_max_partition_iterations", "trt_max_workspace_size", "trt_min_subgraph_size", "trt_profile_max_shapes",
        "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_sparsity_enable",
    }),
}  # fmt: skip
#: Bytes of a profile that are read; a longer one is none.
LONGEST = 16 << 20
#: A key that halfconv writes into the metadata of models, which lie at the start or the end of the file.
_STAMP = b"halfconv.source_sha256"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Input shapes that were tuned.

    Attributes:
        inputs: Input -> dimensions.
        cuda_graph: Whether a CUDA graph is used.
    """

    inputs: Mapping[str, tuple[int, ...]]
    cuda_graph: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """What is followed of a profile.

    Attributes:
        sha256: Of the model file that it was written for.
        level: Optimisation level.
        providers: ONNX Runtime's names, best first.
        options: Provider -> options.
        buckets: Shapes that were tuned.
        tolerance: Drift that was allowed, by measure.
        notes: What is not followed, and why.
    """

    sha256: str = ""
    level: str = LEVELS[0]
    providers: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    buckets: tuple[Bucket, ...] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_profile(model: Path | bytes, profile: str | Path | bool | None) -> Profile:
    """Return the profile to follow.

    Args:
        model: The model's file, or its bytes.
        profile: None for the one beside the model, False for none, or a path.

    Returns:
        The profile; defaults and a note where there is none to follow.

    Raises:
        InputError: The caller named a file that is no profile of this model.
    """
    if profile is False:
        return Profile()
    named = profile is not None and profile is not True
    if named:
        path = Path(profile)  # type: ignore[arg-type]
    elif isinstance(model, bytes):
        return Profile(notes=("no profile: the model came as bytes (profile=PATH names one)",))
    else:
        path = model.with_name(model.name + ".profile.json")
    try:
        with path.open("rb") as stream:
            text = stream.read(LONGEST + 1)
    except FileNotFoundError:
        if named:
            raise InputError(f"there is no profile {path}", "another path, or profile=False") from None
        return _missing(path, model)
    except OSError as error:
        return _refused(path, f"it cannot be read: {error.strerror}", named)
    try:
        found = read_profile(json.loads(text) if len(text) <= LONGEST else None)
    except (ValueError, RecursionError):
        return _refused(path, "it is not of the form that halfconv writes", named)
    if found.sha256 != digest(model):
        return _refused(path, "it is another model's (its SHA-256 differs)", named)
    return found


def _missing(path: Path, model: Path | bytes) -> Profile:
    note = f"no profile: there is no {path.name} beside the model, defaults are used"
    if isinstance(model, Path) and _stamped(model):
        warnings.warn(f"{note}; halfconv wrote one: copy it along, or say profile=False", ProfileWarning, stacklevel=4)
    return Profile(notes=(note,))


def _refused(path: Path, why: str, named: bool) -> Profile:
    if named:
        raise InputError(f"the profile {path} cannot be used: {why}", "the profile that halfconv wrote for this model")
    note = f"the profile {path.name} is not followed: {why}; defaults are used"
    warnings.warn(f"{note} (profile=False says nothing)", ProfileWarning, stacklevel=4)
    return Profile(notes=(note,))


def _stamped(model: Path) -> bool:
    """Say whether halfconv converted a model; its metadata are at the start or the end of the file."""
    try:
        with model.open("rb") as stream:
            head = stream.read(1 << 16)
            stream.seek(max(0, model.stat().st_size - (1 << 16)))
            return _STAMP in head or _STAMP in stream.read(1 << 16)
    except OSError:
        return False


def digest(model: Path | bytes) -> str:
    """Return a model's SHA-256."""
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    with model.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_profile(content: Any) -> Profile:
    """Read a profile's content; see ``schemas/profile.schema.json``, which this checks without a library.

    Raises:
        ValueError: It is no profile.
    """
    wanted = {
        "schema_version": int, "model_sha256": str, "target": str, "graph_optimization": str, "providers": list, "buckets": list,
    }  # fmt: skip
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in wanted.items()):
        raise ValueError("no profile")
    if content["schema_version"] != 1 or content["graph_optimization"] not in LEVELS:
        raise ValueError("no profile of this version")
    notes: list[str] = []
    options: dict[str, dict[str, str]] = {}
    for entry in content["providers"]:
        name, given = (entry.get("name"), entry.get("options")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(given, dict):
            raise ValueError("no provider")
        options[name] = {key: _text(value, name) for key, value in given.items() if key in OPTIONS.get(name, ())}
        if left := sorted(set(given) - set(options[name])):
            notes.append(
                f"the profile's options of {name} that no profile may set, or that are unknown, are left out: {', '.join(left)}"
            )
    tolerance = content.get("tolerance") or {}
    if not isinstance(tolerance, dict):
        raise ValueError("no tolerance")
    return Profile(
        sha256=content["model_sha256"],
        level=content["graph_optimization"],
        providers=tuple(options),
        options=options,
        buckets=tuple(_bucket(entry) for entry in content["buckets"]),
        tolerance={key: float(value) for key, value in tolerance.items()},
        notes=tuple(notes),
    )


def _text(value: Any, provider: str) -> str:
    """Return an option's value as a provider takes it: TensorRT's truth values are ``True`` and ``False``."""
    return str(int(value)) if isinstance(value, bool) and provider != TENSORRT else str(value)


def _bucket(entry: Any) -> Bucket:
    if not isinstance(entry, dict) or not isinstance(entry.get("inputs"), dict) or not isinstance(entry.get("cuda_graph"), bool):
        raise ValueError("no bucket")
    shapes = {}
    for name, dims in entry["inputs"].items():
        if not isinstance(dims, list) or any(not isinstance(dim, int) or isinstance(dim, bool) or dim < 0 for dim in dims):
            raise ValueError("no shape")
        shapes[name] = tuple(dims)
    return Bucket(shapes, entry["cuda_graph"])
