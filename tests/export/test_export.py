"""`halfconv export`: what is written gives what PyTorch gives, under the wanted names, or nothing is written."""

from __future__ import annotations

import functools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from halfconv.export.weights import read_weights, safetensors_bytes  # noqa: E402
from tests.commands import run_here  # noqa: E402
from tests.export.factories import Net, Several  # noqa: E402
from tests.test_schemas import strict, validate  # noqa: E402

HERE = "tests.export.factories"
IMAGE = "image=float32[batch,1,8,8]"


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Run a command in `folder`, in this process."""
    monkeypatch.chdir(folder)

    return functools.partial(run_here, capfd)


def shapes(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def answer(path: Path, **feeds: Any) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in feeds.items()})


def test_factory_with_weights_free_dimension_scopes_and_report(cli: Any, folder: Path) -> None:
    torch.manual_seed(3)
    module = Net().eval()
    (folder / "w.safetensors").write_bytes(safetensors_bytes(module.state_dict()))
    done = cli("export", f"{HERE}:net", "-o", "m.onnx", "--weights", "w.safetensors", "--input", IMAGE, "--output-names", "logits",
               "--opset", 18, "--json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    content = strict(done.out)
    validate("export", content)
    assert content["attempts"] == [{"exporter": "dynamo", "problem": ""}]
    assert content["sizes"] == [{"batch": 2}, {"batch": 3}]
    assert content["compared"][0]["rel_l2"] < 1e-5
    assert shapes(folder / "m.onnx") == {"image": ["batch", 1, 8, 8], "logits": ["batch", 10]}
    image = torch.rand(7, 1, 8, 8)
    np.testing.assert_allclose(answer(folder / "m.onnx", image=image)[0], module(image).detach(), rtol=1e-4, atol=1e-5)
    model = onnx.load(folder / "m.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    props = [{entry.key: entry.value for entry in node.metadata_props} for node in model.graph.node]
    assert any("body.2" in found["pkg.torch.onnx.name_scopes"] for found in props)
    assert str(Path(__file__).parent).encode() not in (folder / "m.onnx").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "w.safetensors"]
    shown = cli("inspect", "m.onnx", "--block-scope", "body")
    assert shown.code == 0
    assert "user-block" in shown.out


def test_example_and_dimensions_of_the_factory(cli: Any, folder: Path) -> None:
    done = cli("export", f"{HERE}:with_example", "-o", "m.onnx")
    assert done.code == 0, done.err
    assert shapes(folder / "m.onnx") == {"image": ["batch", 1, 8, 8], "output": ["batch", 10]}
    assert "as PyTorch: output rel_l2" in done.out
    assert "batch 2 and batch 3" in done.out


def test_several_inputs_and_outputs_from_an_example_file(cli: Any, folder: Path) -> None:
    np.savez(folder / "e.npz", ids=np.array([[1, 2, 3]]), scale=np.float32([[0.5]]).reshape(1, 1, 1), labels=np.zeros(3))
    done = cli("export", f"{HERE}:several", "-o", "m.onnx", "--example", "e.npz", "--dynamic", "ids:0=batch", "--dynamic",
               "ids:1=length", "--dynamic", "scale:0=batch", "--json")  # fmt: skip
    assert done.code == 0, done.err
    found = shapes(folder / "m.onnx")
    assert found["ids"] == ["batch", "length"]
    assert found["scale"][0] == "batch"
    assert list(found)[2:] == ["rows", "parts_0", "parts_1"]
    content = json.loads(done.out)
    assert content["sizes"] == [{"batch": 1, "length": 3}, {"batch": 2, "length": 4}]
    assert [entry["agreement"] for entry in content["compared"]] == [None, None, 1.0]


def test_any_number_of_inputs(cli: Any, folder: Path) -> None:
    assert cli("export", f"{HERE}:varied", "-o", "m.onnx").code == 0
    assert list(shapes(folder / "m.onnx")) == ["input_0", "input_1", "output"]


def test_traced_where_dynamo_fails_and_says_so(cli: Any, folder: Path) -> None:
    done = cli("export", f"{HERE}:branch", "-o", "m.onnx", "--input", "x=[n,4]")
    assert done.code == 0, done.err
    assert "by torchscript" in done.out
    assert "dynamo failed: Could not guard on data-dependent expression" in " ".join(done.out.split())
    assert "branches and loops that depend on data are fixed" in " ".join(done.out.split())
    again = cli("export", f"{HERE}:branch", "-o", "n.onnx", "--input", "x=[n,4]", "--exporter", "dynamo")
    assert again.code == 2
    assert re.fullmatch(r"halfconv: [^\n]+cannot be exported at opset 20 \(dynamo: [^\n]+; try: [^\n]+\n", again.err)
    assert not (folder / "n.onnx").exists()


def test_program_is_loaded_only_with_trust(cli: Any, folder: Path) -> None:
    example = (torch.rand(2, 1, 8, 8),)
    program = torch.export.export(Net().eval(), example, dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, folder / "m.pt2")
    refused = cli("export", "m.pt2", "-o", "m.onnx")
    assert refused.code == 2
    assert "unpickle" in refused.err
    assert "any code; try: --trust" in refused.err
    done = cli("export", "m.pt2", "-o", "m.onnx", "--trust", "--json")
    assert done.code == 0, done.err
    assert shapes(folder / "m.onnx")["image"][1:] == [1, 8, 8]
    assert isinstance(shapes(folder / "m.onnx")["image"][0], str)
    assert len(json.loads(done.out)["sizes"]) == 2


def test_difference_is_an_exit_of_1_and_leaves_nothing(cli: Any, folder: Path) -> None:
    (folder / "m.onnx").write_text("old")
    done = cli("export", f"{HERE}:chance", "-o", "m.onnx", "--input", "x=[2]")
    assert done.code == 1
    words = r"halfconv: the exported model does not give what PyTorch gives: output: rel_l2 [^\n]+; try: [^\n]+\n"
    assert re.fullmatch(words, done.err)
    assert (folder / "m.onnx").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert cli("export", f"{HERE}:chance", "-o", "m.onnx", "--input", "x=[2]", "--tolerance", "rel_l2=100").code == 0
    unchecked = cli("export", f"{HERE}:chance", "-o", "n.onnx", "--input", "x=[2]", "--no-check")
    assert unchecked.code == 0
    assert "not compared with PyTorch" in unchecked.out


def test_external_data(cli: Any, folder: Path) -> None:
    assert cli("export", f"{HERE}:with_example", "-o", "m.onnx", "--external-data", "always").code == 0
    data = [path for path in folder.iterdir() if path.name.endswith(".data")]
    assert len(data) == 1
    image = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    assert answer(folder / "m.onnx", image=image)[0].shape == (5, 10)


def test_exported_model_converts_and_validates(cli: Any) -> None:
    assert cli("export", f"{HERE}:with_example", "-o", "m.onnx").code == 0
    assert cli("convert", "m.onnx").code == 0
    assert cli("validate", "m.onnx", "m.fp16.onnx").code == 0


ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "nothing to export": (["something"], ["'something' is nothing that can be exported"]),
    "no such module": (["tests.export.nothing:net"], ["cannot import tests.export.nothing"]),
    "no such factory": ([f"{HERE}:nte"], ["has no 'nte'", "try: net"]),
    "factory fails": ([f"{HERE}:broken"], ["RuntimeError: no such file: weights"]),
    "no module": ([f"{HERE}:number"], ["returns a int, not a module"]),
    "no inputs": ([f"{HERE}:net"], ["nothing says what its inputs are", "--input"]),
    "unknown input": ([f"{HERE}:net", "--input", "picture=[1,1,8,8]"], ["takes no 'picture'", "one of image"]),
    "malformed input": ([f"{HERE}:net", "--input", "image"], ["NAME=TYPE[DIM,…]"]),
    "unknown type": ([f"{HERE}:net", "--input", "image=float[1]"], ["no type 'float'"]),
    "bad dimension": ([f"{HERE}:net", "--input", "image=[-1]"], ["'-1' is no dimension"]),
    "empty input": ([f"{HERE}:net", "--input", "image=[0]"], ["has 0 elements"]),
    "input twice": ([f"{HERE}:net", "--input", IMAGE, "--input", IMAGE], ["names 'image' twice"]),
    "malformed dimension": ([f"{HERE}:net", "--input", IMAGE, "--dynamic", "image=0"], ["INPUT:AXIS=NAME"]),
    "no such axis": ([f"{HERE}:net", "--input", IMAGE, "--dynamic", "image:4=x"], ["has no axis 4"]),
    "dimension of no input": ([f"{HERE}:net", "--input", IMAGE, "--dynamic", "x:0=n"], ["no input 'x'"]),
    "inputs that do not fit": ([f"{HERE}:net", "--input", "image=[2,3,8,8]"], ["fails on the example inputs", "channels"]),
    "fixed dimension": ([f"{HERE}:fixed", "--input", "x=[n:3,2]", "--exporter", "dynamo"], ["cannot be exported", "n"]),
    "no exporter": ([f"{HERE}:impossible", "--input", "x=[2,2]"], ["dynamo: ", "; torchscript: "]),
    "unknown opset": ([f"{HERE}:with_example", "--opset", "99"], ["at opset 99"]),
    "too many names": ([f"{HERE}:with_example", "--output-names", "a,b"], ["2 names of outputs, a, b, for 1"]),
    "missing weights": ([f"{HERE}:with_example", "--weights", "none.pt"], ["none.pt: no such file"]),
    "pickled weights": ([f"{HERE}:with_example", "--weights", "evil.pt"], ["could run any code"]),
    "garbage as weights": ([f"{HERE}:with_example", "--weights", "garbage.pt"], ["garbage.pt"]),
    "garbage as safetensors": ([f"{HERE}:with_example", "--weights", "garbage.safetensors"], ["no usable safetensors file"]),
    "weights of another module": ([f"{HERE}:with_example", "--weights", "other.pt"], ["other.pt lacks body.0.weight"]),
    "weights of another shape": ([f"{HERE}:with_example", "--weights", "shape.pt"], ["'head.bias' is [3], and [10]"]),
    "missing example": ([f"{HERE}:net", "--example", "none.npz"], ["none.npz: no such file"]),
    "missing program": (["none.pt2", "--trust"], ["none.pt2: no such file"]),
    "garbage as program": (["garbage.pt2", "--trust"], ["no program that torch.export.save wrote"]),
    "program with weights": (["garbage.pt2", "--weights", "shape.pt"], ["--weights does not go with a .pt2 program"]),
    "output folder missing": ([f"{HERE}:with_example", "-o", "none/m.onnx"], ["does not exist"]),
    "output is the weights": ([f"{HERE}:with_example", "-o", "shape.pt", "--weights", "shape.pt"], ["never touched"]),
    "unknown tolerance": ([f"{HERE}:with_example", "--tolerance", "nope=1"], ["there is no measure 'nope'"]),
}


class Evil:
    def __reduce__(self) -> Any:
        return (open, ("hacked", "w"))


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_leaves_nothing(case: str, cli: Any, folder: Path) -> None:
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("garbage.pt", "garbage.safetensors", "garbage.pt2"):
        (folder / name).write_bytes(b"\xff\x00 garbage" * 20)
    torch.save(Several().state_dict(), folder / "other.pt")
    torch.save(Net().state_dict() | {"head.bias": torch.zeros(3)}, folder / "shape.pt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments, words = ERRORS[case]
    done = cli("export", *(["-o", "m.onnx"] if "-o" not in arguments else []), *arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert re.fullmatch(r"halfconv: [^\n]+; try: [^\n]+\n", done.err)
    for part in words:
        assert part in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Files of weights


def test_safetensors_round_trip(folder: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4), "half": torch.randn(5).to(torch.bfloat16), "count": torch.tensor(7), "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }  # fmt: skip
    path = folder / "w.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    found = read_weights(path)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    library = pytest.importorskip("safetensors.torch").load_file(path)
    assert all(torch.equal(library[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"[]", b'{"a": 1}', b"[" * 10000,
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}',
    ],
)  # fmt: skip
def test_broken_safetensors_are_refused(header: bytes, folder: Path) -> None:
    from halfconv.errors import InputError

    path = folder / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(9))
    with pytest.raises(InputError):
        read_weights(path)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_saved_weights_alone_or_in_a_checkpoint(wrap: Any, folder: Path) -> None:
    state = Net().state_dict()
    torch.save(wrap(state), folder / "w.pt")
    assert list(read_weights(folder / "w.pt")) == list(state)
