"""The benchmark of searches with samples runs, and its committed result has the form that other tools read."""

import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench import models, repair
from bench.peers.environments import HALFCONV, SAMPLED

RUN = {"samples", "seconds", "call_seconds", "model_runs", "passes", "feeds", "candidates"}
JUDGED = {"nodes", "casts", "fp32_nodes", "checker", "io_kept", "loads", "runs", "loads_at", "bytes_in", "bytes_out", "meets"}
DRIFT = {"rel_l2", "new_nan", "new_inf", "broken"}


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(repair.ROOT / "bench" / "peers")
    return importlib.import_module("sampled_onnxconverter_common")


def check_file(content):
    assert content["schema_version"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date"])
    assert content["command"].startswith("python bench/repair.py")
    assert content["tolerance"] == {"rel_l2": repair.TOLERANCE}
    assert {"cpu", "cores", "memory_gb", "os", "python"} <= content["machine"].keys()
    assert {row["who"] for row in content["rows"]} <= content["versions"].keys()
    assert len({(row["case"], row["who"]) for row in content["rows"]}) == len(content["rows"])
    for row in content["rows"]:
        check_row(row, content["timeout"])


def check_row(row, timeout):
    assert row["batch"] is None
    assert row["who"] in SAMPLED
    if "error" in row:
        assert row.keys() <= {"case", "batch", "who", "samples", "error"}
        assert row["error"]
        assert "\n" not in row["error"]
        return
    assert row.keys() >= RUN | JUDGED
    assert row.keys() >= DRIFT or row["drift_error"]
    assert 0 < row["call_seconds"] < row["seconds"] < timeout + 60
    assert row["candidates"] <= row["model_runs"]
    assert row["passes"] == pytest.approx(row["model_runs"] / row["feeds"], abs=0.01)
    assert row["loads"] <= (row["loads_at"] is not None)
    assert row["fp32_nodes"] is None or 0 <= row["fp32_nodes"] <= row["nodes"]
    if "rel_l2" in row:
        assert row["meets"] == (not row["broken"])
        assert not row["meets"] or (row["rel_l2"] <= repair.TOLERANCE and row["new_nan"] == row["new_inf"] == 0)


def test_bench_converts_a_tiny_model_with_its_sample(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path)
    target = tmp_path / "out.json"
    who = ["halfconv", "onnxconverter-common", "onnxconverter-common+simulation"]
    assert repair.main(["--cases", "bert_tiny", "--who", *who, "--here", "--save", str(target)]) == 0
    content = json.loads(target.read_text())
    check_file(content)
    rows = {row["who"]: row for row in content["rows"]}
    assert rows.keys() == set(who)
    ours = rows["halfconv"]
    assert ours["meets"] and ours["loads"] and ours["io_kept"] and ours["checker"]
    table = capsys.readouterr().out
    assert all(name in table for name in (*who, "bert_tiny", "FP32 nodes", "passes"))


def test_model_that_is_not_there_gets_rows(tmp_path):
    options = repair.parse(["--cases", "none", "--who", "halfconv", "--here", "--zoo", str(tmp_path)])
    content = repair.report(options)
    check_file(content)
    assert ["no model of key none" in row["error"] for row in content["rows"]] == [True]


def output(name, rel_l2, failures=(), new_nan=0, agreement=None):
    return {
        "name": name,
        "rel_l2": rel_l2,
        "new_nan": new_nan,
        "new_inf": 0,
        "agreement": agreement,
        "failures": list(failures),
    }


def test_verdict_is_of_the_worst_output():
    good = [output("a", 1e-3), output("b", 2e-3), output("c", None, agreement=1.0)]
    assert repair.verdict({"passed": True, "outputs": good}) == {
        "rel_l2": 2e-3,
        "new_nan": 0,
        "new_inf": 0,
        "meets": True,
        "broken": [],
    }
    bad = repair.verdict({"passed": False, "outputs": [*good, output("d", None, ["new_nan 2 > 0"], new_nan=2)]})
    assert bad["rel_l2"] is None
    assert bad["new_nan"] == 2
    assert bad["broken"] == ["d: new_nan 2 > 0"]


def test_losses_name_only_tools_that_meet_the_tolerance():
    figures = {"fp32_nodes": 3, "casts": 4, "passes": 5.0, "seconds": 6.0, "bytes_out": 7000}

    def row(who, meets=True, **other):
        return {"case": "m", "who": who, "meets": meets} | figures | other

    ours, failed = row("halfconv"), {"case": "m", "who": "failed", "error": "x"}
    assert repair.losses([ours, row("equal"), row("broken", meets=False, casts=0), failed]) == []
    assert repair.losses([ours, row("quick", seconds=1.5, casts=9)]) == ["m: halfconv 6.0 seconds, quick 1.5"]
    assert repair.losses([row("halfconv", meets=False), row("quick", seconds=1.5)]) == []


def model(*dims):
    values = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(dims)]
    return helper.make_model(helper.make_graph([], "g", values, []))


def test_peer_gets_all_samples_where_they_are_one_batch(peer):
    samples = [{"x0": np.full((1, 4), number, np.float32)} for number in range(3)]
    feed, used = peer.feed_of(model(["n", 4]), samples)
    assert used == 3
    assert feed["x0"].tolist() == [[number] * 4 for number in range(3)]
    assert peer.feed_of(model([1, 4]), samples)[1] == 1
    ragged = [*samples, {"x0": np.zeros((1, 5), np.float32)}]
    assert peer.feed_of(model(["n", "m"]), ragged) == (ragged[0], 1)
    pairs = [sample | {"x1": np.float32(2)} for sample in samples]
    assert peer.feed_of(model(["n", 4], []), pairs) == (pairs[0], 1)


def test_peers_tolerance_is_halfconvs(peer):
    from halfconv.drift.metrics import Accumulator

    reference = np.array([1.0, np.inf, -3.0], np.float32)
    found = np.array([1.5, np.inf, -3.0], np.float32)
    accumulator = Accumulator("fp16")
    accumulator.update(reference, found, "s")
    assert peer.drift(reference, found) == pytest.approx(accumulator.result("y").measures.rel_l2)
    assert peer.drift(reference, np.array([1.0, np.inf, np.nan], np.float32)) == np.inf
    assert peer.drift(np.zeros(2), np.array([0.0, 0.25])) == 0.25


def test_the_measuring_process_stays_small():
    heavy = ("numpy", "onnx", "onnxruntime", "halfconv")
    code = f"import sys, bench.repair; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repair.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_committed_result():
    content = json.loads(repair.RESULT.read_text())
    check_file(content)
    assert {(row["case"], row["who"]) for row in content["rows"]} == {(case, who) for case in repair.CASES for who in SAMPLED}
    ours = [row for row in content["rows"] if row["who"] == HALFCONV]
    assert all("error" not in row for row in ours), "halfconv failed on a model of its own benchmark"
    assert all(row["meets"] and row["checker"] and row["io_kept"] and row["loads_at"] for row in ours)
