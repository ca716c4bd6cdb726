import copy
import dataclasses

import pytest
import torch
from safetensors.torch import save
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.normalization import Normalization
from limbeck.features import FeatureTap
from limbeck.methods import METHODS
from limbeck.runs.execute import rehearse
from limbeck.runs.networks import NamedNetwork
from limbeck.runs.opening import open_pair
from limbeck.runs.pairs import Attachment, inspect_pair, meant_layers


class Two(nn.Module):
    """Two stages of known widths, and a classifier of some kind."""

    def __init__(self, widths, num_classes=4, *, head="linear"):
        super().__init__()
        first, second = widths
        self.stage1 = nn.Sequential(nn.Conv2d(1, first, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.ReLU())
        self.act = nn.ReLU()
        self.head = nn.Linear(second, num_classes)
        if head == "conv":
            self.head = nn.Conv2d(second, num_classes, 1)
        self.kind = head
        self.layer_aliases = {"stage1": "stage1", "stage2": "stage2", "last": "stage2"}
        self.layer_aliases["pre_activation:last"] = "stage2.1:input"  # which no method reads

    def forward(self, image):
        feature = self.act(self.stage2(self.act(self.stage1(image))))
        if self.kind == "conv":
            return self.head(feature.mean((2, 3), keepdim=True)).flatten(1)
        logits = self.head(feature.mean((2, 3)))
        return (logits, logits + 1) if self.kind == "two" else logits


def named(widths, *, name="net", normalization=None, **options):
    return NamedNetwork(Two(widths, **options), normalization or Normalization(), name)


def inspected(teacher, student, **options):
    arguments = {"image_shape": (1, 8, 8), "num_classes": 4, "num_images": 40, **options}
    return inspect_pair(teacher, student, **arguments)


@pytest.fixture(scope="module")
def pair():
    """A teacher of widths 6 and 10, a student of 3 and 5: maps of 8 x 8 and 4 x 4."""
    return inspected(named((6, 10)), named((3, 5)))


def row(pair, method, stage=None):
    (found,) = (r for r in pair.attachments if r.method == method and stage in (None, r.stage))
    return found


def test_there_is_a_row_for_each_stage_of_each_method(pair):
    expected = [
        (name, entry.family, stage.name)
        for name, entry in METHODS.items()
        for stage in entry.stages(entry.config())
    ]
    assert [(r.method, r.family, r.stage) for r in pair.attachments] == expected


def test_costs_are_those_of_the_whole_networks(pair):
    """By hand for the student; bytes as safetensors writes them behind its header."""
    student = pair.student
    convolutions = 3 * 9 + 3, 5 * 3 * 9 + 5
    assert student.num_parameters == sum(convolutions) + 4 * 5 + 4
    assert student.num_macs == 8 * 8 * 3 * 9 + 4 * 4 * 5 * 3 * 9 + 4 * 5
    assert student.input_shape == (1, 8, 8)
    stored = save(Two((3, 5)).state_dict())
    assert student.num_bytes == len(stored) - 8 - int.from_bytes(stored[:8], "little")
    assert pair.teacher.num_parameters > student.num_parameters


def test_adapters_cost_what_their_shapes_say(pair):
    """FitNet's is a 1x1 convolution with a bias at stage2, CC's two linear layers to 128."""
    hint, cc = row(pair, "fitnet", "hint"), row(pair, "cc")
    assert (hint.num_parameters, hint.num_macs) == (5 * 10 + 10, 5 * 10 * 16)
    assert hint.attaches == (
        "student stage2 5x4x4 -> 1x1 conv, ReLU -> teacher stage2 10x4x4; 60 parameters",
    )
    assert (cc.num_parameters, cc.num_macs) == (128 * (5 + 10) + 2 * 128, 128 * (5 + 10))
    assert (row(pair, "rkd").num_parameters, row(pair, "rkd").num_macs) == (0, 0)


def test_what_rests_is_no_cost(pair):
    """SimKD keeps the teacher's classifier of 4 x 10 + 4, which does not train."""
    projector = 5 * 5 + 5 * 5 * 9 + 5 * 10
    assert row(pair, "simkd").num_parameters == projector + 2 * (5 + 5 + 10)
    assert row(pair, "simkd").num_macs == 16 * projector


def test_methods_of_outputs_alone_attach_nowhere(pair):
    for name in ("kd", "dkd", "ce"):
        assert row(pair, name) == Attachment(name, METHODS[name].family, "train")


def test_only_a_method_that_cannot_take_the_pair_is_refused(pair):
    """Without a batch-norm, two of the methods have no margins; all others take any pair.

    But for the one that is of several teachers.
    """
    refused = {r.method: r.refusal for r in pair.attachments if r.refusal is not None}
    assert "fuses two teachers or more, and got one" in refused.pop("multi_teacher")
    assert refused.keys() == {"ofd", "london"}
    assert all("use a teacher with batch-norm" in message for message in refused.values())


def test_a_classifier_of_another_kind_stands_in_the_rows_of_those_who_need_one():
    found = inspected(named((6, 10)), named((3, 5), head="conv"))
    for name in ("cat_kd", "simkd"):
        assert "'head', is a Conv2d and no nn.Linear" in row(found, name).refusal
        assert row(found, name).attaches == ()
    assert row(found, "rkd").refusal is None


def test_layers_stand_side_by_side_under_the_name_that_both_answer_to(pair):
    rows = {r.name: r for r in pair.layers}
    assert list(rows) == [
        "stage1",
        "pre_activation:stage1",
        "stage2",
        "pre_activation:stage2",
        "last",
        "penultimate",
    ]
    assert (rows["stage2"].teacher.output_shape, rows["stage2"].student.output_shape) == (
        (10, 4, 4),
        (5, 4, 4),
    )
    assert rows["penultimate"].student.address == "head:input"
    assert rows["pre_activation:stage1"].student.address == "stage1.1:input"
    network = Two((3, 5)).eval()
    for layer in rows.values():
        with FeatureTap(network, [layer.student.address]) as tap:
            shape = tap(torch.zeros(1, 1, 8, 8)).features[layer.student.address].shape[1:]
        assert shape == layer.student.output_shape


def test_a_rule_is_told_from_the_networks_own_word(generator):
    network = Two((3, 5)).eval()
    image = torch.rand(2, 1, 8, 8, generator=generator)
    assert not any(place.rule for place in meant_layers(network, image).values())
    network.layer_aliases = {}
    places = meant_layers(network, image)
    assert {name for name, place in places.items() if place.rule} >= {"stage1", "stage2", "last"}
    assert not places["penultimate"].rule


def test_each_network_sees_the_images_in_its_own_size_and_channels():
    large = Normalization(image_size=(16, 16), in_chans=1)
    found = inspected(named((6, 10), normalization=large), named((3, 5)))
    assert (found.teacher.input_shape, found.student.input_shape) == ((1, 16, 16), (1, 8, 8))
    stage = next(r for r in found.layers if r.name == "stage1")
    assert (stage.teacher.output_shape, stage.student.output_shape) == ((6, 16, 16), (3, 8, 8))
    assert "teacher stage2 10x8x8" in row(found, "fitnet", "hint").attaches[0]


def test_the_networks_stay_as_they_are():
    sides = [named((6, 10)), named((3, 5))]
    before = [copy.deepcopy(side.network.state_dict()) for side in sides]
    stream = torch.get_rng_state()
    inspected(*sides)
    for side, state in zip(sides, before, strict=True):
        network = side.network
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        assert network.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(
    ("options", "widths", "message"),
    [
        ({"num_classes": 7}, {}, "the data has 7 classes, the student gives 4 and the teacher"),
        ({"image_shape": (3, 8, 8)}, {}, "could not take one 3 x 8 x 8 image"),
        ({}, {"head": "two"}, "gives 2 outputs of shape"),
    ],
)
def test_what_suits_no_method_is_an_error_and_no_row(options, widths, message):
    with pytest.raises(ModelError, match=message):
        inspected(named((6, 10)), named((3, 5), **widths), **options)


@pytest.mark.parametrize("method", ["vid", "reviewkd", "fitnet", "crd"])
def test_a_run_says_the_same_before_it_trains(small, method):
    config = small.config(method, student="digits_cnn_tiny")
    parts = small.parts(config)
    said = rehearse(config, parts, judge=False).notices
    opened = open_pair(small.teacher, "digits_cnn_tiny")
    found = inspect_pair(
        opened.teacher,
        opened.student,
        image_shape=opened.image_shape,
        num_classes=opened.num_classes,
        num_images=len(parts.data.train),
    )
    lines = [
        f"stage {r.stage}: {line}"
        for r in found.attachments
        if r.method == method
        for line in r.attaches
        if not line.startswith("memory banks")  # their negatives depend on the labels there are
    ]
    assert lines
    assert set(lines) <= set(said)


def test_all_of_it_is_plain_values(pair):
    facts = dataclasses.asdict(pair)
    assert facts["teacher"]["name"] == "net"
    assert facts["layers"][0]["student"]["rule"] is False
