import re
from xml.etree import ElementTree

import pytest

from limbeck.reports.svg import COLOURS, checked_svg, draw_svg

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x_1$",
    "a & b",
    "\U0001f600",
]


def axes_with(name):
    def paint(figure):
        axes = figure.add_subplot()
        axes.plot([1, 2, 3], [2, 1, 3], "o-", color=COLOURS["output"])
        axes.set_title(name)

    return paint


def elements(svg):
    return list(ElementTree.fromstring(svg).iter())


def test_it_has_no_style_script_address_or_size():
    svg = draw_svg("a", axes_with("title"), height=2)
    assert not re.search(r"style|script|http|xmlns|<\?|<!|metadata", svg)
    root = elements(svg)[0]
    assert (root.tag, root.get("width"), root.get("viewBox")) == ("svg", None, "0 0 360 144")


@pytest.mark.parametrize("name", NAMES)
def test_any_text_stays_text(name):
    svg = draw_svg("a", axes_with(name), height=2)
    plain = draw_svg("a", axes_with("x" * len(name)), height=2)
    assert [e.tag for e in elements(svg)] == [e.tag for e in elements(plain)]
    assert name in [element.text for element in elements(svg)]


def test_every_colour_follows_the_page():
    svg = draw_svg("a", axes_with("title"), height=2)
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg))
    assert colours == {"currentColor", "none", "var(--grid)", "var(--output)", "var(--paper)"}


def test_a_colour_that_the_page_does_not_know_is_our_mistake():
    def paint(figure):
        figure.add_subplot().plot([1, 2], color="#123456")

    with pytest.raises(KeyError, match="#123456"):
        draw_svg("a", paint, height=2)


def test_names_inside_two_pictures_differ_and_every_reference_is_met():
    pictures = {name: draw_svg(name, axes_with("title"), height=2) for name in ("a", "b")}
    found = {name: set(re.findall(r'id="([^"]*)"', svg)) for name, svg in pictures.items()}
    assert not found["a"] & found["b"]
    for name, svg in pictures.items():
        used = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
        assert used
        assert used == found[name]


def test_the_same_figure_is_the_same_text():
    assert draw_svg("a", axes_with("t"), height=2) == draw_svg("a", axes_with("t"), height=2)


def test_the_line_goes_through_its_points():
    """Equally spaced in x, and in y as 2, 1, 3 with the axis upside down."""
    svg = draw_svg("a", axes_with("t"), height=2)
    (line,) = [
        e.get("d")
        for e in elements(svg)
        if e.get("stroke") == "var(--output)" and e.get("fill") == "none"
    ]
    x0, y0, x1, y1, x2, y2 = map(float, re.findall(r"[\d.]+", line))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    assert (y0 - y2) == pytest.approx((y1 - y0), abs=0.02)
    assert y2 < y0 < y1


def test_a_drawn_picture_is_taken_back_from_its_file_under_another_name():
    svg = draw_svg("a", axes_with("a & b"), height=2)
    found = checked_svg(svg.encode(), name="x-1")
    names = {e.get("id") for e in elements(found)} - {None}
    assert names
    assert all(name.startswith("x-1-a-") for name in names)
    used = [e.get("href") for e in elements(found) if e.get("href")]
    clips = [e.get("clip-path") for e in elements(found) if e.get("clip-path")]
    assert {name[1:] for name in used} | {clip[5:-1] for clip in clips} <= names
    assert re.sub(r"x-1-", "", found) == svg


@pytest.mark.parametrize(
    "bad",
    [
        "<script>alert(1)</script>",
        "<style>*{}</style>",
        "<foreignObject/>",
        "<image href='http://localhost/x'/>",
        "<use href='http://localhost/x'/>",
        "<g onclick='alert(1)'/>",
        "<g style='fill: red'/>",
        "<g fill='url(http://localhost/x)'/>",
        "<g clip-path='url(http://localhost/x)'/>",
        "<a href='javascript:alert(1)'><text>x</text></a>",
        "<svg:script xmlns:svg='http://www.w3.org/2000/svg'>alert(1)</svg:script>",
    ],
)
def test_a_picture_with_anything_else_in_it_is_refused(bad):
    with pytest.raises(ValueError, match="a picture of a report has no"):
        checked_svg(f"<svg>{bad}</svg>".encode(), name="x")


@pytest.mark.parametrize("content", [b"", b"<svg>", b"\xff\xfe", b"<g/>"])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(ValueError, match=r"no SVG|begins with <svg>"):
        checked_svg(content, name="x")


def test_text_of_a_file_that_does_not_print_is_spelt_out():
    found = checked_svg("<svg><text>a\u202eb</text>loose</svg>".encode(), name="x")
    assert found == "<svg><text>a\\u202eb</text></svg>"
