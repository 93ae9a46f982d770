"""The run profile: what is followed, what is refused, and when somebody is told."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

import halfconv
from halfconv.json_schema import complaint
from halfconv.profile import profile_path
from halfconv.runtime.settings import LEVELS, Profile, find_profile
from tests.runtime import models


def content(source: bytes, **changes: Any) -> dict[str, Any]:
    made = {
        "schema_version": 1,
        "model_sha256": hashlib.sha256(source).hexdigest(),
        "target": "portable",
        "graph_optimization": "ORT_ENABLE_BASIC",
        "providers": [
            {"name": "CUDAExecutionProvider", "options": {"use_tf32": 0}},
            {"name": "CPUExecutionProvider", "options": {}},
        ],
        "buckets": [{"inputs": {"x": [8, 4]}, "cuda_graph": True}],
        "measured": [],
        "tolerance": {"rel_l2": 0.01},
        "ort_version": "1.31.1",
    }
    assert complaint(made, "profile") is None
    return {**made, **changes}


@pytest.fixture
def stored(folder: Path) -> Path:
    """A model with its profile beside it."""
    source = models.squares()
    path = folder / "m.onnx"
    path.write_bytes(source)
    profile_path(path).write_text(json.dumps(content(source)))
    return path


def quiet(path: Path | bytes, profile: Any = None) -> Profile:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_profile(path, profile)


def test_a_profile_is_followed(stored: Path) -> None:
    found = quiet(stored)
    assert (found.level, found.notes) == ("ORT_ENABLE_BASIC", ())
    assert found.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert found.options == {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    assert [(dict(bucket.inputs), bucket.cuda_graph) for bucket in found.buckets] == [({"x": (8, 4)}, True)]
    with halfconv.Session(stored, provider="cpu") as session:
        level = session._engine.loaded.session.get_session_options().graph_optimization_level
        assert level.name == "ORT_ENABLE_BASIC"


@pytest.mark.parametrize("names", [["CPUExecutionProvider"], ["CoreMLExecutionProvider", "CPUExecutionProvider"]])
def test_a_profile_that_passes_a_gpu_over_is_no_silent_fallback(
    names: list[str], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": name, "options": {}} for name in names]
    profile_path(stored).write_text(json.dumps(content(stored.read_bytes(), providers=listed)))
    said = "cuda was not tried: the profile does not name it; try: provider='cuda', or profile=False"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with halfconv.Session(stored) as session:
        assert session.provider == "cpu" and said in session.notes
    with halfconv.Session(stored, provider="cpu") as session:  # which was asked for
        assert said not in session.notes
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with halfconv.Session(stored) as session:
        assert said not in session.notes


def test_what_convert_writes_is_followed_in_silence(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(models.squares("float"))
    result = halfconv.convert(folder / "m.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = halfconv.Session(result.output, provider="cpu")
    assert not [note for note in session.notes if "profile" in note]


def test_a_foreign_profile_is_warned_about(stored: Path) -> None:
    stored.write_bytes(models.squares("float"))
    with pytest.warns(halfconv.ProfileWarning, match="m.onnx.profile.json is not followed: it is another model's"):
        session = halfconv.Session(stored, provider="cpu")
    assert any("another model's" in note for note in session.notes)
    assert session._engine.loaded.session.get_session_options().graph_optimization_level.name == LEVELS[0]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"schema_version": 1}', *(
            json.dumps(content(b"", **change)) for change in (
                {"schema_version": 2}, {"graph_optimization": "ORT_ALL"}, {"providers": [{"name": 1, "options": {}}]},
                {"buckets": [{"inputs": {"x": [-1]}, "cuda_graph": True}]}, {"buckets": [{"inputs": {"x": [1]}}]}, {"buckets": [3]},
                {"providers": ["CPUExecutionProvider"]}, {"tolerance": {"rel_l2": "x"}}, {"tolerance": [1]},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_warned_about(stored: Path, text: str) -> None:
    profile_path(stored).write_text(text)
    with pytest.warns(halfconv.ProfileWarning, match="is not followed: it is not of the form"):
        assert find_profile(stored, None).level == LEVELS[0]
    with pytest.raises(halfconv.InputError, match="cannot be used: it is not of the form"):
        find_profile(stored, profile_path(stored))


def test_a_missing_profile_is_a_note(stored: Path) -> None:
    profile_path(stored).unlink()
    assert quiet(stored).notes == ("no profile: there is no m.onnx.profile.json beside the model, defaults are used",)
    assert "came as bytes" in quiet(stored.read_bytes()).notes[0]


def test_a_profile_that_halfconv_wrote_and_that_got_lost_is_warned_about(stored: Path) -> None:
    profile_path(stored).unlink()
    made = onnx.load(stored)
    onnx.helper.set_model_props(made, {"halfconv.source_sha256": "0" * 64})
    onnx.save(made, stored)
    with pytest.warns(halfconv.ProfileWarning, match="halfconv wrote one: copy it along, or say profile=False"):
        find_profile(stored, None)


def test_false_is_silent(stored: Path) -> None:
    profile_path(stored).write_text("{")
    assert quiet(stored, False) == Profile()


def test_a_named_profile_must_be_right(stored: Path, folder: Path) -> None:
    with pytest.raises(halfconv.InputError, match=r"there is no profile .*none.json; try: another path, or profile=False"):
        halfconv.Session(stored, profile=folder / "none.json")
    other = folder / "other.json"
    other.write_text(json.dumps(content(b"another")))
    with pytest.raises(halfconv.InputError, match=r"other\.json cannot be used: it is another model's"):
        halfconv.Session(stored, profile=other)
    assert quiet(stored.read_bytes(), profile_path(stored)).level == "ORT_ENABLE_BASIC"


def test_options_that_hold_addresses_paths_or_devices_are_left_out(stored: Path) -> None:
    source = stored.read_bytes()
    options = {"user_compute_stream": "12345", "device_id": 7, "use_tf32": True, "gpu_external_alloc": "1", "new_option": "x"}
    profile_path(stored).write_text(json.dumps(content(source, providers=[{"name": "CUDAExecutionProvider", "options": options}])))
    found = quiet(stored)
    assert found.options["CUDAExecutionProvider"] == {"use_tf32": "1"}
    assert "device_id, gpu_external_alloc, new_option, user_compute_stream" in found.notes[0]
