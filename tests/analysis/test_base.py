import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from limbeck.analysis.base import (
    Case,
    Experiment,
    Measured,
    NotApplicableError,
    Reading,
    Subject,
    contrast,
    examine,
    ratio_items,
)
from limbeck.core.errors import ShapeError
from limbeck.core.normalization import Normalization

GREY = Normalization(mean=(0.5,), std=(0.25,))


def subject(seed=0, name="student"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    return Subject(name=name, network=network, normalization=GREY)


def case(**changes):
    images = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2) * 10
    values = {
        "teacher": subject(9),
        "distilled": {0: subject(0), 1: subject(1)},
        "independent": {0: subject(2), 1: subject(3)},
        "images": images,
        "labels": torch.arange(6) % 3,
        "class_names": ("a", "b", "c"),
        "method": "kd",
        "batch_size": 4,
    }
    return Case(**values | changes)


def reading(independent, distilled, **changes):
    return Reading(
        name="agreement",
        items="images",
        independent={seed: np.asarray(values) for seed, values in independent.items()},
        distilled={seed: np.asarray(values) for seed, values in distilled.items()},
        **changes,
    )


def test_networks_under_study_are_frozen_and_in_evaluation():
    found = subject()
    assert not any(module.training for module in found.network.modules())
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


def test_logits_are_those_of_the_network_on_normalised_images():
    made = case()
    expected = made.teacher.network((made.images.float() / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(made.answers(made.teacher), expected, rtol=1e-5, atol=1e-6)


def test_each_pass_is_made_once_for_each_network_and_set_of_images(monkeypatch):
    made = case()
    calls = []
    forward = Case.forward
    monkeypatch.setattr(
        Case, "forward", lambda self, who, images: calls.append(who) or forward(self, who, images)
    )
    first = made.answers(made.teacher)
    assert made.answers(made.teacher) is first
    made.answers(made.teacher, "darker", made.images // 2)
    made.answers(made.distilled[0])
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["distilled", "independent"])
def test_a_case_without_one_kind_of_student_says_how_to_get_one(kind):
    with pytest.raises(NotApplicableError, match=f"no {kind} student"):
        case(**{kind: {}})


def test_random_choices_are_the_same_every_time_and_differ_by_purpose():
    first, second = case(), case()
    assert (first.sample(3, "a") == second.sample(3, "a")).all()
    draws = [tuple(first.generator(purpose).random(4)) for purpose in ("a", "b", "ab", "ba")]
    assert len(set(draws)) == 4
    assert list(first.sample(100, "all")) == list(range(6))
    assert torch.equal(
        torch.rand(3, generator=first.torch_generator("a")),
        torch.rand(3, generator=second.torch_generator("a")),
    )


def test_a_difference_is_paired_by_seed_with_students_t_interval(generator):
    rng = np.random.default_rng(0)
    ours = {seed: rng.random(40) for seed in (0, 1, 2)}
    theirs = {seed: rng.random(40) for seed in (2, 1, 0, 7)}
    found = contrast(reading(theirs, ours), generator=rng)
    by_seed = [ours[seed].mean() - theirs[seed].mean() for seed in (0, 1, 2)]
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(by_seed))
    assert found.seed_interval == pytest.approx((expected.low, expected.high))
    assert (found.num_seeds, found.num_items) == (3, 40)


def test_one_seed_has_an_interval_over_items_alone_and_the_sentence_says_so():
    values = {0: np.repeat([0.0, 1.0], 200)}, {0: np.repeat([1.0, 1.0], 200)}
    found = contrast(reading(*values), generator=np.random.default_rng(0))
    assert found.seed_interval is None
    # the percentile bootstrap of a mean is nearly normal here
    half = 1.96 * 0.5 / np.sqrt(400)
    assert found.item_interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert found.verdict == "nearer"
    assert "over the 400 images alone; other seeds are not in it" in found.sentence


@pytest.mark.parametrize(
    ("shift", "nearer", "verdict"),
    [
        (0.3, "higher", "nearer"),
        (0.3, "lower", "further"),
        (-0.3, "higher", "further"),
        (-0.3, "lower", "nearer"),
        (0.0, "higher", "cannot tell"),
    ],
)
def test_a_verdict_follows_the_direction_that_is_nearer(shift, nearer, verdict):
    rng = np.random.default_rng(1)
    theirs = {seed: rng.random(50) for seed in range(5)}
    noise = 0.01 * rng.standard_normal(5)
    noise -= noise.mean()
    ours = {seed: values + shift + noise[seed] for seed, values in theirs.items()}
    found = contrast(reading(theirs, ours, nearer=nearer), generator=rng)
    assert found.verdict == verdict


def test_an_interval_covers_no_difference_in_most_cases():
    rng = np.random.default_rng(2)
    verdicts = [
        contrast(
            reading(*({seed: rng.random(20) for seed in range(4)} for _ in range(2))), generator=rng
        ).verdict
        for _ in range(400)
    ]
    assert 0.92 <= verdicts.count("cannot tell") / len(verdicts) <= 0.98


def test_students_without_a_shared_seed_are_compared_item_by_item():
    found = contrast(
        reading({3: [0.0, 0.0, 1.0]}, {0: [1.0, 1.0, 1.0], 1: [1.0, 0.0, 1.0]}),
        generator=np.random.default_rng(0),
    )
    assert (found.independent, found.distilled) == pytest.approx((1 / 3, 5 / 6))
    assert found.seed_interval is None


def test_a_sentence_has_both_students_chance_and_n_in_percent():
    found = contrast(
        reading({0: [0.0, 1.0], 1: [0.0, 1.0]}, {0: [1.0, 1.0], 1: [1.0, 1.0]}, chance=0.1),
        generator=np.random.default_rng(0),
    )
    assert found.sentence == (
        "The distilled student is nearer to the teacher: agreement 100.0 %, of the independent "
        "student 50.0 %; chance 10.0 %; difference +50.0 points, 95 % interval +50.0 to +50.0 "
        "over 2 seeds, 2 images."
    )


def test_values_of_different_items_are_refused():
    for ours, theirs in itertools.permutations([{0: [1.0]}, {0: [1.0, 2.0]}], 2):
        with pytest.raises(ShapeError, match="one value for each of the same items"):
            reading(ours, theirs)
    with pytest.raises(ShapeError):
        reading({0: []}, {0: []})


def test_an_experiment_that_does_not_apply_is_skipped_with_its_reason():
    def refuse(case):
        raise NotApplicableError("grey images have no colour")

    asked = Experiment(key="k", title="t", question="q?", source="s", measure=refuse, quick=True)
    found = examine(asked, case(), clock=iter([1.0, 3.0]).__next__)
    assert (found.skipped, found.measured, found.seconds) == (
        "grey images have no colour",
        None,
        2.0,
    )


def test_every_reading_gets_a_contrast_of_its_own():
    def measure(case):
        return Measured(
            readings=tuple(
                case.reading(name, "images", lambda who: case.answers(who)[:, 0])
                for name in ("one", "two")
            )
        )

    asked = Experiment(key="k", title="t", question="q?", source="s", measure=measure, quick=True)
    found = examine(asked, case(), clock=lambda: 0.0)
    assert len(found.contrasts) == 2
    assert found.skipped is None


def test_a_ratio_as_items_has_the_ratio_as_its_mean_and_varies_as_it_does(generator):
    """Against resampling the ratio itself."""
    numbers = np.random.default_rng(0)
    counted = numbers.random(400) < 0.3
    hits = counted & (numbers.random(400) < 0.7)
    items = ratio_items(hits, counted)
    assert items.mean() == pytest.approx(hits.sum() / counted.sum())
    draws = numbers.integers(400, size=(4000, 400))
    ratios = hits[draws].sum(axis=1) / counted[draws].sum(axis=1)
    assert items[draws].mean(axis=1).std() == pytest.approx(ratios.std(), rel=0.05)


def test_of_a_trait_nearer_is_where_the_teacher_is():
    made = case()
    values = {id(made.teacher): 3.0} | {id(s): 5.0 for s in made.independent.values()}

    def value(subject):
        return np.full(4, values.get(id(subject), 4.0))

    found = made.trait("size", "images", value, unit="1")
    assert (found.teacher, found.nearer, found.unit) == (3.0, "lower", "1")
    values[id(made.teacher)] = 6.0
    assert made.trait("size", "images", value).nearer == "higher"


def test_one_answer_to_everything_is_refused_and_two_are_not():
    made = case()
    made.refuse_constant(made.teacher, np.array([1, 1, 2]), "sketches")
    with pytest.raises(NotApplicableError, match="student gives all sketches the answer 'b'"):
        made.refuse_constant(made.teacher, np.array([[1, 1], [1, 1]]), "sketches")


def test_who_was_taught_otherwise_is_called_so():
    values = reading({0: [1.0, 0.5]}, {0: [0.0, 0.0]}, pupil="student of noise targets")
    found = contrast(values, generator=np.random.default_rng(0))
    assert found.sentence.startswith("The student of noise targets is further from the teacher")


def test_a_reading_may_have_words_of_its_own():
    values = {0: [1.0, 1.0], 1: [1.0, 1.0]}, {0: [0.0, 0.0], 1: [0.0, 0.0]}
    found = contrast(
        reading(*values, nearer="lower", words=("flatter", "sharper")),
        generator=np.random.default_rng(0),
    )
    assert found.sentence.startswith("The distilled student is flatter: ")


def test_every_batch_is_told():
    made, ticks = case(), []
    made.tick = lambda: ticks.append(1)
    made.answers(made.teacher)
    assert len(ticks) == 2  # six images, four a batch
