"""Dense guidance against the authors' numbers, and which teachers a step keeps."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import dense_guidance_loss
from limbeck.methods.base import RUN_TEACHER
from limbeck.methods.output.dgkd import DGKD, DGKDConfig, dgkd_stages
from limbeck.methods.output.kd import KD, KDConfig

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "methods.json").read_text("utf-8"))[
    "dgkd"
]

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
ZA = torch.tensor(
    [[1.5, 0.0, 2.2, 0.5, -1.0], [0.3, 0.6, -0.4, 2.5, 0.2], [-0.5, 1.0, 0.9, 0.0, 1.4]],
    dtype=torch.float64,
)
ZB = torch.tensor(
    [[0.2, 0.1, 0.9, 0.8, -0.3], [0.9, 0.5, 0.0, 0.7, -0.6], [0.4, -0.2, 0.3, 0.1, 0.5]],
    dtype=torch.float64,
)
TEACHERS = [ZT, ZA, ZB]
Y = torch.tensor([2, 3, 4])
CODE = {"reduction": "mean", "ce_per_teacher": False}
HALF = {"temperature": 4.0, "kd_share": 0.5}
ASSISTANTS = ["resnet56", "resnet20"]


def loss(teachers=TEACHERS, label=Y, student=ZS, **settings):
    return dense_guidance_loss(student, teachers, label, **settings)


def without(place, **settings):
    return loss(keep=[other != place for other in range(3)], **settings)


def terms(teachers=TEACHERS, label=Y, progress=None, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    heard = Outputs(teachers[0], members=tuple(Outputs(z) for z in teachers))
    return DGKD(DGKDConfig(**settings))(batch, Outputs(ZS), heard, progress or Progress())


COMPUTED = {
    "code T=5 lambda=1": lambda: loss(**CODE),
    **{
        f"code T=5 lambda=1 without teacher {place}": lambda place=place: without(place, **CODE)
        for place in range(3)
    },
    "code T=4 lambda=.5": lambda: loss(**CODE, **HALF),
    **{
        f"code T=4 lambda=.5 without teacher {place}": lambda place=place: without(
            place, **CODE, **HALF
        )
        for place in range(3)
    },
    "T=5 lambda=1": loss,
    "T=4 lambda=.5": lambda: loss(**HALF),
    "T=4 lambda=.5, one cross-entropy": lambda: loss(**HALF, ce_per_teacher=False),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- properties of the loss ------------------------------------------------------------------


def test_one_teacher_is_kd():
    expected = 0.4 * F.cross_entropy(ZS, Y) + 0.6 * 2**2 * F.kl_div(
        F.log_softmax(ZS / 2, dim=1), F.softmax(ZT / 2, dim=1), reduction="batchmean"
    )
    found = loss([ZT], temperature=2.0, kd_share=0.6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_equal_teachers_give_as_many_times_the_loss_of_one():
    three, one = loss([ZT] * 3, **HALF), loss([ZT], **HALF)
    torch.testing.assert_close(three, 3 * one, rtol=0, atol=1e-12)


def test_the_order_of_teachers_does_not_matter():
    torch.testing.assert_close(loss([ZB, ZT, ZA], **HALF), loss(**HALF), rtol=0, atol=1e-12)


def test_a_mask_of_ones_keeps_all():
    assert torch.equal(loss(keep=[True] * 3, **HALF), loss(**HALF))


def test_leaving_out_one_of_three_keeps_two_thirds_on_average():
    mean = sum(without(place) for place in range(3)) / 3
    torch.testing.assert_close(mean, 2 / 3 * loss(), rtol=0, atol=1e-12)


def test_a_teacher_that_is_left_out_is_not_even_looked_at():
    absurd = torch.full_like(ZA, float("nan"))
    keep = [True, False, True]
    assert torch.equal(loss([ZT, absurd, ZB], keep=keep), loss(keep=keep))


def test_with_a_share_of_one_labels_have_no_effect():
    assert torch.equal(loss(label=Y.flip(0)), loss())


def test_it_is_zero_where_all_teachers_are_the_student_and_labels_count_for_nothing():
    assert loss([ZS, ZS + 3.0]).abs() < 1e-12


def test_no_gradient_reaches_a_teacher():
    teachers = [z.clone().requires_grad_() for z in TEACHERS]
    student = ZS.clone().requires_grad_()
    loss(teachers, student=student, **HALF).backward()
    assert student.grad.abs().sum() > 0
    assert all(z.grad is None for z in teachers)


def test_a_step_that_keeps_nobody_has_a_gradient_of_zero():
    """The student's graph stays whole, so that such a step is a step like others."""
    student = ZS.clone().requires_grad_()
    loss(student=student, keep=[False] * 3).backward()
    assert torch.equal(student.grad, torch.zeros_like(ZS))


def test_no_teacher_or_another_number_of_entries_is_refused():
    with pytest.raises(ShapeError, match=r"one teacher at least.*got 0 teachers"):
        loss([])
    with pytest.raises(ShapeError, match="got 3 teachers, 2 entries"):
        loss(keep=[True, False])


# -- the method ------------------------------------------------------------------------------


def test_with_one_teacher_the_method_is_kd_whatever_may_be_left_out():
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    expected = KD(KDConfig(temperature=2, ce_weight=0.4, kd_weight=0.6))(
        batch, Outputs(ZS), Outputs(ZT), Progress()
    )
    found = DGKD(DGKDConfig(temperature=2, kd_share=0.6))(
        batch, Outputs(ZS), Outputs(ZT), Progress()
    )
    torch.testing.assert_close(found.total, expected.total, rtol=0, atol=1e-12)


def test_the_method_is_the_loss_of_all_members():
    found = terms(**HALF, drop_count=0)
    torch.testing.assert_close(found.total, loss(**HALF), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.parts["ce"], F.cross_entropy(ZS, Y), rtol=0, atol=1e-12)


def kept(num_steps=600, count=3, **settings):
    method = DGKD(DGKDConfig(**settings))
    return [tuple(method._keep(count, Progress(seed=3, step=step))) for step in range(num_steps)]


def test_each_step_leaves_out_one_teacher_and_each_as_often():
    counts = Counter(kept())
    assert sorted(counts) == [(False, True, True), (True, False, True), (True, True, False)]
    assert min(counts.values()) > 150  # of 200 expected, with a deviation of 12


def test_two_of_three_can_be_left_out():
    assert {sum(step) for step in kept(30, drop_count=2)} == {1}


def test_the_papers_reading_keeps_each_teacher_by_itself():
    steps = kept(drop_count=0, keep_probability=0.8)
    for place in range(3):
        assert 0.74 < sum(step[place] for step in steps) / 600 < 0.86
    together = sum(step[0] and step[1] for step in steps) / 600
    assert abs(together - 0.64) < 0.06


def test_a_step_leaves_out_the_same_teacher_whenever_it_is_taken():
    one = [terms(progress=Progress(seed=5, step=step)).total for step in range(9)]
    again = [terms(progress=Progress(seed=5, step=step)).total for step in range(9)]
    other = [terms(progress=Progress(seed=6, step=step)).total for step in range(9)]
    assert one == again != other
    singles = [without(place) for place in range(3)]
    assert all(any(torch.isclose(total, single) for single in singles) for total in one)


def test_all_teachers_left_out_is_refused():
    with pytest.raises(
        SettingsError, match=r"drop_count 3 leaves none of 3 teachers; .* 2 at most"
    ):
        DGKDConfig(assistants=ASSISTANTS, drop_count=3)
    assert DGKDConfig(assistants=ASSISTANTS, drop_count=2).drop_count == 2


def test_two_ways_of_leaving_out_are_refused_together():
    with pytest.raises(SettingsError, match="drop_count=0"):
        DGKDConfig(keep_probability=0.5)


# -- stages ----------------------------------------------------------------------------------


def test_each_network_is_taught_by_all_before_it():
    stages = dgkd_stages(DGKDConfig(assistants=ASSISTANTS))
    assert [stage.teachers for stage in stages] == [
        (RUN_TEACHER,),
        (RUN_TEACHER, "assistant1"),
        (RUN_TEACHER, "assistant1", "assistant2"),
    ]
    assert [stage.student is None for stage in stages] == [False, False, True]


@pytest.mark.parametrize("drop", [{}, {"drop_count": 0, "keep_probability": 0.5}])
def test_assistants_hear_everybody_at_every_step(drop):
    *assistants, student = dgkd_stages(DGKDConfig(assistants=ASSISTANTS, **drop))
    for stage in assistants:
        assert (stage.config.drop_count, stage.config.keep_probability) == (0, 1.0)
        assert stage.config.temperature == student.config.temperature
    assert student.config == DGKDConfig(assistants=ASSISTANTS, **drop)
