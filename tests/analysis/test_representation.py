from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.representation import REPRESENTATION, layer_similarities


class Net(nn.Module):
    """Two stages and a classifier."""

    layer_aliases: ClassVar = {"stage1": "first", "stage2": "second", "penultimate": "fc:input"}

    def __init__(self, seed, width=5):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(width, 4, 3), nn.ReLU())
            self.fc = nn.Linear(4, 3)

    def forward(self, image):
        return self.fc(self.second(self.first(image)).mean(dim=(2, 3)))


def hsic(x, y):
    """Unbiased, by the traces of Song et al. 2012, eq. 5."""
    k, m = (rows @ rows.T for rows in (x, y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def flat(features):
    return features.detach().flatten(1).double().numpy()


def test_terms_are_summed_over_batches_before_they_are_divided(make_case, images, labels):
    teacher, student = Net(0), Net(1, width=3)
    case = make_case(teacher, student, Net(2, width=3), images, labels, batch_size=10)
    found = layer_similarities(case)[id(case.distilled[0])]
    assert found.teacher_layers == found.student_layers == ["stage1", "stage2", "penultimate"]
    sums = np.zeros(3)
    for part in (images.float() / 255).split(10):
        x, y = flat(teacher.first(part)), flat(student.second(student.first(part)))
        sums += [hsic(x, y), hsic(x, x), hsic(y, y)]
    assert found.values[0, 1] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-6)


def test_a_copy_of_the_teacher_has_its_layers(make_case, images, labels):
    case = make_case(Net(0), [Net(0), Net(3)], [Net(1), Net(2)], images, labels)
    found = REPRESENTATION.measure(case)
    (reading,) = found.readings
    np.testing.assert_allclose(reading.distilled[0], 1.0, atol=1e-6)
    assert reading.independent[0].max() < 0.9999
    (table,) = found.tables.values()
    assert [row[0] for row in table[1:]] == ["stage1", "stage2", "penultimate"]
    (picture,) = found.pictures
    assert picture.png.startswith(b"\x89PNG")
    assert "largest" in picture.alt


def test_the_teachers_layers_are_computed_once_for_all_students(make_case, images, labels):
    teacher, calls = Net(0), []
    case = make_case(teacher, [Net(1), Net(2)], [Net(3), Net(4)], images, labels, batch_size=10)
    teacher.first.register_forward_hook(lambda *seen: calls.append(len(seen[-1])))
    layer_similarities(case)
    assert calls.count(10) == 3  # beside a dry pass that tells the layers


def test_networks_are_left_without_hooks(make_case, images, labels):
    case = make_case(Net(0), Net(1), Net(2), images, labels)
    layer_similarities(case)
    for subject in case.subjects:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.network.modules())


def test_layers_of_equal_rows_are_like_nothing(make_case, images, labels):
    dead = Net(0)
    for weight in dead.parameters():
        weight.data.zero_()
    (reading,) = REPRESENTATION.measure(make_case(dead, Net(1), Net(2), images, labels)).readings
    assert not reading.distilled[0].any()


def test_too_few_images_are_said(make_case, images, labels):
    case = make_case(Net(0), Net(1), Net(2), images[:3], labels[:3])
    with pytest.raises(NotApplicableError, match="4 images or more; there are 3"):
        REPRESENTATION.measure(case)


def test_layers_of_one_network_alone_are_not_in_the_reading(make_case, images, labels):
    teacher = Net(0)
    teacher.layer_aliases = {"stage7": "first", "last": "second", "penultimate": "fc:input"}
    case = make_case(teacher, Net(1), Net(2), images, labels)
    found = layer_similarities(case)[id(case.distilled[0])]
    assert found.teacher_layers == ["stage7", "last", "penultimate"]
    assert list(found.shared) == ["penultimate"]
    assert len(REPRESENTATION.measure(case).readings[0].distilled[0]) == 1
