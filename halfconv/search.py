"""Find the few values that must stay FP32 so that the simulated drift meets the tolerance.

Groups of values are ranked by what they contribute to the drift (`halfconv.precision.attribution`). The first few are tried alone.
If none of them is enough, the shortest prefix of that order that passes is found by doubling and bisection; then whatever can go
back to half does, in ever smaller parts, until no single group can: the result is 1-minimal. Every step is a run of a candidate
that could be written as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Found", "Search", "smallest"]

#: Runs that a search may take in all.
BUDGET = 30
#: Groups, from the first, that are tried alone.
ALONE = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What the search found.

    Attributes:
        forced: Groups that it forces to FP32, in the order of their contribution.
        passed: Whether the candidate with these meets the tolerance.
        minimal: Whether none of them can go back to half.
        stopped: Why the search ended early: ``time``, ``runs`` or "".
    """

    forced: tuple[int, ...]
    passed: bool
    minimal: bool
    stopped: str = ""


class Search:
    """Counts tests against a budget, and remembers their answers.

    Args:
        test: Tells whether a candidate that forces these groups passes.
        runs: How many tests may be run.
        deadline: `time.monotonic` at which the search ends; None for never.

    Attributes:
        best: The smallest set that passed; None if none did.
        stopped: What ended the search: ``time``, ``runs`` or "".
    """

    def __init__(self, test: Callable[[frozenset[int]], bool], runs: int = BUDGET, deadline: float | None = None):
        self.best: frozenset[int] | None = None
        self.stopped = ""
        self._test, self._left, self._deadline = test, runs, deadline
        self._known = {frozenset[int](): False}

    def passes(self, forced: Iterable[int]) -> bool:
        """Tell whether a candidate passes.

        Raises:
            TimeoutError: There is no time or run left.
        """
        key = frozenset(forced)
        if key in self._known:
            return self._known[key]
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.stopped = "time"
        elif self._left <= 0:
            self.stopped = "runs"
        if self.stopped:
            raise TimeoutError(self.stopped)
        self._left -= 1
        passed = self._known[key] = self._test(key)
        if passed and (self.best is None or len(key) < len(self.best)):
            self.best = key
        return passed


def smallest(ranked: Sequence[int], search: Search) -> Found:
    """Find groups to force.

    Args:
        ranked: All groups that may be forced, those that contribute most first.
        search: Runs the tests; that the candidate which forces nothing fails is known.

    Returns:
        The smallest set found that passes; all groups if none was found in time, or none passes.
    """
    try:
        # More in FP32 is not always better: errors of two values may cancel. What is ranked high is first tried alone.
        if alone := next(([group] for group in ranked[:ALONE] if search.passes([group])), None):
            return Found(tuple(alone), True, True)
        prefix = _prefix(ranked, search)
        if prefix is None:
            return Found(tuple(ranked), False, False)
        return Found(tuple(_shrunk(prefix, search)), True, True)
    except TimeoutError:
        if search.best is None:
            return Found(tuple(ranked), False, False, search.stopped)
        return Found(tuple(group for group in ranked if group in search.best), True, False, search.stopped)


def _prefix(ranked: Sequence[int], search: Search) -> list[int] | None:
    """Return the shortest prefix that passes, by doubling and bisection; None if not even all groups do."""
    low, high = 0, 1
    while high < len(ranked) and not search.passes(ranked[:high]):
        low, high = high, high * 2
    high = min(high, len(ranked))
    if not search.passes(ranked[:high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if search.passes(ranked[:middle]):
            high = middle
        else:
            low = middle
    return list(ranked[:high])


def _shrunk(forced: list[int], search: Search) -> list[int]:
    """Let groups go back to half, least contributors first, in halves, quarters, …, until no single one can."""
    size = max(1, len(forced) // 2)
    while True:
        removed = False
        for start in reversed(range(0, len(forced), size)):
            rest = forced[:start] + forced[start + size :]
            if search.passes(rest):
                forced, removed = rest, True
        if size == 1 and not removed:
            return forced
        size = max(1, size // 2)
