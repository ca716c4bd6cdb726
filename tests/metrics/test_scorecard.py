import math

import numpy as np
import pytest

from limbeck.core.errors import ShapeError
from limbeck.metrics.arrays import LabelledLogits
from limbeck.metrics.info import METRICS
from limbeck.metrics.scorecard import scorecard

ALONE = {"top1", "top5", "worst_class", "nll", "brier", "ece"}
SCALED = {"temperature", "nll_scaled", "ece_scaled"}
SHOTS = {"many_shot", "medium_shot", "few_shot"}
FIDELITY = {"agreement", "kl_from_teacher", "agreement_on_teacher_errors", "same_wrong_class"}
CONTROL = {"agreement_independent", "agreement_excess"}


@pytest.fixture
def full(case):
    half = slice(100)
    rest = slice(100, None)
    return scorecard(
        case.student[half],
        case.label[half],
        validation=LabelledLogits(case.student[rest], case.label[rest]),
        teacher_logits=case.teacher[half],
        independent_teacher_logits=case.teacher[half][:, ::-1],
        train_counts=[500, 101, 100, 50, 20, 19, 1],
    )


def test_every_number_is_declared_and_within_its_range(full):
    assert set(full) == ALONE | SHOTS | SCALED | FIDELITY | CONTROL
    assert list(full) == [name for name in METRICS if name in full]
    for name, value in full.items():
        assert type(value) is float
        assert METRICS[name].low <= value <= METRICS[name].high


def test_the_table_declares_nothing_that_no_scorecard_has(full):
    assert set(METRICS) - set(full) == {"class_accuracy"}  # which is one number per class


def test_the_numbers_of_the_card(card):
    found = scorecard(card.student, card.label, teacher_logits=card.teacher)
    expected = {
        "top1": 1 / 3,
        "nll": 2.2593419668,
        "brier": 0.9676624581,
        "ece": 0.4171885711,
        "agreement": 0.25,
        "kl_from_teacher": 1.2500460279,
        "agreement_on_teacher_errors": 0.25,
        "same_wrong_class": 0.4,
        "worst_class": 0.0,
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_what_needs_an_input_is_left_out_without_it(case):
    assert set(scorecard(case.student, case.label)) == ALONE
    five = scorecard(case.student[:, :5], np.minimum(case.label, 4))
    assert set(five) == ALONE - {"top5"}
    taught = scorecard(case.student, case.label, teacher_logits=case.teacher)
    assert set(taught) == ALONE | FIDELITY


def test_the_temperature_is_fitted_on_validation_alone(case):
    """A validation split of logits twice as large halves the test's confidence, right or wrong."""
    once, twice = (
        scorecard(
            case.student,
            case.label,
            validation=LabelledLogits(factor * case.student, case.label),
        )
        for factor in (1, 2)
    )
    assert twice["temperature"] == pytest.approx(2 * once["temperature"], rel=1e-9)
    assert once["nll_scaled"] < once["nll"]
    assert twice["nll_scaled"] > once["nll_scaled"]
    expected = scorecard(case.student / twice["temperature"], case.label)
    assert twice["nll_scaled"] == pytest.approx(expected["nll"], rel=1e-12)
    assert twice["ece_scaled"] == pytest.approx(expected["ece"], rel=1e-12)


def test_the_control_is_taken_off_the_agreement(case):
    same = scorecard(
        case.student,
        case.label,
        teacher_logits=case.teacher,
        independent_teacher_logits=case.teacher,
    )
    assert same["agreement_independent"] == same["agreement"]
    assert same["agreement_excess"] == 0
    copy = scorecard(
        case.teacher,
        case.label,
        teacher_logits=case.teacher,
        independent_teacher_logits=case.student,
    )
    assert copy["agreement_excess"] == pytest.approx(1 - same["agreement"], rel=1e-12)


def test_a_control_without_its_case_is_refused(case):
    with pytest.raises(ValueError, match="give teacher_logits too"):
        scorecard(case.student, case.label, independent_teacher_logits=case.teacher)


def test_a_fraction_of_no_images_is_nan():
    perfect = 9 * np.eye(3)
    found = scorecard(perfect, [0, 1, 2], teacher_logits=perfect)
    assert math.isnan(found["same_wrong_class"])


def test_a_teacher_of_other_images_is_refused(case):
    with pytest.raises(ShapeError, match="same images and classes"):
        scorecard(case.student, case.label, teacher_logits=case.teacher[1:])
