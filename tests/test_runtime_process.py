"""Messages to and from the process that runs models: data goes through as it is, and nothing else goes through."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from halfconv.runtime.session_server import receive, send

NUMBERS = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text() | st.binary()
ARRAYS = st.sampled_from([np.float32, np.float16, np.int64, np.bool_, np.uint8, np.float64, np.complex64]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
MESSAGES = st.recursive(
    NUMBERS | ARRAYS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4)
)


def through(message: Any) -> Any:
    stream = io.BytesIO()
    send(stream, message)
    stream.seek(0)
    back = receive(stream)
    assert not stream.read()
    return back


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


@settings(derandomize=True, deadline=None)
@given(MESSAGES)
def test_messages_arrive_as_they_are(message: Any) -> None:
    assert same(message, through(message))


def test_arrays_of_texts_and_of_other_types_arrive() -> None:
    texts = through(np.array([["a", "ü"], ["", b"c"]], object))
    assert texts.dtype == object and texts.tolist() == [["a", "ü"], ["", "c"]]
    half = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert same(half, through(half)) and through(half).flags.writeable
    assert np.isnan(through(float("nan")))


@pytest.mark.parametrize("message", [object(), {1, 2}, lambda: 0, np.array([object()], object).dtype])
def test_nothing_but_data_is_sent(message: Any) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        send(io.BytesIO(), message)


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_a_message_that_is_cut_off_is_the_end(size: int) -> None:
    stream = io.BytesIO()
    send(stream, [1, np.zeros(4)])
    with pytest.raises(EOFError):
        receive(io.BytesIO(stream.getvalue()[:size]))


NO_MESSAGES = ['{"message": {"array": 5, "dtype": "object", "shape": [1]}, "buffers": 0}', "[]x", '{"buffers": 0}']


@pytest.mark.parametrize("text", NO_MESSAGES)
def test_what_is_no_message_makes_no_object(text: str) -> None:
    data = text.encode()
    with pytest.raises((ValueError, LookupError, TypeError)):
        receive(io.BytesIO(struct.pack("<Q", len(data)) + data))


def test_an_array_of_objects_cannot_be_made() -> None:
    text = json.dumps({"message": {"array": 0, "dtype": "object", "shape": [1]}, "buffers": 1}).encode()
    parts = b"".join(struct.pack("<Q", len(part)) + part for part in (text, b"\0" * 8))
    with pytest.raises(ValueError, match="OBJECT"):
        receive(io.BytesIO(parts))
