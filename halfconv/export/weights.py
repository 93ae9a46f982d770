"""Weights for a module from a file: safetensors, or what ``torch.save`` wrote, of which only tensors are ever loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfconv.errors import InputError
from halfconv.safetensors_file import file_start

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights", "read_weights", "safetensors_bytes"]

#: safetensors' element types -> PyTorch's names.
TYPES = {
    "BF16": "bfloat16", "BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64", "I16": "int16", "I32": "int32",
    "I64": "int64", "I8": "int8", "U8": "uint8",
}  # fmt: skip
#: The most bytes of a safetensors header, as in its own implementation.
_HEADER = 100_000_000
#: Under these keys, programs that train save the weights beside other things.
_NESTED = ("state_dict", "model_state_dict", "model_state", "model")


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a file's weights into a module; all names and shapes must match.

    Raises:
        InputError: The file cannot be read, or does not fit the module.
    """
    found, wanted = read_weights(path), module.state_dict()
    missing = [name for name in wanted if name not in found]
    foreign = [name for name in found if name not in wanted]
    for names, words in ((missing, "lacks"), (foreign, "holds more than the module has:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{path} {words} {', '.join(names[:3])}{more}", "the weights of this very module")
    for name, tensor in wanted.items():
        if tuple(found[name].shape) != tuple(tensor.shape):
            raise InputError(
                f"{path}: '{name}' is {list(found[name].shape)}, and {list(tensor.shape)} in the module",
                "the weights of this very module",
            )
    module.load_state_dict(found)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by name.

    Args:
        path: ``.safetensors``, or a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``).

    Raises:
        InputError: It cannot be read, or holds other things than tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", "check the path of --weights")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_saved(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", "check the file") from None


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    import torch

    names = {value: key for key, value in TYPES.items()}
    entries, parts = [], []
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        parts.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        entries.append((name, names[str(tensor.dtype).removeprefix("torch.")], list(tensor.shape), len(parts[-1])))
    start, _ = file_start(entries, alignment=8)
    return b"".join([start, *parts])


def _read_saved(path: Path) -> dict[str, torch.Tensor]:
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is no file of torch.save, or holds more than tensors, which is never loaded (it could run any code)",
            "torch.save(module.state_dict(), file), or a .safetensors file",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = str(error).partition("\n")[0][:200]
        raise InputError(f"{path}: cannot be read: {words or type(error).__name__}", "save it again with torch.save") from None
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds no weights by name", "torch.save(module.state_dict(), file)")
    return {str(name): value for name, value in found.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    import torch

    size = path.stat().st_size
    found = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_HEADER, size - 8):
            raise _broken(path, "it is shorter than its header")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _broken(path, "its header is no JSON") from None
        if not isinstance(header, dict):
            raise _broken(path, "its header is no JSON object")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (begin, end) = _entry(path, name, entry)
            if begin > end or 8 + length + end > size:
                raise _broken(path, f"'{name}' ends beyond the file")
            if math.prod(shape) * dtype.itemsize != end - begin:
                raise _broken(path, f"'{name}' has {end - begin:,} bytes for {shape}")
            file.seek(8 + length + begin)
            data = bytearray(file.read(end - begin))
            found[name] = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return found


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, list[int], list[int]]:
    """Check an entry of a header."""
    import torch

    def numbers(value: Any) -> bool:
        return isinstance(value, list) and all(type(part) is int and part >= 0 for part in value)

    if not isinstance(entry, dict) or not numbers(entry.get("shape")) or not numbers(entry.get("data_offsets")):
        raise _broken(path, f"the entry of '{name}' is malformed")
    if len(entry["data_offsets"]) != 2:
        raise _broken(path, f"the entry of '{name}' is malformed")
    if entry.get("dtype") not in TYPES:
        raise InputError(f"{path}: '{name}' is of type {entry.get('dtype')!r}", f"one of {', '.join(TYPES)}")
    return getattr(torch, TYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]


def _broken(path: Path, words: str) -> InputError:
    return InputError(f"{path} is no usable safetensors file: {words}", "write or download it again")
