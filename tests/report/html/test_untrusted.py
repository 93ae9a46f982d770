"""Names come from models, which come from anywhere: on a page they are text, wherever they stand."""

from __future__ import annotations

import html
import json
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from halfconv.report.html.network import LEVELS, Entry, beginning, entries_of_layers
from tests.browser import chromium, opened
from tests.report.html.pages import run, samples

#: Each would end an element, an attribute or a script, were it not escaped.
NAMES = (
    "<script>document.title='owned'</script>", "</script><script>document.title='owned'</script>", "<!--<script>", "]]>--!><b>",
    '" onfocus="document.title=1" autofocus x="', "javascript:document.title=1", "{{ 7*7 }}{% x %}", "a\u2028b\u202ec",
    "<img src=x onerror=document.title='owned'>", "$\\frac{1}{2}$ &amp; &#60;b&#62;", "文字/名前", "`${document.title=1}`",
)  # fmt: skip


def hostile(path: Path) -> Path:
    """A model in which values, nodes, inputs, outputs and an operator of a foreign domain have such names."""
    nodes, value = [], NAMES[0]
    for number, name in enumerate(NAMES[1:], 1):
        made = f"{name}{number}"
        nodes.append(helper.make_node("Softmax" if number % 3 == 0 else "Tanh", [value], [made], f"{name}/node{number}"))
        nodes[-1].metadata_props.add(key="namespace", value=f"{name}.scope")
        value = made
    nodes.append(helper.make_node("ReduceSum", [value], ["</title>"], "</style><script>"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(NAMES[0], TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("</title>", TensorProto.FLOAT, None)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(folder)
    source = hostile(folder / "&<b>x.onnx")
    given = samples(folder / "s.npz", **{NAMES[0]: np.linspace(-9, 9, 16, dtype=np.float32).reshape(2, 8)})
    assert run("convert", source, "-o", "half.onnx", "--samples", given, "--html", "c.html", "--block-op", "Softmax", "--json") == 0
    assert run("validate", source, "half.onnx", "--samples", given, "--html", "v.html", "--json") == 0
    return [folder / "c.html", folder / "v.html"]


class Tags(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_names_make_no_element_and_no_attribute(pages: list[Path]) -> None:
    for path in pages:
        text = path.read_text("utf-8")
        tags = Tags()
        tags.feed(text)
        kinds = [tag for tag, _ in tags.tags]
        assert kinds.count("script") == 2 and kinds.count("style") == 1 and "img" not in kinds and "b" in kinds
        assert kinds.count("b") == 1  # the command's name
        attributes = {name for _, attrs in tags.tags for name in attrs}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        addresses = [attrs["href"] or "" for _, attrs in tags.tags if "href" in attrs]
        assert addresses and all(address.startswith("#") or address == "data:," for address in addresses)
        assert html.escape("</title>") in text
        assert not [name for name in NAMES if "<" in name and name in text]


def test_the_data_of_the_map_cannot_end_its_script(pages: list[Path]) -> None:
    for path in pages:
        found = re.search(r'<script type="application/json" id="network-data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
        assert found is not None and not re.search(r"[<>&\u2028\u2029]", found[1])
        ids = json.loads(found[1])["ids"]
        assert any(NAMES[1] in id_ for id_ in ids) and "</title>" in ids
        assert not any(character in id_ for id_ in ids for character in "\u2028\u202e")


def test_the_policy_knows_only_the_scripts_of_the_page(pages: list[Path]) -> None:
    text = pages[0].read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    words = html.unescape(policy[1])
    assert words.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in words
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", words)


def test_a_name_of_nothing_but_slashes_costs_no_memory() -> None:
    """Each of its prefixes would be kept: 20,000 of them have 400 MB."""
    name = "a/" * 20_000 + "x"
    entries = [Entry(name, name, "Tanh", (), True)]
    tracemalloc.start()
    beginning(entries)
    (entry,) = entries_of_layers([{"value": name, "node": name, "op": "Tanh", "scope": "", "dtype": "float16", "rel_l2": 0.0,
                                   "added": 0.0, "reference_absmax": 1.0, "verdict": ""}])  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000 and len(entry.scope) == LEVELS


@pytest.mark.slow
def test_nothing_runs_in_a_browser(pages: list[Path]) -> None:
    with chromium() as browser:
        for path in pages:
            with opened(browser, path, fragment="#v3") as found:
                page = found.page
                title = page.title()
                assert "owned" not in title and title != "1"
                page.get_by_role("button", name="Clear").click()
                page.get_by_label("Search").fill("document.title")
                assert page.locator("#values li").count() > 3
                assert page.locator("#map script, #map img, #map b").count() == 0
                assert page.title() == title and found.wrong == []
