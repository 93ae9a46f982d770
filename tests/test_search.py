"""The search for groups to force: it passes, is 1-minimal, keeps its budget, and stops when told."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.search import BUDGET, Search, smallest


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[int], set[int]]:
    """An order of groups, and the culprits among them, which all must be forced."""
    ranked = draw(st.permutations(range(draw(st.integers(1, 80)))))
    culprits = set(draw(st.lists(st.sampled_from(ranked), min_size=1, max_size=5)))
    return list(ranked), culprits


@settings(derandomize=True, deadline=None)
@given(searches())
def test_finds_exactly_the_culprits(case: tuple[list[int], set[int]]) -> None:
    ranked, culprits = case
    found = smallest(ranked, Search(culprits.__le__, 10_000))
    assert set(found.forced) == culprits
    assert list(found.forced) == sorted(found.forced, key=ranked.index)
    assert found.passed and found.minimal and not found.stopped


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.integers(0, 40), st.floats(0.01, 1), min_size=1), st.floats(0.05, 0.95))
def test_what_is_forced_is_minimal_where_errors_add_up(errors: dict[int, float], share: float) -> None:
    limit = share * math.hypot(*errors.values())

    def passes(forced: frozenset[int]) -> bool:
        return math.hypot(*(error for group, error in errors.items() if group not in forced)) <= limit

    ranked = sorted(errors, key=lambda group: -errors[group])
    found = smallest(ranked, Search(passes, 10_000))
    assert found.passed and found.minimal and passes(frozenset(found.forced))
    assert not any(passes(frozenset(found.forced) - {group}) for group in found.forced)


@pytest.mark.parametrize("size", [20, 81, 300])
@pytest.mark.parametrize("places", [(0,), (0, 1, 2), (0, 3, 5), (11,)])
def test_a_good_ranking_needs_few_runs(size: int, places: tuple[int, ...]) -> None:
    runs = 0

    def passes(forced: frozenset[int]) -> bool:
        nonlocal runs
        runs += 1
        return set(places) <= forced

    found = smallest(range(size), Search(passes, 10_000))
    assert set(found.forced) == set(places)
    assert runs <= BUDGET - 4  # of which ranges, contributions, and the first and last run take four


@settings(derandomize=True, deadline=None)
@given(searches(), st.integers(0, 12))
def test_a_budget_is_kept_and_the_best_so_far_returned(case: tuple[list[int], set[int]], budget: int) -> None:
    ranked, culprits = case
    runs = []

    def passes(forced: frozenset[int]) -> bool:
        runs.append(forced)
        return culprits <= forced

    found = smallest(ranked, Search(passes, budget))
    assert len(runs) <= budget and len(set(runs)) == len(runs)
    assert culprits <= set(found.forced)
    if found.stopped:
        assert found.stopped == "runs" and not found.minimal
        passed = [run for run in runs if culprits <= run]
        assert found.passed is bool(passed)
        assert len(found.forced) == min(map(len, passed), default=len(ranked))


def test_a_deadline_is_kept() -> None:
    found = smallest(range(10), Search(lambda forced: True, 100, time.monotonic() - 1))
    assert (found.stopped, found.passed, found.forced) == ("time", False, tuple(range(10)))


def test_where_nothing_passes_all_are_forced() -> None:
    found = smallest(range(10), Search(lambda forced: False, 100))
    assert found.forced == tuple(range(10)) and not found.passed and not found.stopped


def test_runs_are_the_same_every_time() -> None:
    def runs() -> list[frozenset[int]]:
        done = []

        def passes(forced: frozenset[int]) -> bool:
            done.append(forced)
            return {3, 17, 40} <= forced

        smallest(range(60), Search(passes, 1000))
        return done

    assert runs() == runs()
