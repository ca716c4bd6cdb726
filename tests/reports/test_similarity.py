import csv
import io

import numpy as np
import pytest
from PIL import Image

from limbeck.reports.similarity import similarity_csv, similarity_picture

VALUES = [[0.25, 0.5, 0.125], [1.0, -0.01, 0.75]]


def test_the_table_is_read_back_with_every_digit():
    text = similarity_csv(["a,b", "c"], ["x", '"y"', "z"], VALUES)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["student", "x", '"y"', "z"]
    assert [row[0] for row in rows[1:]] == ["a,b", "c"]
    assert [[float(cell) for cell in row[1:]] for row in rows[1:]] == VALUES


def test_rows_are_the_students_layers_from_below_with_their_numbers(drawn):
    similarity_picture(["first", "second"], ["x", "y", "z"], VALUES, title="two networks")
    axes = drawn[0]
    assert axes.images[0].get_array().tolist() == VALUES
    assert axes.images[0].origin == "lower"
    assert axes.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]
    assert [text.get_text() for text in axes.texts] == [
        "0.25",
        "0.50",
        "0.12",
        "1.00",
        "-0.01",
        "0.75",
    ]


def test_a_large_map_has_no_numbers_and_stays_a_picture(drawn):
    names = [f"layer{k}" for k in range(60)]
    png = similarity_picture(names, names, np.eye(60).tolist(), title="large")
    assert list(drawn[0].texts) == []
    assert max(Image.open(io.BytesIO(png)).size) < 4000


@pytest.mark.parametrize("name", ["$x_1$", "[red]a[/red]", "_hidden", "two\nlines", "\u202eleft"])
def test_any_name_is_drawn_as_text_and_the_same_each_time(name):
    first = similarity_picture([name], [name], [[0.5]], title=name)
    assert first == similarity_picture([name], [name], [[0.5]], title=name)
    assert np.asarray(Image.open(io.BytesIO(first))).std() > 0


def test_a_map_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        similarity_picture([], ["x"], [], title="")
