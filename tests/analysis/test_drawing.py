import io

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.analysis.drawing import Panel, lines_svg, panel, panels_png


def drawn(png):
    assert png.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def draw(panel, **options):
    names = {"row_names": ["row"], "column_names": ["column"]}
    return drawn(panels_png([[panel]], **names, **options))


def test_a_table_grows_with_its_panels():
    panel = np.zeros((4, 4))
    one = draw(panel)
    six = drawn(panels_png([[panel] * 3] * 2, row_names=["a", "b"], column_names=["x", "y", "z"]))
    assert six.shape[0] > 1.5 * one.shape[0]
    assert six.shape[1] > 1.7 * one.shape[1]


def test_classes_have_colours_of_their_own_and_more_than_twelve_begin_again():
    first, second, again = (draw(np.full((4, 4), k), classes=True) for k in (1, 2, 13))
    assert (first != second).any()
    assert (first == again).all()


def test_grey_and_colour_panels_show_their_pixels():
    white, black = draw(np.ones((4, 4))), draw(np.zeros((4, 4)))
    assert white.mean() > black.mean() + 20
    red = draw(np.broadcast_to(np.array([1.0, 0, 0]), (4, 4, 3)))
    assert red[..., 0].mean() > red[..., 1].mean() + 20


def test_marks_are_drawn_where_they_lie():
    panel = np.full((10, 10), 0.5)
    plain = draw(panel)
    left = draw(panel, marks=[np.array([[1.0, 5.0]])])
    right = draw(panel, marks=[np.array([[8.0, 5.0]])])
    changes = [np.abs(image.astype(int) - plain).sum(axis=(0, 2)) for image in (left, right)]
    assert changes[0].argmax() < changes[1].argmax()


@pytest.mark.parametrize("name", ["$x_1$", "<b>", "名前", "line\nbreak"])
def test_any_text_is_a_name(name):
    drawn(panels_png([[np.zeros((2, 2))]], row_names=[name], column_names=[name]))


def test_an_image_becomes_a_panel_of_one_channel_or_three():
    grey = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    np.testing.assert_allclose(panel(grey), [[0, 1], [0.2, 0.4]], rtol=1e-6)
    colour = torch.rand(3, 2, 5)
    np.testing.assert_allclose(panel(colour)[1, 4], colour[:, 1, 4])


def test_lines_have_a_thin_one_for_each_seed_and_a_thick_mean_of_what_all_have():
    runs = {
        "distilled": [[(1, 2.0), (2, 4.0), (3, 9.0)], [(1, 4.0), (2, 6.0)]],
        "independent": [[(1, 1.0), (2, 1.0)]],
    }
    svg = lines_svg("a", [Panel(title="loss", lines=runs)] * 3, xlabel="epoch")
    assert svg.startswith("<svg")
    assert svg.count(">loss<") == svg.count(">epoch<") == 3
    assert svg.count('stroke-width="0.6"') == 3 * 3
    assert svg.count('stroke-width="1.8"') == 3 * 2


def test_a_logarithmic_panel_has_plain_numbers():
    panel = Panel(title="loss", lines={"distilled": [[(1, 0.1), (2, 10.0)]]}, log=True)
    svg = lines_svg("a", [panel], xlabel="epoch")
    assert ">0.10<" in svg
    assert "$" not in svg
