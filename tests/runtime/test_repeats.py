"""Requests that come again take a way that is remembered: whatever came before, each gets what its own inputs give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfconv.errors import InputError
from halfconv.runtime import binding
from halfconv.runtime import engine as module
from halfconv.runtime.held import Request
from tests.runtime import models

KINDS = [np.float16, np.float32, np.float64, np.dtype(">f4"), "bfloat16"]
REQUEST = st.tuples(
    st.integers(1, 9), st.sampled_from(KINDS), st.sampled_from([None, ["y"], ["s", "y"], "s"]), st.booleans(), st.integers(0, 5)
)
REQUESTS = st.lists(REQUEST, min_size=1, max_size=6).map(lambda few: few * 3)


def array(rows: int, kind: Any, transposed: bool, seed: int) -> np.ndarray[Any, Any]:
    import ml_dtypes

    x = np.random.default_rng(seed).integers(-8, 9, (rows, 4)) / 4
    x = x.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    return np.asfortranarray(x) if transposed else x


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(requests=REQUESTS, direct=st.sampled_from([1, 40, 1 << 16]), graph=st.booleans())
def test_every_request_gets_its_own(requests: list[Any], direct: int, graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "DIRECT", direct)
    monkeypatch.setattr(module, "MOST_WAYS", 3)
    make = (lambda *a, **k: models.with_graphs(monkeypatch, *a, **k)) if graph else models.on_host
    engine = make(models.squares(), buckets=[2, 4, 8])
    kept = []
    for rows, kind, outputs, transposed, seed in requests:
        x = array(rows, kind, transposed, seed)
        half = x.astype(np.float32).astype(np.float16)
        request = Request({"x": x}, outputs)
        found = engine.again({"x": x}, outputs)
        if found is None:
            found = engine.run(request)
            assert request.batch == rows and request.bucket == next((size for size in (2, 4, 8) if size >= rows), None)
        assert list(found) == (["y", "s"] if outputs is None else [outputs] if isinstance(outputs, str) else outputs)
        kept.append((found, half * half))
    for found, y in kept:  # only now: no run may write into what an earlier one gave
        if "y" in found:
            np.testing.assert_array_equal(found["y"], y)
        if "s" in found:
            np.testing.assert_allclose(found["s"], y.astype(np.float32).sum(1), rtol=1e-3)
    engine.close()


def test_what_is_wrong_is_wrong_again() -> None:
    engine = models.on_host(models.squares())
    for _ in range(3):
        assert engine.run(Request({"x": np.ones((2, 4), np.float32)}))["y"].tolist() == [[1.0] * 4] * 2
        for feeds in ({"x": np.ones((2, 5), np.float32)}, {"x": np.ones((2, 4), np.int32)}, {"z": np.ones((2, 4), np.float32)},
                      {"x": np.full((2, 4), 1e6, np.float32)}):  # fmt: skip
            with pytest.raises(InputError):
                engine.run(Request(feeds))
    engine.close()
