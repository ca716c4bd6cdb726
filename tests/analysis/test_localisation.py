from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.localisation import LOCALISATION, grad_cam


class Maps(nn.Module):
    """One convolution, a pooled vector, a classifier."""

    layer_aliases: ClassVar = {"stage1": "body", "last": "body", "penultimate": "fc:input"}

    def __init__(self, seed, *, relu=True, stride=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conv = nn.Conv2d(1, 5, 3, stride=stride, padding=1)
            self.body = nn.Sequential(conv, nn.ReLU() if relu else nn.Identity())
            self.fc = nn.Linear(5, 3)

    def forward(self, image):
        return self.fc(self.body(image).mean(dim=(2, 3)))


@pytest.fixture
def case(make_case, images, labels):
    return make_case(Maps(0), [Maps(0), Maps(1)], [Maps(5), Maps(6)], images, labels, batch_size=7)


def test_a_map_is_the_classifiers_weight_times_the_features(case, images, labels):
    """With pooling and one linear layer, the gradient is weight / (H W)."""
    network = case.teacher.network
    found = grad_cam(case, case.teacher, images, labels)
    features = network.body(images.float() / 255)
    weight = network.fc.weight[labels] / 16
    expected = torch.einsum("bc,bchw->bhw", weight, features).relu()
    torch.testing.assert_close(found, expected.detach())


class Deep(nn.Module):
    """What follows the maps is no mere pooling: gradients differ from place to place."""

    layer_aliases: ClassVar = {"last": "body", "penultimate": "head.3:input"}

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.Tanh()
            )
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3)
            )

    def forward(self, image):
        return self.head(self.body(image))


def test_maps_are_those_of_pytorch_grad_cam(make_case, images, labels):
    """Which scales each map to [0, 1]."""
    network = Deep()
    case = make_case(network, Maps(0), Maps(1), images, labels, batch_size=7)
    found = grad_cam(case, case.teacher, images, labels).numpy()
    with GradCAM(model=network, target_layers=[network.body]) as theirs:
        targets = [ClassifierOutputTarget(int(label)) for label in labels]
        pixels = (images.float() / 255).requires_grad_()
        expected = theirs(input_tensor=pixels, targets=targets)
    alive = found.max(axis=(1, 2)) > 0
    assert alive.sum() > 10
    low, high = (edge(found, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    scaled = (found - low) / np.where(high > low, high - low, 1)
    np.testing.assert_allclose(scaled[alive], expected[alive], atol=1e-4)


def test_chosen_classes_are_looked_up_in_the_network(case, images, labels):
    import dataclasses

    turned = dataclasses.replace(case.teacher, classes=(2, 0, 1))
    found = grad_cam(case, turned, images, labels)
    expected = grad_cam(case, case.teacher, images, torch.tensor([2, 0, 1])[labels])
    torch.testing.assert_close(found, expected)


def test_a_copy_of_the_teacher_looks_where_the_teacher_looks(case):
    found = LOCALISATION.measure(case)
    (reading,) = found.readings
    np.testing.assert_allclose(reading.distilled[0], 1.0)
    assert reading.independent[0].mean() < 0.99
    (table,) = found.tables.values()
    by_name = {row[0]: row[1] for row in table[1:]}
    assert by_name["distilled, independent; seed 0"] == "100.0%"
    assert "independent 0, independent 1" in by_name
    assert found.pictures[0].png.startswith(b"\x89PNG")


def test_maps_of_two_sizes_are_compared_at_the_smaller(make_case, images, labels):
    fine, coarse = Maps(0), Maps(0, stride=2)
    case = make_case(fine, coarse, coarse, images, labels)
    (reading,) = LOCALISATION.measure(case).readings
    first = grad_cam(case, case.teacher, images, labels)[:, None]
    second = grad_cam(case, case.distilled[0], images, labels).flatten(1)
    alive = (first.flatten(1).amax(dim=1) > 0) & (second.amax(dim=1) > 0)
    small = F.interpolate(first, size=(2, 2), mode="bilinear").flatten(1)
    expected = F.cosine_similarity(small, second)[alive]
    np.testing.assert_allclose(reading.distilled[0], expected, rtol=1e-5)


def test_images_without_a_map_are_left_out_and_counted(make_case, images, labels):
    dead = Maps(0)
    dead.fc.weight.data[0] = -dead.fc.weight.data[0].abs()  # no evidence for class 0 anywhere
    case = make_case(dead, Maps(0), Maps(1), images, labels)
    found = LOCALISATION.measure(case)
    left = len(found.readings[0].distilled[0])
    assert left <= 20
    assert found.notes[0].startswith(f"{30 - left} of 30 images are left out")


def test_a_network_without_maps_says_so(make_case, images, labels, linear):
    network = linear(torch.ones(3, 16), torch.zeros(3))
    with pytest.raises(NotApplicableError, match="network"):
        LOCALISATION.measure(make_case(network, network, network, images, labels))


def test_unlabelled_images_are_not_looked_at(make_case, images):
    labels = torch.where(torch.arange(30) < 5, torch.arange(30) % 3, -1)
    case = make_case(Maps(0), Maps(0), Maps(1), images, labels)
    assert LOCALISATION.measure(case).settings["images"] <= 5
