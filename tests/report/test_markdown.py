"""Markdown of a validation: what it says, and that no name breaks out of its place."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from halfconv.drift.report import DriftReport
from halfconv.report.markdown import markdown
from halfconv.report.text import visible
from tests.report import EVIL, bad, broken, good, layer, output

PARSER = MarkdownIt("commonmark").enable("table")
LIMIT = 1 << 20


def inline(text: str) -> list[str]:
    """Return the text of every paragraph, heading, list item and cell, in order."""
    blocks = [token for token in PARSER.parse(text) if token.type == "inline"]
    return ["".join(part.content for part in block.children or () if part.type == "text") for block in blocks]


def kinds(text: str) -> set[str]:
    tokens = PARSER.parse(text)
    return {token.type for token in tokens} | {part.type for token in tokens for part in token.children or ()}


def tags(text: str) -> set[str]:
    tokens = PARSER.parse(text)
    found = {part.content for token in tokens for part in token.children or () if part.type == "html_inline"}
    return found | {line for token in tokens if token.type == "html_block" for line in token.content.strip().splitlines()}


def tables(text: str) -> list[list[str]]:
    """Return the runs of lines that are a table's."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_good_report() -> None:
    text = markdown(good())
    assert text.startswith("### ✅ halfconv validate: PASSED\n\n<code>m.fp16.onnx</code> against <code>m.onnx</code>: ")
    assert "**simulated GPU rounding on the CPU**, 1,000 samples" in text
    assert "| <code>logits</code> | 0.00152 | 0.0123 | 99.99% | - | 0 | 0 | 0.00% | passed |" in text
    assert "failed" not in text and "Values inside" not in text
    assert "<summary>Tolerance</summary>" in text and "<code>rel_l2 ≤ 0.01</code>" in text


def test_bad_report() -> None:
    text = markdown(bad())
    assert text.startswith("### ❌ halfconv validate: FAILED")
    said = inline(text)
    for part in (
        "scores: rel_l2 inf > 0.01",
        "Metric scores accuracy: reference 0.912, candidate 0, drop 0.912 (0.02 allowed)",
        "Baseline: scores: rel_l2 grew from 0.001 to 0.003 (3.0 times, 1.5 allowed)",
        "First bad value: scores overflows: input reaches 91,204 (> 65,504)",
        "scores_1 (scores in scores): scores overflows: input reaches 91,204 (> 65,504)",
        "⚠️ input scores is not used",
        "Kernel: scores: its kernel keeps state in half",
    ):
        assert part in said
    assert "**8 SYNTHETIC samples (seed 7)**" in text
    assert "random data hides overflow" in text
    assert text.count("<details>") == text.count("</details>") == 3
    assert said.index("scores") < said.index("logits")  # what fails comes first


def test_long_lists_are_cut_and_say_so() -> None:
    outputs = (*(output(f"fine{number}") for number in range(300)), broken("late"))
    text = markdown(good(outputs=outputs, layers=tuple(layer(f"v{i}", added=i + 1.0) for i in range(5000))))
    assert "… and 101 more, cut here; `halfconv validate --json` lists them all." in text
    assert "late" in text
    assert "Values inside the model (5,000)" in text
    assert sum(line.startswith("| <code>v") for line in text.splitlines()) == 100


def test_below_a_mebibyte_whatever_it_holds() -> None:
    name = "<|\U000e0001" * 500
    outputs = tuple(broken(f"{number}{name}") for number in range(300))
    layers = tuple(layer(name, op=name, scope=name, added=1.0, verdict=name) for _ in range(300))
    report = bad(
        name, outputs=outputs, layers=layers, warnings=(name,) * 500, unmodelled=(name,) * 500, baseline=(name,) * 300,
        tolerance={f"rel_l2@{number}{name}": 0.1 for number in range(500)},
    )  # fmt: skip
    text = markdown(report)
    assert 100_000 < len(text.encode()) < LIMIT
    assert text.count("cut here") >= 5


PLAIN = markdown(bad())
PLAIN_KINDS, PLAIN_TAGS, PLAIN_TEXT = kinds(PLAIN), tags(PLAIN), inline(PLAIN)


def check(report: DriftReport, name: str) -> None:
    """The structure is that of a report with harmless names, and the name reads as it is."""
    text = markdown(report)
    assert [len(table) for table in tables(text)] == [len(table) for table in tables(PLAIN)]
    for table in tables(text):
        assert len({line.count("|") for line in table}) == 1
    assert kinds(text) == PLAIN_KINDS
    assert tags(text) == PLAIN_TAGS
    said = inline(text)
    assert len(said) == len(PLAIN_TEXT)
    assert said[PLAIN_TEXT.index("scores")] == visible(name)
    assert len(text.splitlines()) == len(PLAIN.splitlines())


def test_hostile_names() -> None:
    check(bad(EVIL), EVIL)
    check(bad("__init__ *a* _b_ ~~c~~ [d](e) ![f](g) # h \\| \\"), "__init__ *a* _b_ ~~c~~ [d](e) ![f](g) # h \\| \\")
    assert "www\\.example" in markdown(bad("www.example"))


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(codec=None) | st.sampled_from("|\\`*_<>&[]()~#! \n"), min_size=1, max_size=40))
def test_any_name_stays_in_its_place(name: str) -> None:
    check(bad(name), name)
