"""Arrays in ``.npy`` and ``.npz`` files that are not read yet: header first, then the whole, or block by block.

A file is untrusted input: nothing is unpickled, and memory grows only with bytes that are really there, whatever a header
declares.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from halfconv.errors import InputError

__all__ = ["StoredArray", "naturally", "npy_bytes", "npy_file", "npz_file"]

Array = NDArray[Any]
#: Bytes read at once.
BLOCK = 1 << 20
#: Bytes of a header that are read. It says itself how long it is, up to 4 GiB, and an archive may hold that in 4 MB.
LONGEST_HEADER = 1 << 16


def naturally(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which ``s2`` comes before ``s10``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


class StoredArray:
    """An array in a file.

    Attributes:
        label: File and array, for messages.
        shape: Its shape.
        dtype: Its type.
    """

    def __init__(self, label: str, opened: Callable[[], Any], held: int):
        """Read the header.

        Args:
            label: File and array, for messages.
            opened: Gives a context manager whose value is a binary stream that begins with the header.
            held: Length of that stream in bytes, as the file says.

        Raises:
            InputError: It is no array, holds Python objects, or declares more bytes than there are.
        """
        self.label, self._opened = label, opened
        with _reading(label), opened() as stream:
            head = io.BytesIO(stream.read(LONGEST_HEADER))
            self.shape, self._fortran, self.dtype = _header(head, label)
            self._start = head.tell()
        declared = math.prod(self.shape) * self.dtype.itemsize
        present = max(0, held - self._start)
        if declared > present:
            raise InputError(
                f"{label} declares {self.shape} of {self.dtype}, {declared:,} bytes, but holds {present:,} (truncated?)",
                "write or download it again",
            )

    def read(self) -> Array:
        """The whole array, writable and in native byte order; texts become Python strings.

        Raises:
            InputError: The file is damaged.
        """
        with _reading(self.label), self._opened() as stream:
            stream.read(self._start)
            return self._array(stream, self.shape)

    def blocks(self, rows: int) -> Iterator[Array]:
        """Parts of `rows` entries along the first axis, one at a time in memory.

        Only an array of more than one axis in Fortran's order is read as a whole.

        Args:
            rows: At least 1; the first axis is a multiple of it.

        Raises:
            InputError: The file is damaged.
        """
        if self._fortran and len(self.shape) > 1:
            whole = self.read()
            yield from (whole[start : start + rows] for start in range(0, self.shape[0], rows))
            return
        with _reading(self.label), self._opened() as stream:
            stream.read(self._start)
            for _ in range(0, self.shape[0], rows):
                yield self._array(stream, (rows, *self.shape[1:]))

    def _array(self, stream: IO[bytes], shape: tuple[int, ...]) -> Array:
        needed = math.prod(shape) * self.dtype.itemsize
        data = bytearray()
        while len(data) < needed:
            part = stream.read(min(BLOCK, needed - len(data)))
            if not part:
                raise InputError(f"{self.label} ends after {len(data):,} of {needed:,} bytes", "write or download it again")
            data += part
        array = np.frombuffer(data, self.dtype).reshape(shape, order="F" if self._fortran else "C")
        if self.dtype.kind in "SU":
            return array.astype(object) if self.dtype.kind == "U" else array.astype(str).astype(object)
        return array if self.dtype.isnative else array.astype(self.dtype.newbyteorder("="))


def npy_file(path: Path) -> StoredArray:
    """An ``.npy`` file.

    Raises:
        InputError: It cannot be read, or is no usable array.
    """
    with _reading(str(path)):
        held = path.stat().st_size
    return StoredArray(str(path), lambda: path.open("rb"), held)


def npy_bytes(data: bytes, label: str) -> StoredArray:
    """The content of an ``.npy`` file."""
    return StoredArray(label, lambda: io.BytesIO(data), len(data))


def npz_file(source: Path | bytes, label: str, most: int | None = None) -> dict[str, StoredArray]:
    """The arrays of an ``.npz`` file, or of its content, by name.

    Args:
        source: The file or the content.
        label: The file's name, for messages.
        most: How many arrays it may hold; None for any number.

    Raises:
        InputError: It cannot be read, or holds something else than usable arrays, or too many.
    """
    found = {}

    def archive() -> zipfile.ZipFile:
        return zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source))

    def opener(member: str) -> Callable[[], Any]:
        @contextmanager
        def opened() -> Iterator[IO[bytes]]:
            with archive() as file, file.open(member) as stream:
                yield stream

        return opened

    with _reading(label), archive() as file:
        members = [info for info in file.infolist() if info.filename.endswith(".npy")]
    if most is not None and len(members) > most:  # each header is looked for anew
        raise InputError(f"{label}: holds {len(members):,} arrays, and at most {most:,} are taken", "one array for each input")
    for info in members:
        name = info.filename.removesuffix(".npy")
        found[name] = StoredArray(f"{label}: array '{name}'", opener(info.filename), info.file_size)
    if not found:
        raise InputError(f"{label}: holds no array", "np.savez(file, **{input_name: array})")
    return found


def _header(stream: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise InputError(f"{label} is written in version {version[0]}.{version[1]} of the npy format", "np.save of a plain array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers that Python 2 wrote
        shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise InputError(
            f"{label} holds pickled Python objects, which are never loaded (they can run any code)",
            "np.array(texts, dtype='U') for strings, or one array per entry",
        )
    if dtype.itemsize == 0 or dtype.names or any(dim < 0 for dim in shape):
        raise InputError(f"{label} has the unusable type {dtype} or shape {shape}", "np.save of a plain array")
    return tuple(int(dim) for dim in shape), bool(fortran), dtype


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Turn whatever a damaged file makes readers raise into one line."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise InputError(f"{label}: no such file", "check the path") from None
    except Exception as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{label}: cannot be read: {words[:200]}", "write or download it again") from None
