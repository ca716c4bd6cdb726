import re

import numpy as np
import pytest

from limbeck.metrics.calibration import reliability
from limbeck.reports.pictures import (
    ClassGains,
    CostPanel,
    Curves,
    Measured,
    Priced,
    Reliable,
    class_gains_svg,
    cost_svg,
    curves_svg,
    forest_svg,
    interval_svg,
    on_front,
    reliability_svg,
)
from limbeck.reports.statistics import Interval

HOSTILE = ["<script>", "$x_1$", "_x", "two\nlines", "\u202eab", "\U0001f600", "x" * 300]


def measured(label="kd", **fields):
    given = {"kind": "output", "each": [0.02, 0.04], "mean": 0.03, "interval": Interval(0.01, 0.05)}
    return Measured(label=label, **(given | fields))


def curves(label="kd", kind="output"):
    return Curves(label=label, kind=kind, by_seed={0: [(1, 0.5), (2, 0.75)], 1: [(1, 0.25)]})


def bins():
    return reliability([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5]], [0, 1, 1])


def priced(label="kd", cost=1.0, accuracy=0.5, **fields):
    return Priced(label=label, kind="output", cost=cost, accuracy=accuracy, **fields)


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def line_data(axes):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_a_forest_has_zero_each_seed_the_mean_and_the_ends_of_the_interval(drawn):
    svg = forest_svg([measured(), measured("rkd", kind="relation", interval=None)])
    (axes,) = drawn
    places = [x for x, _ in line_data(axes)]
    assert [0, 0] in places
    for expected in ([1, 5], [2], [4], [3]):
        assert any(x == pytest.approx(expected) for x in places), expected
    assert "kd" in texts(svg)
    assert "gain over the baseline, points" in texts(svg)


def test_a_control_is_drawn_beside(drawn):
    interval_svg("a", [measured(control=[0.9])], xlabel="agreement, %")
    assert any(x == pytest.approx([90]) for x, _ in line_data(drawn[0]))


def test_curves_have_a_panel_each_with_seeds_and_their_mean():
    rows = [curves("ce", "none"), curves()]
    svg = curves_svg(rows, baseline=rows[0], ylabel="accuracy, %")
    assert {"ce", "kd", "epoch", "accuracy, %"} <= set(texts(svg))
    assert svg.count("stroke-dasharray") == 1  # the baseline, in the other's panel alone


def test_reliability_shows_accuracy_over_confidence():
    """In one bin each, so at the confidences themselves: 73.1, 88.1 and 62.2 %."""
    svg = reliability_svg([Reliable(label="kd", kind="output", bins=bins(), note=", ECE 9 %")])
    assert "kd, ECE 9 %" in texts(svg)
    assert {"confidence, %", "accuracy, %"} <= set(texts(svg))


def test_the_front_is_who_is_not_beaten():
    """By hand: b costs as much as a and is worse, d is dear and worse, e is outside the match."""
    networks = [
        priced("a", 1, 0.5),
        priced("b", 1, 0.4),
        priced("c", 2, 0.7),
        priced("d", 3, 0.6),
        priced("e", 0.5, 0.9, matched=False),
    ]
    assert [one.label for one in on_front(networks)] == ["a", "c"]


def test_equals_are_on_the_front_together():
    assert len(on_front([priced("a"), priced("b")])) == 2


@pytest.mark.parametrize("lonely", [0.1, 0.9])
def test_cost_panels_name_every_network_once_and_labels_do_not_meet(lonely):
    """Eleven of about one accuracy, near the top or the bottom of the axis."""
    networks = [priced(f"method {k}", cost=1, accuracy=0.5 + k / 1000) for k in range(11)]
    networks.append(priced("method 11", cost=1, accuracy=lonely))
    svg = cost_svg([CostPanel(title="parameters", networks=networks)], ylabel="y")
    heights = sorted(
        float(found)
        for found, text in re.findall(r'y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
        if text.startswith("method")
    )
    assert len(heights) == 12
    assert min(np.diff(heights)) > 8  # points; the text is 9.5 high
    (below,) = re.findall(r'y="([\d.]+)"[^>]*>parameters</text>', svg)
    assert heights[-1] < float(below)
    assert heights[0] > 0


def test_a_wide_range_of_costs_is_drawn_in_powers_of_ten():
    wide = [priced("a", 1700, 0.5), priced("b", 1_700_000, 0.6)]
    found = texts(cost_svg([CostPanel(title="parameters", networks=wide)], ylabel="y"))
    assert {"10 k", "100 k", "1 M"} <= set(found)


def test_classes_are_points_and_the_extremes_are_named():
    gains = np.array([0.5, np.nan, -0.25, 0.0, 0.1, 0.2])
    names = ["cat", "dog", "cow", "hen", "pig", "rat"]
    row = ClassGains(label="kd", kind="output", gains=gains, names=names)
    found = texts(class_gains_svg([row]))
    assert "cow, hen" in found
    assert "cat, rat" in found
    assert "dog" not in " ".join(found)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_drawn_as_text(name):
    row = ClassGains(label=name, kind="none", gains=np.array([0.1, 0.2]), names=[name, name])
    pictures = [
        forest_svg([measured(name)]),
        curves_svg([curves(name)], baseline=None, ylabel="y"),
        cost_svg([CostPanel(title="t", networks=[priced(name), priced("b", 2)])], ylabel="y"),
        reliability_svg([Reliable(label=name, kind="none", bins=bins())]),
        class_gains_svg([row]),
    ]
    start = name[:5].replace("\n", "\\n").replace("\u202e", "\\u202e")[:5].replace("<", "&lt;")
    for svg in pictures:
        assert start.strip() in svg
        assert "<script" not in svg
