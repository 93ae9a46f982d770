"""What `halfconv.validate` returns: drift per output, per value where asked, and the verdict. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SYNTHETIC", "DriftReport", "LayerDrift", "Measures", "MetricDrift", "OutputDrift", "WaiverUse"]

SYNTHETIC = "the samples are synthetic: random data hides overflow and says little about accuracy; give --samples"


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of one output (or value), pooled over all samples, as contracts.md defines them.

    r is the reference, c the candidate. None where a measure does not apply (floating-point measures of an integer
    output, `agreement` of a floating-point one, `argmax_agreement` where the last axis has fewer than two elements) or
    where there was no element. Infinite where c is NaN or infinite and r is finite.

    Attributes:
        rel_l2: sqrt(Σ(c−r)² / Σr²); if r is all zeros, max_abs.
        max_abs: max |c−r|.
        max_rel: max |c−r| / max(|r|, 1e-3·max|r|).
        cosine: Σrc / sqrt(Σr²·Σc²); 1 if both are all zeros, 0 if one is.
        sqnr_db: −20·log10(rel_l2), in dB; infinite if there is no error.
        ulp_p99: 99th percentile of |c−r| in ulps of the half format at |r|.
        argmax_agreement: Share of rows along the last axis whose largest element is at the same place.
        agreement: Share of equal elements, for integers, booleans and strings.
        new_nan: Elements that are NaN in c and finite in r.
        new_inf: Elements that are infinite in c and finite in r.
        zeroed: Share of the elements with |r| ≥ 6.1e-5 that are exactly 0 in c.
        mismatched: Elements where r is NaN or infinite and c is not the same.
        absmax: Largest finite |r|.
    """

    rel_l2: float | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    ulp_p99: float | None = None
    argmax_agreement: float | None = None
    agreement: float | None = None
    new_nan: int = 0
    new_inf: int = 0
    zeroed: float | None = None
    mismatched: int = 0
    absmax: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OutputDrift:
    """Drift of one model output, and what the gate says of it.

    Attributes:
        name: The output's name.
        dtype: The reference's element type, in ONNX's words: ``float32``, ``int64``, ``string``, …
        elements: Elements compared, over all samples.
        measures: The measures.
        shape_change: How the shape, length, keys or type differ from the reference's, in words; "" if they do not.
        failures: One sentence for every bound that is broken: ``rel_l2 1.03 > 0.01``.
        waived: The same for bounds that are broken, and waived for now.
    """

    name: str
    dtype: str
    elements: int
    measures: Measures
    shape_change: str = ""
    failures: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the output is within all bounds, but for those that are waived."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "elements": self.elements,
            **self.measures.to_dict(),
            "shape_change": self.shape_change or None,
            "failures": list(self.failures),
            "waived": list(self.waived),
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """Drift of one floating-point value inside the model.

    Attributes:
        value: The value's id.
        node: Id of the node that makes it.
        op: That node's operator.
        scope: Where the exporter says the node came from (PyTorch's module path); "" if it does not say.
        dtype: What the candidate computes it in: ``float16``, ``bfloat16`` or ``float32``.
        rel_l2: As in `Measures`.
        added: rel_l2 beyond the largest rel_l2 of the node's own inputs: the error that arises here.
        reference_absmax: Largest finite magnitude in the reference.
        candidate_absmax: The same in the candidate.
        new_nan: Elements that are NaN in the candidate and finite in the reference.
        new_inf: Elements that are infinite in the candidate and finite in the reference.
        zeroed: Share of the elements with |r| ≥ 6.1e-5 that are exactly 0 in the candidate.
        verdict: What is wrong, in plain words; "" if nothing is.
    """

    value: str
    node: str
    op: str
    scope: str
    dtype: str
    rel_l2: float | None
    added: float | None
    reference_absmax: float | None
    candidate_absmax: float | None
    new_nan: int
    new_inf: int
    zeroed: float | None
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MetricDrift:
    """A user's metric on the outputs of both models.

    Attributes:
        name: The metric's name.
        reference: Its value for the reference.
        candidate: Its value for the candidate.
        limit: The largest drop that is allowed; None if it is only reported.
        waived: Whether the drop is larger than that, and waived for now.
    """

    name: str
    reference: float
    candidate: float
    limit: float | None = None
    waived: bool = False

    @property
    def drop(self) -> float:
        """Reference minus candidate."""
        return self.reference - self.candidate

    @property
    def passed(self) -> bool:
        """Whether the drop is allowed, or waived; a NaN drop is not allowed."""
        return self.limit is None or self.waived or self.drop <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "drop": self.drop,
            "limit": self.limit,
            "waived": self.waived,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class WaiverUse:
    """A waiver of the tolerance file, and what became of it.

    Attributes:
        subject: What it waives, in words: ``rel_l2 of 'logits'``.
        up_to: The bound that holds meanwhile; None if there is none.
        reason: Why.
        expires: Its last day, as ``2027-01-31``.
        days_left: Days until then; negative once it has expired.
        used: Whether it waives a bound that is broken.
    """

    subject: str
    up_to: float | None
    reason: str
    expires: str
    days_left: int
    used: bool

    @property
    def expired(self) -> bool:
        """Whether its last day is over, which fails."""
        return self.days_left < 0

    def sentence(self) -> str:
        """Return what it waives, until when and why."""
        if self.expired:
            said = f"the waiver for {self.subject} expired on {self.expires} ({self.reason})"
            return f"{said}: repair the drift, or agree on a new date"
        return f"{self.subject} is waived until {self.expires} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON data."""
        return {**asdict(self), "expired": self.expired}


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Drift of a candidate model against its reference.

    Attributes:
        reference: The reference model's file.
        candidate: The candidate model's file.
        on: How the candidate was evaluated: ``simulate``, ``cpu`` or ``cuda``.
        to: The half format whose ulps and defaults are used: ``fp16`` or ``bf16``.
        samples: Number of samples.
        sample_kind: ``given`` or ``synthetic``.
        seed: Seed of synthetic samples.
        outputs: Drift of every output.
        metrics: The user's metrics.
        tolerance: The bounds that were applied, as ``METRIC`` or ``METRIC@OUTPUT``.
        layers: Drift of the values inside, in topological order; None if not asked for.
        first_bad: What went wrong first, in plain words; "" if nothing did or it is not known.
        baseline: One sentence for every figure that grew against the committed baseline.
        waivers: The waivers of the tolerance file.
        unmodelled: Operators whose half kernel the simulation does not model, with the reason.
        warnings: Sentences that deserve attention.
        seconds: Seconds by stage.
    """

    reference: str
    candidate: str
    on: str
    to: str
    samples: int
    sample_kind: str
    seed: int
    outputs: tuple[OutputDrift, ...]
    metrics: tuple[MetricDrift, ...]
    tolerance: Mapping[str, float]
    layers: tuple[LayerDrift, ...] | None = None
    first_bad: str = ""
    baseline: tuple[str, ...] = ()
    waivers: tuple[WaiverUse, ...] = ()
    unmodelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether every output and metric is within its bounds, nothing grew beyond the baseline, and no waiver expired."""
        within = all(o.passed for o in self.outputs) and all(m.passed for m in self.metrics)
        return within and not self.baseline and not any(w.expired for w in self.waivers)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data (``validate --json``)."""
        return {
            "schema_version": 1,
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "on": self.on,
            "to": self.to,
            "samples": {"count": self.samples, "kind": self.sample_kind, "seed": self.seed},
            "outputs": [output.to_dict() for output in self.outputs],
            "metrics": {metric.name: metric.to_dict() for metric in self.metrics},
            "layers": None if self.layers is None else [layer.to_dict() for layer in self.layers],
            "first_bad": self.first_bad or None,
            "tolerance": dict(self.tolerance),
            "baseline": list(self.baseline),
            "waivers": [waiver.to_dict() for waiver in self.waivers],
            "unmodelled": list(self.unmodelled),
            "warnings": list(self.warnings),
            "seconds": {stage: round(value, 4) for stage, value in (self.seconds or {}).items()},
        }
