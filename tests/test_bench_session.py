"""The benchmark of sessions runs without a GPU, and writes what other tools read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import session

ROOT = Path(session.__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "session.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.mark.slow
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    assert run("prepare", str(tmp_path)).returncode == 0
    models = sorted(path.name for path in tmp_path.iterdir())
    assert models == ["convolutions.onnx", "products.onnx", "tiny.onnx"]
    target = tmp_path / "session_cpu.json"
    done = run("run", str(target), f"{tmp_path / 'tiny.onnx'}@1,3", "--provider", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    content = json.loads(target.read_text())
    assert content["schema_version"] == 1 and re.match(r"\d{4}-\d\d-\d\dT", content["date"])
    assert {"card", "cpu", "cores", "memory_gb"} <= content["machine"].keys()
    assert {"halfconv", "onnxruntime", "numpy"} <= content["versions"].keys()
    timed = [row for row in content["rows"] if "p50_ms" in row]
    assert {(row["batch"], row["who"]) for row in timed} == {
        (batch, who) for batch in (1, 3) for who in ("halfconv", "halfconv-plain", "session-run", "binding-loop")
    }
    assert all(0 < row["p50_ms"] <= row["p90_ms"] and row["max_abs"] == 0 for row in timed)
    threads, pool, memory = (row for row in content["rows"] if "p50_ms" not in row)
    assert threads["different"] == 0 and threads["errors"] == [] and threads["calls"] > 100
    assert pool["errors"] == [] and pool["max_rel_l2"] == 0 and pool["different"] == 0
    assert pool["batching"] and 0 < pool["runs"] < pool["calls"]
    assert abs(memory["host_growth_mb"]) < 5
    assert not list(tmp_path.glob("*.part"))
