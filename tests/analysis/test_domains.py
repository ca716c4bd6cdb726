import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limbeck.analysis import transforms
from limbeck.analysis.base import Given, NotApplicableError
from limbeck.analysis.domains import DOMAINS


class Scores(nn.Module):
    """Three scores that are linear in the image; different from seed to seed."""

    def __init__(self, seed, pixels):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, pixels, generator=generator))

    def forward(self, image):
        return (image.flatten(1) - 0.5) @ self.weight.T


@pytest.fixture
def colours(generator):
    return torch.randint(0, 256, (60, 3, 6, 6), dtype=torch.uint8, generator=generator)


LABELS = torch.arange(60) % 3


def choices(network, images):
    """One image at a time."""
    return np.array([int(network(image[None]).argmax()) for image in images])


def test_agreement_is_counted_on_every_built_in_domain(make_case, colours):
    teacher, other = Scores(0, 108), Scores(1, 108)
    case = make_case(teacher, Scores(0, 108), other, colours, LABELS)
    found = DOMAINS.measure(case)
    assert [reading.name for reading in found.readings] == [
        f"agreement on {name}"
        for name in ("sketches", "silhouettes", "swapped textures", "greyscale images")
    ]
    for reading in found.readings:
        assert reading.distilled[0].all()
    grey = transforms.greyscale(colours.float() / 255, torch.Generator())
    expected = choices(teacher, grey) == choices(other, grey)
    np.testing.assert_array_equal(found.readings[3].independent[0], expected)
    assert 0 < expected.mean() < 1


def test_the_table_has_the_test_images_themselves_first(make_case, colours):
    teacher, other = Scores(0, 108), Scores(1, 108)
    found = DOMAINS.measure(make_case(teacher, teacher, other, colours, LABELS))
    (rows,) = found.tables.values()
    agreement = (choices(teacher, colours / 255) == choices(other, colours / 255)).mean()
    accuracy = (choices(other, colours / 255) == LABELS.numpy()).mean()
    assert rows[1][:4] == ("test images", "60", "100.0%", f"{agreement:.1%}")
    assert rows[1][6] == f"{accuracy:.1%}"
    assert len(rows) == 6
    assert found.pictures[0].png.startswith(b"\x89PNG")


class ByBrightness(nn.Module):
    """Class 0 of dark images, 1 of bright ones, 2 of none; or the other way round."""

    def __init__(self, turned=False):
        super().__init__()
        self.turned = turned

    def forward(self, image):
        bright = image.mean(dim=(1, 2, 3)) - 0.5
        scores = torch.stack([-bright, bright, torch.full_like(bright, -9)], dim=1)
        return scores[:, [1, 0, 2]] if self.turned else scores


@pytest.fixture
def other_domain(tmp_path):
    """Dark pictures in a folder called "a", bright ones in "b", one of neither class."""
    for folder, value in (("a", 20), ("b", 230), ("misc", 200)):
        for number in range(4 if folder != "misc" else 1):
            path = tmp_path / "photos" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 6, 3), value + number, dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_domain_that_the_teacher_knows_shows_in_accuracy_and_agreement(
    make_case, colours, other_domain
):
    case = make_case(
        ByBrightness(),
        ByBrightness(),
        ByBrightness(turned=True),
        colours,
        LABELS,
        given=Given(other_images=other_domain),
    )
    found = DOMAINS.measure(case)
    agreement, accuracy = found.readings[:2]
    assert agreement.name == "agreement on images of photos"
    assert agreement.distilled[0].sum() == 9
    assert agreement.independent[0].sum() == 0
    assert accuracy.name == "accuracy on images of photos"
    assert accuracy.distilled[0].tolist() == [True] * 8
    assert accuracy.independent[0].tolist() == [False] * 8
    assert (accuracy.teacher, accuracy.nearer) == (1.0, "higher")


def test_a_folder_of_other_classes_has_agreement_alone(make_case, colours, other_domain):
    for folder in ("a", "b"):
        (other_domain / folder).rename(other_domain / f"{folder}{folder}")
    case = make_case(
        ByBrightness(), ByBrightness(), ByBrightness(), colours, LABELS,
        given=Given(other_images=other_domain),
    )  # fmt: skip
    found = DOMAINS.measure(case)
    assert not any("accuracy" in reading.name for reading in found.readings)
    (rows,) = found.tables.values()
    assert rows[2][4:] == ("", "", "")


def test_domains_that_do_not_apply_are_left_out_and_said(make_case, linear, labels):
    """Two grey pixels each way: no colour to take away, too small for edges and shapes."""
    network = linear(torch.eye(4)[:3], torch.zeros(3))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8, generator=generator)
    found = DOMAINS.measure(make_case(network, network, network, images, labels))
    assert [reading.name for reading in found.readings] == ["agreement on swapped textures"]
    text = " ".join(found.notes)
    assert "a sketch of edges needs images of 3 x 3 pixels or more; these have 2 x 2" in text
    assert "a silhouette needs" in text
    assert "changes of colour need colour images" in text


def test_a_domain_where_the_teacher_sees_nothing_is_left_out(make_case, colours, other_domain):
    """On bright pictures alone it gives one answer; on the test images it does not."""
    (other_domain / "a" / "0.png").rename(other_domain.parent / "elsewhere.png")
    for path in (other_domain / "a").iterdir():
        path.unlink()
    case = make_case(
        ByBrightness(), ByBrightness(), ByBrightness(), colours, LABELS,
        given=Given(other_images=other_domain),
    )  # fmt: skip
    found = DOMAINS.measure(case)
    assert any("network gives all images of photos the answer 'b'" in note for note in found.notes)
    assert not any("photos" in reading.name for reading in found.readings)


def test_a_teacher_that_tells_nothing_apart_ends_it(make_case, colours):
    case = make_case(
        ByBrightness(), ByBrightness(), ByBrightness(), torch.zeros_like(colours), LABELS
    )
    with pytest.raises(NotApplicableError, match="gives all test images the answer 'a'"):
        DOMAINS.measure(case)


def test_images_of_domains_are_answered_once_by_each_network(make_case, colours, monkeypatch):
    case = make_case(Scores(0, 108), Scores(1, 108), Scores(2, 108), colours, LABELS)
    DOMAINS.measure(case)
    monkeypatch.setattr(case, "forward", None)  # everything is kept
    DOMAINS.measure(case)
