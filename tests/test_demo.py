"""The demo: its file list, Magika's features, the report, and what happens on machines that lack files."""

import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from halfconv.demo import files, magika, render, run_demo
from halfconv.errors import CheckFailed, EnvironmentProblem, UsageError

MAKER = Path(__file__).parents[1] / "bench" / "make_demo_list.py"


@pytest.fixture(scope="module")
def model() -> magika.MagikaModel:
    return magika.find_model()


@pytest.fixture(scope="module")
def listed() -> files.FileList:
    return files.load_list()


@pytest.fixture(scope="module")
def found(listed: files.FileList) -> files.Collected:
    return files.collect(listed.files)


@pytest.fixture(scope="module")
def reference_labels(found: files.Collected) -> list[str]:
    """What Magika itself says, before its thresholds."""
    from magika import Magika

    real = Magika()
    return [str(real.identify_bytes(content).prediction.dl.label) for _, content in found.used]


def fake_result(output: Path, before: int, rules: int = 2, warnings: int = 0) -> Any:
    rows = [(f"v{i}", f"long/[scope]/of/norm_{i}", f"rule-{i % rules}") for i in range(2 * rules)]
    kept = tuple(SimpleNamespace(value=v, node=n, op="Mul", reason="r" * 90, rule=rule) for v, n, rule in rows)
    return SimpleNamespace(
        output=output,
        values={"half": 81 - len(kept), "float": len(kept)},
        casts=3,
        bytes_before=before,
        bytes_after=output.stat().st_size,
        seconds={"load": 0.1, "plan": 0.2},
        fp32=kept,
        warnings=("w" * 150,) * warnings,
        to_dict=lambda: {"output": str(output)},
    )


def copy_as_is(source: Path, output: Path) -> Any:
    """A converter that converts nothing."""
    shutil.copyfile(source, output)
    return fake_result(output, source.stat().st_size)


# The list


def test_list_is_sorted_unique_and_well_formed(listed: files.FileList, model: magika.MagikaModel) -> None:
    places = [(file.distribution, file.path) for file in listed.files]
    assert places == sorted(set(places))
    digests = [file.sha256 for file in listed.files]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch(r"[0-9a-f]{64}", text) for text in [*digests, listed.model_sha256])
    assert {file.label for file in listed.files} <= set(model.labels)
    assert not [file.path for file in listed.files if file.path.startswith("/") or ".." in file.path.split("/")]
    counts = [sum(other.label == label for other in listed.files) for label in {file.label for file in listed.files}]
    assert 150 <= len(listed.files) <= 250
    assert max(counts) <= 25
    assert len(counts) >= 15


def test_list_takes_only_from_pinned_dependencies(listed: files.FileList) -> None:
    assert {file.distribution for file in listed.files} <= {*listed.versions, files.OWN_DISTRIBUTION}
    pins = dict(
        line.split("==") for line in (MAKER.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    assert {name: pins.get(name) for name in listed.versions} == listed.versions


def test_all_listed_files_are_here_with_the_pinned_versions(listed: files.FileList, found: files.Collected) -> None:
    if {name: importlib.metadata.version(name) for name in listed.versions} != listed.versions:
        pytest.skip("other package versions than constraints.txt has")
    assert found.counts == {"listed": len(listed.files), "used": len(listed.files), "differ": 0, "missing": 0}


def test_labels_follow_from_name_and_content(found: files.Collected) -> None:
    maker = load_maker()
    wrong = [(file.path, file.label) for file, content in found.used if maker.label_of(file.path, content) != file.label]
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "content", "label"),
    [
        ("a/x.json", b'{"a": 1}'.ljust(70, b" ") + b"[" * 70, None),
        ("a/x.json", json.dumps(list(range(50))).encode(), "json"),
        ("a/x.h", b"#pragma once\n#include <vector>\n" + b"std::vector<int> values();\n" * 5, "cpp"),
        ("a/x.h", b"#ifndef A\n#define A\ntypedef struct { int a; } pair;\n#endif\n" + b"/* text */" * 9, "c"),
        ("a/x.h", b"#ifdef A\n#include <a.h>\n#else\n#include <b.h>\n#endif\n" + b"/* text */" * 9, None),
        ("a/x.in.proto", b'syntax = "proto2";\n' * 9, None),
        ("a/x.dat", b"1 2 3\n" * 40, None),
        ("a/x.png", b"GIF89a" * 40, None),
        ("a/x.py", b"x = 1\n", None),
        ("a/LICENSE", b"Permission is hereby granted to everybody.\n" * 4, "txt"),
    ],
)
def test_maker_settles_what_a_file_is(path: str, content: bytes, label: str | None) -> None:
    assert load_maker().label_of(path, content) == label


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_list", MAKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Features


def magikas_features(content: bytes) -> list[int]:
    from magika import Magika
    from magika.types import Seekable

    made = Magika._extract_features_from_seekable(Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False)
    return [*made.beg, *made.end]


def test_features_are_magikas_on_the_listed_files(found: files.Collected, model: magika.MagikaModel) -> None:
    assert [file.path for file, data in found.used if magika.features(model, data) != magikas_features(data)] == []


@given(
    st.builds(
        lambda head, fill, count, tail: head + fill * count + tail,
        st.binary(max_size=40),
        st.sampled_from([b"", b" ", b"\n\t\x0b\x0c\r", b"ab", b"\x85\xa0", b"\0"]),
        st.sampled_from([0, 1, 500, 1023, 1024, 1025, 2048, 4095, 4096, 5000]),
        st.binary(max_size=40),
    )
)
def test_features_are_magikas_on_any_bytes(model: magika.MagikaModel, content: bytes) -> None:
    assert magika.features(model, content) == magikas_features(content)


def test_labels_are_magikas(found: files.Collected, model: magika.MagikaModel, reference_labels: list[str]) -> None:
    answers = magika.classify(model.path, magika.rows(model, (content for _, content in found.used)))
    assert [model.labels[index] for index in answers] == reference_labels


def test_scores_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    import onnx

    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (int32[n, 2] bytes) => (float[n, 2] scores) { f = Cast<to: int = 1>(bytes) scores = Log(f) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "log.onnx")
    rows = np.array([[1, 2], [-1, 2], [0, 2], [9, 2]], np.int32)
    assert magika.classify(tmp_path / "log.onnx", rows).tolist() == [1, magika.NO_ANSWER, magika.NO_ANSWER, 0]


def test_model_that_does_not_load_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(CheckFailed, match=r"cannot load .*bad\.onnx"):
        magika.classify(tmp_path / "bad.onnx", np.zeros((1, 2048), np.int32))


# Files that are missing or differ


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution ``somepack`` whose files the test writes, and that `installed_files` will read."""
    site = tmp_path / "site"
    info = site / "somepack-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somepack\nVersion: 1.0\n", encoding="utf-8")
    names = ["somepack/a.py", "somepack/b.py", "somepack/c.py", "somepack-1.0.dist-info/LICENSE", "../bin/somepack"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names), encoding="utf-8")
    (site / "somepack").mkdir()
    monkeypatch.syspath_prepend(str(site))
    files.installed_files.cache_clear()
    yield site
    files.installed_files.cache_clear()


def entry(path: str, content: bytes, distribution: str = "somepack") -> files.ListedFile:
    return files.ListedFile(distribution, path, files.digest(content), "python")


def test_missing_and_modified_files_are_counted(distribution: Path) -> None:
    (distribution / "somepack" / "a.py").write_bytes(b"a = 1\n")
    (distribution / "somepack" / "b.py").write_bytes(b"b = 2\n")
    (distribution / "somepack-1.0.dist-info" / "LICENSE").write_bytes(b"free\n")
    kept, modified, deleted, foreign, licence, unlisted = (
        entry("somepack/a.py", b"a = 1\n"),
        entry("somepack/b.py", b"b = 1\n"),
        entry("somepack/c.py", b"c = 1\n"),
        entry("x.py", b"x\n", "no-such-distribution"),
        entry(".dist-info/LICENSE", b"free\n"),
        entry("somepack/d.py", b"d\n"),
    )
    found = files.collect([kept, modified, deleted, foreign, licence, unlisted])
    assert found.used == ((kept, b"a = 1\n"), (licence, b"free\n"))
    assert found.differ == (modified,)
    assert found.missing == (deleted, foreign, unlisted)
    assert found.counts == {"listed": 6, "used": 2, "differ": 1, "missing": 3}


def test_windows_line_ends_count_with_the_listed_content(distribution: Path) -> None:
    (distribution / "somepack" / "a.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    (distribution / "somepack" / "b.py").write_bytes(b"\0\r\n")
    text, binary = entry("somepack/a.py", b"a = 1\nb = 2\n"), entry("somepack/b.py", b"\0\n")
    found = files.collect([text, binary])
    assert found.used == ((text, b"a = 1\nb = 2\n"),)
    assert found.differ == (binary,)


def test_own_licence_is_found_without_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "installed_files", lambda name: {})
    place = files.find_installed(files.ListedFile(files.OWN_DISTRIBUTION, files.OWN_LICENSE, "", "txt"))
    assert place == MAKER.parents[1] / "LICENSE"


def test_list_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "files.json").write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(EnvironmentProblem, match="schema version 1"):
        files.load_list(tmp_path / "files.json")


# The demo


def test_demo_converts_and_counts(
    tmp_path: Path, found: files.Collected, model: magika.MagikaModel, reference_labels: list[str]
) -> None:
    import onnx

    report = run_demo(tmp_path / "new" / "out")
    truths = [file.label for file, _ in found.used]
    right = sum(truth == label for truth, label in zip(truths, reference_labels, strict=True))
    assert report.files == found.counts
    assert report.correct["fp32"] == right
    assert report.accuracy["fp32"] == right / len(truths)
    assert sum(counts["files"] for counts in report.types.values()) == len(truths)
    assert report.model_sha256 == model.sha256
    assert set(report.no_answer.values()) == {0}
    assert abs(report.correct["fp16_cpu"] - right) <= 2
    assert abs(report.correct["fp16_simulated"] - right) <= 2
    # ONNX Runtime's own conversion: right on the CPU, and without one right answer on an H100.
    assert abs(report.correct["other_cpu"] - right) <= 2
    assert report.correct["other_simulated"] == 0
    assert "overflows" in report.first_bad
    assert report.agreement >= 0.99
    assert report.warnings == ()

    assert report.kept == tmp_path / "new" / "out" / "magika.fp16.onnx"
    onnx.checker.check_model(report.kept, full_check=True)
    halves = [weight for weight in onnx.load(report.kept).graph.initializer if weight.data_type == onnx.TensorProto.FLOAT16]
    assert halves
    assert report.kept.stat().st_size < 0.6 * model.path.stat().st_size
    assert report.conversion.values["half"] >= 0.45 * sum(report.conversion.values.values())

    data = json.loads(json.dumps(report.to_dict()))
    assert data["conversion"]["output"] == str(report.kept)
    assert list(data)[:4] == ["schema_version", "model", "model_sha256", "files"]

    text = printed(report)
    assert f"{right} of {len(truths)} = {right / len(truths):.1%}" in text
    assert "a check on the CPU passes both files" in " ".join(text.split())
    assert f"0 of {len(truths)} = 0.0%" in text
    assert {kept.rule for kept in report.conversion.fp32}


def printed(report: Any) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=100, height=40, force_terminal=False))
    lines = stream.getvalue().splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    return stream.getvalue()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, listed: files.FileList) -> None:
    """A short list, where the number of files does not matter."""
    short = files.FileList(listed.files[:12], listed.model_sha256, listed.versions)
    monkeypatch.setattr("halfconv.demo.load_list", lambda: short)


@pytest.mark.usefixtures("few")
def test_report_fits_one_screen_at_worst() -> None:
    def convert(source: Path, output: Path) -> Any:
        shutil.copyfile(source, output)
        return fake_result(output, source.stat().st_size, rules=30, warnings=9)

    text = printed(run_demo(convert=convert))
    assert re.search(r"^ *rule-0 +2 +long/\[scope\]/of/norm_0: r+… *$", text, re.MULTILINE)
    assert re.search(r"^ *24 more rules +48 +--json has them *$", text, re.MULTILINE)
    assert "and 6 more warnings" in text
    assert "not kept" in text


@pytest.mark.usefixtures("few")
def test_nothing_is_left_without_an_output_directory() -> None:
    made: list[Path] = []

    def convert(source: Path, output: Path) -> Any:
        made.append(output)
        return copy_as_is(source, output)

    report = run_demo(convert=convert)
    assert report.kept is None
    assert report.agreement == 1.0
    assert not made[0].exists() and not made[0].parent.exists()


def test_demo_says_when_the_model_is_another(monkeypatch: pytest.MonkeyPatch, listed: files.FileList) -> None:
    other = files.FileList(listed.files[:5], "0" * 64, listed.versions)
    monkeypatch.setattr("halfconv.demo.load_list", lambda: other)
    report = run_demo(convert=copy_as_is)
    assert report.files["listed"] == 5
    assert "another model" in report.warnings[0]
    assert "another model" in printed(report)


def test_output_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file"):
        run_demo(tmp_path / "taken", convert=copy_as_is)
    with pytest.raises(EnvironmentProblem, match="cannot make the directory"):
        run_demo(tmp_path / "taken" / "below", convert=copy_as_is)
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "x"


def test_demo_without_any_listed_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfconv.demo.collect", lambda listed: files.Collected((), (), tuple(listed)))
    with pytest.raises(EnvironmentProblem, match="none of the"):
        run_demo(convert=copy_as_is)


def test_missing_magika_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem) as caught:
        run_demo(convert=copy_as_is)
    assert "magika is not installed" in str(caught.value)
    assert "pip install 'halfconv[demo]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_magika_without_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magika, "MODEL_NAME", "standard_v0")
    with pytest.raises(EnvironmentProblem, match="lacks the model standard_v0"):
        magika.find_model()


def test_missing_runtime_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, model: magika.MagikaModel) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match="onnxruntime is not installed"):
        magika.classify(model.path, np.zeros((1, 2048), np.int32))
