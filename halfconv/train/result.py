"""What a training run did, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Move", "Result"]


@dataclass(frozen=True, slots=True)
class Move:
    """A module that the adaptive policy moved.

    Attributes:
        step: After which step; the first is 1.
        module: The module's name in the model.
        to: ``fp32`` or ``half``.
        reason: ``overflow``, ``underflow``, ``noise`` or ``calm``.
        figure: What was measured for the reason: the share of outputs beyond half's range, the share of gradients that half turns
            to zero, the relative error of gradients in half; for ``calm`` the steps without any of them.
    """

    step: int
    module: str
    to: str
    reason: str
    figure: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a training run did.

    Attributes:
        metrics: What ``evaluate`` returned last; empty if there was none.
        history: One entry per epoch: ``epoch`` (from 0), ``loss`` (mean over batches, without skipped steps), ``seconds``
            and the metrics.
        scales: The loss scale as (step, scale): at the beginning, and after each step that changed it; empty without scaling.
        skipped: Steps that were skipped since gradients overflowed.
        moves: What the adaptive policy moved, in order.
        steps: Steps, those skipped included.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    scales: list[tuple[int, float]]
    skipped: int
    moves: list[Move]
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {**asdict(self), "scales": [list(entry) for entry in self.scales]}
