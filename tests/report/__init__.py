"""Reports made by hand, which every form of a report is tried on."""

from __future__ import annotations

import math
from typing import Any

from halfconv.drift.report import DriftReport, LayerDrift, Measures, MetricDrift, OutputDrift

#: A name that tries to drive a terminal, rich, Markdown, HTML, XML and a workflow command.
EVIL = "\x1b[2J\x1b]0;t\x07[bold]x[/] `a`|b|<script>&amp;\r\n::error::no\x00\u202e%0A,:"


def output(name: str = "logits", **changes: Any) -> OutputDrift:
    measures = Measures(
        rel_l2=1.52e-3, max_abs=0.0123, max_rel=0.02, cosine=0.9999988, sqnr_db=56.4, ulp_p99=2.5, argmax_agreement=0.99996,
        zeroed=0.0, absmax=91204.0,
    )  # fmt: skip
    return OutputDrift(**{"name": name, "dtype": "float32", "elements": 4000, "measures": measures, **changes})


def broken(name: str = "scores") -> OutputDrift:
    measures = Measures(
        rel_l2=math.inf, max_abs=math.inf, max_rel=math.inf, cosine=math.nan, sqnr_db=-math.inf, argmax_agreement=0.0, new_nan=12,
        new_inf=3, zeroed=0.6, mismatched=1,
    )  # fmt: skip
    failures = ("rel_l2 inf > 0.01", "new_nan 12 > 0", "zeroed 0.6 > 0.5")
    return output(name, measures=measures, failures=failures)


def integer(name: str = "labels") -> OutputDrift:
    return output(name, dtype="int64", measures=Measures(agreement=0.5), failures=("agreement 0.5 < 0.99",))


def layer(value: str = "sqrt_out", **changes: Any) -> LayerDrift:
    fields = {
        "value": value, "node": "Sqrt_1", "op": "Sqrt", "scope": "encoder.layer.0", "dtype": "float16", "rel_l2": 0.1,
        "added": 0.09, "reference_absmax": 301.0, "candidate_absmax": 300.5, "new_nan": 0, "new_inf": 0, "zeroed": 0.0,
    }  # fmt: skip
    return LayerDrift(**{**fields, **changes})


def good(**changes: Any) -> DriftReport:
    fields: dict[str, Any] = {
        "reference": "m.onnx", "candidate": "m.fp16.onnx", "on": "simulate", "to": "fp16", "samples": 1000,
        "sample_kind": "given", "seed": 0, "outputs": (output(),), "metrics": (), "tolerance": {"rel_l2": 0.01, "agreement": 0.99},
        "seconds": {"load": 0.5, "run": 1.25},
    }  # fmt: skip
    return DriftReport(**{**fields, **changes})


def bad(name: str = "scores", **changes: Any) -> DriftReport:
    """A report in which every field holds something, with a name in every place that names come into."""
    fields: dict[str, Any] = {
        "reference": f"{name}.onnx", "candidate": f"{name}.fp16.onnx", "samples": 8, "sample_kind": "synthetic", "seed": 7,
        "outputs": (output(), broken(name), integer(f"i{name}"), output("grid", shape_change="shape [2, 3] became [3, 2]",
                                                                        failures=("shape [2, 3] became [3, 2]",))),
        "metrics": (MetricDrift(f"{name} accuracy", 0.912, 0.0, 0.02), MetricDrift("loss", 0.5, math.nan)),
        "tolerance": {"rel_l2": 0.01, f"rel_l2@{name}": 0.001, "cosine": 0.9, f"{name} accuracy": 0.02},
        "layers": (
            layer("first", added=None, rel_l2=None, scope=""),
            layer(f"{name}_1", op=name, verdict=f"{name} overflows: input reaches 91,204 (> 65,504)", new_inf=4, scope=name),
            layer("nan", added=math.nan, rel_l2=math.nan, reference_absmax=None, candidate_absmax=None, new_nan=3),
            *(layer(f"v{number}", added=1e-4 * number) for number in range(20)),
        ),
        "first_bad": f"{name} overflows: input reaches 91,204 (> 65,504)",
        "baseline": (f"{name}: rel_l2 grew from 0.001 to 0.003 (3.0 times, 1.5 allowed)",),
        "unmodelled": (f"{name}: its kernel keeps state in half",),
        "warnings": ("random data hides overflow; give --samples", f"input {name} is not used"),
    }  # fmt: skip
    return good(**{**fields, **changes})
