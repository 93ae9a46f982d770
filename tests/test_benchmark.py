"""`halfconv bench`: what it measures is real, and what it says follows from it. No time is judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import halfconv
from halfconv import benchmark, profile_search
from halfconv.benchmark import BenchReport, BenchRow, bench
from halfconv.benchmark_inputs import inputs_for
from halfconv.cli import cli, main
from halfconv.report.bench import as_markdown
from tests.test_schemas import strict, validate

QUICK = {"seconds": 0.05, "provider": "cpu"}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TURN", 0.02)


def save(path: Path, batch: int | str = "n", name: str = "x", scale: float = 1.0) -> Path:
    weight = numpy_helper.from_array((np.eye(8) * scale).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 8]) for n in (name, "y")]
    graph = helper.make_graph([helper.make_node("MatMul", [name, "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and its conversion."""
    source = save(tmp_path / "model.onnx", scale=1 / 3)
    return source, halfconv.convert(source, check=False).output


def test_models_are_measured_side_by_side(pair: tuple[Path, Path]) -> None:
    report = bench(pair, batches=[1, 5], **QUICK)
    validate("bench", strict(json.dumps({**report.to_dict(), "tuned": []})))
    assert [(row.model, row.batch) for row in report.rows] == [(str(path), batch) for batch in (1, 5) for path in pair]
    for row in report.rows:
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.runs >= benchmark.LEAST and row.throughput > 0 and row.load_s > 0 and row.host_mb > 10
        assert row.provider == "cpu" and row.device_mb is None and row.energy_mj is None and row.compute_p50_ms is None
        assert row.placement["nodes"] == row.placement["on_provider"] > 0
    first, second = report.rows[:2]
    assert first.rel_l2 is None and 0 < (second.rel_l2 or 0) < 1e-3, "the half model's weights are rounded"
    assert (first.profile, second.profile) == ("default", "beside")
    assert len(report.verdicts) == 2 and all("model.fp16.onnx" in words for words in report.verdicts)


def test_all_models_get_the_same_inputs(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx"), save(tmp_path / "c.onnx", scale=2)]
    rows = bench(paths, **QUICK).rows
    assert [row.rel_l2 for row in rows[:2]] == [None, 0.0]
    assert rows[2].rel_l2 == pytest.approx(1.0)


def test_batches_come_from_samples(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx")
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    for batch, feeds, note in inputs_for([model], [2, 7], {"x": x}, 0):
        assert not note
        np.testing.assert_array_equal(feeds["x"], np.concatenate([x, x, x])[:batch])


@pytest.mark.parametrize(("batches", "note"), [([4], False), ([1, 4, 8], True)])
def test_a_batch_that_is_fixed_is_all_there_is(batches: list[int], note: bool, tmp_path: Path) -> None:
    report = bench([save(tmp_path / "m.onnx", batch=4)], batches=batches, **QUICK)
    assert [row.batch for row in report.rows] == [4]
    assert any("left out" in words for words in report.notes) == note


def test_minus_one_is_a_batch_that_varies(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", batch=-1)
    found = list(inputs_for([path], [1, 4], None, 0))
    assert [(batch, feeds["x"].shape, note) for batch, feeds, note in found] == [(1, (1, 8), ""), (4, (4, 8), "")]


def test_models_of_different_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(halfconv.UsageError, match="versions of one model"):
        bench([save(tmp_path / "a.onnx"), save(tmp_path / "b.onnx", name="z")], **QUICK)


@pytest.mark.parametrize("arguments", [["missing.onnx"], ["m.onnx", "--batch", "0"], ["m.onnx", "--batch", "a"], ["text.onnx"], [],
                                       ["m.onnx", "--provider", "cuda"], ["m.onnx", "--seconds", "0"],
                                       ["m.onnx", "--seconds", "nan"], ["m.onnx", "--seconds", "inf", "--tune"]])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    said = capsys.readouterr()
    assert caught.value.code == 2 and not said.out
    assert "Traceback" not in said.err and ("try:" in said.err or not arguments)


def test_the_command_prints_and_writes(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = [*map(str, pair), "--seconds", "0.05", "--provider", "cpu", "--batch", "2", "--markdown", str(tmp_path / "b.md")]
    shown = CliRunner().invoke(cli, ["bench", *options])
    assert shown.exit_code == 0, shown.output
    assert "model.fp16.onnx" in shown.output and "p50 ms" in shown.output
    written = (tmp_path / "b.md").read_text("utf-8").splitlines()
    assert written[0].startswith("| model | batch | p50 ms |") and written[1] == "|" + "---|" * written[0].count(" | ") + "---|"
    assert sum(line.startswith("| model.") for line in written) == 2
    told = CliRunner().invoke(cli, ["bench", *options, "--json"])
    validate("bench", strict(told.stdout))


def test_tuning_writes_a_profile_that_sessions_follow(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU there is little to choose from; here, everything but the default is much faster, or wrong."""
    compared, opened = profile_search._Search._compare, profile_search._Search._open
    levels = []

    def opening(self: Any, setting: Any) -> Any:
        levels.append(setting.level)
        return opened(self, setting)

    def faster(self: Any, worker: Any) -> Any:
        times, drifts, _ = compared(self, worker)
        return times, drifts if levels[-1] == "ORT_ENABLE_EXTENDED" else [1.0] * len(drifts), [10.0] * len(times)

    monkeypatch.setattr(profile_search._Search, "_open", opening)
    monkeypatch.setattr(profile_search._Search, "_compare", faster)
    options = ["--tune", "--json", "--batch", "2,3", "--seconds", "0.05", "--provider", "cpu"]
    told = CliRunner().invoke(cli, ["bench", str(pair[1]), *options])
    assert told.exit_code == 0, told.output
    content = strict(told.stdout)
    validate("bench", content)
    (search,) = content["tuned"]
    first, extended, basic = search["trials"]
    assert first["what"] == "default" and len(first["p50_ms"]) == 2
    assert extended["kept"] and extended["rel_l2"] < 1e-3
    assert not basic["kept"] and basic["rel_l2"] == pytest.approx(1) and "drifts" in basic["why_not"]
    profile = strict(Path(search["profile"]).read_text("utf-8"))
    validate("profile", profile)
    assert profile["graph_optimization"] == "ORT_ENABLE_EXTENDED"
    assert [bucket["inputs"] for bucket in profile["buckets"]] == [{"x": [2, 8]}, {"x": [3, 8]}]
    assert content["rows"][0]["profile"] == "beside"


def test_tuning_on_a_cpu_keeps_what_was_measured_on_a_gpu(tmp_path: Path) -> None:
    """Else a session elsewhere, which takes the best provider that the profile names, would pass its GPU over."""
    model = save(tmp_path / "m.onnx")
    path = tmp_path / "m.onnx.profile.json"
    names = ("CUDAExecutionProvider", "CPUExecutionProvider")
    profile_search.search_profile(model, provider="auto", seconds=0.05)
    profile = strict(path.read_text("utf-8"))
    assert [entry["name"] for entry in profile["providers"]] == list(names)
    profile["providers"][0]["options"] = {"prefer_nhwc": "1"}
    path.write_text(json.dumps(profile), "utf-8")
    profile_search.search_profile(model, provider="auto", seconds=0.05)
    assert strict(path.read_text("utf-8"))["providers"] == profile["providers"]
    profile_search.search_profile(model, provider="cpu", seconds=0.05)  # asked for
    assert [entry["name"] for entry in strict(path.read_text("utf-8"))["providers"]] == [names[1]]


def test_tuning_and_no_profile_contradict(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(pair[1]), "--tune", "--no-profile"])
    assert caught.value.code == 2 and "try:" in capsys.readouterr().err


class Told:
    """A worker that gives known figures."""

    def __init__(self, shares: dict[str, float], cpu_ops: dict[str, int]):
        self.answers = {"shares": shares, "state": {"cpu_ops": cpu_ops}}

    def __call__(self, method: str) -> Any:
        return self.answers[method]


def row(name: str, ms: float, provider: str = "cuda", **placement: Any) -> BenchRow:
    held = {"nodes": 180, "on_provider": 139, "on_cpu": 0, "memcpy": 0, "casts": 0, "graph": False, **placement}
    return BenchRow(name, provider, "default", 1, ms, ms, ms, None, 1e3 / ms, 10, ms, 1.0, None, 100.0, None, None, held)


def test_verdicts_say_why_half_is_not_faster() -> None:
    slow = Told({"Cast": 0.31, "MatMul": 0.5}, {"Shape": 30, "Gather": 8, "Range": 2, "Cast": 1})
    words = benchmark._verdicts([row("a.onnx", 2.0), row("b.onnx", 2.0, on_cpu=41, memcpy=12)], [slow, slow], 2)  # type: ignore[list-item]
    assert words == [
        "b.onnx is not faster than a.onnx at batch 1 (1.00 times as fast): 41 of 180 nodes run on the CPU "
        "(Shape 30, Gather 8, Range 2), with 12 copies; Casts take 31% of the time; it runs without a CUDA graph"
    ]
    fast = benchmark._verdicts([row("a.onnx", 2.0), row("b.onnx", 0.5)], [slow, slow], 2)  # type: ignore[list-item]
    assert fast == ["b.onnx is 4.00 times as fast as a.onnx at batch 1"]


def test_names_cannot_break_a_table() -> None:
    report = BenchReport({"card": None, "cores": 2, "onnxruntime": "1", "time": "2026"}, (row("a|<b>.onnx", 1.0),), ("<i>",), ())
    assert "a&#124;&lt;b>.onnx" in as_markdown(report) and "<i>" not in as_markdown(report)
