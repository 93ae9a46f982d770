"""Tolerances as people write them, and what they let pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfconv.drift.gate import DEFAULTS, MEASURES, Gate, make_gate, parse_tolerances
from halfconv.drift.metrics import Accumulator
from halfconv.drift.report import Measures, OutputDrift
from halfconv.errors import InputError, UsageError

OUTPUTS = ("logits", "state", "a@b=c", "model/head/out:0", "x@")
FINE = OutputDrift(
    "logits",
    "float32",
    10,
    Measures(
        rel_l2=1e-3,
        max_abs=0.1,
        max_rel=0.01,
        cosine=0.9999,
        sqnr_db=60.0,
        ulp_p99=3.0,
        argmax_agreement=1.0,
        zeroed=0.0,
        absmax=4.0,
    ),
)


def gate(*texts: str, to: str = "fp16", **options: Any) -> Gate:
    return make_gate(to, OUTPUTS, texts, **options)


def failures(gate: Gate, **measures: Any) -> tuple[str, ...]:
    return gate.judge(replace(FINE, measures=replace(FINE.measures, **measures))).failures


# --- the defaults --------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_contracts() -> None:
    assert DEFAULTS["fp16"] == {"rel_l2": 1e-2, "agreement": 0.99, "new_nan": 0, "new_inf": 0, "mismatched": 0, "zeroed": 0.5}
    assert DEFAULTS["bf16"] == {**DEFAULTS["fp16"], "rel_l2": 5e-2}
    assert gate().resolved() == DEFAULTS["fp16"] and gate(to="bf16").resolved() == DEFAULTS["bf16"]


def test_what_is_fine_passes() -> None:
    judged = gate().judge(FINE)
    assert judged.passed and judged == FINE


def test_sentences() -> None:
    assert failures(gate(), rel_l2=1.0306) == ("rel_l2 1.03 > 0.01",)
    assert failures(gate(), rel_l2=0.010000001) == ("rel_l2 0.010000001 > 0.01",)
    assert failures(gate(), new_nan=1200, rel_l2=math.inf) == ("1,200 new NaN", "rel_l2 inf > 0.01")
    assert failures(gate(), new_inf=1) == ("1 new Inf",)
    assert failures(gate(), mismatched=3) == ("3 NaN or Inf of the reference not matched",)
    assert failures(gate(), zeroed=1.0) == ("zeroed 100 % > 50 %",)
    assert failures(gate("cosine=0.99999"), cosine=0.5) == ("cosine 0.5 < 0.99999",)
    assert failures(gate(), rel_l2=math.nan) == ("rel_l2 nan > 0.01",)
    shape = replace(FINE, shape_change="sample 3: shape (1, 10) became (1, 9)")
    assert gate().judge(shape).failures == ("sample 3: shape (1, 10) became (1, 9)",)


@pytest.mark.parametrize("metric", MEASURES)
def test_every_measure_can_fail_and_at_its_bound_it_passes(metric: str) -> None:
    higher = metric in ("cosine", "sqnr_db", "argmax_agreement", "agreement")
    bound = 0 if metric in ("new_nan", "new_inf", "mismatched") else 0.25
    judge = gate(f"{metric}={bound}", "rel_l2=0.25")
    assert failures(judge, **{metric: bound}) == ()
    assert len(failures(judge, **{metric: bound - 0.125 if higher else bound + 1})) == 1


def test_measures_that_do_not_apply_break_nothing() -> None:
    nothing = OutputDrift("ids", "int64", 10, Measures())
    assert gate("rel_l2=0", "argmax_agreement=1", "zeroed=0").judge(nothing).passed


@pytest.mark.parametrize(
    ("r", "c"),
    [
        (np.ones(4), np.array([1, math.nan, 1, 1])),
        (np.ones(4), np.array([1, math.inf, 1, 1])),
        (np.ones(4), np.zeros(4)),
        (np.array([1, math.nan]), np.ones(2)),
        (np.ones(4), np.ones(3)),
    ],
)
def test_no_tolerance_lets_these_pass(r: Any, c: Any) -> None:
    accumulator = Accumulator("fp16")
    accumulator.update(r, c)
    assert not gate("rel_l2=inf", "zeroed=0.5").judge(accumulator.result("logits")).passed


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("rel_l2=1e-2", ("rel_l2", None), 1e-2),
        (" rel_l2 = 1e-2 ", ("rel_l2", None), 1e-2),
        ("rel_l2=1e-3@logits", ("rel_l2", "logits"), 1e-3),
        ("rel_l2@logits=1e-3", ("rel_l2", "logits"), 1e-3),
        ("max_abs=2@a@b=c", ("max_abs", "a@b=c"), 2),
        ("max_abs@a@b=c=2", ("max_abs", "a@b=c"), 2),
        ("cosine=0.9@model/head/out:0", ("cosine", "model/head/out:0"), 0.9),
        ("cosine=0.9@x@", ("cosine", "x@"), 0.9),
        ("sqnr_db=40", ("sqnr_db", None), 40),
        ("rel_l2=inf", ("rel_l2", None), math.inf),
        ("zeroed=0", ("zeroed", None), 0),
    ],
)
def test_texts(text: str, key: tuple[str, str | None], value: float) -> None:
    assert parse_tolerances([text], OUTPUTS) == parse_tolerances(text, OUTPUTS) == {key: value}


def test_mappings() -> None:
    given = {"rel_l2": 1e-2, "rel_l2@a@b=c": np.float32(0.5), "max_abs": 1}
    assert parse_tolerances(given, OUTPUTS) == {("rel_l2", None): 1e-2, ("rel_l2", "a@b=c"): 0.5, ("max_abs", None): 1}
    assert parse_tolerances(None, OUTPUTS) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rel_l3=1", "no measure 'rel_l3'.*try: 'rel_l2'"),
        ("REL_L2=1", "try: 'rel_l2'"),
        ("absmax=1", "no measure 'absmax'"),
        ("rel_l2=1@logit", "no output 'logit' among logits, state.*try: 'logits'"),
        ("rel_l2=1@", "no output ''"),
        ("rel_l2", "has no value; try: METRIC=VALUE"),
        ("rel_l2@logits", "has no value"),
        ("", "has no value"),
        ("rel_l2=", "'' is no number"),
        ("rel_l2=few", "'few' is no number"),
        ("rel_l2=1,5", "'1,5' is no number"),
        ("rel_l2=nan", "nan is no bound"),
        ("rel_l2=-1", "-1 is no bound"),
        ("new_nan=1", "looser than 0, which always holds"),
        ("new_inf=1@logits", "looser than 0"),
        ("mismatched=2", "looser than 0"),
        ("zeroed=0.6", "looser than 0.5"),
        ("cosine=1.5", "nothing can reach it"),
        ("agreement=99", "nothing can reach it"),
    ],
)
def test_bad_texts_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_tolerances([text], OUTPUTS)
    assert "\n" not in str(caught.value) and "try: " in str(caught.value)


@pytest.mark.parametrize("value", [True, None, [1], "1e", float("nan"), -0.5, 1j])
def test_bad_values_of_a_mapping_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="tolerance 'rel_l2'"):
        parse_tolerances({"rel_l2": value}, OUTPUTS)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no half format"):
        make_gate("fp8", OUTPUTS)


# --- what wins -----------------------------------------------------------------------------------------------------


def test_an_outputs_own_bound_wins_and_the_defaults_stay() -> None:
    strict = gate("rel_l2=1e-4@logits", "max_abs=0.05")
    assert strict.judge(FINE).failures == ("rel_l2 0.001 > 0.0001", "max_abs 0.1 > 0.05")
    assert strict.judge(replace(FINE, name="state")).failures == ("max_abs 0.1 > 0.05",)
    assert gate("max_abs=1").resolved() == {**DEFAULTS["fp16"], "max_abs": 1}
    assert strict.resolved()["rel_l2@logits"] == 1e-4
    assert failures(gate("max_abs=1@logits"), rel_l2=0.5) == ("rel_l2 0.5 > 0.01",)


def write(folder: Path, text: str) -> Path:
    path = folder / "tolerance.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        rel_l2 = 1e-3
        zeroed = 0
        [outputs."a@b=c"]
        rel_l2 = 0.5
        [outputs.logits]
        cosine = 0.9
        [metrics]
        accuracy = 0.01
        """,
    )
    got = gate("rel_l2=1e-5", file=path, metrics=("accuracy", "f1"))
    assert got.resolved() == {
        **DEFAULTS["fp16"],
        "rel_l2": 1e-5,
        "zeroed": 0,
        "rel_l2@a@b=c": 0.5,
        "cosine@logits": 0.9,
        "accuracy": 0.01,
    }
    assert got.limit_of("accuracy") == 0.01 and got.limit_of("f1") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rel_l3 = 1", "rel_l3: there is no measure"),
        ("rel_l2 = 'few'", "'few' is no number"),
        ("rel_l2 = true", "True is no number"),
        ("outputs = 3", "outputs is no table"),
        ("[outputs]\nlogits = 1", "outputs.'logits' is no table"),
        ("[outputs.logit]\nrel_l2 = 1", "no output 'logit'.*try: 'logits'"),
        ("[outputs.logits]\naccuracy = 1", "no measure 'accuracy'"),
        ("[metrics]\naccurracy = 1", "no metric 'accurracy' among accuracy; try: --metric"),
        ("accuracy = 1", "no measure 'accuracy'"),
    ],
)
def test_wrong_content_of_a_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        gate(file=path, metrics=("accuracy",))
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no TOML"):
        gate(file=write(tmp_path, "rel_l2 = = 1"))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        gate(file=tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        gate(file=tmp_path / "latin.toml")


# --- user metrics --------------------------------------------------------------------------------------------------


def test_user_metrics_have_a_largest_drop() -> None:
    got = gate("accuracy=0.02", metrics=("accuracy",))
    assert got.limit_of("accuracy") == 0.02 and got.resolved()["accuracy"] == 0.02
    with pytest.raises(UsageError, match="metric of all outputs"):
        gate("accuracy=0.02@logits", metrics=("accuracy",))
    with pytest.raises(UsageError, match="try: 'accuracy'"):
        gate("acuracy=0.02", metrics=("accuracy",))
    with pytest.raises(UsageError, match="has a name that halfconv uses itself"):
        gate(metrics=("cosine",))


# --- bounds that can say nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "r"),
    [
        ("rel_l2=1@logits", np.zeros(3, np.int64)),
        ("zeroed=0@logits", np.zeros(3, np.int64)),
        ("cosine=1@logits", np.array(["a"])),
        ("max_abs=1@logits", np.array([True])),
        ("agreement=1@logits", np.zeros(3)),
        ("argmax_agreement=1@logits", np.zeros((3, 1))),
        ("argmax_agreement=1@logits", np.zeros(3, np.int64)),
        ("argmax_agreement=1@logits", np.zeros(3, np.complex64)),
    ],
)
def test_a_bound_of_one_output_that_does_not_apply_is_refused(text: str, r: Any) -> None:
    accumulator = Accumulator("fp16")
    accumulator.update(r, r)
    with pytest.raises(UsageError, match="does not apply to that output"):
        gate(text).judge(accumulator.result("logits"))


@pytest.mark.parametrize(
    ("text", "r"),
    [
        ("rel_l2=1@logits", np.zeros(0)),
        ("rel_l2=1@logits", np.array([math.nan])),
        ("argmax_agreement=1@logits", np.array([math.nan, math.nan])),
        ("agreement=1@logits", np.zeros(0)),
        ("zeroed=0@logits", np.zeros(3)),
    ],
)
def test_a_bound_without_a_number_to_judge_passes(text: str, r: Any) -> None:
    accumulator = Accumulator("fp16")
    accumulator.update(r, r)
    assert gate(text).judge(accumulator.result("logits")).passed
