import io

import numpy as np
import pytest
from PIL import Image

from limbeck.core.errors import UnknownNameError
from limbeck.reports.curves import curves_picture, values_of

ROWS = (
    {"run_epoch": 1, "stage": "hint", "lr": 0.1, "train": {"hint": 2.0}, "val": None},
    {"run_epoch": 2, "stage": "train", "lr": 0.1, "train": {"loss": 1.0}, "val": {"top1": 0.5}},
    {"run_epoch": 3, "stage": "train", "lr": 0.2, "train": {"loss": 0.5}, "val": {"top1": 0.75}},
)


def test_values_are_read_by_their_dotted_name():
    assert values_of(ROWS, "val.top1") == [(2, 0.5), (3, 0.75)]
    assert values_of(ROWS, "train.hint") == [(1, 2.0)]
    assert values_of(ROWS, "lr") == [(1, 0.1), (2, 0.1), (3, 0.2)]


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'val\.top1'"):
        values_of(ROWS, "val.top")


def test_every_run_is_a_line_through_its_values_and_accuracy_is_in_percent(drawn):
    curves = {"a": [(1, 0.5), (2, 0.75)], "b": [(1, 0.25)]}
    curves_picture(curves, metric="val.top1")
    (axes,) = drawn
    assert [list(line.get_ydata()) for line in axes.lines] == [[50, 75], [25]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1]]
    assert axes.get_ylabel() == "val.top1, %"


def test_other_numbers_are_drawn_as_they_are(drawn):
    curves_picture({"a": [(1, 0.5)]}, metric="train.loss")
    assert list(drawn[0].lines[0].get_ydata()) == [0.5]
    assert drawn[0].get_ylabel() == "train.loss"


@pytest.mark.parametrize(
    ("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_every_form_can_be_written_and_is_the_same_each_time(form, start):
    curves = {"a": [(1, 0.5), (2, 0.75)]}
    first = curves_picture(curves, metric="val.top1", form=form)
    assert first.startswith(start)
    assert curves_picture(curves, metric="val.top1", form=form) == first


@pytest.mark.parametrize(
    "name", ["$x_1$", "[red]a[/red]", "_hidden", "two\nlines", "\u202eleft", "\U0001f600", "<b>"]
)
def test_any_name_is_drawn_as_text(name):
    png = curves_picture({name: [(1, 0.5), (2, 0.6)]}, metric="lr")
    assert np.asarray(Image.open(io.BytesIO(png))).std() > 0


def test_many_runs_are_told_apart_by_colour_and_line(drawn):
    curves_picture({str(k): [(1, 0.1), (2, 0.2)] for k in range(20)}, metric="lr")
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].lines}
    assert len(looks) == 20


def test_no_runs_make_no_picture():
    with pytest.raises(ValueError, match="at least one run"):
        curves_picture({}, metric="lr")
