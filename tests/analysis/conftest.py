"""Networks with known answers, and a case made of them."""

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.analysis.base import Case, Subject
from limbeck.core.normalization import Normalization

PLAIN = Normalization(mean=(0.0,), std=(1.0,))


def subject(network, name="network"):
    return Subject(name=name, network=network, normalization=PLAIN)


@pytest.fixture
def make_case():
    """``make_case(teacher, distilled, independent, images, labels)``; networks or lists of them."""

    def make(teacher, distilled, independent, images, labels, **changes):
        groups = []
        for networks in (distilled, independent):
            listed = [networks] if isinstance(networks, nn.Module) else networks
            groups.append({seed: subject(network) for seed, network in enumerate(listed)})
        num_classes = int(labels.max()) + 1
        return Case(
            **{
                "teacher": subject(teacher),
                "distilled": groups[0],
                "independent": groups[1],
                "images": images,
                "labels": labels,
                "class_names": tuple("abcdefghijkl"[:num_classes]),
                "method": "kd",
            }
            | changes
        )

    return make


@pytest.fixture
def linear():
    """``linear(weight, bias)``: a classifier of flat images."""

    def make(weight, bias):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.float(), bias.float()
        return nn.Sequential(nn.Flatten(), layer)

    return make


@pytest.fixture
def images(generator):
    """``(30, 1, 4, 4)`` bytes, of three classes."""
    return torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.fixture
def labels():
    return torch.arange(30) % 3


class Given(nn.Module):
    """Given logits, image by image: the image's one pixel is its number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, image):
        return self.logits[(image.flatten() * 255).round().long()]


@pytest.fixture
def given(make_case):
    """``given(teacher, distilled, independent, label)``: a case of networks with these logits."""

    def make(teacher, distilled, independent, label, **changes):
        groups = [
            [Given(logits) for logits in (group if isinstance(group, list) else [group])]
            for group in (distilled, independent)
        ]
        images = torch.arange(len(label), dtype=torch.uint8).reshape(-1, 1, 1, 1)
        labels = torch.as_tensor(label)
        names = tuple("abcdefghijkl"[: np.shape(teacher)[1]])
        return make_case(
            Given(teacher), *groups, images, labels, **{"class_names": names, **changes}
        )

    return make
