"""Hooks for metrics: what a run was, as a small record for a callable of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError

__all__ = ["Hook", "RunRecord", "hooks_of", "tell"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a session.

    Attributes:
        seconds: From the call to its result, waiting included.
        batch: First dimension of the first input; None if it has none.
        bucket: Batch size of the bucket that it ran in; None for none.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        graph: Whether a CUDA graph ran it.
        error: Name of the exception; None if it went well.
    """

    seconds: float
    batch: int | None
    bucket: int | None
    provider: str
    graph: bool
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return asdict(self)


Hook = Callable[[RunRecord], object]


def hooks_of(given: Hook | Sequence[Hook] | None) -> tuple[Hook, ...]:
    """Return the hooks of an option that may be one, several or none.

    Raises:
        UsageError: One cannot be called.
    """
    if given is None:
        return ()
    hooks = (given,) if callable(given) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(map(callable, hooks)):
        raise UsageError(f"on_run={given!r}", "a callable, or several")
    return hooks


def tell(hooks: Sequence[Hook], record: RunRecord, notes: list[str]) -> None:
    """Call the hooks. One that fails does not fail the run: the first failure of each kind becomes a note."""
    for hook in hooks:
        try:
            hook(record)
        except Exception as error:
            note = f"the hook {getattr(hook, '__name__', hook)!r} failed: {type(error).__name__}: {error}"
            if note not in notes and len(notes) < 100:
                notes.append(note)
