"""Samples: every form that people keep them in, and a clear word on each that cannot be used."""

from __future__ import annotations

import base64
import io
import json
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib import format as npy

from halfconv import polygraphy_json
from halfconv.errors import InputError, UsageError
from halfconv.samples import InputSpec, Sample, open_samples

X = InputSpec("x", "float32", ("batch", 3))
IDS = InputSpec("ids", "int64", ("batch", "seq"))
MASK = InputSpec("mask", "int64", ("batch", "seq"))


def opened(source: Any, *specs: InputSpec) -> list[Sample]:
    samples = open_samples(source, specs or (X,))
    found = list(samples)
    again = list(samples)
    assert [s.name for s in found] == [s.name for s in again]
    for a, b in zip(found, again, strict=True):
        for name, value in a.feeds.items():
            for one, other in zip(value, b.feeds[name], strict=True) if isinstance(value, list) else [(value, b.feeds[name])]:
                assert np.array_equal(one, other), name
    return found


def refused(source: Any, *specs: InputSpec) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        list(open_samples(source, specs or (X,)))
    text = str(caught.value)
    assert "\n" not in text and "; try: " in text
    return text


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


# --- .npz ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_one_sample(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "s.npz", x=array(2, 3), label=np.array([1, 2]))
    [sample] = opened(tmp_path / "s.npz")
    assert sample.name == "s.npz"
    assert np.array_equal(sample.feeds["x"], array(2, 3)) and sample.feeds["x"].flags.writeable
    assert np.array_equal(sample.extras["label"], [1, 2])
    assert open_samples(str(tmp_path / "s.npz"), [X]).kind == "given"


def test_names_with_slashes(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **{"gpu_0/data_0": array(1, 3)})
    [sample] = opened(tmp_path / "s.npz", InputSpec("gpu_0/data_0", "float32", (1, 3)))
    assert sample.feeds["gpu_0/data_0"].shape == (1, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_with_one_more_axis_holds_several_samples(tmp_path: Path, save: Any) -> None:
    whole = array(5, 2, 3)
    save(tmp_path / "s.npz", x=whole, sr=array(5, dtype=np.int64), label=np.array(list("abcde")), note=np.array(7))
    found = opened(tmp_path / "s.npz", X, InputSpec("sr", "int64", ()))
    assert [s.name for s in found] == [f"s.npz[{i}]" for i in range(5)]
    for i, sample in enumerate(found):
        assert np.array_equal(sample.feeds["x"], whole[i]) and sample.feeds["sr"] == i
        assert sample.extras["label"] == "abcde"[i] and sample.extras["note"] == 7


def test_a_header_that_grows_is_not_read(tmp_path: Path) -> None:
    """Version 2 of the format lets a header say that it has 4 GiB; an archive holds as many spaces in 4 MB."""
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(b"\x93NUMPY\x02\x00" + (64 << 20).to_bytes(4, "little"))
        for _ in range(64):
            member.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"s\.npz: array 'x': cannot be read"):
            opened(tmp_path / "s.npz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_an_npz_in_fortran_order(tmp_path: Path) -> None:
    whole = np.asfortranarray(array(4, 2, 3))
    np.savez(tmp_path / "s.npz", x=whole)
    assert all(np.array_equal(sample.feeds["x"], whole[i]) for i, sample in enumerate(opened(tmp_path / "s.npz")))
    np.savez(tmp_path / "one.npz", x=whole[0])
    assert np.array_equal(opened(tmp_path / "one.npz")[0].feeds["x"], whole[0])


def test_an_npz_with_a_multiple_of_a_fixed_batch_holds_several_samples(tmp_path: Path) -> None:
    specs = (InputSpec("a", "float32", (2, 3)), InputSpec("b", "float32", (1, "n")))
    np.savez(tmp_path / "s.npz", a=array(6, 3), b=array(3, 4), label=array(6), row=array(3, 1), other=array(5))
    found = opened(tmp_path / "s.npz", *specs)
    assert len(found) == 3
    for i, sample in enumerate(found):
        assert np.array_equal(sample.feeds["a"], array(6, 3)[2 * i : 2 * i + 2])
        assert np.array_equal(sample.feeds["b"], array(3, 4)[i : i + 1])
        assert np.array_equal(sample.extras["label"], [2 * i, 2 * i + 1])
        assert np.array_equal(sample.extras["row"], array(3, 1)[i : i + 1]) and sample.extras["other"].shape == (5,)


def test_a_free_batch_axis_is_not_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=array(8, 3))
    assert opened(tmp_path / "s.npz")[0].feeds["x"].shape == (8, 3)


def test_no_multiple_is_no_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=array(5, 3))
    assert "shape (5, 3), expected (2, 3)" in refused(tmp_path / "s.npz", InputSpec("x", "float32", (2, 3)))


def test_arrays_of_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", ids=array(4, 1, 2, dtype=np.int64), mask=array(3, 1, 2, dtype=np.int64))
    assert "different numbers of samples: 'ids' 4, 'mask' 3" in refused(tmp_path / "s.npz", IDS, MASK)


def test_no_samples_in_an_empty_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=array(0, 2, 3))
    assert "holds no sample" in refused(tmp_path / "s.npz")


def test_empty_arrays_and_scalars(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=array(0, 3), s=np.float32(2))
    [sample] = opened(tmp_path / "s.npz", X, InputSpec("s", "float32", ()))
    assert sample.feeds["x"].shape == (0, 3) and sample.feeds["s"] == 2


# --- directories ---------------------------------------------------------------------------------------------------


def test_a_directory_of_npz_in_natural_order(tmp_path: Path) -> None:
    for i in range(12):
        np.savez(tmp_path / f"s{i}.npz", x=np.full((1, 3), i, np.float32))
    (tmp_path / "README").write_text("ignored")
    found = opened(tmp_path)
    assert [s.name for s in found] == [f"s{i}.npz" for i in range(12)]
    assert [s.feeds["x"][0, 0] for s in found] == list(range(12))


def test_a_directory_of_npy_of_a_one_input_model(tmp_path: Path) -> None:
    for i in (10, 2):
        np.save(tmp_path / f"img{i}.npy", np.full((1, 3), i, np.float32))
    assert [s.name for s in opened(tmp_path)] == ["img2.npy", "img10.npy"]
    assert opened(tmp_path / "img2.npy")[0].feeds["x"][0, 0] == 2


def test_a_directory_of_npy_by_input_name(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", array(1, 4, dtype=np.int64))
    np.save(tmp_path / "mask.npy", array(1, 4, dtype=np.int64))
    np.save(tmp_path / "label.npy", array(1))
    [sample] = opened(tmp_path, IDS, MASK)
    assert sample.feeds.keys() == {"ids", "mask"} and sample.extras.keys() == {"label"}
    [sample] = opened(tmp_path, IDS)
    assert sample.feeds.keys() == {"ids"} and sample.extras.keys() == {"label", "mask"}


def test_subdirectories_of_npy(tmp_path: Path) -> None:
    for i in (11, 3):
        folder = tmp_path / f"case{i}"
        folder.mkdir()
        np.save(folder / "ids.npy", np.full((1, 4), i))
        np.save(folder / "mask.npy", np.ones((1, 4), int))
    found = opened(tmp_path, IDS, MASK)
    assert [s.name for s in found] == ["case3", "case11"] and found[0].feeds["ids"][0, 0] == 3


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no .npz" in refused(tmp_path)
    np.save(tmp_path / "a.npy", array(1, 3))
    np.savez(tmp_path / "a.npz", x=array(1, 3))
    assert "holds .npz and .npy files" in refused(tmp_path)
    assert "is one array, but the model has 2 inputs (ids, mask)" in refused(tmp_path / "a.npy", IDS, MASK)
    assert "no such file" in refused(tmp_path / "absent.npz")
    (tmp_path / "a.csv").write_text("1,2")
    assert "is no file of samples" in refused(tmp_path / "a.csv")


# --- damaged and hostile files -------------------------------------------------------------------------------------


def header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return npy.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode()


def zipped(path: Path, content: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("x.npy", content)
    return path


@pytest.mark.parametrize("shape", ["(1000000000000, 3)", "(10000000000000000000000000, 3)"])
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_header_that_declares_more_than_there_is(tmp_path: Path, kind: str, shape: str) -> None:
    path = tmp_path / f"s.{kind}"
    if kind == "npz":
        zipped(path, header("<f4", shape) + b"1234", compression=zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(header("<f4", shape) + b"1234")
    assert "bytes, but holds 4 (truncated?)" in refused(path)


def test_a_zip_that_lies_about_its_size_costs_no_memory(tmp_path: Path) -> None:
    declared = 3 * 4 * 250_000_000
    path = zipped(tmp_path / "s.npz", header("<f4", "(250000000, 3)") + bytes(1000), compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = (declared + 128).to_bytes(4, "little")  # the uncompressed size in the directory
    path.write_bytes(data)
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"PK no zip", "cannot be read"),
        (header("<f4", "(-1, 3)"), "unusable type float32 or shape"),
        (header("|O", "(1, 3)"), "holds pickled Python objects"),
        (header("<U0", "(1000000000000,)"), "unusable type"),
        (header("<f4", "(1, 3"), "cannot be read"),
        (header("<f4", "__import__('os')"), "cannot be read"),
        (header("nonsense", "(1, 3)"), "cannot be read"),
        (header("<f4", "(1, 3)").replace(b"\x01\x00", b"\x09\x00", 1), "version 9.0 of the npy format"),
        (header("<f4", "(" * 3000), "cannot be read"),
        (header("<f4", "(0, 1000000000000000000000000)"), "cannot be read"),
    ],
)
def test_damaged_arrays(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.npy"
    path.write_bytes(content)
    assert message in refused(path) and "s.npy" in refused(path)
    assert message in refused(zipped(tmp_path / "s.npz", content))


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        assert "s.npz" in refused(path)
    for place in range(40, len(whole) - 150, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(InputError):  # a byte may also be one that nobody reads, as the time of writing
            opened(path)
    zipped(path, b"").write_bytes(whole[:0])
    assert "s.npz" in refused(path)


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "holds no array" in refused(tmp_path / "s.npz")


# --- what is checked -----------------------------------------------------------------------------------------------


def test_a_missing_input_names_what_is_close(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", input_id=array(1, 2, dtype=np.int64), other=array(1))
    text = refused(tmp_path / "s.npz", InputSpec("input_ids", "int64", (1, 2)))
    assert "s.npz: input 'input_ids' is missing; found input_id, other; try: rename 'input_id'" in text
    assert "found nothing" in refused([{}])


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((2, 4), ("batch", 3), "input 'x' has shape (2, 4), expected (batch, 3)"),
        ((2, 3, 1), ("batch", 3), "has shape (2, 3, 1), expected (batch, 3)"),
        ((3,), (None, 3), "has shape (3,), expected (?, 3)"),
        ((3,), (4,), "has shape (3,), expected (4,)"),
        ((2, 3), ("n", "n"), "expected (n, n) with n = 2, as input 'x' has it"),
    ],
)
def test_shapes(shape: tuple[int, ...], spec: Any, message: str) -> None:
    assert message in refused([{"x": array(*shape)}], InputSpec("x", "float32", spec))


def test_dimensions_that_say_nothing_need_not_agree() -> None:
    for dim in ("?", -1, None, "", "-1"):
        assert opened([{"x": array(2, 3)}], InputSpec("x", "float32", (dim, dim)))
    assert opened([{"x": array(2, 3)}], InputSpec("x", "float32"))


def test_symbols_agree_within_a_sample_but_not_between_samples() -> None:
    def sample(n: int, m: int) -> dict[str, np.ndarray]:
        return {"ids": array(1, n, dtype=np.int64), "mask": array(1, m, dtype=np.int64)}

    assert len(opened([sample(4, 4), sample(7, 7)], IDS, MASK)) == 2
    text = refused([sample(4, 4), sample(4, 5)], IDS, MASK)
    assert "sample 1: input 'mask' has shape (1, 5), expected (batch, seq) with seq = 4, as input 'ids' has it" in text


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (np.float64, "float32"),
        (np.float16, "float32"),
        (ml_dtypes.bfloat16, "float32"),
        (np.float32, "float16"),
        (np.float32, "bfloat16"),
        (np.float64, "bfloat16"),
        (">f4", "float32"),
        (np.int32, "int64"),
        (np.uint8, "int64"),
        (np.int64, "int8"),
        (np.complex128, "complex64"),
    ],
)
def test_casts_within_a_kind(have: Any, want: str) -> None:
    [sample] = opened([{"x": array(2, 3).astype(have)}], InputSpec("x", want, (2, 3)))
    assert sample.feeds["x"].dtype.name == want and sample.feeds["x"].dtype.isnative
    assert np.array_equal(sample.feeds["x"].astype(complex), array(2, 3))


@pytest.mark.parametrize(
    ("value", "want", "message"),
    [
        (array(3), "int64", "input 'x' has type float32, expected int64"),
        (array(3, dtype=np.int64), "float32", "has type int64, expected float32; try: array.astype('float32')"),
        (array(3, dtype=np.int64), "bool", "has type int64, expected bool"),
        (np.ones(3, bool), "int64", "has type bool, expected int64"),
        (np.array(["a"]), "float32", "has type string, expected float32"),
        (array(3), "string", "has type float32, expected string"),
        (np.array([b"a", 1], object), "string", "has type object, expected string"),
        (np.array([1, 300]), "uint8", "holds 300, beyond the range of uint8"),
        (np.array([-1, 3]), "uint8", "holds -1, beyond the range of uint8"),
        (np.array([2**64 - 1], np.uint64), "int64", "beyond the range of int64"),
        (np.array([1.0, 1e6]), "float16", "holds 1e+06, beyond the range of float16"),
        (np.array([1e300]), "bfloat16", "holds 1e+300, beyond the range of bfloat16"),
        (array(3), "float7", "wants the type float7"),
        ([[1], [2, 3]], "float32", "is a list that is no array"),
    ],
)
def test_what_cannot_be_cast(value: Any, want: str, message: str) -> None:
    assert message in refused([{"x": value}], InputSpec("x", want))


def test_infinities_may_be_cast() -> None:
    [sample] = opened([{"x": np.array([np.inf, -np.inf, 1.0])}], InputSpec("x", "float16", (3,)))
    assert np.isinf(sample.feeds["x"][:2]).all()


def test_bfloat16_as_numpy_stores_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=array(2, 3).astype(ml_dtypes.bfloat16))
    [sample] = opened(tmp_path / "s.npz", InputSpec("x", "bfloat16", (2, 3)))
    assert np.array_equal(sample.feeds["x"], array(2, 3).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("texts", [np.array(["a", "bé"]), np.array(["a", "bé"], object), np.array([b"a", b"b"])])
def test_strings(tmp_path: Path, texts: np.ndarray) -> None:
    spec = InputSpec("x", "string", (2,))
    if texts.dtype.kind != "S":
        [sample] = opened([{"x": texts}], spec)
        assert sample.feeds["x"].dtype == object and sample.feeds["x"][1] == "bé"
    if texts.dtype.kind != "O":
        np.savez(tmp_path / "s.npz", x=texts)
        assert opened(tmp_path / "s.npz", spec)[0].feeds["x"].tolist() == texts.astype(str).tolist()
    else:
        np.savez(tmp_path / "s.npz", x=texts)
        assert "holds pickled Python objects" in refused(tmp_path / "s.npz", spec)


def test_sequences_and_optionals() -> None:
    sequence = InputSpec("s", "float32", ("n",), sequence=True)
    optional = InputSpec("o", "float32", (2,), optional=True)
    first, second = opened([{"s": [array(2), array(3)]}, {"s": array(4, 2), "o": array(2)}], sequence, optional)
    assert [item.shape for item in first.feeds["s"]] == [(2,), (3,)] and "o" not in first.feeds
    assert [item.shape for item in second.feeds["s"]] == [(2,)] * 4 and second.feeds["o"].shape == (2,)
    assert "o" not in opened([{"s": [], "o": None}], sequence, optional)[0].feeds
    assert "input 's'[1] has shape (2, 2)" in refused([{"s": [array(2), array(2, 2)]}], sequence)


# --- Python --------------------------------------------------------------------------------------------------------


def test_iterables_and_callables() -> None:
    def function() -> Iterator[dict[str, Any]]:
        for i in range(3):
            yield {"x": np.full((1, 3), i, np.float32), "label": i}

    for source in (function, list(function()), tuple(function())):
        found = opened(source)
        assert [(s.name, s.extras["label"]) for s in found] == [(f"sample {i}", i) for i in range(3)]
    assert len(opened({"x": [[1.0, 2.0, 3.0]]})) == len(opened(lambda: {"x": [[1.0, 2.0, 3.0]]})) == 1
    samples = open_samples(function, [X])
    assert open_samples(samples, [X]) is samples


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert opened([{"x": torch.ones(1, 3, requires_grad=True)}])[0].feeds["x"].sum() == 3


def test_an_iterator_is_read_once() -> None:
    samples = open_samples(iter([{"x": array(1, 3)}]), [X])
    assert len(list(samples)) == 1
    with pytest.raises(InputError, match="can be read only once"):
        list(samples)


def test_what_the_users_code_does_wrong() -> None:
    def late() -> Iterator[Any]:
        yield {"x": array(1, 3)}
        raise RuntimeError("disk\nfull")

    assert "sample 1: raised RuntimeError: disk full" in refused(late)
    assert "raised ZeroDivisionError" in refused(lambda: 1 // 0)
    assert "sample 0 is a ndarray, not a dictionary" in refused([array(1, 3)])
    assert "is no iterable" in refused(lambda: 3)
    assert "holds no sample" in refused([])
    assert "samples of type int cannot be read" in refused(3)


def test_a_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfconv_given.py").write_text(
        "import numpy as np\nNUMBER = 3\ndef load():\n    yield {'x': np.ones((1, 3), np.float32)}\n"
        "class Data:\n    load = staticmethod(load)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert len(opened("halfconv_given:load")) == len(opened("halfconv_given:Data.load")) == 1
    assert "has no 'laod'; try: load" in refused("halfconv_given:laod")
    assert "is a int, not a function" in refused("halfconv_given:NUMBER")
    assert "cannot import halfconv_absent" in refused("halfconv_absent:load")


# --- Polygraphy ----------------------------------------------------------------------------------------------------


def encoded(value: np.ndarray) -> dict[str, str]:
    """As polygraphy.json.to_json writes an array."""
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return {"array": base64.b64encode(stream.getvalue()).decode(), "polygraphy_class": "ndarray"}


def feeds(count: int) -> list[dict[str, Any]]:
    return [{"x": encoded(np.full((1, 3), i, np.float32)), "la\"be\\l]": encoded(np.array(i))} for i in range(count)]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 4])
def test_polygraphys_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None) -> None:
    monkeypatch.setattr(polygraphy_json, "BLOCK", block)
    path = tmp_path / "inputs.json"
    path.write_text(json.dumps(feeds(3), indent=indent) + "\n")
    found = opened(path)
    assert [s.name for s in found] == [f"inputs.json[{i}]" for i in range(3)]
    assert [s.feeds["x"][0, 0] for s in found] == [0, 1, 2] and found[2].extras["la\"be\\l]"] == 2


def test_other_forms_of_polygraphys_json(tmp_path: Path) -> None:
    old = {"x": {"__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type", "array": encoded(array(1, 3))["array"]}}
    raw = io.BytesIO()
    np.savez(raw, array(1, 3))
    older = {"x": {"array": raw.getvalue().decode("latin-1"), "polygraphy_class": "ndarray"}}
    lazy = {"x": {"values": encoded(array(1, 3)), "polygraphy_class": "LazyArray"}}
    plain = {"x": [[0, 1.0, 2]]}
    for content in (old, older, lazy, plain, [old, plain]):
        (tmp_path / "inputs.json").write_text(json.dumps(content))
        assert np.array_equal(opened(tmp_path / "inputs.json")[0].feeds["x"], array(1, 3))
    (tmp_path / "inputs.json").write_text("[]")
    assert "holds no sample" in refused(tmp_path / "inputs.json")


def test_a_directory_of_polygraphys_json(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i:010}.json").write_text(json.dumps(feeds(2)[i]))
    assert [s.feeds["x"][0, 0] for s in opened(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[", "ends within the list"),
        ('[{"x": 1}', "ends within the list"),
        ('[{"x": [[1.0, 2, 3]]},, {"x": 2}]', "is no JSON"),
        ('[{"x": [[1.0, 2, 3]]}] []', "text follows the list"),
        ("nonsense", "is no JSON"),
        ("[1, 2]", "element 0 is a int, not a dictionary"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('[{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}]', "cannot be read"),
        ('[{"x": {"tensor": "AAAA", "polygraphy_class": "Tensor"}}]', "holds a Tensor"),
        ('{"lst": [], "polygraphy_class": "RunResults"}', "holds a RunResults"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "inputs.json").write_text(text)
    assert message in refused(tmp_path / "inputs.json")


def test_json_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_bytes(b"[\xff]")
    assert "is no JSON" in refused(tmp_path / "inputs.json")


# --- memory --------------------------------------------------------------------------------------------------------


def peak(source: Any) -> int:
    tracemalloc.start()
    try:
        for sample in open_samples(source, [InputSpec("x", "float32", (1, 25_000))]):
            assert sample.feeds["x"].shape == (1, 25_000)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_thousand_samples_use_no_more_memory_than_ten(tmp_path: Path) -> None:
    x = np.zeros((1000, 1, 25_000), np.float32)
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 10), (many, 1000)):
        folder.mkdir()
        for i in range(count):
            np.savez_compressed(folder / f"{i}.npz", x=x[i])
    assert peak(many) < peak(few) + 800_000
    np.savez_compressed(tmp_path / "few.npz", x=x[:10])
    np.savez_compressed(tmp_path / "many.npz", x=x)
    assert peak(tmp_path / "many.npz") < peak(tmp_path / "few.npz") + 800_000
    text = json.dumps([{"x": encoded(x[0])}] * 10)
    (tmp_path / "few.json").write_text(text)
    (tmp_path / "many.json").write_text("[" + ", ".join([text[1:-1]] * 20) + "]")
    assert peak(tmp_path / "many.json") < peak(tmp_path / "few.json") + 4 * polygraphy_json.BLOCK
