"""What a person sees of a validation."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from halfconv.drift.report import DriftReport, MetricDrift
from halfconv.report.text import clip, figure, share, visible
from halfconv.report.validation import show_validation
from tests.report import EVIL, bad, broken, good, integer, layer, output


def shown(report: DriftReport, width: int = 140, color: bool = False) -> str:
    stream = io.StringIO()
    show_validation(report, Console(file=stream, width=width, force_terminal=color, color_system="truecolor" if color else None))
    return stream.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_good_report_in_few_lines() -> None:
    text = shown(good())
    lines = text.splitlines()
    assert lines[0] == "PASSED  m.fp16.onnx  simulated GPU rounding on the CPU, 1,000 samples"
    assert lines[1] == "  against m.onnx; tolerance rel_l2 ≤ 0.01, agreement ≥ 0.99"
    assert lines[2].split() == ["output", "rel_l2", "max_abs", "argmax", "new", "NaN", "new", "Inf", "zeroed", "verdict"]
    assert lines[3].split() == ["logits", "0.00152", "0.0123", "99.99%", "0", "0", "0.00%", "passed"]
    assert len(lines) == 4


def test_bad_report_says_everything() -> None:
    text = shown(bad())
    assert text.startswith("FAILED  scores.fp16.onnx  simulated GPU rounding on the CPU, 8 SYNTHETIC samples (seed 7)\n")
    for part in (
        "scores: rel_l2 inf > 0.01",
        "scores: new_nan 12 > 0",
        "iscores: agreement 0.5 < 0.99",
        "grid: shape [2, 3] became [3, 2]",
        "metric scores accuracy: reference 0.912, candidate 0, drop 0.912 (0.02 allowed)",
        "baseline: scores: rel_l2 grew from 0.001 to 0.003 (3.0 times, 1.5 allowed)",
        "first bad: scores overflows: input reaches 91,204 (> 65,504)",
        "first value that went bad: scores_1 (scores Sqrt_1, scores): scores overflows: input reaches 91,204 (> 65,504)",
        "Values that add most error (15 of 23)",
        "not modelled: scores: its kernel keeps state in half",
        "warning: random data hides overflow",
        "warning: input scores is not used",
        "drop of scores accuracy ≤ 0.02",
        "rel_l2@scores ≤ 0.001",
        "cosine ≥ 0.9",
    ):
        assert part in text
    assert text.index("FAILED") < text.index("output ") < text.index("scores: rel_l2") < text.index("first bad:")
    assert text.index("first bad:") < text.index("Values that add most") < text.index("not modelled") < text.index("warning:")
    assert text.count("shape [2, 3] became [3, 2]") == 1


def test_values_are_ordered_by_what_they_add() -> None:
    lines = shown(bad()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Values that add most"))
    names = [line.split()[0] for line in lines[start + 2 : start + 17]]
    assert names == ["nan", "scores_1", *(f"v{number}" for number in range(19, 6, -1))]
    assert "301 → inf" in lines[start + 3] and "encoder.layer.0" in lines[start + 4]


@pytest.mark.parametrize("on, words", [("cpu", "on the CPU provider"), ("cuda", "on CUDA"), ("simulate", "simulated GPU rounding")])
def test_verdict_says_how_it_was_evaluated(on: str, words: str) -> None:
    assert words in shown(good(on=on)).splitlines()[0]


def test_integer_outputs_show_their_agreement() -> None:
    text = shown(good(outputs=(integer(),)))
    assert text.splitlines()[2].split()[4] == "equal"
    assert "50.00%" in text


def test_metrics() -> None:
    metrics = (MetricDrift("accuracy", 0.912, 0.91, 0.02), MetricDrift("loss", 0.5, 0.75))
    rows = [line.split() for line in shown(good(metrics=metrics)).splitlines()[-2:]]
    assert rows == [
        ["accuracy", "91.2", "%", "91.0", "%", "0.2", "%", "2.0", "%", "passed"],
        ["loss", "0.5", "0.75", "-0.25", "-", "reported"],
    ]


def test_one_synthetic_warning_is_enough() -> None:
    text = shown(good(sample_kind="synthetic", samples=1, warnings=("the samples are synthetic",)))
    assert text.count("warning:") == 1
    assert "1 SYNTHETIC sample (seed 0)" in text


def test_many_outputs_are_cut_and_failing_ones_kept() -> None:
    outputs = (*(output(f"fine{number}") for number in range(100)), broken("late"))
    text = shown(good(outputs=outputs))
    assert "… and 61 more; --json lists them all" in text
    assert "late" in text and "fine38" in text and "fine39" not in text


def test_many_failures_are_cut() -> None:
    text = shown(good(outputs=tuple(broken(f"o{number}") for number in range(40))))
    assert "… and 90 more; --json lists them all" in text


def test_layers_without_error() -> None:
    assert "none of 1 values inside adds error" in shown(good(layers=(layer(added=0.0),)))
    assert "Values" not in shown(good(layers=None))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_any_width(width: int) -> None:
    text = shown(bad(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "firstbad:scoresoverflows" in re.sub(r"\s", "", text)


def test_names_cannot_drive_the_terminal() -> None:
    text = shown(bad(EVIL), color=True)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", text)  # rich's own colours
    assert all(char == "\n" or char.isprintable() for char in rest)
    assert r"\x1b[2J" in rest and "[bold]x[/]" in rest


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_name_is_shown_as_plain_text(name: str) -> None:
    text = shown(bad(name), 300)
    assert all(char == "\n" or char.isprintable() for char in text)
    assert words(visible(name)) in words(text)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.text(st.characters(codec=None)))
def test_visible_prints_and_keeps_what_prints(text: str) -> None:
    safe = visible(text)
    assert safe.isprintable()
    assert (safe == text) == text.isprintable()


def test_figures() -> None:
    values = [None, 0, 12345, 0.0, 1.03456, 91204.0, 2e7, 1.5e-5, float("inf"), float("nan")]
    assert [figure(value) for value in values] == ["-", "0", "12,345", "0", "1.03", "91,204", "2e+07", "1.5e-05", "inf", "nan"]
    shares = [None, 0.0, 1e-9, 0.5, 0.999999, 1.0, float("nan")]
    assert [share(value) for value in shares] == ["-", "0.00%", "<0.01%", "50.00%", "99.99%", "100.00%", "nan"]
    assert [clip("abcdefghij", limit) for limit in (10, 6)] == ["abcdefghij", "abc…ij"]
