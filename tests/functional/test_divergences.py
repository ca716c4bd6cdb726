"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import entropy

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.functional.divergences import kd_loss

EXACT = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def logits(generator):
    return 3 * torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_formula_in_plain_loops(logits, temperature):
    student, teacher = (softmax(z.numpy() / temperature, axis=1) for z in logits)
    total = 0.0
    for p_student, p_teacher in zip(student, teacher, strict=True):
        for s, t in zip(p_student, p_teacher, strict=True):
            total += t * (math.log(t) - math.log(s))
    expected = temperature**2 * total / 4
    assert abs(kd_loss(*logits, temperature=temperature).item() - expected) < 1e-9


def test_at_temperature_one_it_is_scipys_relative_entropy(logits):
    student, teacher = (softmax(z.numpy(), axis=1) for z in logits)
    expected = entropy(teacher, student, axis=1).mean()
    assert abs(kd_loss(*logits, temperature=1.0).item() - expected) < 1e-9


def test_a_certain_teacher_makes_it_cross_entropy(logits):
    label = torch.tensor([0, 3, 2, 2])
    certain = 1000 * F.one_hot(label, 5).double()
    kd = kd_loss(logits[0], certain, temperature=1.0)
    torch.testing.assert_close(kd, F.cross_entropy(logits[0], label), **EXACT)


def test_networks_that_agree_have_no_loss_and_no_gradient(logits):
    student = logits[0].clone().requires_grad_()
    loss = kd_loss(student, logits[0], temperature=4.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-15


def test_it_is_not_negative(generator):
    pairs = torch.randn(50, 2, 3, 6, dtype=torch.float64, generator=generator)
    assert all(kd_loss(s, t, temperature=2.0) >= 0 for s, t in pairs)


def test_it_is_not_symmetric(logits):
    student, teacher = logits
    forth, back = (kd_loss(*pair, temperature=2.0) for pair in (logits, (teacher, student)))
    assert abs(forth - back) > 1e-2


@pytest.mark.parametrize("whose", [0, 1])
def test_adding_a_constant_to_a_row_changes_nothing(logits, whose):
    shifted = logits.clone()
    shifted[whose] += torch.tensor([[1.0], [-2.0], [30.0], [0.5]], dtype=torch.float64)
    expected = kd_loss(*logits, temperature=4.0)
    torch.testing.assert_close(kd_loss(*shifted, temperature=4.0), expected, **EXACT)


@pytest.mark.parametrize("dim", [1, 2], ids=["images", "classes"])
def test_reordering_both_networks_alike_changes_nothing(logits, dim, generator):
    order = torch.randperm(logits.shape[dim], generator=generator)
    expected = kd_loss(*logits, temperature=4.0)
    reordered = kd_loss(*logits.index_select(dim, order), temperature=4.0)
    torch.testing.assert_close(reordered, expected, **EXACT)


def test_repeating_the_batch_changes_nothing(logits):
    expected = kd_loss(*logits, temperature=2.0)
    torch.testing.assert_close(kd_loss(*logits.repeat(1, 3, 1), temperature=2.0), expected, **EXACT)


def test_gradient_is_the_difference_of_probabilities_times_temperature_over_batch(logits):
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    kd_loss(student, teacher, temperature=4.0).backward()
    p_student, p_teacher = (F.softmax(z.detach() / 4.0, dim=1) for z in (student, teacher))
    torch.testing.assert_close(student.grad, 4.0 / 4 * (p_student - p_teacher), **EXACT)
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(4).double(), **EXACT)


def test_gradient_size_hardly_depends_on_temperature(logits):
    norms = []
    for temperature in (10.0, 40.0):
        student = logits[0].clone().requires_grad_()
        kd_loss(student, logits[1], temperature=temperature).backward()
        norms.append(student.grad.norm().item())
    assert 0.9 < norms[0] / norms[1] < 1.1


def test_the_teacher_receives_no_gradient(logits):
    student, teacher = (z.clone().requires_grad_() for z in logits)
    kd_loss(student, teacher, temperature=4.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_huge_gaps_stay_finite_in_every_precision(dtype):
    student = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-3e4, 3e4, 0.0]], dtype=dtype)
    loss = kd_loss(student, teacher, temperature=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_half_precision_is_computed_in_float32(logits):
    half = logits.to(torch.bfloat16)
    expected = kd_loss(*half.double(), temperature=4.0).float()
    torch.testing.assert_close(kd_loss(*half, temperature=4.0), expected, rtol=1e-5, atol=1e-6)


def test_float64_stays_float64(logits):
    assert kd_loss(*logits, temperature=4.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 5), (4, 6)), ((4, 5), (3, 5)), ((5,), (5,)), ((2, 4, 5),) * 2]
)
def test_other_shapes_are_named(student, teacher):
    with pytest.raises(ShapeError, match=rf"got student \({student[0]}.*teacher \({teacher[0]}"):
        kd_loss(torch.zeros(student), torch.zeros(teacher), temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(logits, temperature):
    with pytest.raises(SettingsError, match="temperature must be above 0, got"):
        kd_loss(*logits, temperature=temperature)
