"""The page of a large model stays small; how fast it opens is printed (`pytest -s`), not asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfconv.planning import plan_model
from halfconv.precision.plan import PrecisionPlan
from halfconv.precision.ranges import Ranges, ValueRange
from halfconv.precision.rules import Rules
from halfconv.precision.surroundings import with_ranges
from halfconv.report.html.convert import convert_view
from halfconv.report.html.origin import origin_of
from halfconv.report.html.page import write_page
from tests.browser import chromium, opened
from tests.report.html.pages import save_large

pytestmark = pytest.mark.slow

LIMIT = 5_000_000
RESULT = {
    "output": "large.fp16.onnx", "to": "fp16", "target": "portable", "opset": 17, "nodes": 5001,
    "values": {"half": 4000, "float": 1002},
    "casts": 2000, "bytes_before": 1, "bytes_after": 1, "seconds": {}, "constants": [], "check": None, "warnings": [],
    "repair": None,
    "plan_fingerprint": "0" * 64, "drift": None,
}  # fmt: skip


def write_large(folder: Path) -> tuple[Path, PrecisionPlan]:
    """Write a page with a range, a drift and a place for every value; to measure these of so many takes minutes."""
    assert save_large(folder / "large.onnx", 1000) > 5000
    plan = plan_model(folder / "large.onnx", rules=Rules(block_ops=("Tanh",), block_nodes=(".*Softmax",))).plan
    plan = with_ranges(plan, Ranges({v.id: ValueRange(16, 7e4, 1e-7, 0.1, 0.1, 1e-3) for v in plan.values}, "fp16", 1, "given"))
    layers = [
        {"value": place.value, "rel_l2": 1.234e-5 * (at + 1), "added": 1.234e-5, "verdict": ""}
        for at, place in enumerate(plan.places)
    ]
    page = folder / "large.html"
    write_page(page, convert_view(RESULT, plan.to_dict(), layers, Path("large.onnx"), origin_of(["convert"], {}, {}, {})))
    return page, plan


def test_a_page_of_5000_nodes(folder: Path) -> None:
    page, plan = write_large(folder)
    assert page.stat().st_size < LIMIT
    with chromium() as browser, opened(browser, page) as found:
        loaded = found.page.evaluate(
            "(() => { const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime; })()"
        )
        print(f"\n5,001 nodes: {page.stat().st_size / 1e6:.2f} MB, loaded in {loaded / 1e3:.2f} s")
        count = found.page.locator("#count")
        assert count.inner_text() == f"5,002 of 5,002 values, {plan.float:,} in FP32"
        modules = found.page.locator("#modules button")
        modules.first.click()
        assert modules.count() == 100
        found.page.get_by_role("button", name="layers.42").click()
        assert modules.count() == 10 and count.inner_text().startswith("50 of 5,002 values")
        found.page.get_by_role("button", name="whole network").click()
        found.page.get_by_label("Operator").select_option("Softmax")
        assert found.page.locator("#values li").count() == 60
        found.page.get_by_role("button", name="Show 60 more of 1,000").click()
        assert found.page.locator("#values li").count() == 120
        assert found.wrong == []
