"""The committed comparison on large models: whole, of one run, and halfconv's memory flat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import large

MIB = 2**20 / 1e6


@pytest.fixture(scope="module")
def content() -> Any:
    return json.loads(large.RESULT.read_text("utf-8"))


def test_every_tool_has_a_row_for_every_size(content: Any) -> None:
    ours, peers = ["halfconv", "halfconv --no-check", "cp"], ["onnxconverter-common", "ort-float16", "olive"]
    runs = [(who, where) for where in ("disk", "memory") for who in ours] + [(who, "memory") for who in peers]
    assert [(row["case"], row["who"], row["reads"]) for row in content["rows"]] == [
        (f"{size:g} GB", *run) for size in large.SIZES for run in runs
    ]
    assert {"schema_version", "date", "machine", "versions", "command", "memory_gb"} <= content.keys()
    for row in content["rows"]:
        assert "error" in row or row["seconds"] > 0


def test_halfconv_converts_every_size_in_the_same_memory(content: Any) -> None:
    rows = [row for row in content["rows"] if row["who"].startswith("halfconv")]
    assert not any("error" in row for row in rows)
    assert max(row["peak_anon_mb"] for row in rows) <= 300 * MIB
    alone = [row["peak_anon_mb"] for row in rows if row["who"] == "halfconv --no-check"]
    assert max(alone) <= 1.5 * min(alone)
    assert all(row["bytes_out"] <= 0.52 * row["bytes_in"] for row in rows)


def test_halfconv_is_about_as_fast_as_the_disk_and_the_peers_are_not(content: Any) -> None:
    figures = {(row["case"], row["who"], row["reads"]): row for row in content["rows"]}
    for size in large.SIZES:
        case = f"{size:g} GB"
        assert figures[case, "halfconv --no-check", "disk"]["seconds"] <= 1.5 * figures[case, "cp", "disk"]["seconds"]
    peers = [figures["1.5 GB", who, "memory"] for who in ("onnxconverter-common", "ort-float16", "olive")]
    ours = figures["1.5 GB", "halfconv", "disk"]
    assert 4 * ours["seconds"] <= min(row["seconds"] for row in peers)
    assert 5 * ours["peak_anon_mb"] <= min(row["peak_anon_mb"] for row in peers)
    for case in ("3 GB", "12 GB"):
        assert all("error" in row for key, row in figures.items() if key[0] == case and key[1] in ("ort-float16", "olive"))


def test_files_are_read_and_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    for where in ("memory", "disk"):
        large.read([tmp_path / "a"], where)
    assert (tmp_path / "a").read_bytes() == b"x" * 10


def test_a_model_has_the_size_asked_for(tmp_path: Path) -> None:
    import onnx

    model = large.make(tmp_path, 0.02)
    assert 0.01e9 <= (tmp_path / "model.data").stat().st_size <= 0.03e9
    onnx.checker.check_model(model)


def test_a_process_is_limited() -> None:
    assert large.limited(["a", "b"], 1.5) == ["prlimit", "--data=1500000000", "a", "b"]
