"""Damaged models: halfconv converts them or says in one line why not; no other exception, no dead process, nothing left behind."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import halfconv
from tests.fuzzing import Victim, attempt, damaged, seeds


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    """A process that may die."""
    made = Victim()
    yield made
    left = made.leftovers()
    made.remove()
    assert left == []


@pytest.mark.parametrize("place", range(len(seeds())))
def test_the_models_are_whole_before(place: int) -> None:
    assert attempt(seeds()[place]) == "done done"


@pytest.mark.parametrize("place", range(len(seeds())))
def test_no_text_need_be_text(place: int, tmp_path: Path) -> None:
    """Names, of whatever: every text of a model, one after the other, becomes bytes that are not UTF-8."""
    content = seeds()[place]
    words = {word for word in re.findall(rb"[A-Za-z_]{1,30}", content) if content.count(bytes([len(word)]) + word)}
    assert len(words) > 5
    (tmp_path / "weights.bin").write_bytes(b"\x3f" * 80)
    for word in words:
        length = bytes([len(word)])
        source = tmp_path / "model.onnx"
        source.write_bytes(content.replace(length + word, length + b"\x80" * len(word)))
        for call in (halfconv.inspect, lambda path: halfconv.convert(path, tmp_path / "out.onnx", check=False)):
            with contextlib.suppress(halfconv.HalfconvError):
                call(source)


@pytest.mark.slow
@settings(max_examples=700, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(r=st.randoms(use_true_random=False))
def test_damaged_models_are_converted_or_refused(victim: Victim, r: random.Random) -> None:
    ok, words = victim.attempt(damaged(r))
    assert ok, words


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(victim: Victim, content: bytes) -> None:
    ok, words = victim.attempt(content)
    assert ok and "done" not in words, words
