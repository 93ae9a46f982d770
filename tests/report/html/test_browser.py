"""The pages in a browser: they work from disk, by keyboard, in the dark, on paper and on a telephone, and ask for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import axe_script, chromium, opened
from tests.report.html.pages import COMMANDS, write_pages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield write_pages(folder, tuple(COMMANDS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_opens_from_disk_and_asks_for_nothing(name: str, width: int, pages: dict[str, Path], browser: Any) -> None:
    with opened(browser, pages[name], width=width) as found:
        page = found.page
        assert found.wrong == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = page.locator("figure svg:visible")
        assert drawn.count() == page.locator("figure").count() > 0
        for title in page.locator("main > nav a").all():
            assert page.locator(title.get_attribute("href") or "").count() == 1
        assert page.locator("h1").count() == 1 and page.locator(".said strong").inner_text()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(name: str, scheme: str, pages: dict[str, Path], browser: Any) -> None:
    script = axe_script()
    with opened(browser, pages[name], scheme=scheme, bypass_csp=True) as found:
        found.page.evaluate(script)
        results = found.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (violation["id"], violation["help"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert results["passes"] and serious == [], json.dumps(serious, indent=1)


def test_dark_and_light_follow_the_system_and_the_button(pages: dict[str, Path], browser: Any) -> None:
    def colour(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with opened(browser, pages["convert"], scheme="light") as light, opened(browser, pages["convert"], scheme="dark") as dark:
        bright, night = colour(light.page), colour(dark.page)
        assert bright != night
        button = dark.page.get_by_role("button", name="Appearance: automatic")
        button.focus()
        dark.page.keyboard.press("Enter")
        assert colour(dark.page) == bright and "light" in dark.page.locator("#theme").inner_text()
        dark.page.keyboard.press("Enter")
        dark.page.keyboard.press("Enter")
        assert colour(dark.page) == night


def test_the_map_filters_by_precision_reason_operator_and_words(pages: dict[str, Path], browser: Any) -> None:
    with opened(browser, pages["convert"]) as found:
        page, count = found.page, found.page.locator("#count")
        data = json.loads(page.locator("#network-data").inner_text())
        reasons, total = data["reason"], len(data["ids"])
        kept = sum(reason >= 0 for reason in reasons)
        assert 0 < kept < total
        assert count.inner_text() == f"{total} of {total} values, {kept} in FP32"
        page.get_by_label("Held in").select_option("half")
        assert count.inner_text() == f"{total - kept} of {total} values, 0 in FP32"
        assert page.locator("#values li").count() == total - kept
        page.get_by_role("button", name="Clear").click()
        rule = page.locator("button[data-rule]").first
        wanted = sum(reason >= 0 and data["reasons"][reason][0] == rule.inner_text() for reason in reasons)
        rule.focus()
        page.keyboard.press("Enter")
        assert count.inner_text() == f"{wanted} of {total} values, {wanted} in FP32"
        assert page.evaluate("document.activeElement.id") == "count"
        page.get_by_role("button", name="Clear").click()
        page.get_by_label("Operator").select_option("Conv")
        convs = sum(data["ops"][op] == "Conv" for op in data["op"])
        assert convs > 0 and page.locator("#values li").count() == convs
        page.get_by_role("button", name="Clear").click()
        page.get_by_label("Search").fill(data["ids"][3].upper())
        assert page.locator("#values li .code").first.inner_text() == data["ids"][3]
        page.get_by_label("Search").fill("nothing is called so")
        assert count.inner_text() == f"0 of {total} values, 0 in FP32"
        assert found.wrong == []


def test_the_worst_values_lead_to_the_map(pages: dict[str, Path], browser: Any) -> None:
    with opened(browser, pages["validate"]) as found:
        page = found.page
        first = page.locator("#network table a").first
        wanted, address = first.inner_text(), first.get_attribute("href")
        page.get_by_label("Search").fill("nothing is called so")
        first.focus()
        page.keyboard.press("Enter")
        page.locator(f"li.chosen[id='{str(address).removeprefix('#')}']").wait_for()  # the page hears of the new address later
        chosen = page.locator("#values li.chosen .code")
        assert chosen.count() == 1 and chosen.inner_text().endswith(wanted.removeprefix("…/"))
        assert page.evaluate("document.activeElement.id") == str(address).removeprefix("#")
        dots = page.locator("figure .wide svg a")
        assert dots.first.get_attribute("href") and dots.first.get_attribute("aria-label")
        dots.last.focus()
        page.keyboard.press("Enter")
        page.locator(f"li.chosen[id='{str(dots.last.get_attribute('href')).removeprefix('#')}']").wait_for()
        assert page.locator("#values li.chosen").count() == 1
        assert found.wrong == []


def test_paper_shows_figures_and_leaves_out_what_is_pressed(pages: dict[str, Path], browser: Any) -> None:
    with opened(browser, pages["convert"], scheme="dark", width=390) as found:
        page = found.page
        page.emulate_media(media="print")
        assert not page.locator("#filters").is_visible() and not page.locator("#theme").is_visible()
        assert page.locator("figure .wide svg").first.is_visible() and page.locator("#outputs table").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf()[:5] == b"%PDF-"


def test_without_scripts_tables_and_charts_remain(pages: dict[str, Path], browser: Any) -> None:
    with opened(browser, pages["convert"], java_script_enabled=False) as found:
        page = found.page
        assert page.locator("#precision table").is_visible() and page.locator("#network figure").is_visible()
        assert not page.locator("#map").is_visible() and "needs JavaScript" in page.locator("noscript").inner_text()
