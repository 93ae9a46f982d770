"""Workflow commands of a validation."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfconv.report.github import annotations, in_github_actions
from halfconv.report.text import clip, visible
from tests.report import EVIL, bad, broken, good

COMMAND = re.compile(r"::(error|warning|notice) title=([^,:\r\n]+)::([^\r\n]*)")


def parsed(line: str) -> tuple[str, str, str]:
    """Read a command as GitHub's runner does."""
    match = COMMAND.fullmatch(line)
    assert match is not None, line
    kind, title, message = match.groups()
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        title = title.replace(code, char)
        if code not in ("%3A", "%2C"):
            message = message.replace(code, char)
    return kind, title, message


def test_good_report_is_one_notice() -> None:
    assert annotations(good()) == [
        "::notice title=halfconv validate::PASSED: m.fp16.onnx, simulated GPU rounding on the CPU, 1,000 samples"
    ]


def test_bad_report() -> None:
    found = [parsed(line) for line in annotations(bad())]
    assert found[0] == ("error", "halfconv: scores drifted", "rel_l2 inf > 0.01\nnew_nan 12 > 0\nzeroed 0.6 > 0.5")
    assert [entry[0] for entry in found] == ["error"] * 5 + ["warning"] * 2 + ["notice"]
    assert found[3][1:] == (
        "halfconv: metric scores accuracy dropped",
        "scores accuracy: reference 0.912, candidate 0, drop 0.912 (0.02 allowed)",
    )
    assert found[4][1] == "halfconv: drift grew against the baseline"
    assert "random data" in found[5][2]
    assert found[-1][2].endswith("\nfirst bad: scores overflows: input reaches 91,204 (> 65,504)")


def test_no_more_than_github_shows() -> None:
    report = good(outputs=tuple(broken(f"o{i}") for i in range(25)), warnings=tuple(f"w{i}" for i in range(11)))
    found = [parsed(line) for line in annotations(report)]
    assert [sum(entry[0] == kind for entry in found) for kind in ("error", "warning", "notice")] == [10, 10, 1]
    assert found[9][2].startswith("and 16 more")
    assert found[19][2].startswith("and 2 more")


def test_hostile_names() -> None:
    lines = annotations(bad(EVIL))
    assert all(len(line.splitlines()) == 1 and line.isprintable() for line in lines)
    assert not any("::error::" in line.partition(" title=")[0] for line in lines)


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(codec=None) | st.sampled_from("%:,\r\n\u2028\x85"), max_size=200))
def test_any_name_stays_in_one_command(name: str) -> None:
    lines = annotations(bad(name))
    assert len(lines) == 8
    for line in lines:
        assert line.isprintable()
        parsed(line)
    if "%" not in name:
        assert parsed(lines[0])[1] == clip(visible(f"halfconv: {name} drifted"), 120)


@pytest.mark.parametrize("environ, inside", [({"GITHUB_ACTIONS": "true"}, True), ({"GITHUB_ACTIONS": "false"}, False), ({}, False)])
def test_in_github_actions(environ: dict[str, str], inside: bool) -> None:
    assert in_github_actions(environ) is inside
