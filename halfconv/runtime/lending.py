"""Page-locked memory that the device writes results into, and that callers get as it is, without a copy.

The driver brings bytes into ordinary memory in two steps, while nothing else runs: one H200 and a result of 0.4 MB took 82 µs, and
new pages for it 40 µs more; into page-locked memory it is a tenth, on the stream that the model runs on. So a result lies in a
block that is *lent*: once the caller has let go of the array and all views of it, the block serves again. It is ordinary memory of
its own pages, which a child process inherits like any other; only so much is lent at a time, and what comes then is copied.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import EnvironmentProblem

__all__ = ["LENT_BYTES", "Lender"]

#: Bytes that are lent at most, for one output of one set of shapes.
LENT_BYTES = 1 << 26


class _Locks(Protocol):
    """A device, as far as it locks pages."""

    def page_lock(self, address: int, size: int) -> Callable[[], None]:
        """Lock memory."""


class _Block:
    """Memory of its own pages, locked for the device until nothing holds it any more."""

    __slots__ = ("_pages", "_unlock", "_view", "address")

    def __init__(self, device: _Locks, size: int):
        private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        self._pages = mmap.mmap(-1, size, **private)
        self._view = np.frombuffer(self._pages, np.uint8)  # which keeps the pages in their place
        self.address: int = self._view.ctypes.data
        self._unlock = device.page_lock(self.address, size)

    def __del__(self) -> None:
        unlock = getattr(self, "_unlock", None)
        if unlock is not None:
            unlock()


class _Loan:
    """A block in a caller's hands: numpy keeps it as the base of the array that it is made into."""

    __slots__ = ("__array_interface__", "_back", "_block")

    def __init__(self, block: _Block, back: deque[_Block], interface: dict[str, Any]):
        self._block, self._back, self.__array_interface__ = block, back, interface

    def __del__(self) -> None:
        self._back.append(self._block)  # atomic: the last view may end on any thread


class Lender:
    """Lends blocks for results of one shape. For one thread at a time; results may end on any.

    Args:
        device: What writes into them.
        shape: The results' dimensions.
        storage: numpy's type that holds them.
    """

    def __init__(self, device: _Locks, shape: Sequence[int], storage: np.dtype[Any]):
        self._device = device
        self._size = math.prod(shape) * storage.itemsize
        self._like = {"shape": tuple(shape), "typestr": storage.str, "version": 3}
        self._left = LENT_BYTES // max(self._size, 1)
        self._free: deque[_Block] = deque()

    def take(self) -> tuple[int, np.ndarray[Any, Any]] | None:
        """Lend a block.

        Returns:
            Its address, and the array that gives it back; None if no more are to be had.
        """
        try:
            block = self._free.pop()
        except IndexError:
            if not self._left:
                return None
            try:
                block = _Block(self._device, self._size)
            except (EnvironmentProblem, OSError, ValueError):
                self._left = 0
                return None
            self._left -= 1
        loan = _Loan(block, self._free, {**self._like, "data": (block.address, False)})
        return block.address, np.asarray(loan)
