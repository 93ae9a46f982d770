"""Memory of results that serves again once the caller has let go of it.

numpy takes large arrays from the system, page by page, and gives them back when they end, which may take longer than to fill them.
So a result lies in memory that is *lent*: it comes back when the array and all views of it are gone.

It is ordinary memory, not page-locked, though the device could write into that without a step between. A caller may begin a copy
from a result to a device and let go of the array (``torch.from_numpy(y).to("cuda", non_blocking=True)``): from ordinary memory the
bytes are taken before that call returns, from page-locked memory the next run might overwrite them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

import numpy as np

__all__ = ["Lender"]

#: How much that nobody uses is kept: so many results, and, unless it is one, so many bytes.
_KEPT, _KEPT_BYTES = 4, 1 << 26


class _Loan:
    """Memory in a caller's hands: numpy keeps this as the base of the array that it is made into."""

    __slots__ = ("__array_interface__", "_back", "_block")

    def __init__(self, block: np.ndarray[Any, Any], back: ReferenceType[deque[np.ndarray[Any, Any]]]):
        self._block, self._back, self.__array_interface__ = block, back, block.__array_interface__

    def __del__(self) -> None:
        back = self._back()
        if back is not None:  # its lender lives
            back.append(self._block)  # atomic: the last view may end on any thread


class Lender:
    """Lends memory for results of one shape. For one thread at a time; results may end on any.

    Args:
        shape: The results' dimensions.
        storage: numpy's type that holds them.
    """

    def __init__(self, shape: Sequence[int], storage: np.dtype[Any]):
        self._shape, self._storage = tuple(shape), storage
        size = math.prod(self._shape) * storage.itemsize
        self._free: deque[np.ndarray[Any, Any]] = deque(maxlen=max(1, min(_KEPT, _KEPT_BYTES // max(size, 1))))
        self._back = ref(self._free)

    def take(self) -> np.ndarray[Any, Any]:
        """Return an array, whose elements are of no meaning, and which gives its memory back."""
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(self._shape, self._storage)
        return np.asarray(_Loan(block, self._back))
