"""What every method inherits."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import ModelError, SettingsError, UnknownNameError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods.base import (
    BatchNormInfo,
    Method,
    MethodConfig,
    Needs,
    OwnNetwork,
    Probe,
    Stage,
    cross_entropy,
)
from limbeck.methods.ce import CE, CEConfig


@pytest.fixture
def logits(generator):
    return torch.randn(6, 4, dtype=torch.float64, generator=generator)


LABEL = torch.tensor([0, 3, 1, 1, 2, 0])
SOME = torch.tensor([0, -1, 1, -1, -1, 2])
NONE = torch.full((6,), -1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_labelled_images_is_torchs(logits, smoothing):
    ours = cross_entropy(logits, LABEL, label_smoothing=smoothing)
    expected = F.cross_entropy(logits, LABEL, label_smoothing=smoothing)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_the_labelled_images_alone(logits, smoothing):
    ours = cross_entropy(logits, SOME, label_smoothing=smoothing)
    known = SOME >= 0
    expected = F.cross_entropy(logits[known], SOME[known], label_smoothing=smoothing)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_labels_cross_entropy_and_its_gradient_are_zero(logits, smoothing):
    student = logits.requires_grad_()
    loss = cross_entropy(student, NONE, label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


class Bare(Method[MethodConfig]):
    def forward(self, batch, student, teacher, progress):
        raise NotImplementedError


OTHER = torch.tensor([1, 3, 0, 2, 2, 1])
SHARE = torch.tensor([1.0, 0.3, 0.25, 0.0, 0.9, 0.5], dtype=torch.float64)


def mixed(label, other, share):
    image = torch.zeros(6, 1, 2, 2)
    return Batch(
        index=torch.arange(6), image=image, label=label, other_label=other, label_share=share
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_labels_count_by_their_shares_as_probabilities_do_in_torch(logits, smoothing):
    method = Bare(MethodConfig(label_smoothing=smoothing))
    ours = method.label_loss(logits, mixed(LABEL, OTHER, SHARE))
    one, other = (F.one_hot(label, 4).double() for label in (LABEL, OTHER))
    target = SHARE[:, None] * one + (1 - SHARE[:, None]) * other
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_of_two_labels_those_that_are_known_count(logits):
    unknown = torch.tensor([0, -1, 3, -1, 1, 2])
    ours = Bare(MethodConfig()).label_loss(logits, mixed(SOME, unknown, SHARE))
    total = weight = 0.0
    log_p = torch.log_softmax(logits, dim=1)
    for row in range(6):
        for label, part in ((SOME[row], SHARE[row]), (unknown[row], 1 - SHARE[row])):
            if label >= 0:
                total -= part * log_p[row, label]
                weight += part
    torch.testing.assert_close(ours, total / weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [SHARE, torch.ones(6)])
def test_without_any_label_that_counts_the_mixed_loss_and_its_gradient_are_zero(logits, share):
    student = logits.requires_grad_()
    other = OTHER if (share == 1).all() else NONE  # known, but of no part of any image
    loss = Bare(MethodConfig()).label_loss(student, mixed(NONE, other, share))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("label", [LABEL, SOME])
def test_one_label_an_image_is_cross_entropy(logits, label):
    batch = Batch(index=torch.arange(6), image=torch.zeros(6, 1, 2, 2), label=label)
    ours = Bare(MethodConfig(label_smoothing=0.1)).label_loss(logits, batch)
    expected = cross_entropy(logits, label, label_smoothing=0.1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_under_autocast_the_mixed_loss_is_float32(logits):
    loss = Bare(MethodConfig()).label_loss(logits.bfloat16(), mixed(LABEL, OTHER, SHARE))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_cross_entropy_is_float32_or_wider(logits, dtype, expected):
    assert cross_entropy(logits.to(dtype), LABEL).dtype == expected


class Plain(Method[MethodConfig]):
    pass


def test_a_methods_cross_entropy_has_its_label_smoothing(logits):
    method = Plain(MethodConfig(label_smoothing=0.2))
    expected = F.cross_entropy(logits, LABEL, label_smoothing=0.2)
    torch.testing.assert_close(method.cross_entropy(logits, LABEL), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_has_a_range(smoothing):
    with pytest.raises(SettingsError, match="label_smoothing"):
        MethodConfig(label_smoothing=smoothing)


@pytest.fixture
def probe():
    return Probe(
        student=Outputs(torch.zeros(2, 4), features={"stage1": torch.zeros(2, 3)}),
        teacher=Outputs(torch.zeros(2, 4), features={"stage1": torch.ones(2, 5)}),
        num_classes=4,
        num_images=20,
    )


def test_a_probe_tells_student_from_teacher(probe):
    assert probe.feature("student", "stage1").shape == (2, 3)
    assert probe.feature("teacher", "stage1").shape == (2, 5)


def test_a_probe_names_the_nearest_layer(probe):
    with pytest.raises(UnknownNameError, match=r"no tapped teacher layer called 'stage_1'.*stage1"):
        probe.feature("teacher", "stage_1")


def test_a_layer_without_batch_norm_is_named_with_the_ways_out(probe):
    with pytest.raises(ModelError, match=r"no batch-norm gives the teacher's layer 'stage1'.*off"):
        probe.batch_norm("stage1")
    info = BatchNormInfo(name="bn", weight=torch.ones(3), bias=torch.zeros(3))
    known = dataclasses.replace(probe, teacher_batch_norms={"stage1": info})
    assert known.batch_norm("stage1") is info


def test_a_method_asks_for_logits_of_both_networks_unless_it_says_more(probe):
    config = MethodConfig()
    assert Plain.needs(config) == Needs()
    assert Needs().teacher
    assert not Needs().stop_student
    method = Plain.from_probe(config, probe)
    assert method.config is config
    assert list(method.parameters()) == []


@pytest.mark.parametrize(
    "read",
    [{"teacher_layers": ("a",)}, {"teacher_classifier": True}, {"teacher_batch_norms": True}],
)
def test_logits_suffice_where_no_step_reads_more_of_the_teacher(read):
    assert Needs(student_layers=("a",), views=("second",)).logits_suffice
    assert not Needs(**read).logits_suffice
    assert Needs(**read, before_training=("layer",)).logits_suffice


def test_a_method_prepares_nothing_and_deploys_the_student_itself():
    method, student = Plain(MethodConfig()), nn.Linear(2, 2)

    def teacher(image):
        raise AssertionError("the default preparation reads nothing")

    method.prepare(teacher, [])
    assert method.deployed(student) is student


def test_a_method_that_attaches_to_no_layer_describes_nothing():
    assert Plain(MethodConfig()).describe() == ()


def test_a_method_without_a_loss_says_so():
    batch = Batch(index=torch.arange(1), image=torch.zeros(1, 1, 2, 2), label=torch.zeros(1).long())
    with pytest.raises(NotImplementedError):
        Plain(MethodConfig())(batch, Outputs(), Outputs(), Progress())


# -- stages ----------------------------------------------------------------------------------


def stage(**fields):
    return Stage(**{"name": "train", "method": Plain, "config": MethodConfig(), **fields})


def test_a_stage_trains_the_runs_student_with_the_runs_teacher_unless_it_says_more():
    assert stage().own_networks() == {}
    assert stage().uses_run_teacher
    assert not stage().is_finished
    assert not stage(method=CE, config=CEConfig()).uses_run_teacher
    assert not stage(teachers=("assistant1",)).uses_run_teacher


def test_a_stages_own_network_has_its_name_and_peers_are_counted():
    own, peers = OwnNetwork(model="resnet20"), (OwnNetwork(), OwnNetwork(model="resnet8"))
    found = stage(student=own, peers=peers).own_networks()
    assert found == {"train": own, "peer1": peers[0], "peer2": peers[1]}


def test_a_stage_whose_student_is_there_is_finished():
    assert stage(student=OwnNetwork(run="somewhere")).is_finished
    assert not stage(student=OwnNetwork(model="resnet20")).is_finished


def test_a_network_that_is_neither_name_nor_folder_is_refused():
    class Holder(MethodConfig):
        network: OwnNetwork

    with pytest.raises(SettingsError, match="network: give a model's name or a finished run's"):
        Holder(network=4)


@pytest.mark.parametrize("fields", [{}, {"model": "resnet20"}, {"run": "runs/a"}], ids=str)
def test_a_network_is_written_down_as_it_was_given(fields):
    network = OwnNetwork(**fields)
    assert network.plain() == fields
    assert OwnNetwork.read(network.plain()) == network
