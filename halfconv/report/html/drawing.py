"""Charts drawn by matplotlib, wide for a screen and narrow for a telephone."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from halfconv.report.html.charts import Bars, Chart, Drift, Lines, Mark, Spans, Strip
from halfconv.report.html.svg import PAINTS, page_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

#: Width of a chart in points: on a screen, on a telephone.
WIDTHS = (900, 340)
#: What stands behind words in a chart.
_BEHIND = {"facecolor": PAINTS["zone"], "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
#: Cells of the strip along the network: wide, narrow.
CELLS = (120, 48)


def draw(chart: Chart, salt: str) -> list[str]:
    """Draw a chart.

    Args:
        chart: What it shows.
        salt: Makes its ids its own on the page.

    Returns:
        SVG elements: wide, narrow.
    """
    return [_draw(chart, width, f"{salt}{width}") for width in WIDTHS]


def _draw(chart: Chart, width: int, salt: str) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    narrow = width == WIDTHS[1]
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": PAINTS["grid"],
        "axes.labelcolor": PAINTS["muted"],
        "xtick.color": PAINTS["grid"],
        "xtick.labelcolor": PAINTS["muted"],
        "ytick.color": PAINTS["grid"],
        "ytick.labelcolor": PAINTS["muted"],
        "text.color": PAINTS["ink"],
        "grid.color": PAINTS["grid"],
        "grid.linewidth": 0.75,
        "axes.axisbelow": True,
        "lines.linewidth": 1.5,
        "ytick.left": False,
        "axes.unicode_minus": True,
        "path.simplify": True,
        "ytick.minor.left": False,
    }
    height = (34 * len(chart.names) + 44) if isinstance(chart, Bars) else 96 if isinstance(chart, Strip) else 250
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's own font lacks and the page's has
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        links = _ON[type(chart)](axes, chart, narrow)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(drawn.getvalue(), chart.label, links)


def _drift(axes: Axes, chart: Drift, narrow: bool) -> dict[str, str]:
    known = [height for height in chart.heights if height is not None and math.isfinite(height)]
    # What is not finite is drawn above all else.
    top = max([*known, chart.limit or 0.0, 1e-6]) * 4
    heights = [math.nan if height is None else min(height, top) for height in chart.heights]
    floor = max(min([*known, chart.limit or top]) / 2, top * 1e-8)
    axes.set_yscale("log")
    axes.set_ylim(floor, top * 1.6)
    axes.fill_between(range(len(heights)), [max(h, floor) for h in heights], floor, color=PAINTS["half"], alpha=0.14, linewidth=0)
    axes.plot(heights, color=PAINTS["half"])
    if chart.limit:
        _bound(axes, chart.limit, "tolerance", "bad", bbox=_BEHIND)
    axes.set_ylabel("rel_l2")
    _powers(axes)
    _along(axes, len(heights), narrow)
    return _marks(axes, chart.marks, "half", top)


def _bound(axes: Axes, limit: float, words: str, paint: str, **text: Any) -> None:
    """Draw a dashed line that is said above its right end."""
    colour = PAINTS[paint]
    axes.axhline(limit, color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
    place = (1, limit)
    axes.annotate(
        f"{words} {limit:g}", place, xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points", ha="right",
        color=colour, **text,
    )  # fmt: skip


def _marks(axes: Axes, marks: Sequence[Mark], paint: str, top: float) -> dict[str, str]:
    """Draw values that are pointed out, each a link to its row."""
    for mark in marks:
        colour = paint if math.isfinite(mark.height) else "bad"
        (dot,) = axes.plot(
            [mark.at],
            [min(mark.height, top)],
            marker="o",
            markersize=8,
            markeredgewidth=1.5,
            color=PAINTS[colour],
            markeredgecolor=PAINTS["zone"],
            clip_on=False,
            zorder=5,
        )
        dot.set_url(mark.href)
    return {mark.href: mark.label for mark in marks}


def _powers(axes: Axes) -> None:
    """Write the figures of a logarithmic axis as powers of ten, in letters that any font has."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    signs = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"10{str(round(math.log10(height))).translate(signs)}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _along(axes: Axes, count: int, narrow: bool) -> None:
    """Set the axis along the network."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y")
    axes.set_xlim(-0.5, max(count - 0.5, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 10, integer=True))
    axes.set_xlabel("values, from input to output")
    axes.tick_params(axis="y", length=0)


def _strip(axes: Axes, chart: Strip, narrow: bool) -> dict[str, str]:
    """Stack what each cell of the network holds: half below, each reason above it."""
    cells = min(CELLS[narrow], len(chart.kinds)) or 1
    counts = [[0] * cells for _ in range(len(chart.reasons) + 1)]
    for place, kind in enumerate(chart.kinds):
        counts[kind + 1][place * cells // len(chart.kinds)] += 1
    totals = [max(1, sum(column)) for column in zip(*counts, strict=True)]
    edges = [cell * len(chart.kinds) / cells - 0.5 for cell in range(cells)]
    width = len(chart.kinds) / cells
    bottom = [0.0] * cells
    for kind, row in enumerate(counts):
        share = [count / total for count, total in zip(row, totals, strict=True)]
        paint = "band" if not kind else f"r{kind - 1}"
        if any(share):
            axes.bar(edges, share, width * (0.86 if cells > 1 else 1), bottom, align="edge", color=PAINTS[paint], linewidth=0)
        bottom = [low + high for low, high in zip(bottom, share, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _along(axes, len(chart.kinds), narrow)
    axes.grid(visible=False)
    return {}


def _spans(axes: Axes, chart: Spans, narrow: bool) -> dict[str, str]:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    known = [span for span in chart.spans if span is not None]
    low = max(min([chart.smallest, *(low for low, _ in known)]), chart.smallest * 1e-6) / 4
    high = max([chart.largest, *(high for _, high in known)]) * 8
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.axhspan(chart.smallest, chart.largest, color=PAINTS["band"], alpha=0.5, linewidth=0)
    for limit, words, place in (
        (chart.largest, f"half's largest, {chart.largest:,.6g}", 4),
        (chart.smallest, f"half's smallest normal, {chart.smallest:.2g}", -14),
    ):
        axes.axhline(limit, color=PAINTS["muted"], linewidth=0.8)
        axes.annotate(
            words,
            (0, limit),
            xycoords=("axes fraction", "data"),
            xytext=(4, place),
            textcoords="offset points",
            color=PAINTS["muted"],
            bbox=_BEHIND,
        )
    for kind, paint in (("half", "half"), ("fp32", "fp32")):
        ends = [
            end
            for place, (span, held) in enumerate(zip(chart.spans, chart.kinds, strict=True))
            if span is not None and held == kind
            for end in ((place, max(span[0], low)), (place, max(span[1], low * 1.05)))
        ]
        if ends:  # one path for all of them: a large model has thousands
            path = Path(ends, [Path.MOVETO, Path.LINETO] * (len(ends) // 2))
            thick = min(6.0, max(0.8, (240 if narrow else 700) / len(chart.spans)))
            axes.add_patch(PathPatch(path, fill=False, edgecolor=PAINTS[paint], linewidth=thick, capstyle="butt"))
    axes.set_ylabel("magnitude")
    _powers(axes)
    _along(axes, len(chart.spans), narrow)
    axes.grid(visible=False)
    return _marks(axes, chart.marks, "bad", high)


def _bars(axes: Axes, chart: Bars, narrow: bool) -> dict[str, str]:
    heights = [height or 0.0 for height in chart.heights]
    places = range(len(heights))
    paints = [PAINTS["muted" if place in chart.reference else "half"] for place in places]
    axes.barh(places, heights, 0.62, color=paints, linewidth=0)
    for place, reach in enumerate(chart.reaches):
        axes.plot([heights[place], reach], [place, place], color=paints[place], linewidth=1.2)
    widest = max([*heights, *chart.reaches, 0.0]) or 1.0
    for place, text in enumerate(chart.texts):
        end = max(heights[place], chart.reaches[place] if chart.reaches else 0.0)
        axes.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", color=PAINTS["ink"])
    axes.set_xlim(0, widest * (1.75 if narrow else 1.25))
    axes.set_yticks(list(places), [_short(name, 18 if narrow else 40) for name in chart.names])
    axes.tick_params(axis="y", length=0, labelcolor=PAINTS["ink"])
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(chart.unit)
    axes.locator_params(axis="x", nbins=3 if narrow else 6)
    axes.invert_yaxis()
    return {}


def _lines(axes: Axes, chart: Lines, narrow: bool) -> dict[str, str]:
    axes.plot(
        chart.x,
        chart.y,
        color=PAINTS["half"],
        drawstyle="steps-post" if chart.steps else "default",
        marker=None if chart.steps else "o",
        markersize=4,
    )
    if chart.log:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda height, _: f"{height:,.6g}")
    if chart.limit is not None:
        _bound(axes, chart.limit, "promised", "good")
    axes.set_xlabel(chart.xlabel)
    axes.set_ylabel(chart.ylabel)
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4 if narrow else 10, integer=True)
    return {}


_ON: dict[type, Any] = {Drift: _drift, Strip: _strip, Spans: _spans, Bars: _bars, Lines: _lines}


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 7]}…{text[-6:]}"
