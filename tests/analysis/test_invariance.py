import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.analysis.base import NotApplicableError, Subject
from limbeck.analysis.invariance import COLOUR_CONSTANCY, INVARIANCE, steadiness
from limbeck.core.normalization import Normalization


def subject(network):
    return Subject(name="control", network=network, normalization=Normalization())


class Brightest(nn.Module):
    """The class is which third of the image's rows is brightest, in one channel or in all."""

    def __init__(self, channel=None):
        super().__init__()
        self.channel = channel

    def forward(self, image):
        seen = image if self.channel is None else image[:, [self.channel]]
        return seen.mean(dim=1).unflatten(1, (3, -1)).mean(dim=(2, 3)) * 50


class Reddest(nn.Module):
    """The class is which channel is brightest: a network that sees nothing but colour."""

    def forward(self, image):
        return image.mean(dim=(2, 3)) * 50


@pytest.fixture
def colours(generator):
    return torch.randint(0, 256, (60, 3, 6, 6), dtype=torch.uint8, generator=generator)


LABELS = torch.arange(60) % 3


def test_what_a_teacher_ignores_and_its_student_too_is_found(make_case, colours):
    case = make_case(Brightest(), Brightest(), Reddest(), colours, LABELS)
    tint = COLOUR_CONSTANCY.measure(case).readings[0]
    assert tint.name == "answers that stay under tint 0.4"
    assert tint.nearer == "higher"
    assert tint.distilled[0].mean() == tint.teacher > tint.independent[0].mean() + 0.2


def test_a_teacher_that_is_less_steady_turns_the_direction(make_case, colours):
    case = make_case(Reddest(), Reddest(), Brightest(), colours, LABELS)
    assert COLOUR_CONSTANCY.measure(case).readings[0].nearer == "lower"


def test_every_strength_stands_in_the_table(make_case, colours):
    case = make_case(Brightest(), Brightest(1), Reddest(), colours, LABELS)
    found = INVARIANCE.measure(case)
    (table,) = found.tables.values()
    assert len(table) == 1 + 4 * 3
    assert len(found.readings) == 4
    headline = next(row for row in table if row[0] == "shift by up to 2 pixels")
    reading = next(r for r in found.readings if "shift" in r.name)
    assert headline[1] == f"{reading.teacher:.1%}"
    assert headline[2] == f"{reading.distilled[0].mean():.1%}"


def test_grey_images_keep_what_is_not_about_colour(make_case, images, labels, linear):
    network = linear(torch.eye(16)[:3], torch.zeros(3))
    case = make_case(network, network, network, images, labels)
    found = INVARIANCE.measure(case)
    assert len(found.readings) == 3
    assert any("colour jitter: changes of colour need colour images" in n for n in found.notes)
    constancy = COLOUR_CONSTANCY.measure(case)
    assert [reading.name for reading in constancy.readings] == [
        "answers that stay under illumination 1"
    ]


def test_steadiness_is_agreement_of_a_network_with_itself(make_case, colours):
    case = make_case(Brightest(), Brightest(1), Reddest(), colours, LABELS)

    def darker(images, strength, generator):
        return images * (1 - strength * torch.rand(len(images), 3, 1, 1, generator=generator))

    stays = steadiness(case, darker, 0.8, name="darker")(case.independent[0])
    generator = case.torch_generator("darker.first")
    other = darker(colours.float() / 255, 0.8, generator)
    expected = [
        Reddest()(a[None]).argmax().item() == Reddest()(b[None]).argmax().item()
        for a, b in zip(colours.float() / 255, other, strict=True)
    ]
    np.testing.assert_array_equal(stays, expected)
    assert 0 < np.mean(expected) < 1


def test_with_two_changed_versions_the_original_does_not_count(make_case, colours):
    case = make_case(Reddest(), Reddest(), Reddest(), colours, LABELS)
    versions = iter([colours.float() / 255, 1 - colours.float() / 255])
    stays = steadiness(case, lambda *_: next(versions), 1.0, name="negative", twice=True)
    assert stays(case.teacher).mean() < 0.1


def test_where_no_change_applies_the_reason_is_given(
    make_case, images, labels, linear, monkeypatch
):
    network = linear(torch.eye(16)[:3], torch.zeros(3))
    case = make_case(network, network, network, images, labels)
    from limbeck.analysis import invariance

    monkeypatch.setattr(invariance, "_CONSTANCY", invariance._CONSTANCY[:2])
    with pytest.raises(NotApplicableError, match="tint: changes of colour need colour images"):
        COLOUR_CONSTANCY.measure(case)


def test_students_of_noise_stand_beside_as_the_control(make_case, colours):
    case = make_case(
        Brightest(), Brightest(), Reddest(), colours, LABELS, controls={0: subject(Reddest())}
    )
    found = COLOUR_CONSTANCY.measure(case)
    assert len(found.readings) == 6
    kept, control = found.readings[0], found.readings[3]
    assert control.name == f"{kept.name}, after noise targets"
    assert control.pupil == "student of noise targets"
    np.testing.assert_array_equal(control.distilled[0], kept.independent[0])
    (table,) = found.tables.values()
    assert table[0][-1] == "noise targets"
    row = next(row for row in table if row[0] == "tint 0.4")
    assert row[3] == row[4] == f"{kept.independent[0].mean():.1%}"


class Constant(nn.Module):
    def forward(self, image):
        return torch.tensor([0.0, 9.0, 0.0]).expand(len(image), 3)


def test_a_teacher_that_tells_nothing_apart_is_refused(make_case, colours):
    case = make_case(Constant(), Brightest(), Reddest(), colours, LABELS)
    with pytest.raises(NotApplicableError, match="gives all test images the answer 'b'"):
        INVARIANCE.measure(case)


def test_a_student_that_is_steady_because_it_sees_nothing_is_named(make_case, colours):
    case = make_case(Brightest(), Constant(), Reddest(), colours, LABELS)
    notes = COLOUR_CONSTANCY.measure(case).notes
    assert notes[0].startswith("network gives every test image one answer")


@pytest.mark.slow
def test_what_was_planted_is_found_and_of_an_unrelated_teacher_nothing_is(tmp_path):
    """Colour pays on the student's digits; the teacher has learnt that it means nothing."""
    path = Path(__file__).parents[2] / "benchmarks" / "planted.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    plant = planted.PLANTS["colour"]
    outcome = planted.analyse(plant, seeds=3, folder=tmp_path)
    _, found = planted.headline(outcome.planted, plant)
    _, unrelated = planted.headline(outcome.unrelated, plant)
    assert found.verdict == "nearer", found.sentence
    assert unrelated.verdict != "nearer", unrelated.sentence
    assert found.distilled > unrelated.distilled
