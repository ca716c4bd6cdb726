import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limbeck.analysis.base import Given, NotApplicableError
from limbeck.analysis.shape import SHAPE, Cues, cues_of
from limbeck.core.errors import DataError

NAMES = ("cat", "dog", "owl", "sky")


class Reads(nn.Module):
    """Answers what is written in a pixel: 20 per class, at row 0 the shape, at row 1 the texture.

    Of every ``period`` images, numbered in row 2, it goes by the texture once.
    """

    def __init__(self, period):
        super().__init__()
        self.period = period

    def forward(self, image):
        shape, texture, number = (image[:, 0, row, 0] * 255 for row in range(3))
        by_texture = (number / 2).round() % self.period == 0
        said = torch.where(by_texture, texture, shape) / 20
        return -(said[:, None] - torch.arange(4)).abs() * 20


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of every two of cat, dog and owl; and three that do not count."""
    root = tmp_path / "cue-conflict"
    pairs = [(s, t) for s in range(3) for t in range(3) if s != t] * 2
    for number, (shape, texture) in enumerate(pairs):
        pixels = np.zeros((4, 4), dtype=np.uint8)
        pixels[0], pixels[1], pixels[2] = 20 * shape, 20 * texture, 2 * number
        path = root / NAMES[shape] / f"{NAMES[shape]}{number}-{NAMES[texture]}1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    for name in ("cat/cat1-cat2.png", "cat/cat1-zebra2.png", "cat/photo.png"):
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture
def case(make_case, folder, generator):
    images = torch.randint(0, 60, (30, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return make_case(
        Reads(2), Reads(2), Reads(100), images, torch.arange(30) % 4,
        class_names=NAMES, given=Given(cue_conflict=folder),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cue-conflict/cat/cat3-elephant1.png", Cues("cat", "elephant")),
        ("knife/0001_cue_dnn_s01_knife2-oven3.PNG", Cues("knife", "oven")),
        ("Bear/bear7-Boat12.jpg", Cues("bear", "boat")),
        ("cat/photo.png", None),
        ("cat/cat3-7.png", None),
    ],
)
def test_cues_are_read_from_folder_and_name(name, expected):
    assert cues_of(name) == expected


def test_shape_bias_is_the_share_of_shape_among_what_was_called_by_either(case):
    """Every second image goes by texture: 6 of 12. The independent student: the first alone."""
    found = SHAPE.measure(case)
    bias, agreement = found.readings
    assert bias.teacher == pytest.approx(6 / 12)
    assert bias.distilled[0].mean() == pytest.approx(6 / 12)
    assert bias.independent[0].mean() == pytest.approx(11 / 12)
    assert bias.nearer == "lower"
    assert agreement.distilled[0].all()
    assert agreement.independent[0].mean() == pytest.approx(1 - 5 / 12)
    assert found.settings["images"] == 12
    assert found.notes[0].startswith("3 of 15 pictures are left out")


def test_the_table_counts_shape_texture_and_neither(case):
    (rows,) = SHAPE.measure(case).tables.values()
    assert rows[1] == ("network", "50.0%", "50.0%", "0.0%", "50.0%")
    assert rows[3][1:] == ("91.7%", "8.3%", "0.0%", "91.7%")


def test_a_category_is_the_mean_over_its_classes(make_case, folder, generator):
    """ "animal" has two classes: a sum, or their largest, would decide for it."""
    images = torch.randint(0, 255, (30, 1, 4, 4), dtype=torch.uint8, generator=generator)

    class Fixed(nn.Module):
        def forward(self, image):
            split = torch.tensor([0.31, 0.31, 0.38, 1e-9]).log().expand(len(image), 4)
            return split + image[:, 0, 3, :4] * 5  # so that test images differ

    (folder / "owl" / "owl9-animal1.png").write_bytes((folder / "cat" / "photo.png").read_bytes())
    (folder / "categories.json").write_text(
        json.dumps({"animal": ["cat", "dog"], "owl": ["OWL"], "missing": ["no such class"]})
    )
    case = make_case(
        Fixed(), Fixed(), Fixed(), images, torch.arange(30) % 4,
        class_names=NAMES, given=Given(cue_conflict=folder),
    )  # fmt: skip
    found = SHAPE.measure(case)
    assert found.settings == {"categories": ["animal", "owl"], "images": 1}
    (rows,) = found.tables.values()
    assert rows[1][1:3] == ("100.0%", "0.0%")


def test_without_a_folder_it_says_what_to_give(make_case, images, labels, linear):
    network = linear(torch.eye(16)[:3], torch.zeros(3))
    with pytest.raises(NotApplicableError, match=r"give a folder of them.*with --cue-conflict"):
        SHAPE.measure(make_case(network, network, network, images, labels))


def test_a_folder_of_other_categories_says_how_to_map_them(case, folder):
    for path in folder.rglob("*-*.png"):
        path.unlink()
    with pytest.raises(NotApplicableError, match=r"no picture shows two .*categories\.json"):
        SHAPE.measure(case)


def test_a_network_that_recognises_neither_cue_is_named(make_case, folder, images):
    class Sky(nn.Module):
        def forward(self, image):
            return torch.tensor([0.0, 0.0, 0.0, 9.0]).expand(len(image), 4)

    case = make_case(
        Reads(2), Reads(2), Sky(), images, torch.arange(30) % 4,
        class_names=NAMES, given=Given(cue_conflict=folder),
    )  # fmt: skip
    with pytest.raises(NotApplicableError, match="network recognises neither cue"):
        SHAPE.measure(case)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"cat": 3}'])
def test_a_damaged_table_of_categories_is_named(case, folder, text):
    (folder / "categories.json").write_text(text)
    with pytest.raises(DataError, match=r"categories\.json cannot be read"):
        SHAPE.measure(case)
