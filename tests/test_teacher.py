import dataclasses
import math

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError, TeacherChangedError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch
from limbeck.losses import kd_loss
from limbeck.teacher import Teacher, TeacherEnsemble, state_hash
from limbeck.teacher_cache import CachedTeacher


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


# -- several -----------------------------------------------------------------------------------


def other(num_classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(25, 9), nn.ReLU(), nn.Linear(9, num_classes))


@pytest.fixture
def ensemble(network):
    """Two of different shapes, normalisation, layers and class maps."""
    return TeacherEnsemble(
        [
            Teacher(network, layers=["0"], classifier=True),
            Teacher(
                other(6),
                normalization=Normalization(mean=(0.4,), std=(0.2,)),
                layers=["penultimate"],
                classes=[5, 0, 2, 1],
            ),
        ]
    )


def test_several_answer_by_the_log_of_their_mean_probability(ensemble):
    outputs = ensemble(IMAGE)
    first, second = (teacher(IMAGE).logits.softmax(dim=1) for teacher in ensemble.each)
    torch.testing.assert_close(outputs.logits.exp(), (first + second) / 2)
    torch.testing.assert_close(outputs.logits.exp().sum(dim=1), torch.ones(6))


def test_each_of_several_answers_as_it_does_alone(ensemble):
    outputs = ensemble(IMAGE)
    for member, teacher in zip(outputs.members, ensemble.each, strict=True):
        alone = teacher(IMAGE)
        assert torch.equal(member.logits, alone.logits)
        assert member.features.keys() == alone.features.keys()
        for name, feature in alone.features.items():
            assert torch.equal(member.features[name], feature)
    assert outputs.members[0].features["0"].shape == (6, 2, 3, 3)
    assert outputs.members[0].classifier is not None
    assert outputs.members[1].features["penultimate"].shape == (6, 9)
    assert outputs.features == {}


def test_several_answer_for_further_views_too(ensemble):
    outputs = ensemble(IMAGE, {"strong": IMAGE.flip(3)})
    strong = outputs.views["strong"]
    torch.testing.assert_close(strong.logits, ensemble(IMAGE.flip(3)).logits)
    assert len(strong.members) == 2


def test_no_call_of_a_parent_moves_any_of_several(ensemble):
    before = state_hash(ensemble)
    parent = nn.ModuleList([ensemble])
    parent.train()
    parent.requires_grad_(True)
    outputs = ensemble(IMAGE)
    assert not outputs.logits.requires_grad
    assert not any(member.logits.requires_grad for member in outputs.members)
    assert not any(part.training for part in ensemble.modules())
    assert state_hash(ensemble) == before


def test_one_alone_makes_an_ensemble_that_says_the_same(network):
    teacher = Teacher(network)
    logits = TeacherEnsemble([teacher])(IMAGE).logits
    torch.testing.assert_close(logits, teacher(IMAGE).logits.log_softmax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_several_that_are_certain_of_different_classes_have_finite_logits(dtype):
    class Certain(nn.Module):
        def __init__(self, label):
            super().__init__()
            self.label = label

        def forward(self, image):
            label = torch.full((len(image),), self.label)
            return (200 * nn.functional.one_hot(label, 3)).to(dtype)

    outputs = TeacherEnsemble([Teacher(Certain(0)), Teacher(Certain(1))])(IMAGE)
    assert outputs.logits.dtype == torch.float32
    half = math.log(0.5)
    torch.testing.assert_close(outputs.logits[0], torch.tensor([half, half, -200.0]))
    student = torch.zeros(6, 3, requires_grad=True)
    loss = kd_loss(student, outputs.logits, temperature=1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_several_of_different_classes_are_refused_with_their_numbers(network):
    with pytest.raises(ModelError, match="they give 4, 7 logits"):
        TeacherEnsemble([Teacher(network), Teacher(other(7))])(IMAGE)


def test_none_at_all_is_refused():
    with pytest.raises(ModelError, match="one teacher at least; got none"):
        TeacherEnsemble([])


def test_an_ensemble_with_a_cached_teacher_says_nothing_of_pixels(monkeypatch):
    """And never what the others alone would."""
    monkeypatch.setattr(CachedTeacher, "__init__", lambda self: None)
    one = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    with pytest.raises(ModelError, match="a cached teacher looks no image up by its pixels"):
        TeacherEnsemble([one, CachedTeacher()])(torch.rand(2, 1, 2, 2))
