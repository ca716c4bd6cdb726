import numpy as np
import pytest
from scipy import stats

from limbeck.analysis.scalars import HEADING, IMAGES_HEADING, by_student, over_images, scalar_row

LABEL = np.arange(12) // 3


def logits(seed):
    return np.random.default_rng(seed).normal(size=(12, 4))


def test_a_row_has_means_and_students_t_interval_of_the_paired_difference():
    ours, theirs = {0: 0.5, 1: 0.75, 2: 0.7, 9: 0.21}, {2: 0.4, 1: 0.45, 0: 0.35}
    row = scalar_row("x", teacher=0.9, distilled=ours, independent=theirs, form=".3f")
    assert len(row) == len(HEADING)
    expected = stats.ttest_1samp([0.15, 0.3, 0.3], 0).confidence_interval(0.95)
    assert row[:5] == ("x", "0.900", f"{np.mean(list(ours.values())):.3f}", "0.400", "+0.140")
    assert row[5] == f"{expected.low:+.3f} to {expected.high:+.3f}"


@pytest.mark.parametrize("independent", [{0: 1.0}, {5: 1.0, 6: 1.0}])
def test_without_two_shared_seeds_there_is_no_interval(independent):
    row = scalar_row("x", teacher=None, distilled={0: 2.0}, independent=independent, form=".1f")
    assert row[1:] == ("", "2.0", "1.0", "+1.0", "one seed: none")


def test_students_are_asked_by_seed(given):
    case = given(logits(0), [logits(1), logits(2)], logits(3), LABEL)
    ours, theirs = by_student(case, lambda student: float(case.answers(student)[0, 0]))
    assert list(ours) == [0, 1]
    assert theirs == pytest.approx({0: logits(3)[0, 0]})


def test_an_interval_over_images_is_that_of_resampled_means(given):
    """Of a mean it is nearly normal."""
    rng = np.random.default_rng(1)
    label = np.arange(200) % 4
    right, wrong = np.eye(4)[label], np.eye(4)[(label + 1) % 4]
    known = rng.random(200) < 0.5
    case = given(right, right, np.where(known[:, None], right, wrong), label)

    def accuracy(subject, at):
        return float((case.answers(subject)[at].argmax(axis=1) == label[at]).mean())

    row = over_images(case, "accuracy", accuracy, form=".4f")
    assert len(row) == len(IMAGES_HEADING)
    low, high = (float(end) for end in row[-1].split(" to "))
    share = 1 - known.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 200)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.02)


def test_unlabelled_images_are_not_drawn(given):
    label = np.where(np.arange(12) < 6, LABEL, -1)
    case = given(logits(0), logits(1), logits(2), label)
    seen = set()
    over_images(case, "x", lambda _, at: seen.update(at.tolist()) or 0.0, form=".1f")
    assert seen == set(range(6))
