"""Progress: what is being done and how much of it is done, told to whoever listens; and the times of stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Progress", "StageClock"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run.

    Attributes:
        stage: What is being done: ``load``, ``ranges``, ``search``, …
        detail: More about it, in words; "" if there is nothing to add.
        done: How much of it is done, in steps of the stage's own.
        total: How much there is; 0 if it is not known.
        unit: What is counted, if it is ``bytes``.
    """

    stage: str
    detail: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""


class StageClock:
    """Collects the time of each stage, and tells who listens which one begins.

    Args:
        listener: Called as each stage begins.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self, listener: Callable[[Progress], None] | None = None):
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what it does in several parts adds up."""
        if self.listener:
            self.listener(Progress(name))
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
