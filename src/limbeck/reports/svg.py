"""A matplotlib figure as part of a page: no styles, no addresses, colours that follow the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Final
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from limbeck.reports.table import printable

__all__ = ["COLOURS", "WIDTH", "checked_svg", "draw_svg"]

WIDTH: Final = 5.0  # inches; narrow, so that the text is still read on a phone
# By role, from the Okabe-Ito palette, which stays distinct for every common kind of colour
# blindness. The page gives each a value that is visible on its own ground, light or dark.
COLOURS: Final = {
    "ink": "#000000",
    "paper": "#ffffff",
    "grid": "#b0b0b0",
    "muted": "#595959",
    "output": "#0072b2",
    "feature": "#d55e00",
    "relation": "#009e73",
}
_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()} | {
    "none": "none",
    COLOURS["ink"]: "currentColor",
}
_SETTINGS = {
    "text.parse_math": False,  # names are text: "$" opens no formula
    "svg.fonttype": "none",  # text stays text: to be searched, read aloud, and small
    "svg.hashsalt": "limbeck",  # the same figure gives the same names
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.alpha": 0.4,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "butt",
}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_HREF = "{http://www.w3.org/1999/xlink}href"
_LEFT_OUT = ("metadata", "style")
_OF_THE_PAGE = ("font-family", "font-style", "font-variant", "font-stretch")


def draw_svg(name: str, paint: Callable[[Figure], None], *, height: float) -> str:
    """An ``<svg>`` element of what ``paint`` draws.

    It has no ``style``, script, address or size of its own, so that a page's security policy may
    forbid all of these, and its identifiers begin with ``name``.

    Args:
        name: of the picture: letters and hyphens, one of its kind on the page.
        paint: draws into an empty figure, in :data:`COLOURS` alone.
        height: in inches, at a width of :data:`WIDTH`.

    Returns:
        XML that is HTML as well; any text in it is escaped.

    Raises:
        KeyError: if it uses another colour.
    """
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is measured as boxes; the browser has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        paint(figure)
        file = io.BytesIO()
        canvas.print_figure(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    used = {value[1:] for element in root.iter() if (value := element.get(_HREF))}
    made = ElementTree.Element("svg", viewBox=root.attrib["viewBox"], fill="currentColor")
    made.set("stroke-linejoin", "round")
    for child in root:
        _copy(child, made, name, used)
    return ElementTree.tostring(made, encoding="unicode")


# What draw_svg writes; a file with anything else is not from it.
_TAGS = {"svg", "g", "path", "defs", "clipPath", "rect", "use", "text"}
_OWN_ATTRIBUTES = re.compile(
    r"viewBox|fill|stroke|(fill|stroke|font|text)-[a-z]+|d|transform|x|y|width|height|id|href"
    r"|clip-path|opacity"
)
_COLOUR = re.compile(r"var\(--[a-z]+\)|currentColor|none")
_NAME = re.compile(r"#?[\w-]+|url\(#[\w-]+\)")


def checked_svg(content: bytes, *, name: str) -> str:
    """A picture from a file, that :func:`draw_svg` once made, safe to be put into a page.

    Args:
        content: of the file.
        name: before its identifiers, so that they are the page's only ones.

    Raises:
        ValueError: if it is no XML, or holds what :func:`draw_svg` never writes, as scripts,
            addresses and styles.
    """
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"no SVG: {error}") from None
    for element in root.iter():
        if element.tag not in _TAGS:
            raise ValueError(f"a picture of a report has no <{element.tag}>")
        element.text = printable(element.text or "") if element.tag == "text" else None
        element.tail = None
        for key, value in element.attrib.items():
            wrong = not _OWN_ATTRIBUTES.fullmatch(key)
            wrong |= key in ("fill", "stroke") and not _COLOUR.fullmatch(value)
            wrong |= key in ("id", "href", "clip-path") and not _NAME.fullmatch(value)
            if wrong or (key == "href" and not value.startswith("#")):
                raise ValueError(f"a picture of a report has no {key}={value!r}")
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key in ("href", "clip-path"):
                element.set(key, value.replace("#", f"#{name}-", 1))
    if root.tag != "svg":
        raise ValueError(f"a picture begins with <svg>, not <{root.tag}>")
    return ElementTree.tostring(root, encoding="unicode")


def _copy(
    element: ElementTree.Element, parent: ElementTree.Element, name: str, used: set[str]
) -> None:
    """``element`` and what is in it, its style spelt out as attributes, added to ``parent``."""
    tag = element.tag.rpartition("}")[2]
    if tag in _LEFT_OUT or (tag == "defs" and all(e.tag.endswith("style") for e in element)):
        return
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            if tag == "clipPath" or value in used:
                attributes[key] = f"{name}-{value}"
        elif key == _HREF:
            attributes["href"] = f"#{name}-{value[1:]}"
        elif key == "clip-path":
            attributes[key] = value.replace("url(#", f"url(#{name}-")
        elif key == "style":
            attributes |= _attributes(value)
        elif not value.startswith("rotate(-0 "):
            attributes[key] = _rounded(value)
    if tag != "g" or attributes:
        parent = ElementTree.SubElement(parent, tag, attributes)
        parent.text = element.text if tag == "text" else None
    for child in element:
        _copy(child, parent, name, used)


def _attributes(style: str) -> dict[str, str]:
    found = dict(part.split(": ") for part in style.split("; "))
    found = {key: value for key, value in found.items() if key not in _OF_THE_PAGE}
    return found | {key: _VARIABLES[found[key]] for key in ("fill", "stroke") if key in found}


def _rounded(value: str) -> str:
    """Coordinates to the hundredth of a point, on one line."""
    return " ".join(_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value).split())
