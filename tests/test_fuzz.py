"""Damaged models: halfconv converts them or says in one line why not; no other exception, no dead process, nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
