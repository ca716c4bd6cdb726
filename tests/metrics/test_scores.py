import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, recall_score, top_k_accuracy_score

from limbeck.core.errors import DataError, NonFiniteError, ShapeError
from limbeck.metrics.scores import (
    brier_score,
    class_accuracy,
    correct,
    is_long_tailed,
    negative_log_likelihood,
    shot_accuracy,
    top_k_accuracy,
    worst_class_accuracy,
)

NUMBERS = {
    "top1": lambda logits, label: top_k_accuracy(logits, label, k=1),
    "top3": lambda logits, label: top_k_accuracy(logits, label, k=3),
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "worst": worst_class_accuracy,
}


def softmax_in_loops(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def test_the_cards_numbers(card):
    assert top_k_accuracy(card.student, card.label, k=1) == pytest.approx(1 / 3, rel=1e-12)
    assert top_k_accuracy(card.teacher, card.label, k=1) == pytest.approx(1 / 3, rel=1e-12)
    nll = negative_log_likelihood(card.student, card.label)
    assert nll == pytest.approx(2.2593419668, abs=1e-10)
    assert brier_score(card.student, card.label) == pytest.approx(0.9676624581, abs=1e-10)


def test_accuracy_is_scikit_learns(case):
    found = top_k_accuracy(case.student, case.label, k=1)
    assert found == accuracy_score(case.label, case.student.argmax(axis=1))
    assert 0.3 < found < 0.9


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_is_scikit_learns(case, k):
    expected = top_k_accuracy_score(case.label, case.student, k=k, labels=np.arange(7))
    assert top_k_accuracy(case.student, case.label, k=k) == expected


def test_nll_is_scikit_learns_and_torchs(case):
    found = negative_log_likelihood(case.student, case.label)
    p = torch.softmax(torch.from_numpy(case.student), dim=1).numpy()
    assert found == pytest.approx(log_loss(case.label, p, labels=np.arange(7)), rel=1e-9)
    logits, label = torch.from_numpy(case.student), torch.from_numpy(case.label)
    torchs = torch.nn.functional.cross_entropy(logits, label).item()
    assert found == pytest.approx(torchs, rel=1e-12)


def test_brier_is_the_formula_in_loops(case):
    total = 0.0
    for row, label in zip(case.student, case.label, strict=True):
        total += sum((p - (k == label)) ** 2 for k, p in enumerate(softmax_in_loops(row)))
    assert brier_score(case.student, case.label) == pytest.approx(total / 200, rel=1e-9)


def test_class_accuracy_is_scikit_learns_recall(case):
    expected = recall_score(case.label, case.student.argmax(axis=1), average=None)
    np.testing.assert_allclose(class_accuracy(case.student, case.label), expected, rtol=1e-12)
    assert worst_class_accuracy(case.student, case.label) == pytest.approx(min(expected))


def test_a_class_without_images_has_no_accuracy_and_is_not_the_worst():
    logits, label = np.eye(3)[[0, 2, 0]], np.array([0, 2, 2])
    np.testing.assert_array_equal(class_accuracy(logits, label), [1, np.nan, 0.5])
    assert worst_class_accuracy(logits, label) == 0.5


def test_of_equal_scores_the_lower_class_comes_first():
    hits = [correct(np.zeros((4, 4)), np.arange(4), k=k).tolist() for k in (1, 2, 4)]
    assert hits[0] == [True, False, False, False]
    assert hits[1] == [True, True, False, False]
    assert hits[2] == [True] * 4


def test_top_1_and_argmax_break_ties_alike():
    logits = np.random.default_rng(0).integers(3, size=(300, 5)).astype(float)
    label = np.random.default_rng(1).integers(5, size=300)
    assert correct(logits, label).tolist() == (logits.argmax(axis=1) == label).tolist()


def test_a_perfect_predictor_has_the_best_values():
    label = np.arange(6)
    found = {name: number(1000 * np.eye(6), label) for name, number in NUMBERS.items()}
    assert found == {"top1": 1, "top3": 1, "nll": 0, "brier": 0, "worst": 1}


def test_a_predictor_sure_of_the_wrong_class_has_the_worst_values():
    logits, label = 1000 * np.eye(6), (np.arange(6) + 1) % 6
    assert top_k_accuracy(logits, label, k=1) == worst_class_accuracy(logits, label) == 0
    assert brier_score(logits, label) == 2
    assert negative_log_likelihood(logits, label) == 1000  # beyond what exp() can hold


def test_chance_has_the_values_of_chance():
    logits, label = np.full((40, 4), 2.5), np.arange(40) % 4
    assert top_k_accuracy(logits, label, k=1) == 0.25
    assert negative_log_likelihood(logits, label) == pytest.approx(math.log(4), rel=1e-12)
    assert brier_score(logits, label) == pytest.approx(0.75, rel=1e-12)  # 1 - 1/K


@pytest.mark.parametrize("name", NUMBERS)
def test_neither_order_nor_repetition_nor_shifts_change_a_number(case, name):
    number, once = NUMBERS[name], NUMBERS[name](case.student, case.label)
    shuffled = number(case.student[case.order], case.label[case.order])
    doubled = number(np.tile(case.student, (2, 1)), np.tile(case.label, 2))
    shifted = number(case.student + 8.0, case.label)
    assert (shuffled, doubled, shifted) == pytest.approx((once,) * 3, rel=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_cannot_be_judged_is_refused(case, name):
    with pytest.raises(DataError, match="unlabelled"):
        NUMBERS[name](case.student, np.where(case.label == 3, -1, case.label))
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        NUMBERS[name](np.where(case.student > 3, np.nan, case.student), case.label)


@pytest.mark.parametrize("k", [0, 8])
def test_there_are_only_so_many_classes_to_be_among(case, k):
    with pytest.raises(ValueError, match=f"between 1 and the 7 classes, got {k}"):
        top_k_accuracy(case.student, case.label, k=k)


# -- by training images of a class ---------------------------------------------------------------


def test_a_group_is_the_mean_of_scikit_learns_recall_over_its_classes(case):
    counts = [500, 101, 100, 50, 20, 19, 1]  # on both sides of both borders
    recall = recall_score(case.label, case.student.argmax(axis=1), average=None)
    found = shot_accuracy(case.student, case.label, counts)
    assert list(found) == ["many_shot", "medium_shot", "few_shot"]
    assert found["many_shot"] == pytest.approx(recall[:2].mean(), rel=1e-12)
    assert found["medium_shot"] == pytest.approx(recall[2:5].mean(), rel=1e-12)
    assert found["few_shot"] == pytest.approx(recall[5:].mean(), rel=1e-12)


def test_a_group_without_classes_or_images_is_nan(case):
    found = shot_accuracy(case.student, case.label, [500] * 7)
    assert math.isnan(found["medium_shot"])
    assert math.isnan(found["few_shot"])
    kept = case.label != 6
    without = shot_accuracy(case.student[kept], case.label[kept], [500] * 6 + [1])
    assert math.isnan(without["few_shot"])
    assert without["many_shot"] == pytest.approx(
        np.nanmean(class_accuracy(case.student[kept], case.label[kept])), rel=1e-12
    )


def test_counts_of_other_classes_are_refused(case):
    with pytest.raises(ShapeError, match=r"each of 7 classes; got shape \(6,\)"):
        shot_accuracy(case.student, case.label, [1] * 6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([50, 10], True), ([49, 10], False), ([3, 0], True), ([0, 0], False), ([7, 7, 7], False)],
)
def test_a_tail_is_long_from_a_fifth_on(counts, expected):
    assert is_long_tailed(counts) is expected
