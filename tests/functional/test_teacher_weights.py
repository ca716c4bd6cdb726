"""B batch, C classes, K teachers; float64 and 1e-9 unless a test says otherwise."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import entropy
from torch import nn

from limbeck.core.errors import SettingsError
from limbeck.functional.teacher_weights import (
    MOST_TEACHERS,
    agreement_weights,
    confidence_weights,
    entropy_weights,
    mean_kd_gradients,
    min_norm_weights,
)
from limbeck.losses import kd_loss

EXACT = {"rtol": 0.0, "atol": 1e-9}
BOTH = ["entropy", "confidence"]
LABEL = torch.tensor([0, 3, 2, 1])


@pytest.fixture
def scores(generator):
    """Of three teachers."""
    return 3 * torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)


def weigh(kind, scores, label=LABEL):
    return entropy_weights(scores) if kind == "entropy" else confidence_weights(scores, label)


# -- by entropy and by error -------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_weights_add_up_to_one_for_each_image(kind, scores):
    weights = weigh(kind, scores)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(4).double(), **EXACT)
    assert (weights >= 0).all()


@pytest.mark.parametrize("kind", BOTH)
def test_they_follow_the_teachers_into_another_order(kind, scores):
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(weigh(kind, scores[order]), weigh(kind, scores)[order], **EXACT)


@pytest.mark.parametrize("kind", BOTH)
def test_equal_teachers_count_alike_and_one_counts_whole(kind, scores):
    equal = weigh(kind, scores[:1].expand(3, -1, -1))
    torch.testing.assert_close(equal, torch.full((3, 4), 1 / 3, dtype=torch.float64), **EXACT)
    assert (weigh(kind, scores[:1]) == 1).all()


def test_entropy_weights_are_the_formula_with_scipys_entropy(scores):
    found = entropy_weights(scores)
    for b in range(4):
        h = [entropy(one[b].softmax(dim=0).numpy()) for one in scores]
        for k in range(3):
            assert found[k, b].item() == pytest.approx((1 - h[k] / sum(h)) / 2, abs=1e-9)


def test_confidence_weights_are_the_formula_in_plain_loops(scores):
    found = confidence_weights(scores, LABEL)
    for b, y in enumerate(LABEL.tolist()):
        error = [-math.log(one[b].softmax(dim=0)[y].item()) for one in scores]
        total = sum(math.exp(e) for e in error)
        for k in range(3):
            expected = (1 - math.exp(error[k]) / total) / 2
            assert found[k, b].item() == pytest.approx(expected, abs=1e-9)


def test_of_two_teachers_each_has_the_softmax_share_of_the_others_error(scores):
    two = scores[:2]
    error = torch.stack([F.cross_entropy(one, LABEL, reduction="none") for one in two])
    torch.testing.assert_close(
        confidence_weights(two, LABEL), error.softmax(dim=0).flip(0), **EXACT
    )


def test_a_sure_and_right_teacher_outweighs_an_unsure_and_a_wrong_one():
    right, unsure, wrong = [[5.0, 0.0]], [[0.0, 0.0]], [[0.0, 5.0]]
    weights = confidence_weights(torch.tensor([right, unsure, wrong]), torch.tensor([0]))[:, 0]
    assert weights[0] > weights[1] > weights[2]


@pytest.mark.parametrize("k", range(3))
def test_a_teacher_that_errs_more_counts_less(k, scores):
    worse = scores.clone()
    worse[k, torch.arange(4), LABEL] -= 1
    assert (confidence_weights(worse, LABEL)[k] < confidence_weights(scores, LABEL)[k]).all()


def test_without_a_label_all_teachers_count_alike(scores):
    weights = confidence_weights(scores, torch.tensor([0, -1, 2, -1]))
    torch.testing.assert_close(
        weights[:, [1, 3]], torch.full((3, 2), 1 / 3, dtype=torch.float64), **EXACT
    )
    torch.testing.assert_close(weights[:, 0], confidence_weights(scores, LABEL)[:, 0], **EXACT)


def test_a_surer_teacher_counts_more_whatever_the_label(scores):
    surer = scores.clone()
    surer[1] *= 2
    assert (entropy_weights(surer)[1] > entropy_weights(scores)[1]).all()


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_teachers_without_any_entropy_left_count_alike(gap):
    certain = gap * F.one_hot(torch.tensor([[0, 1], [1, 1]]), 3).float()
    assert (entropy_weights(certain) == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BOTH)
def test_half_precision_comes_out_in_float32(kind, dtype, scores):
    weights = weigh(kind, (60 * scores).to(dtype))
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()


def test_gradient_flows_through_the_confidence(scores):
    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: confidence_weights(z, LABEL), leaf)


# -- by gradient -------------------------------------------------------------------------------


def test_the_mean_gradient_is_that_of_autograd(scores, generator):
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    found = mean_kd_gradients(student, scores, temperature=3)
    for k in range(3):
        (gradient,) = torch.autograd.grad(kd_loss(student, scores[k], temperature=3), student)
        torch.testing.assert_close(found[k], gradient.mean(dim=0), **EXACT)
    assert not found.requires_grad


def squared_length(weights, vectors):
    return (weights @ vectors).square().sum().item()


def by_scipy(vectors, max_weight):
    """The same minimum by sequential least squares, from the average."""
    gram = (vectors @ vectors.T).numpy()
    gram = gram / gram.diagonal().max()
    count = len(gram)
    found = minimize(
        lambda a: a @ gram @ a,
        [1 / count] * count,
        jac=lambda a: 2 * gram @ a,
        bounds=[(0, max_weight)] * count,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    return torch.from_numpy(found.x)


@pytest.mark.parametrize("count", [2, 3, 5, 7])
@pytest.mark.parametrize("max_weight", [1.0, 0.6, "barely"])
@pytest.mark.parametrize("kind", ["any", "near", "few dimensions", "of all sizes"])
def test_no_sum_of_vectors_is_shorter(count, max_weight, kind, generator):
    """Compared with scipy's solver, on easy and on nearly singular problems."""
    limit = 1.05 / count if max_weight == "barely" else max_weight
    for _ in range(5):
        size = 2 if kind == "few dimensions" else 10
        vectors = torch.randn(count, size, generator=generator, dtype=torch.float64)
        if kind == "near":
            vectors = 1 + 0.01 * vectors
        if kind == "of all sizes":
            vectors = vectors * 10.0 ** torch.arange(count)[:, None]
        weights = min_norm_weights(vectors, max_weight=limit)
        assert weights.sum().item() == pytest.approx(1, abs=1e-7)
        assert (weights >= 0).all()
        assert (weights <= limit).all()
        best = squared_length(by_scipy(vectors, limit), vectors)
        largest = vectors.square().sum(dim=1).max().item()
        assert squared_length(weights, vectors) <= best + 1e-8 * largest


def test_scipy_finds_the_same_weights_where_there_is_one_answer(generator):
    vectors = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    for limit in (1.0, 0.5, 0.3):
        found = min_norm_weights(vectors, max_weight=limit)
        torch.testing.assert_close(found, by_scipy(vectors, limit), rtol=0, atol=1e-5)


def test_no_vector_is_opposed_by_the_shortest_sum(generator):
    """The optimality condition at max_weight 1, by which every teacher's loss goes down."""
    vectors = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    weights = min_norm_weights(vectors, max_weight=1.0)
    shortest = weights @ vectors
    length = shortest.square().sum()
    assert ((vectors @ shortest) >= length - 1e-7).all()
    inside = weights > 1e-6
    torch.testing.assert_close(
        (vectors @ shortest)[inside], length.expand(int(inside.sum())), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_the_smallest_bound_is_the_average(count, generator):
    vectors = torch.randn(count, 4, generator=generator)
    found = min_norm_weights(vectors, max_weight=1 / count)
    torch.testing.assert_close(found, torch.full((count,), 1 / count), rtol=0, atol=1e-6)


def test_equal_vectors_share_what_one_of_them_would_have(generator):
    vectors = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    whole = min_norm_weights(vectors, max_weight=1.0)
    vectors = vectors[whole.argsort(descending=True)]
    whole = whole.sort(descending=True).values
    shared = min_norm_weights(vectors[[0, 0, 1, 2]], max_weight=1.0)
    torch.testing.assert_close(shared[:2], whole[[0, 0]] / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(shared[2:], whole[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("vectors", [torch.zeros(3, 5), torch.ones(3, 5), 1e-30 * torch.ones(3, 5)])
def test_where_any_weights_do_all_are_alike(vectors):
    found = min_norm_weights(vectors, max_weight=0.6)
    torch.testing.assert_close(found, torch.full((3,), 1 / 3), rtol=0, atol=1e-6)


def test_only_directions_and_ratios_of_lengths_count(generator):
    vectors = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    expected = min_norm_weights(vectors, max_weight=0.6)
    for factor in (1e-12, 1e12):
        found = min_norm_weights(factor * vectors, max_weight=0.6)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_turned_space_gives_the_same_weights(generator):
    vectors = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    turn = nn.init.orthogonal_(torch.empty(6, 6, dtype=torch.float64), generator=generator)
    found = min_norm_weights(vectors @ turn, max_weight=0.6)
    torch.testing.assert_close(found, min_norm_weights(vectors, max_weight=0.6), rtol=0, atol=1e-7)


def test_autocast_changes_nothing(generator):
    vectors = torch.randn(3, 6, generator=generator)
    expected = min_norm_weights(vectors, max_weight=0.6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(min_norm_weights(vectors, max_weight=0.6), expected)


def test_unit_gradients_weigh_directions_and_then_undo_the_lengths(scores, generator):
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    gradients = mean_kd_gradients(student, scores, temperature=4)
    length = gradients.norm(dim=1)
    alpha = by_scipy(gradients / length[:, None], 0.6) / length
    found = agreement_weights(student, scores, temperature=4, max_weight=0.6, unit_gradients=True)
    torch.testing.assert_close(found, alpha / alpha.sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("unit_gradients", [False, True])
def test_a_student_that_equals_a_teacher_or_all_of_them_is_no_trouble(unit_gradients, scores):
    for student, teachers in ((scores[1], scores), (scores[1], scores[[1, 1]])):
        found = agreement_weights(
            student, teachers, temperature=4, max_weight=1, unit_gradients=unit_gradients
        )
        assert torch.isfinite(found).all()
        assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("max_weight", "count"), [(0.3, 3), (1.5, 2), (0.0, 2)])
def test_a_bound_that_leaves_no_weights_is_refused_with_the_range(max_weight, count):
    with pytest.raises(SettingsError, match=rf"from 1 / {count} = .* to 1; got {max_weight}"):
        min_norm_weights(torch.ones(count, 2), max_weight=max_weight)


def test_so_are_more_teachers_than_can_be_gone_through():
    with pytest.raises(SettingsError, match="at most 8 teachers, got 9; use fewer"):
        min_norm_weights(torch.ones(MOST_TEACHERS + 1, 2), max_weight=1.0)
