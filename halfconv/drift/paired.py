"""Run two models on samples side by side, and measure what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfconv.drift.metrics import Accumulator
from halfconv.drift.task import MetricMeans
from halfconv.samples import Sample

__all__ = ["Paired", "run_paired"]

#: Gives a model's outputs for a sample, by its number and itself.
Answers = Callable[[int, Sample], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Paired:
    """What two models gave.

    Attributes:
        total: Number of samples.
        accumulators: Output -> its measures.
        worst: The sample that did most harm, the only one that is kept.
        harms: For each sample its share of what is lost: elements, then squared error.
    """

    total: int
    accumulators: Mapping[str, Accumulator]
    worst: Sample
    harms: Sequence[tuple[float, float]]


def run_paired(
    samples: Iterable[Sample], ours: Answers, theirs: Answers, names: Sequence[str], to: str, means: MetricMeans,
    hopeless: Callable[[Mapping[str, float]], bool] = lambda errors: False,
) -> Paired | None:  # fmt: skip
    """Measure a candidate against its reference, one sample at a time.

    Args:
        samples: Samples; not empty.
        ours: Gives the reference's outputs.
        theirs: Gives the candidate's.
        names: Outputs to measure.
        to: ``fp16`` or ``bf16``.
        means: User metrics, which are updated.
        hopeless: Given the squared error of each output so far, tells whether the other samples need not be run.

    Returns:
        The measures; None where the run was hopeless.
    """
    accumulators = {name: Accumulator(to) for name in names}
    total, worst, most, before = 0, None, (-1.0, 0.0), (0.0, 0.0)
    each: list[tuple[float, float]] = []
    for sample in samples:
        values = ours(total, sample), theirs(total, sample)
        for name, accumulator in accumulators.items():
            accumulator.update(values[0][name], values[1][name], sample.name)
        means.update(values, sample.extras, sample.name)
        total += 1
        harms = {name: accumulator.harm() for name, accumulator in accumulators.items()}
        after = sum(lost for lost, _ in harms.values()), sum(error for _, error in harms.values())
        harm = after[0] - before[0], after[1] - before[1]
        each.append(harm)
        if worst is None or harm > most:
            worst, most = sample, harm
        before = after
        if hopeless({name: error for name, (_, error) in harms.items()}):
            return None
    assert worst is not None  # Samples refuses to be empty
    return Paired(total, accumulators, worst, each)
