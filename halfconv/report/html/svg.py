"""Make matplotlib's SVG fit for the page: no style attributes, which the page's policy forbids, and colours by class.

Charts are drawn in stand-in colours (`PAINTS`). Here each becomes a class, ``f-NAME`` for a fill and ``s-NAME`` for a stroke, so
that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

__all__ = ["PAINTS", "page_svg"]

#: What is painted -> the colour that stands for it while it is drawn.
PAINTS: Mapping[str, str] = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "grid", "half", "fp32", "bad", "good", "band", "zone", "r0", "r1", "r2", "r3", "r4", "r5"), 1
    )
}
_NAMES = {colour: name for name, colour in PAINTS.items()}
_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
#: What stays of a style, as an attribute of the same name.
_KEPT = frozenset(
    {
        "fill",
        "fill-opacity",
        "font-size",
        "opacity",
        "stroke",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-linecap",
        "stroke-linejoin",
        "stroke-opacity",
        "stroke-width",
        "text-anchor",
    }
)


def page_svg(drawn: str, label: str, links: Mapping[str, str]) -> str:
    """Return an SVG element for the page.

    Args:
        drawn: The SVG that matplotlib wrote.
        label: What the chart shows, for those who cannot see it.
        links: Address -> what stands there; a link's name.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(drawn)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", drawn))
    _tidy(root, used, links)
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "group" if links else "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(parent: ElementTree.Element, used: set[str], links: Mapping[str, str]) -> None:
    for child in list(parent):
        if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
            parent.remove(child)
            continue
        _tidy(child, used, links)
        if not len(child) and child.tag in (f"{{{_SVG}}}defs", f"{{{_SVG}}}g"):
            parent.remove(child)
    if parent.get("id") not in used:
        parent.attrib.pop("id", None)
    _restyle(parent)
    if (address := parent.attrib.pop(_LINK, None)) is not None:
        parent.set("href", address)
    if parent.tag == f"{{{_SVG}}}a" and address is not None:
        parent.attrib.pop("target", None)
        parent.set("aria-label", links.get(address, address))


def _restyle(element: ElementTree.Element) -> None:
    """Turn a style into attributes and classes."""
    declared = dict(part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if ":" in part)
    classes = []
    for name, value in ((name.strip(), value.strip()) for name, value in declared.items()):
        if name in ("fill", "stroke") and value in _NAMES:
            classes.append(f"{name[0]}-{_NAMES[value]}")
        elif name == "font":  # size and family in one, as older releases write it
            element.set("font-size", re.findall(r"([\d.]+)px", value)[0])
        elif name in _KEPT:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
