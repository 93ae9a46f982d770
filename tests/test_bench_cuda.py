"""The benchmark on a GPU: what it makes of figures, and a run without a GPU on tiny models."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import cuda, cuda_prepare, cuda_table, cuda_timing
from bench.cuda_contenders import existing, lineup
from bench.cuda_prepare import Case, case_of
from tests import generated

ROOT = Path(cuda.__file__).parents[1]


def row(case, batch, who, p50, **more):
    return {"case": case, "batch": batch, "who": who, "p50_ms": p50, "burst_ms": p50 * 0.9, "rel_l2": 1e-3, **more}


def made_up():
    """Figures that were never measured."""
    times = {
        "fp32": 9.0, "fp32-tf32": 8.0, "onnxconverter-common": 5.0, "ort-float16": 4.0, "ort-optimizer": 4.5,
        "ort-float16+graph": 3.5, "ort-optimizer+graph": 3.0, "halfconv-portable": 4.0, "halfconv-default": 2.5,
        "halfconv-default+graph": 2.0, "halfconv": 1.0, "torch-eager+sdpa": 4.0, "torch-compile+sdpa": 2.0,
        "torch-compile+eager": 1.6,
    }  # fmt: skip
    rows = [row("bert_base", 32, who, ms) for who, ms in times.items()]
    rows += [row("resnet50", 1, who, ms) for who, ms in {"fp32": 2.0, "ort-float16": 1.0, "halfconv-default+graph": 1.0}.items()]
    rows += [row("zoo/magika", None, who, ms) for who, ms in {"fp32": 2.0, "ort-float16": 1.5, "halfconv": 0.1}.items()]
    rows.append({"case": "bert_base", "batch": 32, "who": "modelopt", "error": "it is not installed"})
    rows.append({"case": "bert_base", "batch": 2, "who": "halfconv", "gpu_rel_l2": 1.2e-3, "predicted_rel_l2": 1.1e-3})
    return rows


def content(rows):
    versions = {"onnxruntime-gpu": "1.2.3", "torch": "4.5.6+cu0"}
    return {"machine": {"card": "No Card"}, "versions": versions, "date": "2001-02-03T04:05:06+00:00", "rows": rows}


# Cases


def test_cases_are_read() -> None:
    assert case_of("bert_base@32") == Case("bert_base", 32)
    assert case_of("zoo/magika") == Case("zoo/magika", None)
    assert [str(case) for case in cuda_prepare.DEFAULT] == [
        "bert_base@32", "bert_base@1", "vit_b16@32", "convnext_t@32", "resnet50@32", "resnet50@1",
    ]  # fmt: skip
    assert all(case_of(str(case)) == case for case in cuda_prepare.DEFAULT)


@pytest.mark.parametrize("text", ["bert@1", "bert_base", "bert_base@0", "bert_base@x", "zoo/", "zoo/magika@2", ""])
def test_unknown_cases_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="try: "):
        case_of(text)
    for step in (["prepare", "x", text], ["run", "x", "y", text]):
        with pytest.raises(SystemExit) as stopped:
            cuda.parsed(step)
        assert stopped.value.code == 2
    assert "try: " in capsys.readouterr().err


def test_cases_of_a_command_line() -> None:
    assert cuda.parsed(["run", "x", "y"]).cases == list(cuda_prepare.DEFAULT)
    assert cuda.parsed(["run", "x", "y", "resnet50@1"]).cases == [Case("resnet50", 1)]
    zoo = [Case(f"zoo/{name}", None) for name in cuda_prepare.ZOO]
    assert cuda.parsed(["run", "x", "y", "--with-zoo"]).cases == zoo
    assert cuda.parsed(["prepare", "x", "resnet50@1", "--with-zoo"]).cases == [Case("resnet50", 1), *zoo]


def test_made_up_inputs_are_the_same_each_time_and_padded() -> None:
    case = Case("bert_base", 32)
    feeds, again, other = (case.feeds(Path(), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(feeds[name], again[name]) and not np.array_equal(feeds[name], other[name]) for name in feeds)
    mask = feeds["attention_mask"]
    assert mask.shape == (32, 128) and mask.sum(1).min() >= 32 and len(set(mask.sum(1))) > 10
    assert (feeds["input_ids"][mask == 0] == 0).all() and (feeds["input_ids"][mask == 1] > 0).all()
    assert Case("resnet50", 32).feeds(Path(), 1, 2)["x"].shape == (2, 3, 224, 224)


# Figures


def test_figures_of_times() -> None:
    found = cuda_timing.figures([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 30.0], 32)
    assert found == {"p50_ms": 3.0, "p10_ms": 1.4, "p90_ms": 4.6, "burst_ms": 2.0, "throughput": 16_000.0, "calls": 5}


def test_the_best_of_each_kind_is_found() -> None:
    bert, resnet, magika = cuda_table.summary(made_up())
    best = {who: bert[who]["who"] for who in ("peer", "peer_options", "halfconv", "torch-compile", "torch-eager")}
    assert best == {
        "peer": "ort-float16", "peer_options": "ort-optimizer+graph", "halfconv": "halfconv",
        "torch-compile": "torch-compile+eager", "torch-eager": "torch-eager+sdpa",
    }  # fmt: skip
    assert (bert["gpu"], bert["predicted"]) == (1.2e-3, 1.1e-3)
    assert resnet["halfconv"]["who"] == "halfconv-default+graph" and resnet["torch-compile"] is None and resnet["gpu"] is None
    assert magika["peer_options"]["who"] == "ort-float16", "without options is one of the choices"


def test_geometric_means_leave_the_zoo_out() -> None:
    cases = cuda_table.summary(made_up())
    found = cuda_table.factors(cases)
    assert found["peer"] == (pytest.approx(math.sqrt(4 * 1)), 2)
    assert found["peer_options"] == (pytest.approx(math.sqrt(3 * 1)), 2)
    assert found["torch-compile"] == (pytest.approx(1.6), 1)
    assert cuda_table.factors([]) == {}


def test_what_is_not_as_wanted_is_said() -> None:
    said = cuda_table.shortcomings(cuda_table.summary(made_up()))
    assert said == ["2.00 times as fast as the best peer, not 2.5"]
    rows = [
        row("vit_b16", 32, "halfconv", 2.0, rel_l2=None), row("vit_b16", 32, "torch-compile+sdpa", 1.0),
        row("resnet50", 1, "halfconv", 1.0, gpu_rel_l2=3e-3, predicted_rel_l2=2e-3), row("resnet50", 32, "fp32", 1.0),
    ]  # fmt: skip
    assert cuda_table.shortcomings(cuda_table.summary(rows)) == [
        "vit_b16@32: 2.00 times torch.compile's latency", "vit_b16@32: drift None, tolerance 0.01",
        "resnet50@1: drift 0.003 on the GPU, 0.002 predicted", "resnet50@32: halfconv's model was not timed",
    ]  # fmt: skip


def test_new_rows_take_the_place_of_old_ones() -> None:
    known = [row("a", 1, "fp32", 2.0), row("a", 1, "halfconv", 1.0, predicted_rel_l2=1e-3), row("b", 1, "fp32", 3.0)]
    failed = {"case": "a", "batch": 1, "who": "halfconv", "error": "no"}
    found = cuda_table.merged(known, [failed])
    assert found == [known[0], {**failed, "predicted_rel_l2": 1e-3}, known[2]]
    predicted = {"case": "a", "batch": 1, "who": "halfconv", "predicted_rel_l2": 2e-3}
    assert cuda_table.merged(found, [predicted])[1] == {**failed, "predicted_rel_l2": 2e-3}
    gpu = {"case": "a", "batch": 1, "who": "halfconv", "gpu_rel_l2": 3e-3}
    again = cuda_table.merged(found, [row("a", 1, "halfconv", 0.5), gpu])[1]
    assert again == {**row("a", 1, "halfconv", 0.5), "gpu_rel_l2": 3e-3, "predicted_rel_l2": 1e-3}


def test_the_readme_table_has_a_line_for_each_case() -> None:
    lines = cuda_table.markdown(content(made_up()), "bench/results/cuda_none.json").splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 11
    assert lines[2] == "| `bert_base`, 32 | 9 | 8 | 4 | 3 | **1** | 1.6 | 1.44 | 1.20e-03 | 1.10e-03 |"
    assert lines[3] == "| `resnet50`, 1 | 2 |  | 1 | 1 | **1** |  |  |  |  |"
    after = " ".join(lines[4:8])
    assert "No Card, onnxruntime-gpu 1.2.3, torch 4.5.6, 2001-02-03" in after and "bench/results/cuda_none.json" in after
    assert "2.00 as the best peer, 1.73 with the peer's best options, 1.60 as `torch.compile`" in after


def test_the_table_of_trained_models_tells_whose_answers_are_wrong() -> None:
    rows = [
        row("zoo/a", None, "ort-float16+graph", 1.0, rel_l2=None), row("zoo/a", None, "modelopt", 3.0, rel_l2=2e-3),
        row("zoo/a", None, "fp32", 5.0), row("zoo/a", None, "halfconv-default+graph", 2.0),
        row("zoo/b", None, "ort-float16", 1.0, rel_l2=1.03), row("zoo/b", None, "halfconv-default", 0.5),
    ]  # fmt: skip
    head, _, magika, first, second, *_ = cuda_table.zoo_markdown(content([*made_up(), *rows])).splitlines()
    assert head.startswith("| trained model |") and head.count("|") == first.count("|") == second.count("|")
    assert magika.startswith("| `magika` | 2 |")
    assert first.startswith("| `a` | 5 |  | 1 | NaN | 3 | **2** |")
    assert second.startswith("| `b` |  |  | 1 | 1.03e+00 | none | **0.5** |")


def test_the_table_shows_what_the_kernels_bring_where_that_was_measured() -> None:
    rows = [*made_up(), row("bert_base", 32, "halfconv-standard", 1.9), row("bert_base", 32, "halfconv-standard+graph", 1.5)]
    lines = cuda_table.markdown(content(rows), "bench/results/cuda_none.json").splitlines()
    assert lines[0].count("|") == 12 and "| without its kernels | halfconv |" in lines[0]
    assert lines[2].startswith("| `bert_base`, 32 | 9 | 8 | 4 | 3 | 1.5 | **1** |")


def test_only_the_file_with_operators_of_our_own_gets_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}
    monkeypatch.setattr("bench.cuda_contenders.existing", lambda path, file: None)
    monkeypatch.setattr("bench.cuda_contenders._profile", lambda path: {"level": "", "options": {}, "graph": False, "tuned": False})
    monkeypatch.setattr(
        "bench.cuda_contenders.BindingLoop", lambda path, *_, kernels, **more: asked.__setitem__(path.stem, kernels)
    )
    for make in lineup(Case("zoo/x", None), tmp_path, "cuda", {}).values():
        make(None)
    assert {file for file, kernels in asked.items() if kernels} == {"halfconv"}
    assert {"model", "halfconv-standard", *cuda_prepare.PEERS} < asked.keys()


def test_the_readme_takes_the_last_result_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(generated, "RESULTS", results / "zoo_h100.json")
    for name in ("cuda_cpu.json", "cuda_h100.json"):
        (results / name).write_text(json.dumps(content(made_up())))
    assert generated.make_cuda() == cuda_table.markdown(content(made_up()), "bench/results/cuda_h100.json")


def test_the_printed_table_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    cuda_table.show(made_up())
    said = capsys.readouterr().out
    assert "bert_base@32, modelopt: it is not installed" in said
    assert "2.00 times as fast as peer, geometric mean of 2" in said


# Contenders


def test_contenders_on_each_provider(tmp_path: Path) -> None:
    def who(key: str, batch: int, provider: str) -> set[str]:
        case = Case(key, batch)
        return set(lineup(case, tmp_path, provider, {}))

    on_cpu = who("tiny_bert", 2, "cpu")
    assert on_cpu == {
        "fp32", *cuda_prepare.PEERS, "halfconv-portable", "halfconv-standard", "halfconv-default", "torch-eager+sdpa",
        "torch-eager+eager",
    }  # fmt: skip
    bert, cnn = who("tiny_bert", 2, "cuda"), who("tiny_cnn", 2, "cuda")
    assert bert - on_cpu == {
        "fp32-tf32", *(f"{name}+graph" for name in (*cuda_prepare.PEERS, "halfconv-standard", "halfconv-default")),
        "torch-compile+sdpa", "torch-compile+eager",
    }  # fmt: skip
    assert {"ort-optimizer+graph", "ort-optimizer+graph+nhwc", "halfconv-default+graph+nhwc", "torch-compile", "torch-eager"} < cnn
    assert not any("torch" in name for name in lineup(Case("zoo/x", None), tmp_path, "cuda", {}))


def test_a_missing_file_has_the_reason_that_preparing_gave(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it was not prepared"):
        existing(tmp_path / "modelopt.onnx", "modelopt")
    (tmp_path / "prepared.json").write_text(json.dumps({"modelopt": {"error": "no such module"}}))
    with pytest.raises(FileNotFoundError, match="no such module"):
        existing(tmp_path / "modelopt.onnx", "modelopt")


def test_a_contender_that_ends_the_process_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The case is begun again without it."""
    started = []

    def fake(command: list[str], *_: object) -> None:
        started.append(command)
        lines = [{"begin": "fp32"}, {"begin": "modelopt"}]
        if "modelopt" in command:
            lines = [{"begin": "fp32"}, {"case": "tiny_cnn", "batch": 4, "who": "fp32", "p50_ms": 1.0}]
        Path(command[4]).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if "modelopt" not in command:
            raise cuda.Failed("killed by SIGSEGV")

    monkeypatch.setattr(cuda, "measured", fake)
    options = SimpleNamespace(folder=tmp_path, provider="cuda", quick=False, rounds=3, without=[])
    rows = cuda.measured_case(Case("tiny_cnn", 4), options, 60)
    assert len(started) == 2 and started[1][-2:] == ["--without", "modelopt"]
    assert [(found["who"], found.get("error")) for found in rows] == [("modelopt", "killed by SIGSEGV"), ("fp32", None)]


def test_results_of_two_cards_are_not_mixed(tmp_path: Path) -> None:
    target = tmp_path / "cuda.json"
    target.write_text(json.dumps(content([])))
    with pytest.raises(SystemExit, match="No Card"):
        cuda.begin(target, "cpu")


# A run


def run(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "bench" / "cuda.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    prepared, target = tmp_path / "models", tmp_path / "cuda_cpu.json"
    run("prepare", prepared, "tiny_bert@2", "tiny_cnn@4", "--here", "--jobs", 2)
    assert {path.name for path in (prepared / "tiny_bert").iterdir()} >= {
        "model.onnx", "halfconv.onnx", "halfconv-standard.onnx", "halfconv-portable.onnx", "halfconv.onnx.profile.json",
        "ort-optimizer.onnx", "ort-float16.onnx", "onnxconverter-common.onnx", "prepared.json",
    }  # fmt: skip
    assert not list(prepared.glob("*/halfconv-bench-*"))
    run("run", prepared, target, "tiny_bert@2", "--provider", "cpu", "--quick")
    said = run("run", prepared, target, "tiny_cnn@4", "--provider", "cpu", "--quick", "--without", "torch-eager")
    assert "tiny_bert@2" in said and "tiny_cnn@4" in said and "geometric mean of 2" in said
    run("predict", prepared, target, "tiny_bert@2", "tiny_cnn@4")
    found = json.loads(target.read_text())
    assert found["schema_version"] == 1 and found["machine"]["card"] == "cpu" and "halfconv" in found["versions"]
    rows = {(entry["case"], entry["batch"], entry["who"]): entry for entry in found["rows"]}
    assert ("tiny_cnn", 4, "torch-eager") not in rows
    timed = [entry for entry in rows.values() if "p50_ms" in entry]
    assert len(timed) >= 2 * 6 + 2 - 1
    assert all(0 < entry["p10_ms"] <= entry["p50_ms"] <= entry["p90_ms"] and entry["burst_ms"] > 0 for entry in timed)
    assert all(0 < entry["rel_l2"] < 1e-2 for entry in timed if entry["who"] != "fp32")
    assert rows["tiny_bert", 2, "fp32"]["rel_l2"] == 0
    for key in ("tiny_bert", "tiny_cnn"):
        drift = rows[key, 2, "halfconv"]
        assert 0 < drift["gpu_rel_l2"] < 2 * drift["predicted_rel_l2"] < 1e-2
    run("tune", prepared, "tiny_cnn@4", "--provider", "cpu", "--seconds", 0.1)
    run("run", prepared, target, "tiny_cnn@4", "--provider", "cpu", "--quick")
    who = {entry["who"] for entry in json.loads(target.read_text())["rows"] if entry["case"] == "tiny_cnn" and entry["batch"] == 4}
    assert {"halfconv", "halfconv-bind", "torch-eager"} < who
