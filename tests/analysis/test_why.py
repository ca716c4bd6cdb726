import re

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.analysis.background import Background, RunFacts
from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.why import WHY

LABEL = np.arange(60) % 4
RIGHT = 6.0 * np.eye(4)[LABEL]


def wrong_on(images, by=1, logits=RIGHT):
    """Another class on some images."""
    turned = 6.0 * np.eye(4)[(LABEL + by) % 4]
    return np.where(np.isin(np.arange(60), images)[:, None], turned, logits)


def first(count, by=1):
    return wrong_on(np.arange(count), by)


def background(*, labelled=60, seconds=(4.0, 2.0)):
    """The training images are the first 40 of the given ones."""
    ours, theirs = (RunFacts(seconds=s, teacher_seconds=s / 4) for s in seconds)
    return Background(
        train_images=torch.arange(40, dtype=torch.uint8).reshape(-1, 1, 1, 1),
        train_labels=torch.as_tensor(LABEL[:40]),
        num_train=60,
        num_labelled=labelled,
        distilled={0: ours, 1: ours, 2: ours},
        independent={0: theirs, 1: theirs, 2: theirs},
    )


def lines(case):
    (table,) = WHY.measure(case).tables.values()
    assert table[0][0] == "what"
    return {row[0].partition(":")[0]: row[1:] for row in table[1:]}


@pytest.fixture
def helped(given):
    """A right teacher; distilled students nearly so, independent ones not, with seeds apart."""
    ours, theirs = [first(k) for k in (1, 2, 3)], [first(k) for k in (20, 23, 24)]
    return given(RIGHT, ours, theirs, LABEL, background=background())


def test_the_headline_is_accuracy_beside_the_teachers(helped):
    accuracy, on_training = WHY.measure(helped).readings
    assert accuracy.teacher == 1.0
    assert [values.mean() for values in accuracy.distilled.values()] == [59 / 60, 58 / 60, 57 / 60]
    assert accuracy.words[0].startswith("more accurate")
    assert [values.mean() for values in on_training.independent.values()] == [
        20 / 40,
        17 / 40,
        16 / 40,
    ]


def test_a_gain_has_students_t_interval_and_a_meaning_that_follows_it(helped):
    here, meaning, _ = lines(helped)["gain in accuracy over the independent student"]
    gains = np.array([19, 21, 21]) / 60
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d", here)]
    assert numbers == pytest.approx(
        [100 * gains.mean(), 100 * expected.low, 100 * expected.high], abs=0.05
    )
    assert meaning.startswith("Taken by itself it helped")


@pytest.mark.parametrize(
    ("ours", "theirs", "meaning"),
    [
        ((20, 23, 24), (1, 2, 3), "it did harm"),
        ((5, 9, 7), (6, 8, 7), "It cannot be told whether it helped"),
        ((5,), (9,), "cannot be told without the spread over seeds"),
    ],
)
def test_no_meaning_goes_beyond_the_interval(given, ours, theirs, meaning):
    case = given(RIGHT, [first(k) for k in ours], [first(k) for k in theirs], LABEL)
    assert meaning in lines(case)["gain in accuracy over the independent student"][1]


def test_the_share_of_the_teachers_lead_that_was_gained_is_told(helped):
    here, meaning, _ = lines(helped)["the teacher's accuracy"]
    assert here == "100.0 %; the independent student 62.8 %, the distilled one 96.7 %"
    room, gain = 1 - (40 + 37 + 36) / 180, (174 - 113) / 180
    assert f"{100 * gain / room:.0f} % of it was gained" in meaning


def test_a_teacher_that_is_no_better_than_the_student_is_called_so(given):
    case = given(first(30), RIGHT, RIGHT, LABEL)
    assert lines(case)["the teacher's accuracy"][1].startswith("The teacher is no better")


@pytest.mark.parametrize(("scale", "one_hot"), [(2.0, False), (6.0, True)])
def test_a_teachers_softness_is_its_probability_beside_its_answer(given, scale, one_hot):
    teacher = scale / 6 * RIGHT
    case = given(teacher, RIGHT, RIGHT, LABEL, background=background())
    here, meaning, _ = lines(case)["the teacher's softness"]
    beside = 3 / (3 + np.exp(scale))
    assert here.startswith(f"{100 * beside:.2f} %")
    assert ("nearly one-hot" in meaning) is one_hot


def test_fidelity_tells_training_and_test_images_apart(given):
    """The training images are the first 40."""
    seen = [wrong_on([40 + k, 50, 51, 52, 53, 54]) for k in range(3)]
    other = [first(k) for k in (30, 31, 33)]
    here, meaning, _ = lines(given(RIGHT, seen, other, LABEL, background=background()))["fidelity"]
    assert here.startswith("training images: distilled 100.0 %")
    assert "test images: distilled 90.0 %" in here
    assert "10.0 points less on new ones" in meaning


def test_a_student_that_does_not_fit_its_teacher_is_said_to(given):
    ours, theirs = [first(k) for k in (10, 11, 12)], [first(k) for k in (30, 31, 33)]
    found = lines(given(RIGHT, ours, theirs, LABEL, background=background()))
    assert (
        "Already on images it was taught on it answers otherwise on 27.5 %" in found["fidelity"][1]
    )
    assert "a wide gap" in found["capacity gap"][1]


def test_errors_are_compared_where_both_are_wrong_and_are_many_enough(given):
    teacher = first(30)
    found = lines(given(teacher, first(30), first(30, by=2), LABEL))
    here, meaning, _ = found["agreement among errors"]
    assert here == "distilled 30 of 30 (100 %); independent 0 of 30 (0 %)"
    assert "+100.0 points" in meaning
    few = lines(given(first(3), first(30), first(30), LABEL))["agreement among errors"]
    assert "too few to read" in few[1]


def test_a_spread_over_seeds_says_what_could_not_be_told(helped):
    here, meaning, _ = lines(helped)["variance over seeds"]
    spread = np.std([59, 58, 57], ddof=1) / 60
    assert f"distilled {100 * spread:.1f}" in here
    gains = np.array([19, 21, 21]) / 60
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / 3**0.5
    assert f"below {100 * half:.1f} points" in meaning


@pytest.mark.parametrize(
    ("labelled", "meaning"), [(60, "Every image has its label"), (20, "the other 40 images")]
)
def test_scarce_labels_are_counted(given, labelled, meaning):
    case = given(RIGHT, RIGHT, RIGHT, LABEL, background=background(labelled=labelled))
    here, told, _ = lines(case)["label scarcity"]
    assert here == f"{labelled} of 60 training images have a label, {labelled // 4} a class"
    assert meaning in told


def test_cost_is_the_runs_own_seconds(helped):
    here = lines(helped)["cost"][0]
    assert "training 4.0 s with the teacher, 2.0 s without: 2.0 times; 25 % of it" in here


def test_every_line_names_a_source(helped):
    assert all("https://arxiv.org/abs/" in line[-1] for line in lines(helped).values())
    assert len(lines(helped)) == 10


def test_without_run_folders_what_they_know_is_left_out_and_said(given):
    case = given(RIGHT, first(1), first(9), LABEL)
    found = lines(case)
    assert not {"label scarcity", "cost", "the teacher's softness"} & found.keys()
    assert "cannot be told" in WHY.measure(case).notes[0]


def test_images_without_labels_have_no_accuracy(given):
    with pytest.raises(NotApplicableError, match="no test image has a label"):
        WHY.measure(given(RIGHT, RIGHT, RIGHT, np.full(60, -1)))
