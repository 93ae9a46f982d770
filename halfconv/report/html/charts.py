"""What charts show, as data; `halfconv.report.html.drawing` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bars", "Chart", "Drift", "Lines", "Mark", "Spans", "Strip"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that a chart points out.

    Attributes:
        at: Its place along the network.
        height: Its figure.
        href: Where its row is on the page.
        label: Its name and figure, in words.
    """

    at: int
    height: float
    href: str
    label: str


@dataclass(frozen=True, slots=True)
class Drift:
    """Drift along the network.

    Attributes:
        label: What the chart shows, in a sentence.
        heights: rel_l2 of each value in order; None where it is unknown or 0, infinite where it is not finite.
        limit: The tolerance; None for none.
        marks: Values that add most.
    """

    label: str
    heights: Sequence[float | None]
    limit: float | None
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Strip:
    """Precision along the network.

    Attributes:
        label: What the chart shows.
        kinds: For each value in order the number of its reason in `reasons`; -1 for half.
        reasons: Names of the reasons, most frequent first; at most six.
    """

    label: str
    kinds: Sequence[int]
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class Spans:
    """Magnitudes of values against what half can hold.

    Attributes:
        label: What the chart shows.
        spans: (smallest, largest) magnitude of each value in order; None where unknown or all zeros.
        kinds: Whether the value is ``half`` or ``fp32``.
        smallest: Half's smallest normal number.
        largest: Half's largest number.
        marks: Values that leave half's range most.
    """

    label: str
    spans: Sequence[tuple[float, float] | None]
    kinds: Sequence[str]
    smallest: float
    largest: float
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars side by side, each against the first of its group.

    Attributes:
        label: What the chart shows.
        names: What each bar is.
        heights: Its figure; None for none.
        texts: What stands beside it.
        reaches: How far its whisker reaches; empty for no whiskers.
        unit: The unit.
        reference: Places of the bars that the others are compared with.
    """

    label: str
    names: Sequence[str]
    heights: Sequence[float | None]
    texts: Sequence[str]
    unit: str
    reference: frozenset[int]
    reaches: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """A figure over steps.

    Attributes:
        label: What the chart shows.
        x: Steps or epochs.
        y: The figure.
        xlabel: What x is.
        ylabel: What y is.
        limit: A level to reach; None for none.
        steps: Whether the figure holds until the next entry.
        log: Whether y doubles and halves.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    xlabel: str
    ylabel: str
    limit: float | None = None
    steps: bool = False
    log: bool = False


Chart = Drift | Strip | Spans | Bars | Lines
