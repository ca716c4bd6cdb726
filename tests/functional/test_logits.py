"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import math

import pytest
import torch
from scipy.stats import zscore

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.functional.logits import (
    as_seen,
    check_logits,
    check_temperature,
    joint_logits,
    standardize_logits,
    target_mask,
)

EXACT = {"rtol": 0.0, "atol": 1e-9}


@pytest.fixture
def logits(generator):
    return 3 * torch.randn(4, 6, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("population", [False, True])
def test_it_is_scipys_z_score(logits, population):
    """The 1e-7 beside the unbiased deviation makes 1e-7 of difference."""
    expected = torch.from_numpy(zscore(logits.numpy(), axis=1, ddof=0 if population else 1))
    tolerance = 1e-12 if population else 3e-7
    found = standardize_logits(logits, population=population)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("population", [False, True])
def test_rows_have_mean_zero_and_deviation_one_and_keep_their_order(logits, population):
    found = standardize_logits(logits, population=population)
    assert found.mean(1).abs().max() < 1e-12
    assert (found.std(1, correction=0 if population else 1) - 1).abs().max() < 1e-6
    assert torch.equal(found.argsort(dim=1), logits.argsort(dim=1))
    assert found.abs().max() <= math.sqrt(5)  # sqrt(K - 1) for the population's deviation


def test_the_two_deviations_differ_as_two_temperatures_do(logits):
    unbiased, population = (standardize_logits(logits, population=p) for p in (False, True))
    torch.testing.assert_close(population, unbiased * math.sqrt(6 / 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("population", [False, True])
def test_its_gradient_is_that_of_differences(logits, population):
    assert torch.autograd.gradcheck(
        lambda z: standardize_logits(z, population=population), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("population", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 0.1])
def test_a_constant_row_gives_zeros_and_no_gradient(value, dtype, population):
    rows = torch.full((2, 7), value, dtype=dtype, requires_grad=True)
    found = standardize_logits(rows, population=population)
    assert (found == 0).all()
    (found * torch.arange(7)).sum().backward()
    assert (rows.grad == 0).all()


def test_a_row_that_is_constant_up_to_rounding_counts_as_constant():
    rows = torch.full((1, 8), 1000.1)
    rows[0, 3] = torch.nextafter(rows[0, 3], torch.tensor(2000.0))
    assert (standardize_logits(rows) == 0).all()
    rows[0, 3] += 1
    assert standardize_logits(rows)[0, 3] > 2


def test_a_constant_row_leaves_its_neighbours_alone(logits):
    mixed = torch.cat([torch.full((1, 6), 2.5, dtype=torch.float64), logits])
    torch.testing.assert_close(standardize_logits(mixed)[1:], standardize_logits(logits), **EXACT)


def test_small_rows_are_standardised_too(logits):
    """1e-3: beside a deviation of 1e-3 the 1e-7 is 1e-4 of it."""
    torch.testing.assert_close(
        standardize_logits(1e-3 * logits), standardize_logits(logits), rtol=1e-3, atol=0
    )


def test_one_class_alone_is_constant():
    assert (standardize_logits(torch.tensor([[3.0], [4.0]])) == 0).all()


def test_half_precision_is_computed_in_float32(logits):
    half = logits.to(torch.float16)
    expected = standardize_logits(half.double()).float()
    torch.testing.assert_close(standardize_logits(half), expected, rtol=0, atol=1e-5)


def test_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"\(batch, classes\); got \(6,\)"):
        standardize_logits(torch.zeros(6))


def test_scores_are_seen_raw_or_one_way_or_the_other(logits):
    other = logits.flip(0)
    assert as_seen(logits, other, False) == (logits, other)
    for setting, population in ((True, False), ("population", True)):
        seen = as_seen(logits, other, setting)
        assert torch.equal(seen.student, standardize_logits(logits, population=population))
        assert torch.equal(seen.teacher, standardize_logits(other, population=population))


# -- labels ----------------------------------------------------------------------------------


def test_the_mask_is_at_the_label_and_else_at_the_highest_score(logits):
    found = target_mask(torch.tensor([5, -1, 0, -1]), logits)
    chosen = logits.argmax(1).tolist()
    assert found.nonzero().tolist() == [[0, 5], [1, chosen[1]], [2, 0], [3, chosen[3]]]


@pytest.mark.parametrize("label", [torch.zeros(4, 6), torch.zeros(3)])
def test_labels_of_another_shape_are_named(logits, label):
    with pytest.raises(ShapeError, match="one class index for each image; got"):
        target_mask(label.long(), logits)


@pytest.mark.parametrize(("student", "teacher"), [((4, 5), (4, 6)), ((5,), (5,))])
def test_logits_of_other_shapes_are_named(student, teacher):
    with pytest.raises(ShapeError, match=rf"got student \({student[0]}.*teacher \({teacher[0]}"):
        check_logits(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(SettingsError, match="temperature must be above 0, got"):
        check_temperature(temperature)


def test_networks_together_answer_with_their_mean_probability(generator):
    members = [3 * torch.randn(20, 8, dtype=torch.float64, generator=generator) for _ in range(3)]
    mean = sum(logits.softmax(dim=1) for logits in members) / 3
    torch.testing.assert_close(joint_logits(members).exp(), mean, **EXACT)
    torch.testing.assert_close(joint_logits(members[:1]), members[0].log_softmax(dim=1), **EXACT)


def test_networks_that_are_certain_of_different_classes_answer_finitely():
    far = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    found = joint_logits([far, far.flip(1)])
    torch.testing.assert_close(found, torch.full((2, 2), math.log(0.5)))
    assert joint_logits([far.bfloat16()]).dtype == torch.float32
