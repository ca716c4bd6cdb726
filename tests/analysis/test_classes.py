import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.classes import CLASSES, class_means, rank_correlation

LABEL = np.arange(60) % 5


def logits(seed, num_classes=5):
    return np.random.default_rng(seed).normal(size=(60, num_classes)).astype(np.float32)


def test_class_means_are_those_of_plain_loops():
    values = np.random.default_rng(0).normal(size=(6, 2))
    label = np.array([0, 2, 0, 2, 2, 0])
    found = class_means(values, label, 4)
    for k in (0, 2):
        np.testing.assert_allclose(
            found[k], np.mean([values[i] for i in range(6) if label[i] == k], 0)
        )
    assert np.isnan(found[[1, 3]]).all()


def test_a_rank_correlation_is_scipys_and_zero_where_nothing_can_be_ranked():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, size=(2, 3, 9)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected)
    assert rank_correlation(np.ones(4), np.arange(4.0)) == 0


def test_a_copy_of_the_teacher_confuses_what_it_confuses_and_has_its_logits(given):
    teacher = logits(0)
    shifted = teacher + np.arange(60.0)[:, None]  # a softmax does not see this
    alike, apart = CLASSES.measure(given(teacher, shifted, logits(1), LABEL)).readings
    np.testing.assert_allclose(alike.distilled[0], 1.0)
    np.testing.assert_allclose(apart.distilled[0], 0.0, atol=1e-5)
    assert (len(alike.distilled[0]), len(apart.distilled[0])) == (5, 20)
    assert abs(alike.independent[0].mean()) < 0.8
    assert apart.independent[0].mean() > 0.1


def test_confusions_are_ranked_without_the_true_class(given):
    teacher, student = logits(0), logits(1)
    alike, apart = CLASSES.measure(given(teacher, student, student, LABEL)).readings
    for k in range(5):
        others = [j for j in range(5) if j != k]
        rows = [softmax(z, axis=1)[k == LABEL].mean(axis=0)[others] for z in (student, teacher)]
        assert alike.distilled[0][k] == pytest.approx(stats.spearmanr(*rows).statistic)
        centred = [
            (z - z.mean(1, keepdims=True))[k == LABEL].mean(axis=0) for z in (student, teacher)
        ]
        expected = np.abs(centred[0] - centred[1])[others]
        np.testing.assert_allclose(apart.distilled[0].reshape(5, 4)[k], expected, atol=1e-6)


def planted(gaining):
    """A teacher unsure of some classes; an independent student wrong on ``gaining``."""
    right = 4 * np.eye(5)[LABEL]
    unsure = np.array([3.0, 2.0, 1.5, 1.0, 0.5])
    teacher = right * (unsure[LABEL] / 4)[:, None] + 0.01 * logits(0)
    share = np.array(gaining)[LABEL]
    fails = (np.arange(60) // 5) < 12 * share
    independent = np.where(fails[:, None], 4 * np.eye(5)[(LABEL + 1) % 5], right)
    return teacher, right, independent


@pytest.mark.parametrize(
    ("gaining", "expected"),
    [([0.1, 0.2, 0.4, 0.6, 0.9], "+1.00"), ([0.9, 0.6, 0.4, 0.2, 0.1], "-1.00")],
)
def test_gains_of_the_teachers_confusable_classes_are_seen(given, gaining, expected):
    tables = CLASSES.measure(given(*planted(gaining), LABEL)).tables
    row = tables["Do the classes gain that the teacher confuses?"][1]
    assert row[1] == expected
    low, high = (float(end) for end in row[2].split(" to "))
    assert low <= float(expected) <= high
    for line in tables["Classes, by gain"][1:]:
        place = "abcde".index(line[0])
        p = softmax(planted(gaining)[0][place == LABEL], axis=1).mean(axis=0)
        assert line[-2] == f"{1 - p[place]:.1%}"
        p[place] = 0
        assert line[-1] == f"{'abcde'[p.argmax()]} ({p.max():.1%})"
    by_gain = [line[0] for line in tables["Classes, by gain"][1:]]
    assert by_gain == list("edcba" if expected == "+1.00" else "abcde")


def test_two_independent_students_show_what_chance_gives(given):
    teacher, right, independent = planted([0.1, 0.2, 0.4, 0.6, 0.9])
    case = given(teacher, [right, right], [right, independent], LABEL)
    _, _, control = CLASSES.measure(case).tables["Do the classes gain that the teacher confuses?"]
    assert control[1] == "1.00"
    assert "largest of 1" in control[0]


def test_the_picture_is_said_in_words(given):
    (picture,) = CLASSES.measure(given(logits(0), logits(0), logits(1), LABEL)).pictures
    assert "Distilled: mean 0.00, largest 0.00" in picture.alt
    assert picture.png.startswith(b"\x89PNG")


def test_many_classes_show_those_at_either_end(given):
    label = np.arange(120) % 30
    z = np.random.default_rng(0).normal(size=(3, 120, 30))
    case = given(*z, label, class_names=tuple(f"c{k}" for k in range(30)))
    assert len(CLASSES.measure(case).tables["Classes, by gain"]) == 21


def test_classes_without_images_are_left_out(given):
    z = np.random.default_rng(0).normal(size=(3, 60, 7))
    found = CLASSES.measure(given(*z, LABEL))
    assert found.settings["classes"] == 5
    assert len(found.readings[0].distilled[0]) == 5


@pytest.mark.parametrize(
    ("teacher", "label", "message"),
    [
        (np.eye(5)[np.full(60, 2)], LABEL, "every image the answer 'c'"),
        (logits(0), np.arange(60) % 3, "classes or more; the test images are of 3"),
    ],
)
def test_a_teacher_of_one_answer_and_too_few_classes_are_said(given, teacher, label, message):
    with pytest.raises(NotApplicableError, match=message):
        CLASSES.measure(given(teacher, logits(1), logits(2), label))
