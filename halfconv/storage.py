"""Write a model to disk atomically, with its weights inside or beside it.

The order is: external data under a new name that carries its fingerprint, then the model by rename, then removal of stale data
of the model that was replaced. Whatever fails, the old file or nothing is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from halfconv.errors import EnvironmentProblem, HalfconvError, UsageError

__all__ = ["METADATA_PREFIX", "atomic_text", "check_output_path", "check_side_file", "written_model"]

METADATA_PREFIX = "halfconv."
#: ONNX Runtime refuses small initializers (shapes, scales) in external files.
EXTERNAL_THRESHOLD = 1024
#: Above this a protobuf file cannot hold the weights (2 GB, with room for the graph itself).
INLINE_LIMIT = 2**31 - 2**26


def check_output_path(source: Path, output: Path, data_files: Iterable[Path] = ()) -> None:
    """Refuse an output path that cannot be written, before any work is done.

    Args:
        source: The input file.
        output: The output file.
        data_files: Files that hold the input's weights.

    Raises:
        UsageError: The output is the input, or a directory.
        EnvironmentProblem: The folder is missing or read-only.
    """
    if output.exists() and not output.is_dir() and not output.is_file():
        raise UsageError(f"output {output} is a pipe or a device, not a file", "another -o")
    if output.is_dir():
        raise UsageError(f"output {output} is a directory", f"-o {output / (source.stem + '.fp16.onnx')}")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"output {output} is the input itself, which is never touched", "another -o")
    if output.exists() and any(output.samefile(data) for data in data_files):
        raise UsageError(f"output {output} holds the input's weights, which are never touched", "another -o")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise EnvironmentProblem(f"output folder {folder} does not exist", f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"no permission to write in {folder}", "another -o, or chmod")


def check_side_file(path: Path, others: Iterable[Path]) -> None:
    """Refuse a path for a plan that cannot be written, or that would destroy another file of the run.

    Args:
        path: Where the plan goes.
        others: The model, its data, the output and its profile.

    Raises:
        UsageError: It is a directory or one of the others.
        EnvironmentProblem: Its folder is missing or read-only.
    """
    taken = {other.absolute() for other in others}
    same = path.absolute() in taken or any(path.exists() and other.exists() and path.samefile(other) for other in taken)
    if same or (path.exists() and not path.is_file()):
        raise UsageError(
            f"--save-plan {path} is {'another file of this run' if same else 'no file'}", "another name, such as plan.json"
        )
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise EnvironmentProblem(f"cannot write the plan in {folder}: it is missing or read-only", f"mkdir -p {folder}")


@contextlib.contextmanager
def written_model(
    model: ir.Model,
    output: Path,
    *,
    types: Mapping[str, onnx.TypeProto],
    annotated: frozenset[str],
    external_data: str = "auto",
    keep: Callable[[], bool] = lambda: True,
) -> Iterator[Path]:
    """Write a model under a temporary name, let the caller check it, and put it in place.

    Args:
        model: The model; left with its weights external if they were written so.
        output: Where it goes when the block ends without an exception.
        types: Types to write for values of these names: the interface as promised, and what onnx-ir cannot hold.
        annotated: Inner values whose types are written; of others a reader infers them.
        external_data: ``auto`` (external only beyond 2 GB), ``always`` or ``never``.
        keep: Asked when the block ends: whether to put the file in place.

    Yields:
        The temporary file, in the output's folder, which loads like the final one.

    Raises:
        EnvironmentProblem: The disk is full or the folder cannot be written.
        UsageError: The model does not fit a single file and ``never`` was asked for.
    """
    folder = output.absolute().parent
    mark = secrets.token_hex(4)
    temporary = folder / f".{output.name}.{mark}.tmp.onnx"
    made = [temporary]
    stale = _data_files(output)
    fresh: set[Path] = set()
    try:
        size = sum(v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value is not None)
        if external_data == "never" and size > INLINE_LIMIT:
            raise UsageError(f"{size:,} bytes of weights do not fit one .onnx file (2 GB)", "--external-data auto")
        if external_data == "always" or size > INLINE_LIMIT:
            fresh = _write_data(model, output, folder, mark)
            made += fresh
        proto = ir.to_proto(model)
        for graph in _graphs(proto.graph):
            noted = [value for value in graph.value_info if value.name in annotated]
            del graph.value_info[:]
            graph.value_info.extend(noted)
            for value in (*graph.input, *graph.output, *graph.value_info):
                if value.name in types and (graph is proto.graph or not value.HasField("type")):
                    value.type.CopyFrom(types[value.name])
        with temporary.open("wb") as stream:
            stream.write(proto.SerializeToString(deterministic=True))
            stream.flush()
            os.fsync(stream.fileno())
        del proto  # it holds a second copy of inline weights, which a check should not have to live beside
        yield temporary
        if keep():
            temporary.replace(output)
            made.clear()
            for data in stale - fresh:
                data.unlink(missing_ok=True)
    except OSError as error:
        raise _disk_problem(error, folder) from None
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _write_data(model: ir.Model, output: Path, folder: Path, mark: str) -> set[Path]:
    """Write the weights beside the model, under a new name that no other run uses."""
    digest = hashlib.sha256(mark.encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                digest.update(f"{name}:{value.const_value.dtype}:{list(value.const_value.shape)}".encode())
    name = f"{output.stem}.{digest.hexdigest()[:12]}.data"
    try:
        ir.external_data.unload_from_model(model, folder, name, size_threshold_bytes=EXTERNAL_THRESHOLD)
    except BaseException:
        (folder / name).unlink(missing_ok=True)
        raise
    return {folder / name}


def _data_files(output: Path) -> set[Path]:
    """Return the external data files, of this tool's naming, that an existing model at a path refers to."""
    pattern = re.compile(re.escape(output.stem) + r"\.[0-9a-f]{12}\.data")
    folder = output.absolute().parent
    if not output.is_file() or not any(pattern.fullmatch(entry.name) for entry in folder.iterdir()):
        return set()
    try:
        proto = onnx.load_model(output, load_external_data=False)
    except Exception:
        return set()  # what is replaced there is no model
    found = set()
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and pattern.fullmatch(entry.value):
                    found.add(folder / entry.value)
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def atomic_text(path: Path, text: str) -> None:
    """Write a small text file by rename.

    Raises:
        EnvironmentProblem: The disk is full or the folder cannot be written.
    """
    temporary = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise _disk_problem(error, path.absolute().parent) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _disk_problem(error: OSError, folder: Path) -> HalfconvError:
    return EnvironmentProblem(f"cannot write in {folder}: {error.strerror or error}", "free space there, or another -o")
