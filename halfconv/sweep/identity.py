"""What tells a model, samples or code from changed ones: digests of their content, whatever their path or time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from halfconv.graph.protos import graphs_of

__all__ = ["Digests"]

_BLOCK = 1 << 20
#: A model whose bytes hold this key of `onnx.StringStringEntryProto` nowhere has no external data, and need not be parsed.
_LOCATION = b"location"
#: Files of these types are samples.
_SAMPLES = frozenset({".npz", ".npy", ".json"})


class Digests:
    """Digests, of which each is computed once.

    What cannot be read has a digest, too, that of the reason: the job then says what is wrong.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, bool]] = {}

    def file(self, path: Path) -> str:
        """Return the SHA-256 of a file, in hexadecimal digits."""
        return self._read(path)[0]

    def model(self, path: Path) -> list[str]:
        """Return the digest of a model, and the locations and digests of the files that its weights lie in."""
        digest, may_refer = self._read(path)
        if not may_refer:
            return [digest]
        return [digest, *(part for location in _locations(path) for part in (location, self.file(path.parent / location)))]

    def samples(self, source: str, folder: Path) -> list[str]:
        """Return the digests of samples.

        Args:
            source: A file, a folder, or ``module:function``.
            folder: Where the module is.
        """
        path = Path(source)
        if path.is_dir():
            files = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in _SAMPLES and entry.is_file())
            return [part for file in files for part in (file.relative_to(path).as_posix(), self.file(file))]
        return [self.file(path)] if path.is_absolute() else self.function(source, folder)

    def function(self, text: str, folder: Path) -> list[str]:
        """Return ``module:function`` and the digest of that module, not of others that it imports; nothing is imported.

        Args:
            text: ``module:function``.
            folder: Where the module is looked for first.
        """
        module = text.partition(":")[0]
        beside = folder.joinpath(*module.split("."))
        for file in (beside.with_suffix(".py"), beside / "__init__.py"):
            if file.is_file():
                return [text, self.file(file)]
        try:
            spec = importlib.util.find_spec(module) if "." not in module else None
        except (ImportError, ValueError):
            spec = None
        return [text, self.file(Path(spec.origin))] if spec is not None and spec.has_location and spec.origin else [text]

    def _read(self, path: Path) -> tuple[str, bool]:
        """Return a file's digest, and whether it may be a model that refers to others."""
        if path not in self._known:
            self._known[path] = _digest(path)
        return self._known[path]


def _digest(path: Path) -> tuple[str, bool]:
    digest, tail, found = hashlib.sha256(), b"", False
    try:
        if not path.is_file():
            return "missing", False
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                found = found or _LOCATION in tail + block
                tail = block[-len(_LOCATION) :]
    except OSError as error:
        return f"unreadable: {error.strerror or error}", False
    return digest.hexdigest(), found


def _locations(path: Path) -> list[str]:
    """Return where a model's weights lie; nothing outside its folder, which conversion refuses."""
    return sorted({place for place in _places(path) if not Path(place).is_absolute() and ".." not in Path(place).parts})


def _places(path: Path) -> Iterator[str]:
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError, ValueError, MemoryError):
        return  # conversion says why
    nodes = [node for function in proto.functions for node in function.node]
    graphs = list(
        graphs_of(proto.graph, *(attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")))
    )
    nodes += [node for graph in graphs for node in graph.node]
    held = [attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*held, *(tensor for graph in graphs for tensor in graph.initializer)):
        for entry in tensor.external_data:
            if entry.key == "location" and isinstance(entry.value, str) and "\0" not in entry.value:
                yield entry.value
