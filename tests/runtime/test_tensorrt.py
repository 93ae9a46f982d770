"""What TensorRT would be told. It was never run: its libraries were not at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import halfconv
from halfconv import EngineOptions, profile_search
from halfconv.benchmark_inputs import engine_message
from halfconv.cli import main
from halfconv.errors import EnvironmentProblem, UsageError
from halfconv.profile import file_sha256, profile_path
from halfconv.runtime import loading
from halfconv.runtime.settings import CPU, CUDA, OPTIONS, PROVIDERS, TENSORRT, read_profile
from halfconv.runtime.tensorrt import FALSE, TRUE, TYPED, engine_folder, engine_options, unspeakable
from tests.runtime import models

#: The options that onnxruntime-gpu 1.31.1 knows: those its Python module names in its messages, which are also those of the page
#: "TensorRT Execution Provider" of its documentation. True: the value is "True" or "False", as these messages say.
DOCUMENTED = {
    "device_id": False, "trt_auxiliary_streams": False, "trt_bf16_enable": True, "trt_build_heuristics_enable": True,
    "trt_builder_optimization_level": False, "trt_context_memory_sharing_enable": True, "trt_cuda_graph_enable": True,
    "trt_detailed_build_log": True, "trt_dla_core": False, "trt_dla_enable": True, "trt_dump_ep_context_model": True,
    "trt_dump_subgraphs": True, "trt_engine_cache_enable": True, "trt_engine_cache_path": False, "trt_engine_cache_prefix": False,
    "trt_engine_decryption_enable": True, "trt_engine_decryption_lib_path": False, "trt_engine_hw_compatible": True,
    "trt_ep_context_embed_mode": False, "trt_ep_context_file_path": False, "trt_extra_plugin_lib_paths": False,
    "trt_force_sequential_engine_build": True, "trt_force_timing_cache": True, "trt_fp16_enable": True,
    "trt_int8_calibration_table_name": False, "trt_int8_enable": True, "trt_int8_use_native_calibration_table": True,
    "trt_layer_norm_fp32_fallback": True, "trt_max_partition_iterations": False, "trt_max_workspace_size": False,
    "trt_min_subgraph_size": False, "trt_onnx_model_folder_path": False, "trt_profile_max_shapes": False,
    "trt_profile_min_shapes": False, "trt_profile_opt_shapes": False, "trt_sparsity_enable": True, "trt_tactic_sources": False,
    "trt_timing_cache_enable": True, "trt_timing_cache_path": False, "trt_weight_stripped_engine_enable": True,
    "user_compute_stream": False,
}  # fmt: skip
SHAPES = [{"ids": [1, 128], "scale": []}, {"ids": [32, 16], "scale": []}, {"ids": [8, 64], "scale": []}]
ALL = EngineOptions("engines", 5, SHAPES)


def test_all_options_are_documented_and_of_the_right_form() -> None:
    told = engine_options(ALL, Path("engines/0123"))
    assert len(told) == 3 + 4 + 1 + 3
    for name, value in told.items():
        assert name in DOCUMENTED, name
        assert (value in (TRUE, FALSE)) == DOCUMENTED[name], name
    assert OPTIONS[TENSORRT] <= DOCUMENTED.keys()


def test_each_wish_is_an_option() -> None:
    assert (
        engine_options(EngineOptions()) == TYPED == dict.fromkeys(("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"), FALSE)
    )
    told = engine_options(ALL, Path("engines/0123"))
    assert told["trt_builder_optimization_level"] == "5"
    assert (told["trt_engine_cache_enable"], told["trt_engine_cache_path"]) == ("True", str(Path("engines/0123")))
    assert (told["trt_timing_cache_enable"], told["trt_timing_cache_path"]) == ("True", "engines")
    kinds = ("min", "opt", "max")
    assert [told[f"trt_profile_{kind}_shapes"] for kind in kinds] == ["ids:1x16", "ids:8x64", "ids:32x128"]
    two = engine_options(EngineOptions(shapes=[{"a": [1, 2], "b": [3]}]))
    assert [two[f"trt_profile_{kind}_shapes"] for kind in kinds] == ["a:1x2,b:3"] * 3
    assert engine_options(EngineOptions(shapes=[{"scale": []}])) == TYPED


def test_names_that_the_provider_would_read_wrongly_are_left_to_it() -> None:
    shapes = [{"ids:0": [1, 2], "a,b": [1], "c": [1]}]
    assert unspeakable(shapes) == ["a,b", "ids:0"]
    assert engine_options(EngineOptions(shapes=shapes)) == TYPED


@pytest.mark.parametrize("wish", [
    {"builder_level": 6}, {"builder_level": -1}, {"shapes": [{"a": [1]}, {"b": [1]}]}, {"shapes": [{"a": [1]}, {"a": [1, 2]}]},
])  # fmt: skip
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="try: "):
        EngineOptions(**wish)


def test_an_engine_has_a_folder_of_its_own() -> None:
    assert engine_folder(EngineOptions(), "model", "1.31.1") is None
    known = engine_folder(ALL, "model", "1.31.1")
    assert known is not None and known.parent == Path("engines") and known == engine_folder(ALL, "model", "1.31.1")
    others = [
        engine_folder(ALL, "other", "1.31.1"), engine_folder(ALL, "model", "1.32.0"),
        engine_folder(EngineOptions("engines", 4, SHAPES), "model", "1.31.1"),
        engine_folder(EngineOptions("engines", 5, SHAPES[:1]), "model", "1.31.1"),
    ]  # fmt: skip
    assert len({known, *others}) == 5


# Sessions


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, str]]]:
    """What sessions are told, by provider; ONNX Runtime seems to have TensorRT, but no session comes to be."""
    found: list[dict[str, dict[str, str]]] = []

    def create(ort: Any, source: Any, wishes: loading.Wishes, names: tuple[str, ...], folder: Any, stream: Any) -> Any:
        found.append({name: loading._options(name, wishes, stream) for name in names})
        raise RuntimeError("no TensorRT here")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(loading, "_session", create)
    return found


def test_a_session_tells_tensorrt_alone(told: list[dict[str, dict[str, str]]], tmp_path: Path) -> None:
    cache = tmp_path / "made" / "engines"
    with pytest.raises(EnvironmentProblem, match="tensorrt"):
        halfconv.Session(models.squares(), provider="tensorrt", device_id=1, engine=EngineOptions(cache, 4, [{"x": [1, 4]}]))
    options = told[0]
    assert list(options) == list(PROVIDERS["tensorrt"])
    folder = Path(options[TENSORRT]["trt_engine_cache_path"])
    assert folder.is_dir() and folder.parent == cache == Path(options[TENSORRT]["trt_timing_cache_path"])
    assert options[TENSORRT] == {"device_id": "1", **engine_options(EngineOptions(cache, 4, [{"x": [1, 4]}]), folder)}
    assert options[CUDA] == {"device_id": "1"} and options[CPU] == {}


def test_buckets_of_a_profile_are_the_shapes(told: list[dict[str, dict[str, str]]], tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(models.squares())
    options = {"trt_fp16_enable": True, "trt_cuda_graph_enable": True, "trt_max_workspace_size": 1 << 20}
    content = {
        "schema_version": 1, "model_sha256": file_sha256(model), "target": "tensorrt", "graph_optimization": "ORT_ENABLE_ALL",
        "providers": [{"name": TENSORRT, "options": options}], "measured": [], "tolerance": None, "ort_version": None,
        "buckets": [{"inputs": {"x": [rows, 4]}, "cuda_graph": False} for rows in (1, 8)],
    }  # fmt: skip
    profile_path(model).write_text(json.dumps(content))
    with pytest.raises(EnvironmentProblem):
        halfconv.Session(model, provider="tensorrt")
    found = told[0][TENSORRT]
    assert (found["trt_profile_min_shapes"], found["trt_profile_max_shapes"]) == ("x:1x4", "x:8x4")
    assert found["trt_fp16_enable"] == "False", "a profile cannot choose a precision"
    assert found["trt_cuda_graph_enable"] == "True" and found["trt_max_workspace_size"] == str(1 << 20)
    assert "trt_fp16_enable" in read_profile(content).notes[0]
    with pytest.raises(EnvironmentProblem):
        halfconv.Session(model, provider="tensorrt", engine=EngineOptions(shapes=[{"x": [2, 4]}]))
    assert told[-1][TENSORRT]["trt_profile_max_shapes"] == "x:2x4", "the caller's own come first"


def test_a_cache_that_cannot_be_made_is_an_error(told: list[dict[str, dict[str, str]]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"cache .* cannot be made: .*try: another folder"):
        halfconv.Session(models.squares(), provider="tensorrt", engine=EngineOptions(tmp_path / "file"))
    assert told == []


# Benchmarks


def test_a_benchmark_takes_the_shapes_of_its_inputs() -> None:
    inputs = [{"x": np.zeros((rows, 4))} for rows in (1, 8)]
    assert engine_message(None, []) == {"cache": None, "builder_level": None, "shapes": []}
    assert engine_message(EngineOptions(Path("e"), 2), inputs) == {
        "cache": "e", "builder_level": 2, "shapes": [{"x": [1, 4]}, {"x": [8, 4]}],
    }  # fmt: skip
    assert engine_message(EngineOptions(shapes=[{"x": (2, 4)}]), inputs)["shapes"] == [{"x": [2, 4]}]


@pytest.mark.parametrize("more", [[], ["--tune"], ["--engine-cache", "engines", "--builder-level", "5", "--batch", "1,8"]])
def test_without_tensorrt_the_command_says_what_to_install(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if TENSORRT in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(models.squares())
    with pytest.raises(SystemExit) as caught:
        main(["bench", "m.onnx", "--provider", "tensorrt", *more])
    said = capsys.readouterr()
    assert caught.value.code == 2 and not said.out
    (line,) = said.err.splitlines()
    assert "tensorrt cannot be used: onnxruntime" in line and "has no TensorRT provider" in line
    assert "try: pip uninstall -y onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'" in line
    assert "libraries of TensorRT that halfconv doctor --provider tensorrt then names" in line
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}


@pytest.mark.parametrize("option", [["--engine-cache", "e"], ["--builder-level", "1"]])
def test_options_of_tensorrt_are_of_no_other_provider(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "m.onnx", "--provider", "cpu", *option])
    assert caught.value.code == 2 and "try: --provider tensorrt" in capsys.readouterr().err


class Answers:
    """A worker's process that has TensorRT, as far as it says."""

    opened: tuple[Any, ...] = ()

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, method: str, *arguments: Any) -> Any:
        if method == "open":
            Answers.opened = arguments
            return {"provider": "tensorrt", "onnxruntime": "1.31.1", "notes": [], "seconds": 1.0}
        return {"feed": {"outputs": {}, "first_ms": 1.0}, "time": [1.0, 1.0, 1.0]}[method]

    def end(self) -> None:
        pass


def test_tuning_for_tensorrt_stores_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT searches by itself: nothing is tried, and sessions find the range of shapes in the profile."""
    monkeypatch.setattr(profile_search, "Worker", Answers)
    model = tmp_path / "m.onnx"
    model.write_bytes(models.squares())
    found = profile_search.search_profile(
        model, batches=[1, 8], provider="tensorrt", seconds=0.1, engine=EngineOptions(tmp_path / "e")
    )
    assert [trial.what for trial in found.trials] == ["default"]
    shapes = Answers.opened[-1]["shapes"]
    assert Answers.opened[-1]["cache"] == str(tmp_path / "e") and [known["x"][0] for known in shapes] == [1, 8]
    content = json.loads(Path(found.profile).read_text())
    assert [provider["name"] for provider in content["providers"]] == list(PROVIDERS["tensorrt"])
    assert [bucket["inputs"] for bucket in content["buckets"]] == shapes
