import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score

from limbeck.core.errors import DataError, NonFiniteError, ShapeError
from limbeck.metrics.fidelity import (
    agreement,
    agreement_on_teacher_errors,
    kl_from_teacher,
    same_wrong_class_rate,
)


def test_agreement_is_gnosis(card):
    assert agreement(card.student, card.teacher) == 0.25


def test_kl_is_the_cards_and_starts_from_the_teacher(card):
    assert kl_from_teacher(card.student, card.teacher) == pytest.approx(1.2500460279, abs=1e-10)
    assert kl_from_teacher(card.teacher, card.student) == pytest.approx(1.1359444545, abs=1e-10)


def test_shared_errors_of_the_card_are_those_counted_by_hand(card):
    """The teacher errs on images 1 2 3 5 6 7 10 11, the student too but for 1 2 7; same: 3 5."""
    triple = card.student, card.teacher, card.label
    assert agreement_on_teacher_errors(*triple) == 2 / 8
    assert same_wrong_class_rate(*triple) == 2 / 5


def test_agreement_is_scikit_learns_accuracy_against_the_teacher(case):
    expected = accuracy_score(case.teacher.argmax(axis=1), case.student.argmax(axis=1))
    assert agreement(case.student, case.teacher) == expected
    assert agreement(case.teacher, case.student) == expected
    assert 0 < expected < 1


def test_kl_is_scipys_and_torchs(case):
    found = kl_from_teacher(case.student, case.teacher)
    student, teacher = softmax(case.student, axis=1), softmax(case.teacher, axis=1)
    assert found == pytest.approx(rel_entr(teacher, student).sum(axis=1).mean(), rel=1e-9)
    assert found == pytest.approx(entropy(teacher, student, axis=1).mean(), rel=1e-9)
    log_s = torch.log_softmax(torch.from_numpy(case.student), dim=1)
    log_t = torch.log_softmax(torch.from_numpy(case.teacher), dim=1)
    torchs = torch.nn.functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
    assert found == pytest.approx(torchs.item(), rel=1e-12)


def test_shared_errors_are_the_counts_in_loops(case):
    rows = zip(
        case.student.argmax(axis=1).tolist(),
        case.teacher.argmax(axis=1).tolist(),
        case.label.tolist(),
        strict=True,
    )
    on_teacher, on_both = [], []
    for student, teacher, label in rows:
        if teacher != label:
            on_teacher.append(student == teacher)
            if student != label:
                on_both.append(student == teacher)
    triple = case.student, case.teacher, case.label
    found = agreement_on_teacher_errors(*triple)
    assert found == sum(on_teacher) / len(on_teacher)
    assert same_wrong_class_rate(*triple) == sum(on_both) / len(on_both)
    assert 0 < found < same_wrong_class_rate(*triple) < 1


def test_who_answers_as_the_teacher_is_faithful_in_every_number(case):
    assert agreement(case.teacher, case.teacher) == 1
    assert kl_from_teacher(case.teacher, case.teacher) == 0
    triple = case.teacher, case.teacher, case.label
    assert agreement_on_teacher_errors(*triple) == same_wrong_class_rate(*triple) == 1


def test_a_teacher_that_is_never_wrong_shares_no_errors():
    perfect, label = np.eye(3), np.arange(3)
    triple = perfect[[1, 1, 2]], perfect, label
    assert math.isnan(agreement_on_teacher_errors(*triple))
    assert math.isnan(same_wrong_class_rate(*triple))


def test_answers_at_random_agree_by_chance():
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 40_000, 4))
    label = random.integers(4, size=40_000)
    assert agreement(student, teacher) == pytest.approx(1 / 4, abs=0.01)
    triple = student, teacher, label
    assert agreement_on_teacher_errors(*triple) == pytest.approx(1 / 4, abs=0.01)
    assert same_wrong_class_rate(*triple) == pytest.approx(1 / 3, abs=0.01)


def test_of_equal_scores_the_lower_class_is_the_answer():
    zeros, label = np.zeros((2, 3)), [2, 2]
    assert agreement(zeros, np.eye(3)[[0, 1]]) == 0.5
    assert agreement_on_teacher_errors(zeros, np.eye(3)[[0, 1]], label) == 0.5


def test_gaps_beyond_the_reach_of_exp_stay_finite():
    assert kl_from_teacher([[2000.0, 0.0]], [[0.0, 2000.0]]) == 2000


def test_order_repetition_and_shifts_change_nothing(case):
    order = case.order

    def numbers(student, teacher, label):
        return (
            agreement(student, teacher),
            kl_from_teacher(student, teacher),
            agreement_on_teacher_errors(student, teacher, label),
            same_wrong_class_rate(student, teacher, label),
        )

    once = pytest.approx(numbers(case.student, case.teacher, case.label), rel=1e-9)
    assert numbers(case.student[order], case.teacher[order], case.label[order]) == once
    both = np.tile(case.student, (2, 1)), np.tile(case.teacher, (2, 1)), np.tile(case.label, 2)
    assert numbers(*both) == once
    assert numbers(case.student + 8, case.teacher - 8, case.label) == once


@pytest.mark.parametrize(
    ("function", "label"),
    [
        (agreement, []),
        (kl_from_teacher, []),
        (agreement_on_teacher_errors, [[0, 1]]),
        (same_wrong_class_rate, [[0, 1]]),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(function, label):
    good = np.zeros((2, 3))
    with pytest.raises(ShapeError, match="same images and classes"):
        function(good, np.zeros((3, 3)), *label)
    with pytest.raises(NonFiniteError, match="teacher_logits must be finite; 6 of 6"):
        function(good, np.full((2, 3), np.inf), *label)


@pytest.mark.parametrize("function", [agreement_on_teacher_errors, same_wrong_class_rate])
def test_images_without_a_label_are_refused(function):
    with pytest.raises(DataError, match="1 of 2 have -1"):
        function(np.zeros((2, 3)), np.zeros((2, 3)), [0, -1])
