"""Load a model file as one `onnx_ir.Model`, and refuse what cannot be a usable model.

A model file is untrusted input: nothing outside its folder is read, and nothing is allocated that the file itself does
not hold (declared sizes are compared with the bytes present before any array is made).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import TensorProto

from halfconv.errors import InputError, UnsupportedModel
from halfconv.external import data_file, link_root
from halfconv.graph.protos import graphs_of, subgraphs_of
from halfconv.graph.stored import store
from halfconv.graph.validate import check_names
from halfconv.quiet import quiet

__all__ = ["MIN_OPSET", "SourceModel", "check_unchanged", "load"]

#: The oldest opset of the default domain that ONNX Runtime promises to run.
MIN_OPSET = 7
#: A serialized protobuf message cannot be longer.
PROTOBUF_LIMIT = 2**31 - 1
#: Larger files are mapped while they are parsed, so that the parser's copy of inline weights is the only one in memory. A process
#: dies where a mapped file shrinks.
MAPPED_BYTES = 1 << 26
#: Field of a tensor -> the element types that it holds; int32_data holds all others.
_FIELDS = {
    "float_data": (ir.DataType.FLOAT, ir.DataType.COMPLEX64),
    "double_data": (ir.DataType.DOUBLE, ir.DataType.COMPLEX128),
    "int64_data": (ir.DataType.INT64,),
    "uint64_data": (ir.DataType.UINT32, ir.DataType.UINT64),
}
#: The most dimensions that an array can have.
MAX_RANK = 64
#: Sparse tensors are stored dense, as runtimes do on load; a larger one is refused, so that a hostile file stays small.
MAX_DENSE_BYTES = 1 << 28


@dataclass(slots=True)
class SourceModel:
    """A loaded model and what is known of its file.

    Attributes:
        model: The graph; weights in external files stay there, and are read when they are needed.
        path: The file that was read.
        sha256: SHA-256 of that file.
        bytes: Size of that file and of the external data files it names, in bytes.
        data_files: The real paths of the external data files that it names.
        locations: Location in the file -> such a path.
        root: The folder below which links to data files may end; None where links are refused.
        stamps: What tells each of these files, as it was when it was read, from a changed one.
        ir_version: IR version of that file.
        opsets: Domain -> opset, as the file imports them.
        inputs: The model's inputs as declared, without weights; `halfconv.storage` writes their types back.
        outputs: The model's outputs as declared.
        annotated: Names of inner values whose type the file declares; inference adds others, which are not written.
        opaque_types: Types that onnx-ir cannot hold (maps), by value name; `halfconv.storage` puts them back.
    """

    model: ir.Model
    path: Path
    sha256: str
    bytes: int
    data_files: frozenset[Path]
    locations: dict[str, Path]
    root: Path | None
    stamps: dict[Path, tuple[int, ...]]
    ir_version: int
    opsets: dict[str, int]
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    annotated: frozenset[str] = frozenset()
    opaque_types: dict[str, onnx.TypeProto] = field(default_factory=dict)

    @property
    def outside(self) -> int:
        """Bytes of its external data files."""
        return sum(stamp[1] for file, stamp in self.stamps.items() if file in self.data_files)


def load(path: str | os.PathLike[str], allow_links: str | os.PathLike[str] | None = None) -> SourceModel:
    """Read and validate a model file.

    Args:
        path: An ``.onnx`` file. External data must lie in the same folder or below it.
        allow_links: A folder; data files that are links are read if their real path lies below it.

    Returns:
        The loaded model.

    Raises:
        InputError: The file is missing, unreadable, damaged or unsafe.
        UnsupportedModel: A valid model of a version or kind that cannot be converted.
        UsageError: `allow_links` is no folder.
    """
    file, root = Path(path), link_root(allow_links)
    raw, stamp = _read(file)
    stamps = {file: stamp}
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(memoryview(raw))
    except DecodeError:
        why = "the bytes are no protobuf message, or one that is nested deeper than protobuf allows, 100 levels"
        raise InputError(f"{file}: not an ONNX model ({why})", "export it again") from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{file}: not an ONNX model (it holds no graph)", "the .onnx file that your exporter wrote")
    digest, size = hashlib.sha256(raw).hexdigest(), len(raw)
    if isinstance(raw, mmap.mmap):
        raw.close()
    check_names(proto, str(file))
    _check_versions(proto, file)
    for value in proto.graph.input:  # onnx's shape inference dies on some operators that read such an input
        if value.type.WhichOneof("value") is None:
            raise InputError(f"{file}: input '{value.name}' declares no type", "export it again")
    for graph in _graphs(proto):
        _check_names(graph, file)
        _make_dense(graph, file)
    external: dict[str, Path] = {}
    for tensor in _tensors(proto):
        _check_tensor(tensor, file, external, root)
    declared = onnx.GraphProto(input=proto.graph.input, output=proto.graph.output)
    annotated = frozenset(value.name for graph in _graphs(proto) for value in graph.value_info)
    opaque = _take_opaque_types(proto)
    try:
        with quiet(ir.serde.__name__):  # it logs what `_check_scopes` refuses
            model = ir.from_proto(proto)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        raise InputError(f"{file}: the graph cannot be read: {cause}", "onnx.checker.check_model on it") from None
    data_files = frozenset(external.values())
    try:
        stamps |= {data: _stamp(data.stat()) for data in sorted(data_files)}  # before anything in them is read
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}", "let nothing write it, and try again") from None
    store(model, lambda location: external[location])
    _check_scopes(model, file)
    size += sum(stamps[data][1] for data in data_files)
    return SourceModel(
        model=model,
        path=file,
        sha256=digest,
        bytes=size,
        data_files=data_files,
        locations=external,
        root=root,
        stamps=stamps,
        ir_version=proto.ir_version,
        opsets=dict(model.opset_imports),
        inputs=list(declared.input),
        outputs=list(declared.output),
        annotated=annotated,
        opaque_types=opaque,
    )


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(source: SourceModel) -> None:
    """Refuse what was made of files that changed while they were read.

    Raises:
        InputError: One did.
    """
    for file, stamp in source.stamps.items():
        try:
            same = _stamp(file.stat()) == stamp
        except OSError:
            same = False
        if not same:
            raise InputError(f"{file}: changed while it was read", "let nothing write it, and try again")


def _read(file: Path) -> tuple[bytes | mmap.mmap, tuple[int, ...]]:
    """Return what a file holds, and its stamp as it was before."""
    try:
        if file.is_dir():
            raise InputError(f"{file}: is a directory, not a model file", "the .onnx file inside it")
        status = file.stat()
        size = status.st_size
        if size == 0:
            raise InputError(f"{file}: the file is empty", "export or download it again")
        if size > PROTOBUF_LIMIT:
            raise InputError(
                f"{file}: {size:,} bytes, but an .onnx file cannot be larger than 2 GB", "export it with external data"
            )
        with file.open("rb") as stream:
            if size <= MAPPED_BYTES:
                return stream.read(PROTOBUF_LIMIT), _stamp(status)
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), _stamp(status)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file", "check the path") from None
    except PermissionError:
        raise InputError(f"{file}: no permission to read it", "chmod or another user") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}", "check the path") from None


def _check_versions(proto: onnx.ModelProto, file: Path) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModel(
            f"{file}: IR version {proto.ir_version}, newer than {onnx.IR_VERSION}, the newest that onnx {onnx.__version__} knows",
            "pip install -U onnx",
        )
    imports = {entry.domain or "": entry.version for entry in proto.opset_import}
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    uses_default = any(node.domain in ("", "ai.onnx") for graph in _graphs(proto) for node in graph.node)
    if "" not in imports:
        if proto.ir_version >= 3 and uses_default:
            raise InputError(f"{file}: the model imports no ONNX operator set", "export it again")
        return
    version = imports[""]
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise UnsupportedModel(
            f"{file}: opset {version}, newer than {newest}, the newest that onnx {onnx.__version__} knows",
            "pip install -U onnx, or export with an older opset",
        )
    if version < MIN_OPSET:
        raise UnsupportedModel(
            f"{file}: opset {version}, older than {MIN_OPSET}, the oldest that ONNX Runtime runs",
            f"onnx.version_converter.convert_version(model, {max(MIN_OPSET, 13)})",
        )


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and all graphs inside attributes; function bodies hold no tensors of their own graph."""
    inner = [graph for function in proto.functions for node in function.node for graph in subgraphs_of(node)]
    return graphs_of(proto.graph, *inner)


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    nodes = [node for function in proto.functions for node in function.node]
    for graph in _graphs(proto):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_names(graph: onnx.GraphProto, file: Path) -> None:
    """Refuse a graph that defines a value twice."""
    seen = {value.name for value in graph.input}
    for node in graph.node:
        for name in node.output:
            if name and name in seen:
                raise InputError(
                    f"{file}: value '{name}' is defined twice, the second time by {node.op_type} '{node.name}'",
                    "export it again; every value needs its own name",
                )
            seen.add(name)


def _check_tensor(tensor: TensorProto, file: Path, external: dict[str, Path], root: Path | None = None) -> None:
    """Compare a tensor's declared size with the bytes that are there."""
    label = f"{file}: tensor '{tensor.name}'"
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{label} has a negative dimension {list(tensor.dims)}", "export it again")
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise InputError(f"{label} has the unknown element type {tensor.data_type}", "pip install -U onnx-ir") from None
    if dtype == ir.DataType.UNDEFINED:
        raise InputError(f"{label} has no element type", "export it again")
    if len(tensor.dims) > MAX_RANK or math.prod(dim or 1 for dim in tensor.dims) * 16 > sys.maxsize:  # numpy's limits
        raise InputError(f"{label} has dimensions that no array can have: {list(tensor.dims)}", "export it again")
    count = math.prod(tensor.dims)
    if dtype == ir.DataType.STRING:
        if len(tensor.string_data) != count:
            raise InputError(f"{label} declares {count:,} strings but holds {len(tensor.string_data):,}", "export it again")
        return
    needed = math.ceil(count * dtype.bitwidth / 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        location, real = data_file(tensor, needed, label, file, root)
        external[location] = real
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != needed:
            raise InputError(
                f"{label} declares {list(tensor.dims)} of {dtype.name}, {needed:,} bytes, but holds {len(tensor.raw_data):,}",
                "export or download it again",
            )
    else:
        held = {name: len(getattr(tensor, name)) for name in ("int32_data", *_FIELDS) if len(getattr(tensor, name))}
        right = next((name for name, kinds in _FIELDS.items() if dtype in kinds), "int32_data")
        if wrong := held.keys() - {right}:
            raise InputError(f"{label} of {dtype.name} holds its elements as {min(wrong)}, not as {right}", "export it again")
        per_element = 2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1 / max(1, 8 // dtype.bitwidth)
        if held.get(right, 0) != math.ceil(count * per_element):
            raise InputError(f"{label} declares {count:,} elements but holds {held.get(right, 0):,}", "export or download it again")


def _make_dense(graph: onnx.GraphProto, file: Path) -> None:
    """Replace sparse initializers and sparse Constant values by dense ones: onnx-ir would drop them silently."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, file))
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                dense = _dense(attribute.sparse_tensor, file)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)


def _dense(sparse: onnx.SparseTensorProto, file: Path) -> TensorProto:
    name = sparse.values.name
    if any(dim < 0 for dim in sparse.dims):
        raise InputError(f"{file}: sparse tensor '{name}' has a negative dimension {list(sparse.dims)}", "export it again")
    for part in (sparse.values, sparse.indices):
        if part.data_location == TensorProto.EXTERNAL or part.data_type == TensorProto.STRING:
            what = "lies in another file" if part.data_location == TensorProto.EXTERNAL else "holds strings"
            raise UnsupportedModel(f"{file}: sparse tensor '{name}' {what}", "store it as a dense tensor")
        _check_tensor(part, file, {})
    itemsize = max(1, ir.DataType(sparse.values.data_type).bitwidth // 8)
    if math.prod(sparse.dims) * itemsize > MAX_DENSE_BYTES:
        raise UnsupportedModel(
            f"{file}: sparse tensor '{name}' {list(sparse.dims)} is larger than {MAX_DENSE_BYTES:,} bytes when dense",
            "store it as a dense tensor with external data",
        )
    try:
        values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(math.prod(sparse.dims), values.dtype)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        dense[flat] = values
    except (ValueError, IndexError) as error:
        raise InputError(f"{file}: sparse tensor '{name}' is damaged: {error}", "export it again") from None
    return onnx.numpy_helper.from_array(dense.reshape(tuple(sparse.dims)), name)


def _take_opaque_types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Remove, and return, the types of values that hold maps; only classifier outputs of ai.onnx.ml have them."""
    taken = {}
    for graph in _graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type
            while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
                kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
            if kind.WhichOneof("value") in ("map_type", "opaque_type"):
                copy = onnx.TypeProto()
                copy.CopyFrom(value.type)
                taken[value.name] = copy
                value.ClearField("type")
    return taken


def _check_scopes(model: ir.Model, file: Path) -> None:
    """Refuse a graph that reads a value which nothing defines."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for value in node.inputs:
                if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                    continue
                raise InputError(
                    f"{file}: {node.op_type} '{node.name or ''}' reads '{value.name}', which nothing defines",
                    "onnx.checker.check_model on it",
                )
    for output in model.graph.outputs:
        if output.producer() is None and not output.is_graph_input() and not output.is_initializer():
            raise InputError(f"{file}: output '{output.name}' is computed by nothing", "export it again")
