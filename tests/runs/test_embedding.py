"""Networks judged by the vectors before their classifiers."""

import dataclasses

import pytest
import torch
from torch import nn

from limbeck.core.normalization import Normalization
from limbeck.engine.config import TrainConfig
from limbeck.runs.embedding import MOST_KNOWN, embed, judge_embeddings
from limbeck.runs.networks import NamedNetwork

CPU = torch.device("cpu")
CONFIG = TrainConfig(device="cpu", eval_batch_size=7)
NORMALIZATION = Normalization(mean=(0.4,), std=(0.2,))


class Quarters(nn.Module):
    """The brightness of each quarter, and a classifier that knows nothing."""

    def __init__(self, *, head=True):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.scale = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)
        self.fc = nn.Linear(4, 4) if head else nn.Identity()

    def forward(self, image):
        return self.fc(self.scale(self.pool(image)).tanh().flatten(1))


class Blind(Quarters):
    """Sees nothing."""

    def forward(self, image):
        return self.fc(torch.zeros(len(image), 4))


class Dark(Quarters):
    """Has diverged."""

    def forward(self, image):
        return self.fc(self.pool(image).flatten(1) * torch.nan)


def named(network):
    return NamedNetwork(network, NORMALIZATION, type(network).__name__)


@pytest.fixture
def bundle(small):
    return small.bundle(size=40)


def judged(networks, bundle, **changes):
    networks = {name: named(network) for name, network in networks.items()}
    arguments = {"config": CONFIG, "device": CPU, "seed": 0, **changes}
    splits = bundle.splits
    return judge_embeddings(networks, splits.pop("train"), splits, **arguments)


def test_vectors_are_what_the_classifier_multiplies_for_every_image_in_order(bundle):
    network = Quarters().train()
    found = embed({"it": named(network)}, bundle.train, config=CONFIG, device=CPU)
    images = bundle.train.images.float() / 255
    expected = network.pool((images - 0.4) / 0.2).tanh().flatten(1)
    torch.testing.assert_close(found.vectors["it"], expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_every_image_is_read_once_for_all_networks(small, bundle):
    counting = small.CountingImages(bundle.train)
    embed({"a": named(Quarters()), "b": named(Blind())}, counting, config=CONFIG, device=CPU)
    assert set(counting.reads.values()) == {1}
    assert len(counting.reads) == len(bundle.train)


def test_what_the_vectors_hold_is_found_and_what_they_do_not_is_not(bundle):
    scores, notes = judged({"seeing": Quarters(), "blind": Blind()}, bundle)
    assert scores.keys() == {"seeing", "blind"}
    assert scores["seeing"].keys() == {"val", "test"} & bundle.splits.keys()
    for split in scores["seeing"]:
        assert scores["seeing"][split] == {"linear_top1": 1, "knn_top1": 1}
        assert scores["blind"][split]["linear_top1"] < 0.5
    assert notes == []


def test_a_backbone_without_a_classifier_is_judged_alike(bundle):
    scores, _ = judged({"with": Quarters(), "without": Quarters(head=False)}, bundle)
    assert scores["with"] == scores["without"]


def test_images_without_a_label_neither_teach_nor_count(bundle):
    labels = bundle.train.labels.clone()
    labels[len(labels) // 2 :] = -1
    partly = dataclasses.replace(bundle, train=bundle.train.with_labels(labels))
    scores, _ = judged({"it": Quarters()}, partly)
    half = bundle.train.subset(torch.arange(len(labels) // 2))
    assert scores == judged({"it": Quarters()}, dataclasses.replace(bundle, train=half))[0]
    none = bundle.train.with_labels(torch.full_like(labels, -1))
    scores, notes = judged({"it": Quarters()}, dataclasses.replace(bundle, train=none))
    assert scores == {}
    assert notes == ["the embedding is not judged: no training image has a label"]


def test_of_many_labelled_images_some_are_taken_and_it_is_said(bundle, monkeypatch):
    assert MOST_KNOWN >= 10_000
    monkeypatch.setattr("limbeck.runs.embedding.MOST_KNOWN", 16)
    scores, notes = judged({"it": Quarters()}, bundle)
    assert notes == [f"the embedding is judged by 16 of {len(bundle.train)} labelled images"]
    assert scores == judged({"it": Quarters()}, bundle)[0]


def test_a_network_that_cannot_be_judged_is_named_and_the_others_are(bundle):
    linear = nn.Sequential(nn.Flatten(), nn.ReLU())
    scores, notes = judged({"good": Quarters(), "odd": linear, "dark": Dark()}, bundle)
    assert scores.keys() == {"good"}
    assert sorted(note.partition(":")[0] for note in notes) == [
        "the embedding of dark is not judged",
        "the embedding of odd is not judged",
    ]
    assert any("diverged" in note for note in notes)
