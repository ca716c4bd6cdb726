"""Generations: what each learns from the one before, and the paper's two dissections of it."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import confidence_weighted_loss, kd_loss, permute_dark_knowledge
from limbeck.methods.base import RUN_TEACHER, OwnNetwork
from limbeck.methods.output import born_again
from limbeck.methods.output.born_again import BornAgain, BornAgainConfig, born_again_stages

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "methods.json").read_text("utf-8"))[
    "born_again"
]

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])


def terms(label=Y, progress=None, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    method = BornAgain(BornAgainConfig(**settings))
    return method(batch, Outputs(ZS), Outputs(ZT), progress or Progress())


def reversed_others(teacher_logits, *, generator):
    """A permutation that is known: all but the largest, the other way round."""
    rows = []
    for row in teacher_logits.tolist():
        others = [value for value in row if value != max(row)][::-1]
        rows.append([value if value == max(row) else others.pop(0) for value in row])
    return torch.tensor(rows, dtype=teacher_logits.dtype)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BAN+L", {"ce_weight": 1}),
        ("CWTM", {"target": "confidence"}),
        ("DKPP, the others in reverse", {"target": "permuted"}),
    ],
)
def test_it_gives_the_number_of_the_papers_formula(name, settings, monkeypatch):
    monkeypatch.setattr(born_again, "permute_dark_knowledge", reversed_others)
    golden = GOLDEN[name]
    found = terms(**settings).total.item()
    assert abs(found - golden["value"]) < 0.51 * 10 ** -golden["decimals"]
    assert len(GOLDEN) == 3


def test_by_default_a_generation_hears_the_one_before_alone():
    assert torch.equal(terms().total, kd_loss(ZS, ZT, temperature=1.0))
    assert torch.equal(terms(Y.flip(0)).total, terms().total)


# -- what a teacher gives, taken apart ---------------------------------------------------------


def test_a_teacher_as_sure_of_all_images_leaves_the_plain_cross_entropy():
    even = ZT.roll(1, dims=1) - ZT.roll(1, dims=1)
    found = confidence_weighted_loss(ZS, even, Y)
    torch.testing.assert_close(found, F.cross_entropy(ZS, Y), rtol=0, atol=1e-12)


def test_an_image_counts_by_the_teachers_largest_probability():
    """Probabilities of 3/4 and 1/2: weights of 3/5 and 2/5."""
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    losses = F.cross_entropy(student, torch.tensor([0, 0]), reduction="none")
    found = confidence_weighted_loss(student, teacher, torch.tensor([0, 0]))
    torch.testing.assert_close(found, 0.6 * losses[0] + 0.4 * losses[1])


def test_unlabelled_images_share_in_no_weight():
    some = torch.tensor([2, -1, 4])
    found = confidence_weighted_loss(ZS, ZT, some)
    rest = torch.tensor([0, 2])
    expected = confidence_weighted_loss(ZS[rest], ZT[rest], Y[rest])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert confidence_weighted_loss(ZS, ZT, torch.full((3,), -1)) == 0


def test_the_teacher_weighs_and_receives_no_gradient():
    student, teacher = ZS.clone().requires_grad_(), ZT.clone().requires_grad_()
    confidence_weighted_loss(student, teacher, Y).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_largest_score_stays_and_the_others_change_places(generator):
    scores = torch.randn(50, 7, generator=generator)
    moved = permute_dark_knowledge(scores, generator=generator)
    assert torch.equal(moved.argmax(dim=1), scores.argmax(dim=1))
    assert torch.equal(moved.sort(dim=1).values, scores.sort(dim=1).values)
    assert not torch.equal(moved, scores)


def test_every_order_of_the_others_is_as_likely(generator):
    rows = torch.tensor([[1.0, 9.0, 2.0, 3.0]]).repeat(6000, 1)
    moved = permute_dark_knowledge(rows, generator=generator)[:, [0, 2, 3]]
    _, counts = torch.unique(moved, dim=0, return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 150  # five deviations


def test_the_permutation_depends_on_the_step_alone():
    def total(step):
        return terms(target="permuted", progress=Progress(seed=1, step=step)).total

    assert total(3) == total(3) != total(4)


def test_another_target_is_refused():
    with pytest.raises(SettingsError, match="target"):
        BornAgainConfig(target="student")


# -- stages ------------------------------------------------------------------------------------


def test_each_generation_is_taught_by_the_one_before_and_the_last_is_the_student():
    stages = born_again_stages(BornAgainConfig())
    assert [stage.name for stage in stages] == ["generation1", "generation2", "generation3"]
    assert [stage.teachers for stage in stages] == [
        (RUN_TEACHER,),
        ("generation1",),
        ("generation2",),
    ]
    assert [stage.student for stage in stages] == [OwnNetwork(), OwnNetwork(), None]
    assert [stage.ensemble for stage in stages] == [(), (), ("generation1", "generation2")]


def test_one_generation_is_the_student_alone():
    (stage,) = born_again_stages(BornAgainConfig(generations=1))
    assert (stage.student, stage.ensemble) == (None, ())
    with pytest.raises(SettingsError, match="generations"):
        BornAgainConfig(generations=0)
