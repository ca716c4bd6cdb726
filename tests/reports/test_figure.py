import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.figure import comparison_png
from limbeck.reports.spread import spread


def row(label="KD", role="method", last=(0.86, 0.9), gain=()):
    return ComparisonRow(
        label=label,
        role=role,
        last=dict(enumerate(last)),
        best_on_validation={},
        gain=spread(gain) if gain else None,
        num_parameters=1702,
        seconds=2.0,
    )


def pixels(*rows, **settings):
    png = comparison_png(rows, **{"title": "digits"} | settings)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_picture_is_a_png_that_grows_with_its_rows():
    one, three = pixels(row()), pixels(row(), row("RKD"), row("FitNets"))
    assert three.shape[0] > one.shape[0] > 100
    assert three.shape[1] == one.shape[1] > 800


def test_every_seed_is_a_point_at_its_accuracy_and_the_bar_stands_at_the_mean(drawn):
    pixels(row(last=(0.5, 0.75, 0.7)))
    (axes,) = drawn
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"]
    bars = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert points == [50.0, 75.0, 70.0]
    assert bars == [pytest.approx([65.0, 65.0])]


def test_seeds_differ_in_shape_and_not_in_colour_alone(drawn):
    pixels(row(last=(0.5, 0.5, 0.5)))
    points = [line for line in drawn[0].lines if line.get_marker() != "None"]
    assert len({line.get_marker() for line in points}) == 3
    assert len({line.get_ydata()[0] for line in points}) == 3  # equal values stay visible


def test_the_title_says_how_many_seeds(drawn):
    pixels(row(last=(0.5, 0.6)), title="digits, 100 labels")
    pixels(row(last=(0.5,)), title="digits, 100 labels")
    titles = [axes.figure.get_suptitle() for axes in drawn]
    assert titles == ["digits, 100 labels, 2 seeds", "digits, 100 labels, 1 seed"]


def test_the_first_row_is_on_top(drawn):
    pixels(row("first"), row("second"))
    bottom, top = drawn[0].get_ylim()
    assert bottom > top
    assert [label.get_text() for label in drawn[0].get_yticklabels()] == ["first", "second"]


def test_further_accuracies_are_lines_across_all_rows(drawn):
    pixels(row(), lines={"teacher": 0.99, "all labels": 0.95})
    across = [line for line in drawn[0].lines if line.get_xdata()[0] in (99.0, 95.0)]
    assert [line.get_label() for line in across] == ["teacher 99.0", "all labels 95.0"]
    assert len({line.get_linestyle() for line in across}) == 2


def test_numbers_stand_beside_the_row(drawn):
    pixels(row(last=(0.5, 0.7), gain=(-0.1, -0.1)))
    texts = [text.get_text() for text in drawn[0].texts]
    assert texts == ["60.0 ± 14.1", "-10.0 ± 0.0", "mean ± sd", "gain, paired"]


def test_one_seed_has_no_spread_beside_it(drawn):
    pixels(row(last=(0.5,), gain=(0.125,)), row("none", "baseline", last=(0.375,)))
    texts = [text.get_text() for text in drawn[0].texts]
    assert texts == ["50.0", "+12.5", "37.5", "baseline", "mean", "gain, paired"]


@pytest.mark.parametrize("name", ["$x$", "$\\frac{$", "a\nb", "\x1b[31m", "中文", "", "k" * 500])
def test_hostile_names_are_drawn_as_text(name):
    assert pixels(row(name), title=name, lines={name: 0.9}).std() > 0


def test_many_seeds_still_fit(drawn):
    pixels(row(last=tuple(0.5 + 0.01 * seed for seed in range(12))))
    assert len([line for line in drawn[0].lines if line.get_marker() == "o"]) == 12


def test_the_users_own_settings_neither_change_the_picture_nor_are_changed():
    plain = pixels(row("$x$"))
    with matplotlib.rc_context({"text.parse_math": True, "font.size": 30, "axes.grid": True}):
        again = pixels(row("$x$"))
        assert matplotlib.rcParams["font.size"] == 30
    assert (plain == again).all()


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        comparison_png([], title="digits")
