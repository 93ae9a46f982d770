"""The package ``web`` in a real browser: onnxruntime-web in headless Chromium, on WebAssembly and on emulated WebGPU."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from playwright.sync_api import Browser

from halfconv.deploy import web
from halfconv.deploy.chunks import place_chunked
from halfconv.deploy.packaging import deploy
from halfconv.deploy.templates import FILES
from halfconv.errors import UsageError
from halfconv.runtime.session import Session
from tests.deploy.browser import chromium, look, npm_install, served, with_runtime
from tests.deploy.packing import REAL, deployed
from tests.runtime import models

X = np.arange(8, dtype=np.float32).reshape(2, 4)
#: Types that a browser's arrays hold each in its own way. FP16 arithmetic is what WebGPU refuses here.
TYPES = """g (float[n, 2] f, float16[n, 2] h, int64[n, 2] i, bool[n, 2] b, uint8[n, 2] u, double[n, 2] d)
  => (float[n, 2] y, float16[n, 2] g, int64[n, 2] j, bool[n, 2] c, uint8[n, 2] v, double[n, 2] e) {
    y = Mul(f, f) g = Mul(h, h) j = Mul(i, i) c = Not(b) v = Add(u, u) e = Mul(d, d) }"""
#: What lets the emulated GPU pass for a real one.
REAL_GPU = "Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', { get: () => false })"
TYPED = {
    "f": np.array([[0.5, -2]], np.float32), "h": np.array([[-0.25, 3]], np.float16), "i": np.array([[3, -(2**31)]], np.int64),
    "b": np.array([[True, False]]), "u": np.array([[3, 100]], np.uint8), "d": np.array([[1e-200, 1e100]]),
}  # fmt: skip


def packed(folder: Path, model: bytes, samples: list[dict[str, Any]], **options: Any) -> Path:
    (folder / "m.onnx").write_bytes(model)
    deploy(folder / "m.onnx", "web", folder / "out", samples=samples, **options)
    return folder / "out"


# Files


def test_a_model_is_one_file_where_that_is_small_enough(folder: Path) -> None:
    out = packed(folder, models.squares("float"), [{"x": X}])
    content = json.loads((out / "web.json").read_text("utf-8"))
    assert {key: entry["data"] for key, entry in content["models"].items()} == {"half": [], "fp32": []}
    assert (out / content["models"]["fp32"]["file"]).read_bytes() == (folder / "m.onnx").read_bytes()


def wide(constants: bool) -> onnx.ModelProto:
    """Five weights of 262,144 bytes, one after the other, as initializers or Constant nodes."""
    weights = [np.eye(256, dtype=np.float32) * (k + 1) for k in range(5)]
    nodes = [onnx.helper.make_node("MatMul", [f"v{k}", f"w{k}"], [f"v{k + 1}"]) for k in range(5)]
    tensors = [onnx.numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)]
    if constants:
        nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + nodes
    sides = [[onnx.helper.make_tensor_value_info(name, 1, ["n", 256])] for name in ("v0", "v5")]
    graph = onnx.helper.make_graph(nodes, "g", *sides, [] if constants else tensors)
    return onnx.helper.make_model(graph, ir_version=3 if constants else 8, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_weights_are_cut_into_files_and_the_answers_stay(folder: Path, constants: bool, external: bool) -> None:
    source = folder / "m.onnx"
    onnx.save(wide(constants), source, save_as_external_data=external, location="m.bin", size_threshold=0)
    data = {"m.bin": folder / "m.bin"} if (folder / "m.bin").exists() else {}
    placed = place_chunked(source, data, folder / "out", "x", 600_000)
    assert len(placed.data) == 3 and placed.largest <= 600_000 and not (folder / "out/m.bin").exists()
    weights = [value.const_value for value in ir.load(placed.file).graph.initializers.values()]
    found = {tensor.location for tensor in weights if isinstance(tensor, ir.ExternalTensor)}
    assert found == {path.name for path in placed.data}
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    with Session(source, provider="cpu") as before, Session(placed.file, provider="cpu") as after:
        np.testing.assert_array_equal(after.run({"v0": x})["v5"], before.run({"v0": x})["v5"])
    whole = place_chunked(source, data, folder / "whole", "x", 10**7)
    assert not whole.data and [path.name for path in (folder / "whole").iterdir()] == ["x.onnx"]


def test_a_tensor_larger_than_a_file_is_told(folder: Path) -> None:
    samples = [{"v0": np.ones((1, 256), np.float32)}]
    result = deploy(_saved(wide(False), folder), "web", folder / "out", samples=samples, chunk_bytes=200_000)
    assert any(note.startswith("a file has 262,144 bytes, more than 200,000") for note in result.notes)
    assert not result.verified.ran and "npm start" in result.verified.words


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_no_file_is_larger_than_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST", 600_000)
    samples = [{"v0": np.ones((1, 256), np.float32)}]
    result = deploy(_saved(wide(False), folder), "web", folder / "out", samples=samples, chunk_bytes=10**10)
    assert max(file.stat().st_size for file in (result.output / "models").iterdir()) <= 600_000


@pytest.mark.parametrize("target", ["//", "http://[", "/%"])
def test_an_odd_address_does_not_end_the_server(target: str, tmp_path: Path) -> None:
    shutil.copy(FILES / "web" / "serve.mjs", tmp_path)
    with served(tmp_path) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404 ")


def test_bf16_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(UsageError, match="the package 'web' does not compute it; try: --to fp16"):
        packed(folder, models.squares("float"), [{"x": X}], to="bf16")
    assert not (folder / "out").exists()


CHOICES = """
import { choose } from "./halfconv.mjs";
const gpus = [null, { half: false, software: false }, { half: true, software: false }, { half: true, software: true }];
const [backends, precisions] = [["auto", "webgpu", "wasm", "webnn"], ["auto", "half", "fp32", "int8"]];
const rows = [];
for (const backend of backends) for (const precision of precisions) for (const gpu of gpus) {
  try { const c = choose(backend, precision, gpu); rows.push(`${c.backend} ${c.precision}`); }
  catch (error) { rows.push(error.message); }
}
console.log(JSON.stringify(rows));
"""


def test_what_the_loader_chooses(folder: Path) -> None:
    """FP16 on a GPU that computes in it, FP32 elsewhere; an emulated GPU only where it is asked for."""
    out = packed(folder, models.squares("float"), [{"x": X}])
    command = ["node", "--input-type=module", "-e", CHOICES]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=True, timeout=60)
    rows = json.loads(done.stdout)
    none, no_half = "this browser gives no WebGPU adapter", "this GPU has no shader-f16"
    wasm, unknown = ["wasm fp32"] * 4, ["there is no precision 'int8'; try: auto, half, fp32"] * 4
    expected = [
        "wasm fp32", "webgpu fp32", "webgpu half", "wasm fp32",  # auto, auto
        "wasm half", no_half, "webgpu half", "wasm half", "wasm fp32", "webgpu fp32", "webgpu fp32", "wasm fp32", *unknown,
        none, "webgpu fp32", "webgpu half", "webgpu half", none, no_half, "webgpu half", "webgpu half",
        none, "webgpu fp32", "webgpu fp32", "webgpu fp32", *unknown,
        *wasm, *["wasm half"] * 4, *wasm, *unknown,
        *["there is no backend 'webnn'; try: auto, webgpu, wasm"] * 16,
    ]  # fmt: skip
    assert [row.startswith(want) for row, want in zip(rows, expected, strict=True)] == [True] * 64, rows


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with onnxruntime-web, installed as its README says."""
    folder = tmp_path_factory.mktemp("web")
    out = packed(folder, models.model(TYPES), [TYPED, {name: np.tile(array, (3, 1)) for name, array in TYPED.items()}])
    npm_install(out)
    return out


@pytest.mark.slow
def test_every_type_goes_in_and_comes_out(browser: Browser, small: Path) -> None:
    with served(small) as url:
        for choice in ("?backend=wasm", "?backend=wasm&precision=half"):
            seen = look(browser, url + choice)
            assert seen.result["state"] == "passed", seen.result
            assert seen.status == "verify: passed: the answers are within tolerance"
            outputs = {output["name"]: output["measures"] for output in seen.result["outputs"]}
            assert set(outputs) == set("ygjcve") and not seen.console
            assert all(outputs[name]["agreement"] == 1 for name in "jcv")
            assert all(outputs[name]["rel_l2"] < 1e-3 for name in "yge")


@pytest.mark.slow
def test_webgpu_is_taken_by_itself_and_left_where_it_does_not_take_the_model(browser: Browser, small: Path, folder: Path) -> None:
    out = packed(folder, models.squares("float"), [{"x": X}])
    with_runtime(out, small)
    with served(out) as url:
        seen = look(browser, url, REAL_GPU)
        assert seen.result["state"] == "passed" and (seen.result["backend"], seen.result["precision"]) == ("webgpu", "fp32")
        assert "the GPU has no shader-f16, so the model is FP32" in seen.body and not seen.console
    with served(small) as url:
        seen = look(browser, url, REAL_GPU)
        assert seen.result["state"] == "passed" and seen.result["backend"] == "wasm"
        assert seen.result["why"].startswith("WebGPU does not take this model: ") and not seen.console
        seen = look(browser, url + "?backend=webgpu")
        assert seen.status.startswith("verify: onnxruntime-web 1.30.0 cannot load models/m.fp32.onnx: ")


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_models_give_the_answers_of_the_fp32_model(key: str, browser: Browser, small: Path, folder: Path) -> None:
    """By itself the page takes FP32 on WebAssembly, since Chromium emulates the GPU here."""
    deployed(key, "web", folder, record=1, chunk_bytes=None if key == "minilm_ts" else 1_500_000)
    out = folder / key
    with_runtime(out, small)
    content = json.loads((out / "web.json").read_text("utf-8"))
    assert bool(content["models"]["fp32"]["data"]) == (key != "digits_cnn")
    with served(out) as url:
        automatic = look(browser, url)
        half = look(browser, url + "?backend=wasm&precision=half")
        gpu = look(browser, url + "?backend=webgpu")
    wanted = ((automatic, ("wasm", "fp32"), 2e-4), (half, ("wasm", "half"), 1e-2), (gpu, ("webgpu", "fp32"), 2e-4))
    for seen, place, bound in wanted:
        assert seen.result["state"] == "passed", seen.result
        assert (seen.result["backend"], seen.result["precision"]) == place and not seen.console
        assert all(output["measures"]["rel_l2"] < bound for output in seen.result["outputs"]), seen.result
    assert automatic.result["threads"] > 1 and "WebAssembly" in automatic.body and "ms a run" in automatic.body
    assert half.result["outputs"][0]["measures"]["rel_l2"] > automatic.result["outputs"][0]["measures"]["rel_l2"]


def shorter(out: Path) -> None:
    path = next((out / "models").glob("*.fp32.onnx"))
    path.write_bytes(path.read_bytes()[:-3])


def longer(out: Path) -> None:
    path = next((out / "models").glob("*.fp32.onnx"))
    path.write_bytes(path.read_bytes() + b"\0")


def flipped(out: Path) -> None:
    path = next((out / "models").glob("*.fp32.onnx"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_chunk(out: Path) -> None:
    sorted((out / "models").glob("*.fp32*.data"))[0].unlink()


def no_sample(out: Path) -> None:
    (out / "samples/0.in.0.bin").unlink()


def no_manifest(out: Path) -> None:
    (out / "manifest.json").unlink()


def broken_manifest(out: Path) -> None:
    (out / "manifest.json").write_text("{")


def no_runtime(out: Path) -> None:
    (out / "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs").unlink()


def rewritten(out: Path, path: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file, and the manifest with it: as if halfconv had made it so."""
    data = change((out / path).read_bytes())
    (out / path).write_bytes(data)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    for entry in manifest["files"]:
        if entry["path"] == path:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / "manifest.json").write_text(json.dumps(manifest))


def unknown_operator(out: Path) -> None:
    def change(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        model.graph.node[-1].domain = "example.unknown"
        model.opset_import.append(onnx.helper.make_opsetid("example.unknown", 1))
        return bytes(model.SerializeToString())

    rewritten(out, "models/m.fp32.onnx", change)


def old_runtime(out: Path) -> None:
    rewritten(out, "web.json", lambda data: data.replace(b'"min_ort": "1.20"', b'"min_ort": "1.99"'))


def other_answers(out: Path) -> None:
    rewritten(out, "samples/0.out.0.bin", lambda data: np.full(len(data) // 4, 9, "<f4").tobytes())


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    samples = [{"v0": np.ones((1, 256), np.float32)}]
    deploy(_saved(wide(False), folder), "web", folder / "out", samples=samples, chunk_bytes=600_000)
    with_runtime(folder / "out", small)
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shorter, r"models/m.fp32.onnx was changed: [0-9]+ bytes, not [0-9]+; try: copy the whole package"),
        (longer, r"models/m.fp32.onnx was changed: it has more than [0-9]+ bytes; try: copy"),
        (flipped, "models/m.fp32.onnx was changed: its SHA-256 is not the manifest's; try: copy"),
        (no_chunk, "models/m.fp32-00001-of-00003.data is missing: the server answered 404; try: copy"),
        (no_sample, "samples/0.in.0.bin is missing: the server answered 404; try: copy"),
        (no_manifest, "manifest.json is missing: the server answered 404; try: copy"),
        (broken_manifest, "manifest.json is no JSON; try: copy"),
        (no_runtime, "onnxruntime-web is not at http://.*; try: npm install --ignore-scripts"),
        (unknown_operator, "onnxruntime-web 1.30.0 cannot load models/m.fp32.onnx: .*example.unknown.*; try: another version"),
        (old_runtime, "onnxruntime-web 1.30.0 is too old for this package, which needs 1.99; try: npm install onnxruntime"),
        (other_answers, "FAILED: an output is out of tolerance"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_is_told_on_the_page(
    damage: Callable[[Path], None], words: str, browser: Browser, cut: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(cut, out, copy_function=shutil.copyfile)
    damage(out)
    with served(out) as url:
        seen = look(browser, url + "?backend=wasm")
    assert re.match(f"verify: {words}", seen.status), seen.status
    assert seen.result["state"] == ("failed" if damage is other_answers else "error")
    assert not [line for line in seen.console if "Failed to load resource" not in line], seen.console


@pytest.mark.slow
def test_the_page_can_be_used_by_everybody(browser: Browser, small: Path) -> None:
    """Language, names of every control, headings of the table, and contrast in both colour schemes."""
    with served(small) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#status[data-state=passed]")
        assert page.get_attribute("html", "lang") == "en" and page.title()
        named = {"Run on": "combobox", "Precision": "combobox", "Run": "button", "Download": "progressbar"}
        for name, role in named.items():
            assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
        assert page.get_by_role("status").count() == 1
        assert page.locator("th[scope=col]").count() == 7 and page.locator("th[scope=row]").count() == 6
        assert page.get_by_role("table", name="Drift from the FP32 model, over all samples").count() == 1
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for state in ("passed", "failed", "busy"):
                page.evaluate("state => document.getElementById('status').dataset.state = state", state)
                colours = page.evaluate(
                    "() => ['#status', 'body'].map(s => getComputedStyle(document.querySelector(s)))"
                    ".map((style, k) => k ? style.backgroundColor : style.color)"
                )
                assert contrast(*colours) >= 4.5, (scheme, state, colours)
        page.close()


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two colours in the form ``rgb(r, g, b)``."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
def test_a_person_chooses_and_runs_again(browser: Browser, small: Path) -> None:
    with served(small) as url:
        page = browser.new_page()
        page.goto(url + "?backend=wasm")
        page.wait_for_selector("#status[data-state=passed]")
        page.get_by_label("Precision").select_option("half")
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector("#facts:has-text('FP16 model on WebAssembly')")
        assert page.evaluate("window.halfconv.precision") == "half"
        page.close()
        seen = look(browser, url + "?backend=webgpu&precision=half")
        assert seen.status == "verify: this GPU has no shader-f16, which the FP16 model needs; try: precision fp32"
        seen = look(browser, url + "?backend=webnn")
        assert seen.status == "verify: there is no backend 'webnn'; try: auto, webgpu, wasm"


@pytest.mark.slow
def test_the_server_gives_nothing_outside_of_the_package(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small, out, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "secret").write_text("s")
    (out / "link").symlink_to(tmp_path / "secret")
    with served(out) as url:
        with urllib.request.urlopen(f"{url}web.json") as answer:
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("../secret", "%2e%2e/secret", "..%2fsecret", "link", "samples", "%00", "%"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path)
            assert refused.value.code == 404
            refused.value.close()
