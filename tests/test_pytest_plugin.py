"""The pytest plugin, in runs of pytest inside pytest, with a stand-in for the comparison itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import halfconv.storage  # noqa: F401  (before pytester takes note of the modules: onnx cannot be imported twice)
from halfconv.drift.baseline import grown, load, write
from halfconv.drift.report import DriftReport, MetricDrift
from halfconv.errors import InputError
from tests.report import EVIL, bad, broken, good, output

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
HEAVY = ("click", "ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "scipy", "torch")


class Compare:
    """Stands in for `halfconv.drift.compare.validate`."""

    def __init__(self) -> None:
        self.report = good()
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def validate(self, reference: Any, candidate: Any, **options: Any) -> DriftReport:
        self.calls.append({"reference": reference, "candidate": candidate, **options})
        if self.error is not None:
            raise self.error
        if options["baseline"] is not None:
            return dataclasses.replace(self.report, baseline=grown(self.report, load(options["baseline"])))
        return self.report


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    stand_in = Compare()
    module = ModuleType("halfconv.drift.compare")
    module.validate = stand_in.validate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, compare: Compare) -> Run:
    """Run one test in a folder below the current one, with this plugin alone: other plugins may be here or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "200")
    (pytester.path / "inner").mkdir()

    def run(body: str, *options: str) -> pytest.RunResult:
        source = f"import halfconv, pytest\ndef test_it(assert_drift):\n    {body}\n"
        (pytester.path / "inner" / "test_it.py").write_text(source, "utf-8")
        return pytester.runpytest_inprocess("-p", "halfconv.pytest_plugin", "-p", "no:cacheprovider", *options)

    return run


def failure(result: pytest.RunResult) -> list[str]:
    """Return the lines of the failure's text, without pytest's marks."""
    result.assert_outcomes(failed=1)
    return [line.removeprefix("E").strip() for line in result.outlines if line.startswith("E  ")]


def test_passes_and_returns_the_report(run: Run, compare: Compare) -> None:
    run("assert assert_drift('m.onnx', 'h.onnx', 'x.npz', rel_l2=1e-2).outputs[0].name == 'logits'").assert_outcomes(passed=1)
    assert compare.calls == [
        {
            "reference": "m.onnx", "candidate": "h.onnx", "samples": "x.npz", "tolerance": {"rel_l2": 0.01}, "tolerance_file": None,
            "on": "simulate", "layers": False, "metrics": (), "seed": 0, "baseline": None,
        }
    ]  # fmt: skip


def test_options_reach_the_comparison(run: Run, compare: Compare) -> None:
    run(
        "assert_drift('m', 'h', on='cuda', layers=True, seed=3, metrics=['a:b'], tolerance_file='t.toml', max_abs=1, "
        "tolerance={'rel_l2@logits': 1e-3})"
    ).assert_outcomes(passed=1)
    (call,) = compare.calls
    assert call["tolerance"] == {"rel_l2@logits": 1e-3, "max_abs": 1}
    assert (call["on"], call["layers"], call["seed"], call["metrics"]) == ("cuda", True, 3, ["a:b"])
    assert (call["tolerance_file"], call["samples"]) == ("t.toml", None)


def test_failure_is_readable(run: Run, compare: Compare) -> None:
    compare.report = bad()
    result = run("assert_drift('m.onnx', 'my h.onnx', 'x.npz', seed=7, rel_l2=1e-2, tolerance={'rel_l2@a b': 1e-3})")
    assert failure(result) == [
        "AssertionError: scores.fp16.onnx drifts too far: scores, iscores, grid and 2 more",
        "against scores.onnx, simulated GPU rounding on the CPU, 8 SYNTHETIC samples (seed 7)",
        "output    rel_l2  max_abs  argmax   equal  new NaN  new Inf  zeroed",
        "scores       inf      inf   0.00%       -       12        3  60.00%",
        "iscores        -        -       -  50.00%        0        0       -",
        "grid     0.00152   0.0123  99.99%       -        0        0   0.00%",
        "scores: rel_l2 inf > 0.01",
        "scores: new_nan 12 > 0",
        "scores: zeroed 0.6 > 0.5",
        "iscores: agreement 0.5 < 0.99",
        "grid: shape [2, 3] became [3, 2]",
        "metric scores accuracy: reference 0.912, candidate 0, drop 0.912 (0.02 allowed)",
        "baseline: scores: rel_l2 grew from 0.001 to 0.003 (3.0 times, 1.5 allowed)",
        "first bad: scores overflows: input reaches 91,204 (> 65,504)",
        "warning: random data hides overflow; give --samples",
        "warning: input scores is not used",
        "accept the growth: pytest --halfconv-update",
        "reproduce: halfconv validate m.onnx 'my h.onnx' --samples x.npz --seed 7 --tolerance 'rel_l2=0.001@a b'"
        " --tolerance rel_l2=0.01",
    ]
    assert "pytest_plugin.py" not in result.stdout.str()


def test_command_to_reproduce(run: Run, compare: Compare, pytester: pytest.Pytester) -> None:
    compare.report = good(outputs=(broken(),))
    lines = failure(run("assert_drift('m', 'h', [1], on='cpu', metrics=['a:b', halfconv.UsageError], tolerance_file='t.toml')"))
    assert lines[-1] == (
        "reproduce: halfconv validate m h --on cpu --tolerance-file t.toml --metric a:b --metric halfconv.errors:UsageError"
        " --layers  (with the test's own samples)"
    )
    write(pytester.path / "inner" / "drift.json", compare.report)
    lines = failure(run("assert_drift('m', 'h', baseline='drift.json', layers=True)"))
    assert lines[-1] == f"reproduce: halfconv validate m h --baseline {pytester.path / 'inner' / 'drift.json'} --layers"


def test_failure_can_be_caught(run: Run, compare: Compare) -> None:
    compare.report = bad()
    run("with pytest.raises(AssertionError, match='first bad: scores overflows'): assert_drift('m', 'h')").assert_outcomes(passed=1)


def test_failure_of_a_metric_alone(run: Run, compare: Compare) -> None:
    compare.report = good(metrics=(MetricDrift("accuracy", 0.9, 0.5, 0.1),))
    lines = failure(run("assert_drift('m', 'h')"))
    assert lines[0].endswith("drifts too far: metric accuracy")
    assert not any(line.startswith("output") for line in lines)


def test_long_and_hostile_failures(run: Run, compare: Compare) -> None:
    compare.report = good(outputs=(broken(EVIL), *(broken(f"o{number}") for number in range(50))))
    result = run("assert_drift('m', 'h')")
    lines = failure(result)
    assert "… and 31 more outputs" in lines and "… and 113 more" in lines
    assert len(lines) < 80
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(result.stdout.str())


def test_errors_are_one_line(run: Run, compare: Compare) -> None:
    compare.error = InputError("m.onnx: no such file", "check the path")
    result = run("assert_drift('m.onnx', 'h.onnx')")
    assert failure(result) == ["halfconv.errors.InputError: m.onnx: no such file; try: check the path"]
    assert "validate(" not in result.stdout.str()
    run("with pytest.raises(halfconv.InputError): assert_drift('m', 'h')").assert_outcomes(passed=1)


def test_a_bound_given_twice_is_refused(run: Run, compare: Compare) -> None:
    (line,) = failure(run("assert_drift('m', 'h', rel_l2=1, tolerance={'rel_l2': 2})"))
    assert "rel_l2 is given both by keyword and in tolerance; try: one of them" in line
    assert compare.calls == []


# Baselines


def test_baseline_lies_beside_the_test(run: Run, compare: Compare, pytester: pytest.Pytester) -> None:
    file = pytester.path / "inner" / "drift.json"
    body = "assert_drift('m', 'h', baseline='drift.json')"
    (line,) = failure(run(body))
    assert f"{file}: no such baseline; try: --update-baseline (in pytest --halfconv-update)" in line
    run(body, "--halfconv-update").assert_outcomes(passed=1)
    assert [call["baseline"] for call in compare.calls] == [file, None]
    assert load(file).outputs["logits"]["rel_l2"] == 0.00152
    run(body).assert_outcomes(passed=1)


def test_growth_fails_and_update_accepts_it(run: Run, compare: Compare, pytester: pytest.Pytester) -> None:
    file = pytester.path / "inner" / "kept" / "drift.json"
    body = "assert_drift('m', 'h', baseline='kept/drift.json')"
    run(body, "--halfconv-update").assert_outcomes(passed=1)
    before = file.read_bytes()
    larger = dataclasses.replace(output().measures, rel_l2=9e-3)
    compare.report = good(outputs=(output(measures=larger),))
    lines = failure(run(body))
    assert lines[0].endswith("drifts too far: baseline")
    assert "baseline: logits: rel_l2 grew from 0.00152 to 0.009 (5.92 times, at most 0.00228 allowed)" in lines
    assert file.read_bytes() == before
    run(body, "--halfconv-update").assert_outcomes(passed=1)
    assert json.loads(file.read_text())["outputs"]["logits"]["rel_l2"] == 0.009
    run(body).assert_outcomes(passed=1)


@pytest.mark.parametrize("report", [good(outputs=(broken(),)), good(metrics=(MetricDrift("accuracy", 0.9, 0.5, 0.1),))])
def test_update_does_not_accept_what_breaks_a_tolerance(
    run: Run, compare: Compare, pytester: pytest.Pytester, report: DriftReport
) -> None:
    compare.report = report
    failure(run("assert_drift('m', 'h', baseline='drift.json')", "--halfconv-update"))
    assert not (pytester.path / "inner" / "drift.json").exists()


def test_a_baseline_that_cannot_be_written(run: Run, compare: Compare) -> None:
    (line,) = failure(run("assert_drift('m', 'h', baseline='a/b/drift.json')", "--halfconv-update"))
    assert "EnvironmentProblem: cannot write in" in line


# The plugin in its surroundings


def test_option_and_fixture_are_documented(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    shown = pytester.runpytest_inprocess("-p", "halfconv.pytest_plugin", "--help").stdout.str()
    assert "half-precision drift:" in shown and "--halfconv-update" in shown
    shown = pytester.runpytest_inprocess("-p", "halfconv.pytest_plugin", "--fixtures").stdout.str()
    assert "assert_drift" in shown and "Compare a half-precision model with its reference" in shown


def test_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"halfconv": "halfconv.pytest_plugin"}


def test_collecting_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(assert_drift):\n    assert_drift('m.onnx', 'h.onnx')\n")
    (tmp_path / "conftest.py").write_text(
        f"import sys\ndef pytest_unconfigure():\n    print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "halfconv.pytest_plugin", "--collect-only", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_it.py::test_it" in done.stdout
    assert "heavy: []" in done.stdout
