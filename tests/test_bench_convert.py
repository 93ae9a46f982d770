"""The conversion benchmark runs, judges right, and its committed results have the form that other tools read."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench import convert, judge, models, tools
from bench.machine import measure

RESULT = convert.RESULT
FIGURES = {
    "seconds",
    "call_seconds",
    "seconds_runs",
    "peak_rss_mb",
    "peak_anon_mb",
    "nodes",
    "casts",
    "fp32_nodes",
    "checker",
    "io_kept",
    "loads",
    "runs",
    "bytes_in",
    "bytes_out",
}


def check_file(content):
    assert content["schema_version"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["date"])
    assert content["command"].startswith("python bench/convert.py")
    machine = content["machine"]
    assert {"cpu", "cores", "memory_gb", "os", "python"} <= machine.keys()
    assert machine["cores"] >= 1
    assert machine["memory_gb"] > 0
    assert {row["who"] for row in content["rows"]} <= content["versions"].keys()
    assert len({(row["case"], row["who"]) for row in content["rows"]}) == len(content["rows"])
    for row in content["rows"]:
        check_row(row, content["runs"], content["slow"])


def check_row(row, runs, slow):
    assert row["batch"] is None
    assert row["who"] in convert.TOOLS
    if "error" in row:
        assert row.keys() == {"case", "batch", "who", "error"}
        assert row["error"]
        assert "\n" not in row["error"]
        return
    assert row.keys() >= FIGURES
    assert len(row["seconds_runs"]) == (1 if row["seconds_runs"][0] > slow else runs)
    assert row["call_seconds"] > 0
    assert min(row["seconds_runs"]) <= row["seconds"] <= max(row["seconds_runs"])
    assert 0 < row["peak_anon_mb"] <= row["peak_rss_mb"]
    assert all(isinstance(row[name], bool) for name in ("checker", "loads"))
    assert row["runs"] is not True or row["loads"]
    for name in ("checker", "loads"):
        assert row[name] != (f"{name}_error" in row)
    if row["fp32_nodes"] is not None:
        assert 0 <= row["fp32_nodes"] <= row["nodes"]
    assert ("stages" in row) == (row["who"] == convert.HALFCONV)
    assert all(math.isfinite(seconds) for seconds in row.get("stages", {}).values())


def test_bench_converts_a_tiny_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path)
    who = ["halfconv", "onnxconverter-common"]
    picked = [word for name in who for word in ("--who", name)]
    target = tmp_path / "out.json"
    assert convert.main(["--case", "bert_tiny", *picked, "--runs", "1", "--here", "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    check_file(content)
    rows = {row["who"]: row for row in content["rows"]}
    assert rows.keys() == set(who)
    assert all(row["bytes_out"] < 0.8 * row["bytes_in"] for row in rows.values())
    table = capsys.readouterr().out
    assert all(name in table for name in (*who, "bert_tiny", "FP32 nodes"))
    ours = rows["halfconv"]
    assert ours["checker"] and ours["loads"] and ours["runs"] and ours["io_kept"]


def test_tool_that_fails_gets_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path)
    bad = tmp_path / "bad" / "model.onnx"
    bad.parent.mkdir()
    bad.write_bytes(b"\xff" * 10)
    options = convert.parse(["--case", "bad", "--case", "none", "--who", "onnxconverter-common", "--here", "--zoo", str(tmp_path)])
    content = convert.report(options)
    check_file(content)
    assert [row["case"] for row in content["rows"]] == ["bad", "none"]
    assert "DecodeError" in content["rows"][0]["error"]
    assert "no model of key none" in content["rows"][1]["error"]


def model(nodes, inputs, outputs, weights=()):
    def values(named):
        return [helper.make_tensor_value_info(name, kind, [2]) for name, kind in named.items()]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def counts(tmp_path, before, after):
    onnx.save(before, tmp_path / "before.onnx")
    onnx.save(after, tmp_path / "after.onnx")
    return judge.count(tmp_path / "before.onnx", tmp_path / "after.onnx")


def test_judge_counts_all_scopes_of_an_unsorted_graph(tmp_path):
    def branch(name):
        kinds = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])]
        body = [
            helper.make_node("Cast", ["half"], [f"{name}_wide"], to=TensorProto.FLOAT),
            helper.make_node("Exp", [f"{name}_wide"], [f"{name}_out"]),
        ]
        return helper.make_graph(body, name, [], kinds)

    inputs = {"x": TensorProto.FLOAT, "c": TensorProto.BOOL}
    half = [
        helper.make_node("If", ["scalar"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Neg", ["narrow"], ["half"]),
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ReduceMin", ["c_int"], ["least"], keepdims=0),
        helper.make_node("Cast", ["c"], ["c_int"], to=TensorProto.INT32),
        helper.make_node("Cast", ["least"], ["scalar"], to=TensorProto.BOOL),
    ]
    after = model(half, inputs, {"y": TensorProto.FLOAT})
    before = model([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], inputs, {"y": TensorProto.FLOAT})
    assert counts(tmp_path, before, after) == {"nodes": 11, "casts": 4, "fp32_nodes": 2, "io_kept": True}


def test_judge_trusts_no_annotation_and_sees_changed_io(tmp_path):
    nodes = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("ArgMax", ["h"], ["y"], axis=0, keepdims=1)]
    before = model(nodes, {"x": TensorProto.FLOAT}, {"y": TensorProto.INT64})
    after = model(nodes, {"x": TensorProto.FLOAT16}, {"y": TensorProto.INT64})
    after.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2]))
    assert counts(tmp_path, before, after) == {"nodes": 2, "casts": 0, "fp32_nodes": 0, "io_kept": False}
    assert counts(tmp_path, after, before) == {"nodes": 2, "casts": 0, "fp32_nodes": 2, "io_kept": False}


def test_a_crash_while_judging_is_a_no(tmp_path, monkeypatch):
    script = tmp_path / "bench" / "judge.py"
    script.parent.mkdir()
    script.write_text(
        "import json, os, signal\nprint(json.dumps(dict(nodes=1, checker=True)), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    (tmp_path / "result").mkdir()
    case = models.Case("x", tmp_path / "x.onnx", None)
    row = tools.judge(case, tmp_path / "result" / "model.onnx", 60)
    assert row == {
        "nodes": 1,
        "checker": True,
        "loads": False,
        "loads_error": "killed by SIGSEGV",
        "runs": False,
    }


def test_measure_sees_memory_of_children_and_kills_what_is_late(tmp_path):
    out = {"stdout": tmp_path / "out", "stderr": tmp_path / "err"}
    child = "import time; b = bytearray(100_000_000); b[::4096] = b'x' * len(b[::4096]); time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    usage = measure([sys.executable, "-c", parent], timeout=60, **out)
    assert usage.failure is None
    assert 100 < usage.peak_anon_mb < 300
    assert usage.peak_rss_mb >= usage.peak_anon_mb
    late = measure([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3, **out)
    assert late.timed_out
    assert late.seconds < 30
    assert late.failure.startswith("timed out")


def test_the_measuring_process_stays_small():
    heavy = ("numpy", "onnx", "onnxruntime", "halfconv")
    code = f"import sys, bench.convert; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=convert.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_made_model_is_what_its_table_says():
    tiny = models.build(models.MADE["bert_tiny"])
    onnx.checker.check_model(tiny, full_check=True)
    assert len(tiny.graph.node) == 75
    assert len(models.build(models.Bert(layers=3, width=32, heads=2, words=100)).graph.node) == 75 + 2 * 50
    again = models.build(models.MADE["bert_tiny"])
    assert again.SerializeToString() == tiny.SerializeToString()
    word = onnx.numpy_helper.to_array(next(w for w in tiny.graph.initializer if w.name == "embeddings.word"))
    assert 0.015 < np.std(word) < 0.025


def test_committed_results():
    content = json.loads(Path(RESULT).read_text())
    check_file(content)
    found = {(row["case"], row["who"]) for row in content["rows"]}
    assert found == {(case, who) for case in models.DEFAULT for who in convert.TOOLS}
    ours = [row for row in content["rows"] if row["who"] == convert.HALFCONV]
    assert all("error" not in row for row in ours), "halfconv failed on a model of its own benchmark"
    assert all(row["checker"] and row["loads"] and row["io_kept"] for row in ours)
