import dataclasses

import pytest
import torch
from torch import nn

from limbeck.core.errors import TeacherChangedError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch
from limbeck.teacher import Teacher, state_hash


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(18, 4)
        )


IMAGE = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def test_no_call_of_a_parent_moves_the_teacher(network):
    teacher = Teacher(network)
    before = state_hash(network)
    parent = nn.ModuleList([teacher, nn.Linear(2, 2)])
    parent.train()
    parent.requires_grad_(True)
    for _ in range(3):
        assert not teacher(IMAGE).logits.requires_grad
    assert not any(part.training for part in teacher.modules())
    assert state_hash(network) == before
    teacher.check_unchanged(before)


def test_training_asks_for_the_batchs_images_or_the_teachers_own(network):
    teacher = Teacher(network)
    label = torch.zeros(6, dtype=torch.int64)
    batch = Batch(index=torch.arange(6), image=IMAGE, label=label, views={"second": 1 - IMAGE})
    answer = teacher.answer(batch, 3)
    assert torch.equal(answer.logits, teacher(IMAGE).logits)
    assert torch.equal(answer.views["second"].logits, teacher(1 - IMAGE).logits)
    other = dataclasses.replace(batch, teacher_image=IMAGE / 2)
    assert torch.equal(teacher.answer(other, 3).logits, teacher(IMAGE / 2).logits)


def test_its_parameters_take_no_gradient(network):
    assert not any(p.requires_grad for p in Teacher(network).parameters())


def test_its_outputs_take_no_gradient_and_can_be_saved_for_backward(network):
    student = nn.Linear(4, 4)
    logits = Teacher(network)(IMAGE).logits
    assert not logits.requires_grad
    (student(logits) * logits).sum().backward()  # inference tensors would raise here


def test_it_normalises_for_itself(network):
    teacher = Teacher(network, normalization=Normalization(mean=(0.4,), std=(0.2,)))
    torch.testing.assert_close(teacher(IMAGE).logits, network.eval()((IMAGE - 0.4) / 0.2))


@pytest.mark.parametrize("part", ["weight", "running_mean"])
def test_a_moved_parameter_or_buffer_is_found_at_the_end(network, part):
    teacher = Teacher(network)
    before = state_hash(network)
    with torch.no_grad():
        getattr(network[1], part)[0] += 1e-6
    with pytest.raises(TeacherChangedError, match="changed during training"):
        teacher.check_unchanged(before)


def test_features_and_classifier_are_read_when_asked_for(network):
    outputs = Teacher(network, layers=["0", "penultimate"], classifier=True)(IMAGE)
    assert outputs.features["0"].shape == (6, 2, 3, 3)
    assert outputs.features["penultimate"].shape == (6, 18)
    assert outputs.classifier.weight is network[4].weight
    assert not outputs.classifier.weight.requires_grad


def test_without_scores_it_may_be_any_backbone():
    backbone = nn.Conv2d(1, 2, 3)
    outputs = Teacher(nn.Sequential(backbone), layers=["0"], scores=False)(IMAGE)
    assert torch.equal(outputs.features["0"], backbone(IMAGE))
    assert not outputs.has_logits
    assert not outputs.features["0"].requires_grad


def test_equal_states_have_equal_hashes_and_different_dtypes_do_not(network):
    assert state_hash(network) == state_hash(network.to(memory_format=torch.channels_last))
    before = state_hash(network)
    assert state_hash(network.double()) != before
