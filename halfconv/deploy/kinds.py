"""The kinds of packages, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halfconv.deploy import edge, mobile, node, ray, triton, web
from halfconv.deploy.parts import Note, Options, Parts
from halfconv.deploy.running import Verified
from halfconv.errors import UsageError

__all__ = ["KINDS", "Kind", "find_kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of package.

    Attributes:
        name: What ``--package`` calls it.
        target: What the model is converted for, unless the user says otherwise.
        write: Writes the package's files, all but the manifest, into a folder; returns sentences for the report.
        summary: One line of help.
        verify: Runs the package's own verification, where its runtime is here; None if there is no way to.
        formats: Half-precision formats that its runtime can compute.
        settings: What ``--set`` may set.
        chunks: Whether ``--chunk-size`` cuts its models.
    """

    name: str
    target: str
    write: Callable[[Parts, Path, Options], tuple[Note, ...]]
    summary: str
    verify: Callable[[Path], Verified] | None = None
    formats: tuple[str, ...] = ("fp16",)
    settings: tuple[str, ...] = ()
    chunks: bool = False


KINDS: tuple[Kind, ...] = (
    Kind(
        "edge", "portable", edge.write, "a Linux box: runtime, example and HTTP service in one folder", edge.verify,
        formats=("fp16", "bf16"),
    ),
    Kind("mobile", "portable", mobile.write, "Android and iOS: ONNX Runtime Mobile, with project skeletons", mobile.verify),
    Kind("node", "portable", node.write, "Node.js: onnxruntime-node", node.verify),
    Kind(
        "ray", "portable", ray.write, "Ray Serve: replicas behind an inference protocol, and a client that retries", ray.verify,
        formats=("fp16", "bf16"),
    ),
    Kind(
        "triton", "cuda", triton.write, "NVIDIA Triton or KServe: a model repository for the ONNX Runtime backend", triton.verify,
        formats=("fp16", "bf16"), settings=tuple(triton.SETTINGS),
    ),
    Kind(
        "web", "web", web.write, "browsers: onnxruntime-web on WebGPU or WebAssembly, with a page that verifies", web.verify,
        chunks=True,
    ),
)


def find_kind(name: str) -> Kind:
    """Return a kind by its name.

    Raises:
        UsageError: There is none.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise UsageError(f"there is no package '{name}'", ", ".join(kind.name for kind in KINDS))
