"""The package ``triton``: its configuration, read by Triton's own definition, and its verification."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from halfconv import convert
from halfconv.deploy.packaging import deploy
from halfconv.deploy.pbtxt import Word, render
from halfconv.deploy.triton_check import check_config, read_config
from halfconv.deploy.triton_config import Batching, Settings, Tensor, Warmup, config_text
from halfconv.errors import InputError, UsageError
from halfconv.runtime.session import Session
from halfconv.runtime.settings import Profile, read_profile
from tests.deploy.packing import REAL, deployed
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ROWS = [{"x": X}, {"x": X + 1}]


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def packed(folder: Path, model: bytes, samples: list[dict[str, Any]], **options: Any) -> Any:
    (folder / "m.onnx").write_bytes(model)
    deploy(folder / "m.onnx", "triton", folder / "out", samples=samples, **options)
    return parsed((folder / "out" / "model_repository" / "m" / "config.pbtxt").read_text("utf-8"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-B", "verify.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


# The text form


def test_text_is_what_protobuf_reads() -> None:
    name = 'a"b\\c\nü/:0 {}'
    text = render({"name": name, "max_batch_size": 3, "input": [{"name": name, "data_type": Word("TYPE_FP16"), "dims": [-1, 2]}],
                   "dynamic_batching": {"preserve_ordering": True, "preferred_batch_size": []}, "parameters": []})  # fmt: skip
    found = parsed(text)
    assert found.name == name and found.input[0].name == name
    assert list(found.input[0].dims) == [-1, 2] and found.input[0].data_type == model_config_pb2.TYPE_FP16
    assert found.dynamic_batching.preserve_ordering and not found.parameters


# The configuration


def test_batching_follows_the_buckets_of_the_profile(folder: Path) -> None:
    settings = Settings("m", "cuda", "fp16", Batching(32, (8, 32), 100), instances=2)
    inputs, outputs = [Tensor("x", "float16", (-1, 3, -1)), Tensor("n", "int64", (-1,))], [Tensor("y", "float32", (-1, 2))]
    warmups = [Warmup("w", 8, ((Tensor("x", "float16", (3, 5)), "input_0"), (Tensor("n", "int64", ()), "input_1")))]
    found = parsed(config_text(settings, inputs, outputs, warmups=warmups))
    assert (found.backend, found.platform, found.max_batch_size) == ("onnxruntime", "", 32)
    assert list(found.dynamic_batching.preferred_batch_size) == [8, 32]
    assert found.dynamic_batching.max_queue_delay_microseconds == 100
    assert list(found.input[0].dims) == [3, -1] and not found.input[0].HasField("reshape")
    assert list(found.input[1].dims) == [1] and found.input[1].HasField("reshape") and not found.input[1].reshape.shape
    assert list(found.output[0].dims) == [2]
    assert (found.instance_group[0].count, found.instance_group[0].kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert found.model_warmup[0].batch_size == 8 and list(found.model_warmup[0].inputs["x"].dims) == [3, 5]
    assert not found.HasField("optimization")


PROFILE = {
    "schema_version": 1, "model_sha256": "0" * 64, "target": "cuda", "graph_optimization": "ORT_ENABLE_EXTENDED",
    "providers": [
        {"name": "TensorrtExecutionProvider", "options": {"trt_max_workspace_size": "1000", "trt_builder_optimization_level": "5"}},
        {"name": "CUDAExecutionProvider", "options": {
            "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": "123",
            "do_copy_in_default_stream": "True", "use_tf32": "0", "prefer_nhwc": "1"}},
    ],
    "buckets": [{"inputs": {"x": [4, 4]}, "cuda_graph": True}, {"inputs": {"x": [16, 4]}, "cuda_graph": True}],
    "measured": [], "tolerance": None, "ort_version": "1.31.1",
}  # fmt: skip


def profile() -> Profile:
    return read_profile(PROFILE)


def configured(target: str, to: str = "fp16") -> Any:
    tensors = [Tensor("x", "float32", (-1, 4))]
    return parsed(config_text(Settings("m", target, to, Batching()), tensors, tensors, profile()))


def test_options_of_cuda_stand_where_the_backend_reads_them() -> None:
    """The backend puts its defaults over these four, unless ``parameters`` has them."""
    found = configured("cuda")
    assert {key: value.string_value for key, value in found.parameters.items()} == {
        "cudnn_conv_algo_search": "1", "arena_extend_strategy": "1", "gpu_mem_limit": "123", "do_copy_in_default_stream": "1",
    }  # fmt: skip
    (cuda,) = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0", "prefer_nhwc": "1"})
    assert found.optimization.graph.level == 1
    assert not found.optimization.HasField("cuda")  # graphs there are TensorRT's backend's


@pytest.mark.parametrize(("to", "mode"), [("fp16", "FP16"), ("bf16", "BF16")])
def test_tensorrt_gets_the_precision_and_the_graphs(to: str, mode: str) -> None:
    first, second = configured("tensorrt", to).optimization.execution_accelerators.gpu_execution_accelerator
    assert (first.name, second.name) == ("tensorrt", "cuda")
    assert dict(first.parameters) == {
        "precision_mode": mode, "trt_cuda_graph_enable": "1", "max_workspace_size_bytes": "1000",
        "trt_builder_optimization_level": "5",
    }  # fmt: skip


def test_on_the_cpu_nothing_of_a_gpu_is_said() -> None:
    found = configured("cpu")
    assert found.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert not found.parameters and not found.optimization.HasField("execution_accelerators")
    for target in ("portable", "xnnpack"):
        assert configured(target).instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO


# The package


def test_rows_that_are_independent_are_batched(folder: Path) -> None:
    found = packed(folder, models.squares("float"), ROWS)
    assert found.max_batch_size == 8 and list(found.input[0].dims) == [4]
    assert [list(entry.dims) for entry in found.output] == [[4], [1]]
    assert found.output[1].HasField("reshape")
    (warmup,) = found.model_warmup
    data = (folder / "out/model_repository/m/warmup" / warmup.inputs["x"].input_data_file).read_bytes()
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), X[0])


@pytest.mark.parametrize("samples", [ROWS, ROWS[:1], [{"x": X[:1]}]])
def test_rows_that_depend_on_each_other_are_not(folder: Path, samples: list[dict[str, Any]]) -> None:
    (folder / "m.onnx").write_bytes(models.mixed())
    result = deploy(folder / "m.onnx", "triton", folder / "out", samples=samples)
    found = parsed((folder / "out/model_repository/m/config.pbtxt").read_text("utf-8"))
    assert found.max_batch_size == 0 and not found.HasField("dynamic_batching")
    assert list(found.input[0].dims) == [-1, 4] and found.model_warmup[0].batch_size == 1
    assert any("no batching by Triton: output 'y' is another when requests run together" in note for note in result.notes)


@pytest.mark.parametrize(
    ("text", "sample", "dims"),
    [
        ("g (float[2, 3] x) => (float[2, 3] y) { y = Mul(x, x) }", np.ones((2, 3)), [[2, 3], [2, 3]]),
        ("g (float[n, 3] x) => (float[1, 3] y) { y = ReduceSum<keepdims = 1>(x, a) }", np.ones((2, 3)), [[-1, 3], [1, 3]]),
        ("g (float x) => (float y) { y = Mul(x, x) }", np.ones(()), [[1], [1]]),
    ],
)
def test_without_a_free_batch_dimension_max_batch_size_is_0(folder: Path, text: str, sample: Any, dims: Any) -> None:
    text = text.replace(" y) {", " y) <int64[1] a = {0}> {") if "a)" in text else text
    found = packed(folder, models.model(text), [{"x": sample.astype(np.float32)}])
    assert found.max_batch_size == 0
    assert [list(found.input[0].dims), list(found.output[0].dims)] == dims


def test_the_shapes_are_those_that_onnx_runtime_reports(folder: Path) -> None:
    """The model does not say how wide its output is; the backend compares with what ONNX Runtime infers."""
    text = "g (float[n, 4] x) => (float[n, w] y) <int64[1] a = {1}> { t = ReduceSum(x, a) y = Concat<axis = 1>(t, t) }"
    found = packed(folder, models.model(text), ROWS)
    assert list(found.output[0].dims) == [2]
    with Session(folder / "out/model_repository/m/1/model.onnx", provider="cpu", profile=False) as session:
        assert session.output_specs["y"].shape[1] == 2


def test_weights_in_files_lie_in_the_folder_of_the_version(folder: Path) -> None:
    made = onnx.load_model_from_string(models.model("g (float[n, 64] x) => (float[n, 64] y) { y = Neg(x) }"))
    made.graph.node[0].op_type = "MatMul"
    made.graph.node[0].input.append("w")
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    onnx.save(made, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    deploy(folder / "m.onnx", "triton", folder / "out", samples=[{"x": np.ones((1, 64), np.float32)}])
    version = folder / "out/model_repository/m/1"
    assert (version / "model.onnx").stat().st_size < 4096
    assert len(list(version.iterdir())) == 2
    assert run(folder / "out").returncode == 0


def test_settings_of_the_user(folder: Path) -> None:
    settings = {"instances": "3", "max_batch": "16", "queue_delay": "70"}
    found = packed(folder, models.squares("float"), ROWS, settings=settings)
    assert (found.instance_group[0].count, found.max_batch_size) == (3, 16)
    assert found.dynamic_batching.max_queue_delay_microseconds == 70
    assert packed(folder, models.squares("float"), ROWS, settings={"max_batch": "0"}).max_batch_size == 0
    for wrong, words in (
        ({"instances": "0"}, "--set instances=0; try: a whole number from 1 on"),
        ({"max_batch": "x"}, "max_batch=x"),
        ({"replicas": "1"}, "has no setting 'replicas'; try: --set instances, max_batch, queue_delay"),
    ):
        with pytest.raises(UsageError, match=words):
            packed(folder, models.squares("float"), ROWS, settings=wrong)


def test_batch_sizes_are_those_that_the_profile_was_tuned_for(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(models.squares("float"))
    half = convert(folder / "m.onnx", samples=ROWS, target="cuda").output
    path = half.with_name(half.name + ".profile.json")
    profile = json.loads(path.read_text("utf-8"))
    profile["buckets"] = [{"inputs": {"x": [rows, 4]}, "cuda_graph": True} for rows in (1, 4, 16)]
    path.write_text(json.dumps(profile), "utf-8")
    result = deploy(folder / "m.onnx", "triton", folder / "out", samples=ROWS, half=half)
    found = read_config(folder / "out/model_repository/m/config.pbtxt")
    assert found.max_batch_size == 16 and list(found.dynamic_batching.preferred_batch_size) == [4, 16]
    assert [warmup.batch_size for warmup in found.model_warmup] == [1, 4, 16]
    assert any("CUDA graphs are left out" in note for note in result.notes) and result.verified.passed
    found = packed(folder, models.squares("float"), ROWS, half=half, settings={"max_batch": "8"})
    assert found.max_batch_size == 8 and list(found.dynamic_batching.preferred_batch_size) == [4]


# What verify.py finds


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    packed(folder, models.squares("float"), ROWS)
    return folder / "out"


def test_it_passes_without_a_server_and_says_so(package: Path) -> None:
    done = run(package)
    assert done.returncode == 0, done.stderr
    assert "no server was asked" in done.stdout and "model.onnx on cpu: passed on 2 given samples" in done.stdout


def test_no_server_is_an_error_in_one_line(package: Path) -> None:
    done = run(package, "--url", "127.0.0.1:9")
    assert done.returncode == 2 and done.stderr.startswith("verify: 127.0.0.1:9: cannot be used: ")
    assert len(done.stderr.splitlines()) == 1 and "; try: " in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name: "m"', 'name: "n"', "the name is 'n', and the folder's is 'm'"),
        ("TYPE_FP32", "TYPE_FP16", "'x' is TYPE_FP16, and the model's float32"),
        ("dims: 4", "dims: 5", r"'x' has the shape \[-1, 5\], and the model's is \[-1, 4\]"),
        ('name: "x"', 'name: "z"', "input 'x' is missing; input 'z' is none of the model"),
        ("max_batch_size: 8", "max_batch_size: 0", r"'x' has the shape \[4\]"),
        ('"model.onnx"', '"other.onnx"', "there is no model 1/other.onnx"),
        ('key: "x"', 'key: "z"', "its inputs are not the model's"),
        ("batch_size: 1", "batch_size: 9", "it has 9 rows"),
        ('"input_0"', '"input_1"', "input_1 does not hold the 16 bytes of 'x'"),
        ("max_queue_delay_microseconds: 500", "preferred_batch_size: 16", "a preferred batch size is larger"),
    ],
)
def test_a_configuration_that_does_not_fit(package: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    place = tmp_path / "m"
    shutil.copytree(package / "model_repository/m", place)
    text = (place / "config.pbtxt").read_text("utf-8")
    assert old in text
    (place / "config.pbtxt").write_text(text.replace(old, new, 1), "utf-8")
    with Session(place / "1/model.onnx", provider="cpu", profile=False) as session:
        problems = "; ".join(check_config(place / "config.pbtxt", session.input_specs, session.output_specs))
    assert re.search(words, problems), problems


@pytest.mark.parametrize("text", ["max_batchsize: 8", "name: 3", "input {", b"name: '\xff\xfe'"])
def test_what_is_no_configuration(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "config.pbtxt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"is no configuration of Triton's"):
        read_config(tmp_path / "config.pbtxt")


def test_a_file_that_was_changed_is_found(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "p")
    with (tmp_path / "p/model_repository/m/1/model.onnx").open("r+b") as stream:
        stream.write(b"\0")
    done = run(tmp_path / "p")
    assert done.returncode == 2 and "model.onnx: was changed: its SHA-256 is not the manifest's" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_models(key: str, folder: Path) -> None:
    result = deployed(key, "triton", folder)
    assert result.verified.ran and result.verified.passed
    assert "model.onnx on cpu: passed" in result.verified.words
    manifest = json.loads((folder / key / "manifest.json").read_text("utf-8"))
    config = read_config(folder / key / "model_repository" / manifest["name"] / "config.pbtxt")
    assert config.max_batch_size == 8, result.notes
