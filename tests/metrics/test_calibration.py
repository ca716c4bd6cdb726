import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from limbeck.core.errors import DataError, NonFiniteError
from limbeck.metrics.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from limbeck.metrics.info import METRICS
from limbeck.metrics.scores import negative_log_likelihood, top_k_accuracy


def logits_of(confidence):
    """Two classes, the first one answered with this probability."""
    return [[math.log(p), math.log1p(-p)] for p in confidence]


def ece_in_loops(logits, label, num_bins):
    p = torch.softmax(torch.as_tensor(logits), dim=1)
    confidence, answer = p.max(dim=1)
    total = 0.0
    for m in range(num_bins):
        low, high = m / num_bins, (m + 1) / num_bins
        inside = [i for i in range(len(label)) if low < confidence[i].item() <= high]
        if inside:
            hits = sum(answer[i].item() == label[i] for i in inside) / len(inside)
            mean = sum(confidence[i].item() for i in inside) / len(inside)
            total += len(inside) / len(label) * abs(hits - mean)
    return total


@pytest.mark.parametrize(("num_bins", "expected"), [(10, 0.3380834781), (15, 0.4171885711)])
def test_ece_is_torchmetrics_and_gnosis(card, num_bins, expected):
    found = expected_calibration_error(card.student, card.label, num_bins=num_bins)
    assert found == pytest.approx(expected, abs=1e-9)


def test_fifteen_bins_are_the_default(card):
    found = expected_calibration_error(card.student, card.label)
    assert found == expected_calibration_error(card.student, card.label, num_bins=15)


@pytest.mark.parametrize("num_bins", [1, 4, 15, 100])
def test_ece_is_the_formula_in_loops(case, num_bins):
    found = expected_calibration_error(case.student, case.label, num_bins=num_bins)
    assert found == pytest.approx(ece_in_loops(case.student, case.label, num_bins), rel=1e-9)
    assert 0 < found < 1


def test_a_confidence_on_an_edge_is_in_the_lower_bin():
    """0.5 shares a bin of ten with 0.45, where one error covers the other, not with 0.55."""
    logits = np.log([[0.5, 0.25, 0.25], [0.45, 0.3, 0.25]])
    assert np.exp(logits[0, 0]) == 0.5
    below = expected_calibration_error(logits, [0, 1], num_bins=10)
    assert below == pytest.approx(abs((1 - 0.5) + (0 - 0.45)) / 2, rel=1e-9)
    above = expected_calibration_error(logits_of([0.5, 0.55]), [0, 1], num_bins=10)
    assert above == pytest.approx((0.5 + 0.55) / 2, rel=1e-9)


def test_the_bins_of_a_diagram_are_scikit_learns(case):
    """Of bins that have images; scikit-learn closes them on the left, but none is on an edge."""
    found = reliability(case.student, case.label, num_bins=5)
    p = torch.softmax(torch.as_tensor(np.asarray(case.student)), dim=1)
    confidence, answer = p.max(dim=1)
    hits = answer.numpy() == np.asarray(case.label)
    accuracy, mean = calibration_curve(hits, confidence.numpy(), n_bins=5)
    full = found.num_images > 0
    assert found.num_images.sum() == len(hits)
    assert found.num_correct[full] / found.num_images[full] == pytest.approx(accuracy)
    assert found.summed_confidence[full] / found.num_images[full] == pytest.approx(mean)


def test_who_is_right_as_often_as_said_has_no_error():
    logits = logits_of([0.75] * 4 + [0.6] * 5)
    assert expected_calibration_error(logits, [0, 0, 0, 1, 0, 0, 0, 1, 1]) < 1e-12


def test_who_is_sure_and_wrong_has_the_largest_error():
    logits = 1000 * np.eye(3)
    assert expected_calibration_error(logits, [0, 1, 2]) == 0
    assert expected_calibration_error(logits, [1, 2, 0]) == 1


def test_ece_knows_neither_order_nor_repetition(case):
    once = expected_calibration_error(case.student, case.label)
    order = case.order
    shuffled = expected_calibration_error(case.student[order], case.label[order])
    doubled = expected_calibration_error(np.tile(case.student, (2, 1)), np.tile(case.label, 2))
    assert (shuffled, doubled) == pytest.approx((once, once), rel=1e-12)


def test_the_temperature_is_the_one_that_a_search_finds(case):
    """Oracle: scikit-learn's log loss under scipy's bounded search."""

    def loss(temperature):
        p = torch.softmax(torch.from_numpy(case.student) / temperature, dim=1).numpy()
        return log_loss(case.label, p, labels=np.arange(7))

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
    found = fit_temperature(case.student, case.label)
    # A search by value knows its minimum to the square root of the precision.
    assert found.temperature == pytest.approx(expected.x, rel=1e-6)
    assert found.temperature > 1.1  # this student is over-confident
    assert not found.at_limit


def test_the_temperature_is_the_one_that_lbfgs_finds(case):
    logits, label = torch.from_numpy(case.student), torch.from_numpy(case.label)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optim = torch.optim.LBFGS([log_t], tolerance_grad=1e-12, tolerance_change=0.0)

    def closure():
        optim.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_t.exp(), label)
        loss.backward()
        return loss

    for _ in range(5):
        optim.step(closure)
    found = fit_temperature(case.student, case.label).temperature
    assert found == pytest.approx(log_t.exp().item(), rel=1e-6)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_the_temperature_undoes_a_scale(case, factor):
    once = fit_temperature(case.student, case.label).temperature
    scaled = fit_temperature(factor * case.student, case.label).temperature
    assert scaled == pytest.approx(factor * once, rel=1e-9)


def test_labels_drawn_from_the_probabilities_need_no_temperature():
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((20_000, 5))
    label = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits, label).temperature == pytest.approx(1, abs=0.03)
    assert expected_calibration_error(logits, label) < 0.02


def test_scaling_lowers_the_nll_and_leaves_the_decisions(case):
    scaled = case.student / fit_temperature(case.student, case.label).temperature
    before = negative_log_likelihood(case.student, case.label)
    assert negative_log_likelihood(scaled, case.label) < before
    assert top_k_accuracy(scaled, case.label, k=1) == top_k_accuracy(case.student, case.label, k=1)


@pytest.mark.parametrize(
    ("label", "end"), [([0, 1, 2], "low"), ([1, 2, 0], "high")], ids=["right", "wrong"]
)
def test_a_likelihood_that_rises_to_the_end_is_said(label, end):
    """All right: ever surer would be ever better. All wrong: ever less sure."""
    found = fit_temperature(np.eye(3), label)
    assert (found.temperature, found.at_limit) == (getattr(METRICS["temperature"], end), True)


def test_without_any_preference_no_temperature_is_better_than_one():
    found = fit_temperature(np.full((4, 3), 7.0), [0, 1, 2, 0])
    assert (found.temperature, found.at_limit) == (1.0, False)


@pytest.mark.parametrize("function", [expected_calibration_error, fit_temperature])
def test_what_cannot_be_judged_is_refused(function):
    with pytest.raises(DataError, match="1 of 2 have -1"):
        function(np.zeros((2, 3)), [0, -1])
    with pytest.raises(NonFiniteError, match="1 of 6 values"):
        function([[0, 0, 0], [0, np.nan, 0]], [0, 1])


def test_at_least_one_bin_is_needed():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        expected_calibration_error([[0.0, 1.0]], [0], num_bins=0)
