"""Where several arrays lie in one buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DIRECT", "DIRECT_RESULT", "Place", "aligned", "places_of"]

#: From so many bytes on, an array that needs no cast is copied from and to the caller's own memory: CUDA's driver brings it through
#: pinned memory in pieces, while it copies the next one, which is faster than to do so here (one H200: 0.6 MB in 67 µs, not 130).
DIRECT = 1 << 16
#: The same of results of a graph: up to here it is quicker to let the copy to pinned memory follow the graph on its stream, and to
#: bring the bytes from there.
DIRECT_RESULT = 1 << 20
#: Arrays begin at multiples of so many bytes.
_ALIGN = 256


def aligned(size: int) -> int:
    """Return a number of bytes, rounded up to where the next array begins."""
    return -(-size // _ALIGN) * _ALIGN


class Place(NamedTuple):
    """Where an array lies in a buffer."""

    begin: int
    size: int
    shape: tuple[int, ...]
    storage: np.dtype[Any]

    def view(self, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array in the buffer."""
        return buffer[self.begin : self.begin + self.size].view(self.storage).reshape(self.shape)


def places_of(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> tuple[dict[str, Place], int]:
    """Lay arrays one after the other; returns their places, and the bytes that all take."""
    places, end = {}, 0
    for name, (shape, storage) in arrays.items():
        size = math.prod(shape) * storage.itemsize
        places[name] = Place(end, size, shape, storage)
        end += aligned(size)
    return places, end
