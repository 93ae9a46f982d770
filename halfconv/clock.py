"""Times of stages, and word of which one begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["StageClock"]


class StageClock:
    """Collects the time of each stage, and tells who listens which one begins.

    Args:
        listener: Called with the name of each stage as it begins.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self, listener: Callable[[str], None] | None = None):
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what it does in several parts adds up."""
        if self.listener:
            self.listener(name)
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
