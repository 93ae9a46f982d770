"""Fleet files: what they say is what the jobs are, and what is wrong in them is said in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfconv.errors import HalfconvError, InputError, UsageError
from halfconv.sweep import job
from halfconv.sweep.fleet import read_fleet
from halfconv.sweep.job import make_jobs
from halfconv.sweep.options import OPTIONS
from tests.sweep.fleets import save_evil, save_fleet, save_model, save_samples


@pytest.fixture
def fleet(folder: Path) -> Path:
    save_model(folder / "a.onnx")
    save_model(folder / "deep" / "b.onnx", 1)
    save_samples(folder / "samples" / "a.npz")
    return folder / "fleet.toml"


def test_options_of_a_model_win_over_those_of_all(fleet: Path) -> None:
    save_fleet(fleet, {"path": "a.onnx", "seed": 2, "block-op": "Relu"}, {"path": "deep/b.onnx"}, seed=1, to=["fp16", "bf16"])
    a, b = read_fleet(fleet).models
    assert (a.name, b.name) == ("a", "b")
    assert (a.options["seed"], b.options["seed"]) == (2, 1)
    assert (a.options["block_op"], b.options["block_op"]) == (("Relu",), ())
    assert a.options["to"] == ("fp16", "bf16")
    assert a.options.keys() == b.options.keys() == OPTIONS.keys()


def test_paths_are_relative_to_the_file(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fleet(fleet, {"path": "a.onnx", "samples": "samples/{stem}.npz"})
    monkeypatch.chdir(tmp_path)
    (model,) = read_fleet(fleet.relative_to(tmp_path)).models
    assert model.path == fleet.parent / "a.onnx"
    assert model.options["samples"] == str(fleet.parent / "samples" / "a.npz")


def test_a_pattern_leaves_out_what_is_named_what_is_hidden_and_results(fleet: Path) -> None:
    folder = fleet.parent
    save_model(folder / ".a.onnx.0123.tmp.onnx")
    save_model(folder / "fleet.sweep" / "a" / "a.portable.fp16.onnx")
    save_fleet(fleet, {"path": "**/*.onnx"}, {"path": "deep/b.onnx", "seed": 3})
    models = read_fleet(fleet, folder / "fleet.sweep").models
    assert [(model.name, model.options["seed"]) for model in models] == [("a", 0), ("b", 3)]


def test_models_of_one_file_name_are_told_apart_by_their_folders(fleet: Path) -> None:
    for place in ("x/one", "y/one", "two"):
        save_model(fleet.parent / place / "model.onnx")
    save_fleet(fleet, {"path": "**/model.onnx"}, {"path": "a.onnx"})
    assert [model.name for model in read_fleet(fleet).models] == ["two-model", "x-one-model", "y-one-model", "a"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(fleet: Path) -> None:
    save_model(fleet.parent / "m[1].onnx")
    save_fleet(fleet, {"path": "m[1].onnx"})
    assert [model.path.name for model in read_fleet(fleet).models] == ["m[1].onnx"]


def test_long_and_odd_file_names_give_names_of_folders(fleet: Path) -> None:
    for name in ("ä" * 120, "a b (1)", "...", "_"):
        save_model(fleet.parent / "odd" / f"{name}.onnx")
    save_fleet(fleet, {"path": "odd/*.onnx"}, {"path": "odd/....onnx"})
    assert sorted(model.name for model in read_fleet(fleet).models) == ["a_b_1_", "odd-...", "odd-_", "ä" * 50]


def test_jobs_are_models_times_targets_times_precisions(fleet: Path) -> None:
    save_fleet(fleet, {"path": "*.onnx"}, {"path": "deep/b.onnx", "to": "fp16"}, targets=["cuda", "coreml"], to=["fp16", "bf16"])
    jobs, notes = make_jobs(read_fleet(fleet))
    assert [job.label for job in jobs] == ["a cuda fp16", "a cuda bf16", "a coreml fp16", "b cuda fp16", "b coreml fp16"]
    assert notes == ["bf16 is left out for coreml, which has no kernels for it"]


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("unknown key", {"path": "a.onnx", "sampels": "x"}, {}, r"\[\[models\]\] 1: there is no key 'sampels'; try: 'samples'"),
    ("unknown key of all", {"path": "a.onnx"}, {"target": "cuda"}, r"there is no key 'target'; try: 'targets'"),
    ("both spellings", {"path": "a.onnx", "block_op": "Add", "block-op": "Mul"}, {}, r"is there twice"),
    ("target", {"path": "a.onnx", "targets": "cud"}, {}, r"targets: there is no 'cud'; try: cuda"),
    ("twice", {"path": "a.onnx", "to": ["fp16", "fp16"]}, {}, r"to: 'fp16' is there twice"),
    ("none", {"path": "a.onnx", "to": []}, {}, r"to is \[\], not a text or a list of texts"),
    ("type", {"path": "a.onnx", "seed": -1}, {}, r"seed is -1, not a whole number"),
    ("flag", {"path": "a.onnx", "bench": 1}, {}, r"bench is 1, not true or false"),
    ("time", {"path": "a.onnx", "timeout": 0}, {}, r"timeout is 0, not a number of seconds above 0"),
    ("endless", {"path": "a.onnx", "timeout": float("inf")}, {}, r"timeout is inf, not a number of seconds"),
    ("bound", {"path": "a.onnx", "tolerance": {"rel_l3": 1.0}}, {}, r"there is no measure 'rel_l3'.*try: 'rel_l2'"),
    ("bounds", {"path": "a.onnx", "tolerance": "rel_l2=1"}, {}, r"not a table of numbers"),
    ("loose", {"path": "a.onnx", "tolerance": {"new_nan": 1}}, {}, r"looser than 0"),
    ("pattern", {"path": "a.onnx", "block_pattern": "nrm"}, {}, r"1 'a.onnx': .*nrm"),
    ("expression", {"path": "a.onnx", "block_node": "("}, {}, r"1 'a.onnx': .*\("),
    ("no path", {"name": "a"}, {}, r"\[\[models\]\] 1: has no path"),
    ("missing", {"path": "b.onnx"}, {}, r"b\.onnx: no such file; try: .*a\.onnx"),
    ("folder", {"path": "deep"}, {}, r'deep: is a folder, not a model file; try: path = "deep/\*\.onnx"'),
    ("nothing matches", {"path": "x/*.onnx"}, {}, r"nothing matches"),
    ("samples", {"path": "a.onnx", "samples": "samples/b.npz"}, {}, r"samples: .*b\.npz: no such file or folder; try: .*a\.npz"),
    ("links", {"path": "a.onnx", "allow_links": "nowhere"}, {}, r"allow_links: .*nowhere: no such"),
    ("metric", {"path": "a.onnx", "metric": "accuracy"}, {}, r"metric needs samples"),
    ("auto", {"path": "a.onnx", "to": "auto"}, {}, r"to = \"auto\" needs samples"),
    ("name", {"path": "a.onnx", "name": "../a"}, {}, r"name is '\.\./a', which cannot be a folder's"),
    ("long name", {"path": "a.onnx", "name": "ä" * 51}, {}, r"which cannot be a folder's"),
    ("name of many", {"path": "**/*.onnx", "name": "x"}, {}, r"a pattern has the name 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "options", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_said_in_one_line(fleet: Path, model: dict[str, Any], options: dict[str, Any], words: str) -> None:
    save_fleet(fleet, model, **options)
    with pytest.raises((InputError, UsageError), match=words) as caught:
        read_fleet(fleet)
    assert str(caught.value).startswith(str(fleet)) and "\n" not in str(caught.value) and "try: " in str(caught.value)


@pytest.mark.parametrize(
    "models",
    [[{"path": "a.onnx"}, {"path": "a.onnx"}], [{"path": "a.onnx", "name": "b"}, {"path": "deep/b.onnx", "name": "B"}]],
    ids=["one file", "names"],
)
def test_two_models_of_one_name_are_refused(fleet: Path, models: list[dict[str, Any]]) -> None:
    save_fleet(fleet, *models)
    with pytest.raises(UsageError, match=r"\[\[models\]\] 2 .* is called '\w.*' as .*\[\[models\]\] 1 "):
        read_fleet(fleet)


@pytest.mark.parametrize("text", ["", "models = 1", "[models]\npath='a'", "[[models]\n", "x" * 10, "\0", "a = [" * 5000])
def test_what_is_no_fleet_is_refused(fleet: Path, text: str) -> None:
    fleet.write_text(text, "utf-8")
    with pytest.raises((InputError, UsageError)):
        read_fleet(fleet)
    fleet.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_fleet(fleet)
    with pytest.raises(InputError, match="cannot be read"):
        read_fleet(fleet.parent)


TEXTS = ["", "cuda", "fp16", "a.onnx", "*", "**/*.onnx", "x:y", "../a"]
VALUES = st.recursive(
    st.booleans() | st.integers(-5, 10) | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rel_l2", "path", "y@z", ""]), inner, max_size=2),
    max_leaves=4,
)
TABLES = st.dictionaries(st.sampled_from(["path", "name", "models", "x", *OPTIONS]), VALUES, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models=st.lists(TABLES, max_size=3), options=TABLES)
def test_any_table_makes_jobs_or_an_error_of_one_line(fleet: Path, models: list[dict[str, Any]], options: dict[str, Any]) -> None:
    fleet.write_text(tomli_w.dumps({**options, "models": [{"path": "a.onnx", **table} for table in models]}), "utf-8")
    try:
        found = read_fleet(fleet)
        jobs, _ = make_jobs(found)
    except HalfconvError as error:
        assert "\n" not in str(error) and "try: " in str(error)
        return
    names = [model.name.casefold() for model in found.models]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[^\W_][\w.+-]*", name) for name in names)
    assert len({job.label for job in jobs}) == len(jobs)


# Keys


def keys(fleet: Path) -> list[str]:
    return [job.key for job in make_jobs(read_fleet(fleet))[0]]


def test_keys_change_with_the_input_and_with_nothing_else(fleet: Path) -> None:
    folder = fleet.parent
    model = {"path": "a.onnx", "samples": "samples/a.npz"}
    save_fleet(fleet, model, {"path": "deep/b.onnx"})
    a, b = keys(fleet)
    assert a != b
    for same in ({**model, "name": "other"}, {**model, "timeout": 7}, {**model, "block_op": []}, {**model, "seed": 0}):
        save_fleet(fleet, same, {"path": "deep/b.onnx"})
        assert keys(fleet) == [a, b]
    for changed in ({**model, "seed": 1}, {**model, "tolerance": {"rel_l2": 0.02}}, {"path": "a.onnx"}, {**model, "bench": True}):
        save_fleet(fleet, changed, {"path": "deep/b.onnx"})
        assert keys(fleet)[0] != a
        assert keys(fleet)[1] == b
    save_fleet(fleet, model, {"path": "deep/b.onnx"})
    save_samples(folder / "samples" / "a.npz", 1)
    assert keys(fleet)[0] != a
    assert keys(fleet)[1] == b
    save_samples(folder / "samples" / "a.npz")
    assert keys(fleet) == [a, b]
    save_model(folder / "a.onnx", 5)
    assert keys(fleet)[0] != a


def test_keys_change_with_the_runtime_that_measures(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fleet(fleet, {"path": "a.onnx"})
    found = [keys(fleet)]
    for package, version in (("onnxruntime", "1.99.0"), ("onnxruntime", "1.99.1"), ("onnxruntime-gpu", "1.99.1"), ("", "")):
        monkeypatch.setattr(job, "runtime_version", lambda found=(package, version): found)
        found.append(keys(fleet))
    monkeypatch.undo()
    assert len({str(one) for one in found}) == 5 and keys(fleet) == found[0]


def test_keys_follow_the_content_to_another_folder(fleet: Path, tmp_path: Path) -> None:
    save_fleet(fleet, {"path": "a.onnx", "samples": "samples/{stem}.npz"})
    before = keys(fleet)
    fleet.parent.rename(tmp_path / "elsewhere")
    assert keys(tmp_path / "elsewhere" / "fleet.toml") == before


def test_keys_change_with_weights_beside_the_model(fleet: Path) -> None:
    folder = fleet.parent
    save_model(folder / "e.onnx", external=True)
    save_fleet(fleet, {"path": "e.onnx"})
    (before,) = keys(fleet)
    data = folder / "e.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert keys(fleet) != [before]
    data.write_bytes(content)
    assert keys(fleet) == [before]
    data.unlink()
    assert keys(fleet) != [before]


def test_keys_change_with_the_module_of_a_function(fleet: Path) -> None:
    folder = fleet.parent
    save_evil(folder)
    save_fleet(fleet, {"path": "a.onnx", "samples": "evil:wait", "metric": ["accuracy"]})
    (before,) = keys(fleet)
    with (folder / "evil.py").open("a") as file:
        file.write("\n# changed\n")
    assert keys(fleet) != [before]


def test_keys_change_with_a_folder_of_samples(fleet: Path) -> None:
    folder = fleet.parent
    save_fleet(fleet, {"path": "a.onnx", "samples": "samples"})
    (before,) = keys(fleet)
    (folder / "samples" / "notes.txt").write_text("no sample")
    assert keys(fleet) == [before]
    save_samples(folder / "samples" / "b.npz", 1)
    assert keys(fleet) != [before]


def test_a_model_that_cannot_be_read_has_a_key(fleet: Path) -> None:
    (fleet.parent / "a.onnx").write_bytes(b"location" * 100)
    save_fleet(fleet, {"path": "a.onnx"})
    assert len(keys(fleet)) == 1
