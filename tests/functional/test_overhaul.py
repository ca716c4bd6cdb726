"""B batch, C channels, H W spatial; float64 and 1e-9 unless a test says otherwise.

The authors' numbers are in methods/relation/test_london.py.
"""

import pytest
import torch
from scipy.stats import truncnorm

from limbeck.core.errors import ShapeError
from limbeck.functional.overhaul import batch_norm_margins, overhaul_loss

EXACT = {"rtol": 0.0, "atol": 1e-9}


@pytest.mark.parametrize("gamma", [0.3, -2.0])
@pytest.mark.parametrize("beta", [-4.0, -0.5, 0.0, 0.8])
def test_a_margin_is_the_mean_of_the_negative_part_of_a_gaussian(gamma, beta):
    sigma = abs(gamma)
    expected = truncnorm.mean(-float("inf"), -beta / sigma, loc=beta, scale=sigma)
    if beta / sigma > 3.09:  # less than 1 in 1000 below zero
        expected = -3 * sigma
    margin = batch_norm_margins(
        torch.tensor([gamma], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64)
    )
    assert abs(margin.item() - expected) < 1e-9


def test_a_channel_without_spread_has_its_one_value_if_that_is_negative():
    margin = batch_norm_margins(torch.zeros(2), torch.tensor([-0.5, 0.5]))
    assert margin.tolist() == [-0.5, 0.0]


def test_margins_far_below_zero_are_finite_in_every_precision():
    for dtype in (torch.bfloat16, torch.float32):
        margin = batch_norm_margins(torch.ones(1, dtype=dtype), torch.full((1,), -1e4, dtype=dtype))
        assert margin.dtype == torch.float32
        assert abs(margin.item() / -1e4 - 1) < 1e-2


def test_it_is_the_formula_in_plain_loops(generator):
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64, generator=generator)
    margin = torch.tensor([-0.2, -1.0, -3.0], dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for c in range(3):
            values = zip(student[b, c].flatten(), teacher[b, c].flatten(), strict=True)
            for s, t in values:
                target = max(t.item(), margin[c].item())
                if s > target or target > 0:
                    total += (s.item() - target) ** 2
    assert abs(overhaul_loss(student, teacher, margin).item() - total) < 1e-9


def test_as_low_as_the_margin_is_low_enough():
    """Where the teacher is negative, a student below the margin costs and learns nothing."""
    student = torch.tensor([-5.0, -1.0, 0.5]).reshape(3, 1, 1, 1).requires_grad_()
    teacher = torch.full((3, 1, 1, 1), -2.0)
    loss = overhaul_loss(student, teacher, torch.tensor([-1.0]))
    loss.backward()
    assert loss.item() == 1.5**2
    assert student.grad.flatten().tolist() == [0, 0, 3]


def test_the_teacher_receives_no_gradient():
    student, teacher = (torch.ones(1, 1, 2, 2).mul(k).requires_grad_() for k in (1.0, 2.0))
    overhaul_loss(student, teacher, torch.tensor([-1.0])).backward()
    assert teacher.grad is None


def test_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"got student \(1, 2, 2, 2\), teacher \(1, 3, 2, 2\)"):
        overhaul_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(3))
