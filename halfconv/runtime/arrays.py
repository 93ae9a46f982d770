"""The boundary: arrays of any float type in, what the model wants inside, what the caller wants out; each number is cast once.

numpy has no BF16: inside, a BF16 array is its bits, ``uint16``. At the edge it is an array of ml_dtypes, where that is installed.
"""

from __future__ import annotations

import ctypes
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..errors import InputError, UsageError

__all__ = [
    "ELEMENTS",
    "FLOATS",
    "Feed",
    "Spec",
    "cast",
    "cast_into",
    "finish",
    "float_type",
    "look",
    "match",
    "read_value",
    "spec_of",
]

#: ONNX Runtime's name of an element -> numpy's type that holds it, and ONNX's number.
ELEMENTS: Mapping[str, tuple[str, int]] = {
    "float": ("float32", 1), "uint8": ("uint8", 2), "int8": ("int8", 3), "uint16": ("uint16", 4), "int16": ("int16", 5),
    "int32": ("int32", 6), "int64": ("int64", 7), "string": ("object", 8), "bool": ("bool", 9), "float16": ("float16", 10),
    "double": ("float64", 11), "uint32": ("uint32", 12), "uint64": ("uint64", 13), "bfloat16": ("uint16", 16),
}  # fmt: skip
#: Elements that any float may be cast to and from, by the names that callers know.
FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})
#: Floats that are read, too: what numpy calls a long double here, "float64" where it is none.
_READ = FLOATS | {np.dtype(np.longdouble).name}
#: DLPack's numbers of devices whose memory the CPU can read: CPU, and pinned.
_READABLE = (1, 3)


@dataclass(frozen=True, slots=True)
class Spec:
    """An input or output of a model.

    Attributes:
        name: Its name.
        type: Its type as ONNX Runtime writes it: ``tensor(float16)``.
        element: numpy's name of its elements, or ``bfloat16``; "" for what is no tensor.
        shape: Its dimensions: a number, a name, or None.
        code: ONNX's number of the element type.
        storage: numpy's type that holds it; None for what is no tensor.
        needed: Whether a run must give it: it is neither optional nor an initialiser.
        on_host: Whether the model reads or writes it in the CPU's memory.
    """

    name: str
    type: str
    element: str
    shape: tuple[int | str | None, ...]
    code: int
    storage: np.dtype[Any] | None
    needed: bool = True
    on_host: bool = True

    def __str__(self) -> str:
        """Say what is expected: ``float16[batch, 3, 224, 224]``."""
        if self.storage is None:
            return self.type
        return f"{self.element}[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


def spec_of(argument: Any, *, needed: bool, on_host: bool) -> Spec:
    """Make the spec of one of ONNX Runtime's ``NodeArg``."""
    kind = str(argument.type)
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    needed = needed and not kind.startswith("optional")
    if inner not in ELEMENTS:
        return Spec(argument.name, kind, "", (), 0, None, needed, on_host)
    storage, code = ELEMENTS[inner]
    element = inner if inner in ("bfloat16", "string") else storage
    shape = tuple(dim if isinstance(dim, int) else dim or None for dim in argument.shape)
    return Spec(argument.name, kind, element, shape, code, np.dtype(storage), needed, on_host)


@dataclass(frozen=True, slots=True)
class Feed:
    """An input of a run, looked at but not yet cast.

    Attributes:
        spec: Which input.
        array: Its elements in the CPU's memory, BF16 as bits; None if they are on a device.
        element: What they are: numpy's name, or ``bfloat16``.
        shape: Their dimensions.
        given: What the caller gave: an array on a device, or what is no tensor.
    """

    spec: Spec
    array: np.ndarray[Any, Any] | None
    element: str
    shape: tuple[int, ...]
    given: Any = None


def match(feeds: Mapping[str, Any], specs: Mapping[str, Spec]) -> None:
    """Check the names of a run's inputs.

    Raises:
        InputError: One is unknown or missing.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(f"the inputs are a {type(feeds).__name__}", "a dictionary of name and array")
    for name in feeds:
        if name not in specs:
            raise InputError(f"the model has no input {name!r}", _nearest(str(name), specs))
    missing = [name for name, spec in specs.items() if spec.needed and name not in feeds]
    if missing:
        wanted = ", ".join(f"{name!r}: {specs[name]}" for name in missing)
        raise InputError(f"{'inputs are' if len(missing) > 1 else 'an input is'} missing", f"give {wanted}")


def chosen(names: Sequence[str] | None, specs: Mapping[str, Spec]) -> list[str]:
    """Return the names of the outputs to compute; all for None.

    Raises:
        InputError: One is unknown.
    """
    if names is None:
        return list(specs)
    if not isinstance(names, Iterable):
        raise InputError(f"outputs is a {type(names).__name__}", "names of outputs, or None for all")
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise InputError("outputs names no output", "names of outputs, or None for all")
    for name in wanted:
        if not isinstance(name, str) or name not in specs:
            raise InputError(f"the model has no output {name!r}", _nearest(str(name), specs))
    return list(dict.fromkeys(wanted))


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.5) or known[:8]
    return ", ".join(map(repr, near)) + (" …" if len(near) < len(known) and near == known[:8] else "")


def look(value: Any, spec: Spec) -> Feed:
    """Check an input's type and shape.

    Args:
        value: A numpy array of any float type, a torch or CuPy array, anything with DLPack, or numbers in lists.
        spec: What the model wants.

    Returns:
        The feed; its array is the caller's memory wherever that is possible.

    Raises:
        InputError: The type or the shape does not fit.
    """
    if spec.storage is None:
        return Feed(spec, None, "", (), value)
    try:
        feed = _read(value, spec)
    except InputError:
        raise
    except Exception as error:  # its own library's: it is sparse, of a type that numpy lacks, or has no memory
        text = " ".join(str(error).split())[:300]
        raise InputError(f"input {spec.name!r}, a {type(value).__name__}, cannot be read: {text}", f"an array of {spec}") from None
    if not _fits(feed.element, spec.element):
        whole = feed.element == "bool" or "int" in feed.element
        hint = " (integers: divide or cast them on purpose)" if spec.element in FLOATS and whole else ""
        raise InputError(f"input {spec.name!r} is {feed.element}", f"{spec}{hint}")
    wrong = len(feed.shape) != len(spec.shape) or any(
        isinstance(want, int) and want != have for want, have in zip(spec.shape, feed.shape, strict=True)
    )
    if wrong:
        raise InputError(f"input {spec.name!r} has the shape {list(feed.shape)}", str(spec))
    return feed


def _fits(have: str, want: str) -> bool:
    if have == want or (have in _READ and want in FLOATS):
        return True
    if "string" in (have, want) or have in _READ or want in FLOATS or "bool" in (have, want):
        return False
    try:
        return bool(np.can_cast(np.dtype(have), np.dtype(want), "safe")) and np.dtype(have).kind in "iu"
    except TypeError:
        return False


def _read(value: Any, spec: Spec) -> Feed:
    """Return a value as a feed, without a look at what is wanted but for plain Python numbers."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _feed(spec, np.asarray(value))
    library = type(value).__module__.partition(".")[0]
    if library == "torch" and hasattr(value, "data_ptr"):
        value = value.detach()
        element = str(value.dtype).removeprefix("torch.")
        if value.is_cuda:
            return Feed(spec, None, element, tuple(value.shape), value)
        if element == "bfloat16":
            return Feed(
                spec, value.contiguous().view(sys.modules["torch"].int16).numpy().view(np.uint16), element, tuple(value.shape)
            )
        return _feed(spec, value.cpu().resolve_conj().resolve_neg().numpy())
    if hasattr(value, "__cuda_array_interface__"):
        found = value.__cuda_array_interface__
        return Feed(spec, None, np.dtype(found["typestr"]).name, tuple(found["shape"]), value)
    if hasattr(value, "tensor_size_in_bytes") and hasattr(value, "data_ptr"):  # an OrtValue
        inner = str(value.data_type())[len("tensor(") : -1]
        element = inner if inner in ("bfloat16", "string") else ELEMENTS.get(inner, (inner, 0))[0]
        if value.device_name() != "cpu":
            return Feed(spec, None, element, tuple(value.shape()), value)
        return Feed(spec, read_value(value), element, tuple(value.shape()))
    if hasattr(value, "__dlpack_device__"):
        if value.__dlpack_device__()[0] in _READABLE:
            return _shared(value, spec)
        return Feed(spec, None, str(getattr(value, "dtype", "?")).rpartition(".")[2], tuple(value.shape), value)
    if hasattr(value, "__array__"):
        return _feed(spec, np.asarray(value))
    return _numbers(value, spec)


def _shared(value: Any, spec: Spec) -> Feed:
    """Read what DLPack gives in the CPU's memory; BF16, of which numpy knows nothing, by ONNX Runtime."""
    try:
        return _feed(spec, np.from_dlpack(value))
    except (BufferError, RuntimeError):
        import onnxruntime

        if not hasattr(onnxruntime.OrtValue, "from_dlpack"):
            raise
        held = onnxruntime.OrtValue.from_dlpack(value)
        if held.data_type() != "tensor(bfloat16)":
            raise
        return Feed(spec, read_value(held), "bfloat16", tuple(held.shape()))


def _feed(spec: Spec, array: np.ndarray[Any, Any]) -> Feed:
    name = _name(array.dtype)
    if array.dtype.kind in "OSUT":
        return Feed(spec, array.astype(object), "string", array.shape)
    if name == "bfloat16":
        return Feed(spec, array.view(np.uint16), name, array.shape)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return Feed(spec, array, name, array.shape)


@cache
def _name(kind: np.dtype[Any]) -> str:
    """Return a type's name, which numpy puts together anew each time."""
    return kind.name


def _numbers(value: Any, spec: Spec) -> Feed:
    """Read lists, which have no type of their own: their numbers take the model's, if they are of its kind."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {spec.name!r} is no array: {error}", str(spec)) from None
    if array.dtype.kind in "OV" and spec.element != "string":
        raise InputError(f"input {spec.name!r} is a {type(value).__name__}", str(spec))
    if array.dtype.kind in "iu" and spec.element in FLOATS:
        return _feed(spec, array.astype(np.float64))
    if array.dtype.kind in "iu" and spec.storage is not None and spec.storage.kind in "iu":
        limits = np.iinfo(spec.storage)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InputError(f"input {spec.name!r} holds integers beyond {spec.element}", f"{spec}")
        return _feed(spec, array.astype(spec.storage))
    if array.size == 0 and array.dtype.kind == "f" and spec.element != "string":
        return _feed(spec, array.astype(spec.storage if spec.element != "bfloat16" else np.float32))
    return _feed(spec, array)


def cast(feed: Feed) -> np.ndarray[Any, Any]:
    """Return a feed's elements as the model wants them, C-contiguous; the caller's own memory if they are so already.

    Raises:
        InputError: A finite number is too large for the model's type.
    """
    assert feed.array is not None and feed.spec.storage is not None
    if feed.element == feed.spec.element:
        return np.ascontiguousarray(feed.array).reshape(feed.shape)
    out = np.empty(feed.shape, feed.spec.storage)
    cast_into(feed, out)
    return out


def cast_into(feed: Feed, out: np.ndarray[Any, Any]) -> None:
    """Cast a feed's elements into memory of the model's type.

    Args:
        feed: The feed, in the CPU's memory.
        out: Where to, with the feed's shape and the storage type of its spec.

    Raises:
        InputError: A finite number is too large for the model's type.
    """
    array, have, want = feed.array, feed.element, feed.spec.element
    assert array is not None
    if have == want or want not in FLOATS:
        np.copyto(out, array, casting="same_kind" if have != want else "no")
        return
    if have == "bfloat16":
        array = widen(array)
    try:
        with np.errstate(over="raise", invalid="ignore", under="ignore"):
            if want == "bfloat16":
                np.copyto(out, narrow(array))
            else:
                np.copyto(out, array, casting="unsafe")
    except FloatingPointError:
        most = float(np.finfo(out.dtype).max) if want != "bfloat16" else 3.39e38
        raise InputError(
            f"input {feed.spec.name!r} holds finite numbers beyond {want}'s largest, {most:g}",
            "clip or scale them, or keep this input in FP32 (--keep-io)",
        ) from None


def widen(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return BF16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return floats as BF16 bits, rounded to nearest, ties to even; beyond its largest number they become infinite."""
    kind = _bfloat16()
    if kind is not None:
        return array.astype(kind).view(np.uint16)
    wide = np.ascontiguousarray(array, np.float32)
    bits = wide.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)


@cache
def _bfloat16() -> np.dtype[Any] | None:
    try:
        import ml_dtypes
    except ImportError:
        return None
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return kind


def float_type(output: Any) -> str | None:
    """Read the ``output`` option: None for the model's own types, else the name of a float.

    Raises:
        UsageError: It names something else.
    """
    if output is None or output == "same as model":
        return None
    name = output if output == "bfloat16" else ""
    if not name:
        try:
            name = np.dtype(output).name
        except TypeError:
            name = str(output).removeprefix("torch.")
    if name not in FLOATS:
        raise UsageError(f"output={output!r}", "'same as model', " + ", ".join(map(repr, sorted(FLOATS))))
    if name == "bfloat16" and _bfloat16() is None:
        raise UsageError("output='bfloat16' needs ml_dtypes, which is not installed", "pip install ml_dtypes, or output='float32'")
    return name


def finish(array: Any, spec: Spec, wanted: str | None) -> Any:
    """Return an output as the caller wants it.

    Args:
        array: What the model gave; BF16 as bits.
        spec: Which output.
        wanted: A float's name; None for the model's own type, BF16 without ml_dtypes then being float32.

    Returns:
        An array of that type; what is no float, or no tensor, as it was.
    """
    if spec.element not in FLOATS or not isinstance(array, np.ndarray):
        return array
    if spec.element == "bfloat16":
        if wanted in (None, "bfloat16"):
            kind = _bfloat16()
            return widen(array) if kind is None else array.view(kind)
        array = widen(array)
    if wanted is None or wanted == array.dtype.name:
        return array
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return narrow(array).view(_bfloat16()) if wanted == "bfloat16" else array.astype(wanted)


def read_value(value: Any) -> np.ndarray[Any, Any]:
    """Return a copy of an OrtValue in the CPU's memory; BF16, which numpy lacks, as bits."""
    inner = str(value.data_type())[len("tensor(") : -1]
    if inner != "bfloat16":
        return np.array(value.numpy())
    size = value.tensor_size_in_bytes()
    out = np.empty(tuple(value.shape()), np.uint16)
    if size:
        ctypes.memmove(out.ctypes.data, value.data_ptr(), size)
    return out
