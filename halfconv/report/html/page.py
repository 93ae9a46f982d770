"""Render a view as one file: Jinja2 with autoescaping, a policy that lets nothing else in, charts as SVG."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from halfconv.errors import EnvironmentProblem
from halfconv.report.html.charts import Bars, Chart, Drift, Lines, Spans, Strip
from halfconv.report.html.drawing import draw
from halfconv.report.html.view import View

__all__ = ["check_packages", "render", "write_page"]

#: What a page needs: module -> the extra's package.
PACKAGES = {"jinja2": "Jinja2", "matplotlib": "matplotlib"}


def check_packages() -> None:
    """Refuse a page that could not be made, before any work is done.

    Raises:
        EnvironmentProblem: A package of the extra ``report`` is missing.
    """
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(f"--html needs {' and '.join(missing)}", "pip install 'halfconv[report]'")


def write_page(path: Path, view: View) -> None:
    """Render a view and put it in place by rename.

    Raises:
        EnvironmentProblem: The file cannot be written.
    """
    from halfconv.storage import atomic_text

    atomic_text(path, render(view))


def render(view: View) -> str:
    """Return a view as HTML.

    Names come from models, which come from anywhere: the template escapes them, the data of the map is JSON in which no character
    can end a script, and the page's policy runs no script or style but those of the page, which it knows by their hashes.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _text("page.css"), _text("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    safe = environment.filters["safe"]
    drawn = {
        section.id: [_figure(chart, f"{section.id}{number}", safe) for number, chart in enumerate(section.charts)]
        for section in view.sections
    }
    return environment.get_template("page.html.j2").render(
        view=view,
        policy=policy,
        style=safe(style),
        script=safe(script),
        charts=drawn,
        network=None if view.network is None else safe(_json(view.network)),
    )


def _text(name: str) -> str:
    return resources.files("halfconv.report.html").joinpath("templates", name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(content: Mapping[str, Any]) -> str:
    """Return JSON that stays data inside a script element, whatever its texts hold."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _figure(chart: Chart, salt: str, safe: Any) -> dict[str, Any]:
    wide, narrow = draw(chart, salt)
    return {"wide": safe(wide), "narrow": safe(narrow), "caption": chart.label, "legend": _legend(chart)}


def _legend(chart: Chart) -> Sequence[tuple[str, str]]:
    """Return (paint, what it stands for) pairs; empty where a caption says enough."""
    match chart:
        case Strip():
            return [("band", "half"), *((f"r{number}", name) for number, name in enumerate(chart.reasons))]
        case Spans():
            return [("half", "held in half"), ("fp32", "kept in FP32")] + (
                [("bad", "passes half's largest")] if chart.marks else []
            )
        case Drift() | Bars() | Lines():
            return []
