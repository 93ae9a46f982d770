"""The boundary: every float type and container in and out, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import halfconv
from halfconv.runtime import arrays
from halfconv.runtime.held import Request
from tests.runtime import models

FLOATS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
CONTAINERS = ("numpy", "torch", "list", "readonly", "fortran", "strided", "big-endian", "ort")


@pytest.fixture(scope="module")
def sessions() -> Mapping[str, halfconv.Session]:
    """A session per type at the edge; all compute y = 2x."""
    made = {name: halfconv.Session(models.cast_only(name), provider="cpu") for name in ("bfloat16", "float16")}
    for name, onnx_name in (("float32", "float"), ("float64", "double")):
        text = f"g ({onnx_name}[n, 3] x) => ({onnx_name}[n, 3] y) <{onnx_name} two = {{2}}> {{ y = Mul(x, two) }}"
        made[name] = halfconv.Session(models.model(text), provider="cpu")
    return made


def contained(array: np.ndarray[Any, Any], how: str) -> Any:
    """Give an array in another form; what a form cannot hold stays as it is."""
    name = array.dtype.name
    if how == "torch":
        if name == "bfloat16":
            return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(array)
    if how == "list" and name == "float64" and len(array):
        return array.tolist()
    if how == "readonly":
        array = array.copy()
        array.flags.writeable = False
    elif how == "fortran":
        return np.asfortranarray(array)
    elif how == "strided":
        return np.repeat(array, 2, axis=1)[:, ::2]
    elif how == "big-endian" and name != "bfloat16":
        return array.astype(array.dtype.newbyteorder(">"))
    elif how == "ort" and name != "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    elif how == "ort":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
    return array


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FLOATS)), st.sampled_from(sorted(FLOATS)), st.sampled_from([None, *sorted(FLOATS)]),
    st.sampled_from(CONTAINERS), st.integers(0, 5), st.data(),
)  # fmt: skip
def test_any_float_in_any_container_gives_the_same(
    sessions: Mapping[str, halfconv.Session], have: str, want: str, out: str | None, how: str, rows: int, data: st.DataObject
) -> None:
    numbers = data.draw(hnp.arrays(np.float64, (rows, 3), elements=st.floats(-1000, 1000)))
    given_array = numbers.astype(FLOATS[have])
    session = sessions[want]
    value = contained(given_array, how)
    before = given_array.copy()
    held = session._engine._held
    held.settings = replace(held.settings, output=out)
    try:
        (result,) = session.run({"x": value}).values()
    finally:
        held.settings = replace(held.settings, output=None)
    inside = given_array.astype(FLOATS[want])
    expected = (inside.astype(np.float64) * 2).astype(FLOATS[want])
    assert result.dtype == np.dtype(FLOATS[out or want])
    assert result.shape == (rows, 3)
    np.testing.assert_array_equal(result, expected.astype(FLOATS[out or want]))
    np.testing.assert_array_equal(given_array, before)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32)))
def test_bf16_rounds_and_widens_without_ml_dtypes_as_with_it(numbers: np.ndarray[Any, Any]) -> None:
    with np.errstate(all="ignore"):
        expected = numbers.astype(ml_dtypes.bfloat16)
    known = arrays._bfloat16
    try:
        arrays._bfloat16 = lambda: None  # type: ignore[assignment]
        bits = arrays.narrow(numbers)
    finally:
        arrays._bfloat16 = known
    nan = np.isnan(numbers)
    np.testing.assert_array_equal(bits[~nan], expected.view(np.uint16)[~nan])
    wide = arrays.widen(bits)
    assert np.isnan(wide[nan]).all()
    np.testing.assert_array_equal(wide[~nan], expected.astype(np.float32)[~nan])


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_finite_number_that_fp16_cannot_hold_is_refused(sessions: Mapping[str, halfconv.Session], source: str, size: int) -> None:
    x = np.full((size, 3), 70000, source)
    with pytest.raises(halfconv.InputError, match=r"'x' holds finite numbers beyond float16's largest, 65504; try: clip"):
        sessions["float16"].run({"x": x})


def test_infinities_and_nan_pass(sessions: Mapping[str, halfconv.Session]) -> None:
    x = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    for session in sessions.values():
        np.testing.assert_array_equal(session.run({"x": x})["y"].astype(np.float64), [[np.inf, -np.inf, np.nan]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 4), np.float32), r"input 'x' has the shape \[2, 4\]; try: float16\[n, 3\]"),
        (np.zeros(3, np.float32), r"input 'x' has the shape \[3\]; try: float16\[n, 3\]"),
        (np.float32(1), r"input 'x' has the shape \[\]; try: float16\[n, 3\]"),
        (np.zeros((2, 3), np.uint8), r"input 'x' is uint8; try: float16\[n, 3\] \(integers"),
        (np.zeros((2, 3), bool), r"input 'x' is bool; try: float16\[n, 3\]"),
        (np.zeros((2, 3), complex), r"input 'x' is complex128; try: float16\[n, 3\]"),
        (np.array([["a", "b", "c"]]), r"input 'x' is string; try: float16\[n, 3\]"),
        ([[1.0, 2.0, 3.0], [1.0]], r"input 'x' is no array: .*; try: float16\[n, 3\]"),
        (None, r"input 'x' is a NoneType; try: float16\[n, 3\]"),
        ({"a": 1}, r"input 'x' is a dict; try: float16\[n, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(sessions: Mapping[str, halfconv.Session], value: Any, message: str) -> None:
    with pytest.raises(halfconv.InputError, match=message):
        sessions["float16"].run({"x": value})


class Shared:
    """An array of a library of which only DLPack is known."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
def test_dlpack_of_another_library_gives_the_same(sessions: Mapping[str, halfconv.Session], kind: str) -> None:
    tensor = torch.tensor([[1.00390625, -3.0, 0.1], [4.0, 5.0, 6.0]]).to(getattr(torch, kind))
    for session in sessions.values():
        expected = session.run({"x": tensor})["y"]
        np.testing.assert_array_equal(session.run({"x": Shared(tensor)})["y"], expected)


@pytest.mark.parametrize("buffers", [False, True])
def test_long_doubles_are_floats(sessions: Mapping[str, halfconv.Session], buffers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for want, session in sessions.items():
        numbers = np.array([[0.1, -3, 1e-3], [4, 5, 1000]], np.longdouble)
        expected = (numbers.astype(FLOATS[want]).astype(np.float64) * 2).astype(FLOATS[want])
        if not buffers:
            np.testing.assert_array_equal(session.run({"x": numbers})["y"], expected)
        elif want == "float16":
            engine = models.with_graphs(monkeypatch, models.cast_only(want), graph=True)
            for _ in range(5):  # the later ones take a route
                np.testing.assert_array_equal(engine.run(Request({"x": numbers}))["y"], expected)
            engine.close()
    with pytest.raises(halfconv.InputError, match="beyond float16's largest"):
        sessions["float16"].run({"x": np.full((1, 3), 1e300, np.longdouble)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 3).to_sparse(), r"input 'x', a Tensor, cannot be read: .*[Ss]parse.*; try: an array of float16\[n, 3\]"),
        (torch.empty(2, 3, device="meta"), r"input 'x', a Tensor, cannot be read: .*meta tensor.*; try: an array of float16"),
        (torch.ones(2, 3).to(torch.float8_e4m3fn), r"input 'x', a Tensor, cannot be read: .*Float8.*; try: an array of float16"),
        (Shared(torch.ones(2, 3).requires_grad_()), r"input 'x', a Shared, cannot be read: .*gradient.*; try: an array of float16"),
        (Shared(torch.ones(3, 2).bfloat16().T), r"input 'x', a Shared, cannot be read: .*contiguous.*; try: an array of float16"),
    ],
)
def test_what_its_own_library_cannot_give_is_an_input_error(
    sessions: Mapping[str, halfconv.Session], value: Any, message: str
) -> None:
    with pytest.raises(halfconv.InputError, match=message):
        sessions["float16"].run({"x": value})


def test_no_output_at_all_is_refused(sessions: Mapping[str, halfconv.Session]) -> None:
    with pytest.raises(halfconv.InputError, match="outputs names no output; try: names of outputs, or None for all"):
        sessions["float16"].run({"x": np.zeros((1, 3))}, [])


def test_output_may_be_torchs_type() -> None:
    session = halfconv.Session(models.squares(), provider="cpu", output=torch.bfloat16)
    assert session.run({"x": np.ones((1, 4))})["y"].dtype == ml_dtypes.bfloat16


def test_lists_of_integers_are_numbers(sessions: Mapping[str, halfconv.Session]) -> None:
    for session in sessions.values():
        assert session.run({"x": [[1, 2, 3]]})["y"].tolist() == [[2, 4, 6]]


def test_names_are_checked(sessions: Mapping[str, halfconv.Session]) -> None:
    session = sessions["float16"]
    x = np.zeros((1, 3), np.float16)
    with pytest.raises(halfconv.InputError, match=r"an input is missing; try: give 'x': float16\[n, 3\]"):
        session.run({})
    with pytest.raises(halfconv.InputError, match=r"the model has no input 'xx'; try: 'x'"):
        session.run({"x": x, "xx": x})
    with pytest.raises(halfconv.InputError, match=r"the model has no output 'z'; try: 'y'"):
        session.run({"x": x}, ["z"])
    with pytest.raises(halfconv.InputError, match="the inputs are a list; try: a dictionary"):
        session.run([x])  # type: ignore[arg-type]


@pytest.mark.parametrize(("have", "want", "fits"), [
    ("int32", "int64", True), ("uint8", "int32", True), ("int64", "int32", False), ("bool", "int64", False),
    ("float32", "int64", False), ("int64", "int64", True), ("uint64", "int64", False),
])  # fmt: skip
def test_integers_are_only_widened(have: str, want: str, fits: bool) -> None:
    session = halfconv.Session(models.model(f"g ({want}[n] x) => ({want}[n] y) {{ y = Identity(x) }}"), provider="cpu")
    x = np.array([1, 0, 1], have)
    if not fits:
        with pytest.raises(halfconv.InputError, match=rf"input 'x' is {have}; try: {want}\[n\]"):
            session.run({"x": x})
        return
    y = session.run({"x": x})["y"]
    assert y.dtype == want and y.tolist() == [1, 0, 1]


def test_listed_integers_beyond_the_type_are_refused() -> None:
    session = halfconv.Session(models.model("g (int32[n] x) => (int32[n] y) { y = Identity(x) }"), provider="cpu")
    assert session.run({"x": [1, 2]})["y"].dtype == np.int32
    with pytest.raises(halfconv.InputError, match="integers beyond int32"):
        session.run({"x": [1 << 40]})


def test_texts_and_what_is_no_tensor() -> None:
    text = "g (string[n] x) => (string[n] y, seq(string[n]) z) { y = Identity(x) z = SequenceConstruct(x, x) }"
    session = halfconv.Session(models.model(text), provider="cpu")
    for given_text in (["a", "bc"], np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        found = session.run({"x": given_text}, to="torch")
        assert list(found["y"]) == ["a", "bc"]
        assert [list(part) for part in found["z"]] == [["a", "bc"]] * 2


@pytest.mark.parametrize("edge", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("output", [None, "bfloat16", "float32", np.float16])
def test_outputs_as_torch_and_ort(edge: str, output: Any) -> None:
    text = {"float32": "g (float[n, 3] x) => (float[n, 3] y) <float two = {2}> { y = Mul(x, two) }"}
    source = models.model(text[edge]) if edge in text else models.cast_only(edge)
    x = np.array([[1, 2.5, -3]], np.float32)
    with halfconv.Session(source, provider="cpu", output=output or "same as model") as session:
        expected = np.dtype(output).name if output is not None and output != "bfloat16" else output or edge
        tensor = session.run({"x": x}, to="torch")["y"]
        assert str(tensor.dtype) == f"torch.{expected}" and tensor.tolist() == [[2, 5, -6]]
        value = session.run({"x": x}, to="ort")["y"]
        assert value.data_type() == {"float32": "tensor(float)"}.get(expected, f"tensor({expected})")
        assert session.run({"x": value})["y"].astype(float).tolist() == [[4, 10, -12]]


def test_results_are_the_callers_own(sessions: Mapping[str, halfconv.Session]) -> None:
    for session, to in itertools.product(sessions.values(), ("numpy", "torch")):
        x = np.ones((2, 3), np.float32)
        first = session.run({"x": x}, to=to)["y"]
        session.run({"x": x * 7})
        assert first.tolist() == [[2.0] * 3] * 2
        first[...] = 0  # and may be written


@pytest.mark.parametrize("output", ["int8", "double precision", 3, bool])
def test_output_is_a_float_type(output: Any) -> None:
    with pytest.raises(halfconv.UsageError, match=r"output=.*; try: 'same as model', 'bfloat16', 'float16', 'float32', 'float64'"):
        halfconv.Session(models.squares(), output=output)


def test_containers_that_are_not_there() -> None:
    session = halfconv.Session(models.squares(), provider="cpu")
    with pytest.raises(halfconv.UsageError, match="to='cupy', but cupy is not imported; try: import cupy, or to='numpy'"):
        session.run({"x": np.zeros((1, 4))}, to="cupy")
    with pytest.raises(halfconv.UsageError, match="to='jax'; try: 'numpy', 'torch', 'cupy', 'ort'"):
        session.run({"x": np.zeros((1, 4))}, to="jax")


def test_an_input_that_is_an_initialiser_may_be_left_out() -> None:
    import onnx

    made = onnx.load_from_string(models.model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"))
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2]))
    session = halfconv.Session(made.SerializeToString(), provider="cpu")
    assert session.inputs == {"x": "float32[2]"}
    assert session.run({"x": [1, 1]})["y"].tolist() == [1, 2]
    assert session.run({"x": [1, 1], "w": [5, 6]})["y"].tolist() == [5, 6]
