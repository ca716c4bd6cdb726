import math
import re

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from limbeck.core.errors import DataError, NonFiniteError, ShapeError, UnknownNameError
from limbeck.metrics.info import METRICS
from limbeck.reports.statistics import (
    compare_over_seeds,
    hedges_correction,
    holm_adjusted,
    image_interval,
    paired_image_interval,
    paired_t_interval,
    paired_t_p_value,
    seeds_needed,
)

CE = {0: 0.702, 1: 0.714, 2: 0.695, 3: 0.708}
SCORES = {
    "kd": {0: 0.741, 1: 0.743, 2: 0.739, 3: 0.744},
    "ce": CE,
    "rkd": {0: 0.712, 1: 0.709, 2: 0.717, 3: 0.706},
    "bad": {0: 0.601, 1: 0.622, 2: 0.587, 3: 0.611},
}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def difference_of(differences, *, metric="top1", others=()):
    """The verdict on one method that differs from the reference by these amounts."""
    reference = dict.fromkeys(range(len(differences)), 0.5)
    scores = {"ce": reference, "kd": {s: 0.5 + d for s, d in enumerate(differences)}}
    for index, other in enumerate(others):
        scores[f"other{index}"] = {s: 0.5 + d for s, d in enumerate(other)}
    found = compare_over_seeds(scores, reference="ce", metric=METRICS[metric])
    return found[1].difference


# Every method over its seeds.


def test_every_method_has_mean_sd_and_each_seed_in_the_order_given():
    found = compare_over_seeds(SCORES, reference="ce")
    assert [method.name for method in found] == list(SCORES)
    for method in found:
        values = list(SCORES[method.name].values())
        assert method.by_seed == SCORES[method.name]
        assert method.spread.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert method.spread.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert [method.name for method in found if method.difference is None] == ["ce"]


def test_intervals_and_p_values_are_scipys_paired_test():
    for method in compare_over_seeds(SCORES, reference="ce"):
        if method.difference is None:
            continue
        oracle = scipy.stats.ttest_rel(list(SCORES[method.name].values()), list(CE.values()))
        low, high = oracle.confidence_interval(0.95)
        assert method.difference.interval == pytest.approx((low, high), rel=1e-9)
        assert method.difference.p_value == pytest.approx(oracle.pvalue, rel=1e-9)


def test_p_values_are_corrected_for_all_methods_and_not_for_the_reference():
    differences = [m.difference for m in compare_over_seeds(SCORES, reference="ce")]
    differences = [difference for difference in differences if difference]
    _, expected, *_ = multipletests([d.p_value for d in differences], method="holm")
    assert [d.holm_p_value for d in differences] == pytest.approx(expected.tolist(), rel=1e-12)
    assert differences[0].holm_p_value > differences[0].p_value


def test_seeds_are_paired_by_name_and_not_by_position():
    one = {"ce": {0: 0.5, 1: 0.7, 2: 0.6}, "kd": {2: 0.62, 0: 0.51, 1: 0.73, 9: 0.1}}
    found = compare_over_seeds(one, reference="ce")[1]
    assert list(found.difference.by_seed) == [0, 1, 2]
    assert list(found.difference.by_seed.values()) == pytest.approx([0.01, 0.03, 0.02])
    assert list(found.by_seed) == [0, 1, 2, 9]


def test_luck_that_both_runs_of_a_seed_share_does_not_widen_the_interval():
    luck = {0: 0.0, 1: 0.2, 2: -0.2}
    gains = {0: 0.010, 1: 0.011, 2: 0.009}
    plain = {"ce": dict.fromkeys(luck, 0.5), "kd": {s: 0.5 + g for s, g in gains.items()}}
    lucky = {name: {s: v + luck[s] for s, v in by.items()} for name, by in plain.items()}
    ours = compare_over_seeds(lucky, reference="ce")[1].difference
    expected = compare_over_seeds(plain, reference="ce")[1].difference
    assert ours.interval == pytest.approx(expected.interval, rel=1e-9)
    assert ours.verdict == "better"


def test_effect_sizes_are_mean_by_sd_and_hedges_correction_of_it():
    differences = [0.02, 0.01, 0.04, 0.015]
    found = difference_of(differences)
    expected = np.mean(differences) / np.std(differences, ddof=1)
    assert found.cohens_dz == pytest.approx(expected, rel=1e-9)
    assert found.hedges_gz == pytest.approx(expected * hedges_correction(4), rel=1e-9)
    assert difference_of([0.02, 0.01]).hedges_gz is None


# The verdict.


def test_the_three_verdicts():
    found = {m.name: m.difference for m in compare_over_seeds(SCORES, reference="ce")}
    assert (found["kd"].verdict, found["bad"].verdict) == ("better", "worse")
    assert found["rkd"].verdict == "cannot tell"


def test_where_lower_is_better_the_verdict_turns_round():
    gains = [0.02, 0.03, 0.025]
    assert (difference_of(gains).verdict, difference_of(gains, metric="nll").verdict) == (
        "better",
        "worse",
    )
    assert difference_of([-g for g in gains], metric="nll").verdict == "better"


def test_swapping_method_and_reference_swaps_the_verdict():
    pair = {name: SCORES[name] for name in ("kd", "ce")}
    ours = compare_over_seeds(pair, reference="ce")[0].difference
    theirs = compare_over_seeds(pair, reference="kd")[1].difference
    assert (ours.verdict, theirs.verdict) == ("better", "worse")
    assert theirs.interval == pytest.approx([-ours.interval.high, -ours.interval.low], rel=1e-9)
    assert theirs.p_value == pytest.approx(ours.p_value, rel=1e-9)


def test_more_methods_compared_need_stronger_evidence():
    """The same runs: alone a difference, one of five no longer."""
    gains, noise = [0.014, 0.018, 0.026], [0.01, -0.02, 0.005]
    assert difference_of(gains).verdict == "better"
    crowd = difference_of(gains, others=[noise] * 4)
    assert crowd.verdict == "cannot tell"
    assert crowd.interval.low > 0  # the interval is the method's own
    assert crowd.seeds_needed > 3
    assert "but Holm-corrected p = " in crowd.sentence


def test_whoever_cannot_tell_needs_more_seeds_than_there_were(random):
    """In 200 comparisons of three methods at five seeds, of every size of effect."""
    verdicts = set()
    for size in np.linspace(0, 0.03, 200):
        scores = {
            name: dict(enumerate(0.5 + scale * size + 0.01 * random.standard_normal(5)))
            for name, scale in (("ce", 0), ("a", 1), ("b", 0.5), ("c", 0))
        }
        for method in compare_over_seeds(scores, reference="ce")[1:]:
            verdicts.add(method.difference.verdict)
            if method.difference.verdict == "cannot tell":
                assert method.difference.seeds_needed > 5
    assert {"better", "cannot tell"} <= verdicts


# The sentence.


def test_a_decided_comparison_reads_as_one_sentence():
    pair = {"ce": {0: 0.80, 1: 0.81, 2: 0.79}, "kd": {0: 0.89, 1: 0.92, 2: 0.875}}
    assert compare_over_seeds(pair, reference="ce")[1].difference.sentence == (
        "kd is better than ce by 9.5 points (95 % interval 6.2 to 12.8, n = 3 seeds, p = 0.0064)."
    )
    assert compare_over_seeds(pair, reference="kd")[0].difference.sentence == (
        "ce is worse than kd by 9.5 points (95 % interval 6.2 to 12.8, n = 3 seeds, p = 0.0064)."
    )


def test_an_undecided_comparison_says_how_many_seeds_would_tell():
    found = difference_of([0.004 - 0.0064, 0.004, 0.004 + 0.0064])
    assert found.sentence == (
        "cannot tell kd from ce with 3 seeds: +0.4 points (95 % interval -1.2 to 2.0); "
        f"about {found.seeds_needed} seeds would tell."
    )
    assert found.seeds_needed == 23


def test_a_comparison_that_no_one_could_afford_is_said_to_be_one():
    sentence = difference_of([0.01, -0.01, 0.0001]).sentence
    assert "more than 1,000 seeds would be needed to tell" in sentence


def test_a_zero_mean_needs_no_number_of_seeds():
    found = compare_over_seeds({"ce": {0: 0.25, 1: 0.5}, "kd": {0: 0.5, 1: 0.25}}, reference="ce")[
        1
    ].difference
    assert (found.mean, found.p_value, found.seeds_needed) == (0, 1, None)
    assert found.sentence.endswith("interval -317.7 to 317.7).")


def test_another_metric_is_named_and_has_its_own_unit():
    found = difference_of([-0.020, -0.021, -0.025], metric="nll")
    assert found.sentence.startswith("kd is better than ce in nll by 0.0220 nats (95 %")
    brier = difference_of([-0.020, -0.021, -0.025], metric="brier")
    assert brier.sentence.startswith("kd is better than ce in brier by 0.0220 (95 %")


def test_a_small_interval_is_not_rounded_to_nothing():
    found = difference_of([0.00012, 0.00013, 0.00011])
    low, high = re.search(r"interval (\S+) to ([\d.]+)", found.sentence).groups()
    assert 0 < float(low) < float(high)


@pytest.mark.parametrize(("level", "printed"), [(0.95, "95 %"), (0.9, "90 %"), (0.995, "99.5 %")])
def test_the_level_is_printed_and_decides(level, printed):
    scores = {"ce": dict.fromkeys(range(3), 0.5), "kd": {0: 0.51, 1: 0.52, 2: 0.527}}
    found = compare_over_seeds(scores, reference="ce", level=level)[1].difference
    assert f"{printed} interval" in found.sentence
    assert (found.verdict == "better") is (found.p_value < 1 - level)


# Where there is no spread.


def test_one_seed_has_no_interval_and_says_so():
    found = difference_of([0.004])
    assert found.mean == pytest.approx(0.004)
    assert (found.sd, found.interval, found.p_value, found.cohens_dz) == (None,) * 4
    assert (found.seeds_needed, found.verdict) == (None, "cannot tell")
    assert found.sentence == (
        "cannot tell kd from ce with one seed: +0.4 points, and one seed has no interval; "
        "run at least three."
    )


@pytest.mark.parametrize("gain", [0.1, 0.0])
def test_the_same_difference_in_every_seed_is_no_proof(gain):
    """0.8 - 0.7 and 0.6 - 0.5 differ by a rounding, which is not the spread of seeds."""
    reference = {0: 0.7, 1: 0.5, 2: 0.3}
    ours = {seed: round(score + gain, 1) for seed, score in reference.items()}
    found = compare_over_seeds({"ce": reference, "kd": ours}, reference="ce")[1].difference
    assert (found.interval, found.p_value, found.verdict) == (None, None, "cannot tell")
    assert f"{100 * gain:+.1f} points in every one" in found.sentence
    assert found.sd == pytest.approx(0, abs=1e-15)


def test_a_method_without_a_test_does_not_weigh_on_the_others():
    gains = [0.010, 0.018, 0.028]
    found = difference_of(gains, others=[[0.01] * 3, [0.02]])
    assert found.holm_p_value == found.p_value == difference_of(gains).p_value


def test_methods_without_a_common_seed_cannot_be_told_apart():
    found = compare_over_seeds({"ce": {0: 0.5}, "kd": {1: 0.9}}, reference="ce")[1].difference
    assert (found.by_seed, found.mean, found.verdict) == ({}, None, "cannot tell")
    assert found.sentence == "cannot tell kd from ce: they have no seed in common."


# What is refused.


def test_a_reference_that_is_not_there_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'ce'"):
        compare_over_seeds(SCORES, reference="cee")


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(NonFiniteError, match=r"'kd' must be finite; those of seeds \[3\] are not"):
        compare_over_seeds({"ce": {0: 0.5}, "kd": {0: 0.5, 3: math.nan}}, reference="ce")
    with pytest.raises(ValueError, match="'kd' has no score"):
        compare_over_seeds({"ce": {0: 0.5}, "kd": {}}, reference="ce")
    with pytest.raises(ValueError, match="neither direction of 'temperature' is better"):
        compare_over_seeds(SCORES, reference="ce", metric=METRICS["temperature"])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_probability(level, random):
    with pytest.raises(ValueError, match="between 0 and 1"):
        compare_over_seeds(SCORES, reference="ce", level=level)
    with pytest.raises(ValueError, match="between 0 and 1"):
        image_interval([True], generator=random, level=level)


# The interval and the test by themselves.


@pytest.mark.parametrize("num", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_scipys(random, num, level):
    values = random.standard_normal(num)
    expected = scipy.stats.t.interval(level, num - 1, values.mean(), scipy.stats.sem(values))
    assert paired_t_interval(values, level=level) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num", [3, 5, 10])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(random, num):
    """2,000 experiments whose true difference is 0.7 points; seeds share half their luck."""
    luck = random.normal(scale=0.01, size=(2000, num))
    ours = 0.757 + luck + random.normal(scale=0.01, size=(2000, num))
    theirs = 0.750 + luck + random.normal(scale=0.01, size=(2000, num))
    low, high = paired_t_interval(ours - theirs)
    assert low.shape == (2000,)
    assert 0.93 < ((low < 0.007) & (high > 0.007)).mean() < 0.97


@pytest.mark.parametrize("num", [3, 5, 10])
def test_where_nothing_differs_one_test_in_twenty_errs(random, num):
    p_values = [paired_t_p_value(row) for row in random.standard_normal((2000, num))]
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.07


def test_a_test_says_no_where_the_interval_holds_zero(random):
    for row in 0.8 + random.standard_normal((200, 4)):
        low, high = paired_t_interval(row)
        assert (paired_t_p_value(row) < 0.05) is not (low < 0 < high)


def test_the_interval_grows_with_its_level_and_shrinks_with_seeds(random):
    values = random.standard_normal(6)
    widths = [np.ptp(paired_t_interval(values, level=level)) for level in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths)
    assert np.ptp(paired_t_interval(np.tile(values, 4))) < np.ptp(paired_t_interval(values)) / 2


def test_too_few_differences_are_refused():
    with pytest.raises(ShapeError, match="at least two seeds"):
        paired_t_interval([0.1])
    with pytest.raises(ShapeError, match="must be"):
        paired_t_p_value([[0.1, 0.2], [0.1, 0.3]])
    with pytest.raises(DataError, match=r"all 2 differences are 0\.5"):
        paired_t_p_value([0.5, 0.5])


# Many tests.


def test_holm_is_statsmodels(random):
    for num in (1, 2, 7, 20):
        p_values = (random.random(num) ** 3).tolist()
        p_values += p_values[:1]  # a tie
        _, expected, *_ = multipletests(p_values, method="holm")
        assert holm_adjusted(p_values) == pytest.approx(expected.tolist(), rel=1e-12)


def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(random):
    p_values = random.random(12) ** 4
    adjusted = np.array(holm_adjusted(p_values.tolist()))
    assert (p_values <= adjusted).all()
    assert (adjusted <= np.minimum(1, 12 * p_values)).all()
    assert (np.diff(adjusted[p_values.argsort()]) >= 0).all()


def test_holm_of_nothing_and_of_one():
    assert (holm_adjusted([]), holm_adjusted([0.2])) == ((), (0.2,))


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_holm_wants_probabilities(wrong):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm_adjusted([0.5, wrong])


# Effect and number of seeds.


@pytest.mark.parametrize("num", [3, 4, 10])
def test_hedges_correction_takes_out_the_bias(random, num):
    """The mean of 200,000 corrected effects is the true one; uncorrected it is far off."""
    values = 0.8 + random.standard_normal((200_000, num))
    effects = values.mean(axis=1) / values.std(axis=1, ddof=1)
    assert hedges_correction(num) * effects.mean() == pytest.approx(0.8, rel=0.03)
    # The approximation of the textbooks; it is off by 1 % for two degrees of freedom.
    assert hedges_correction(num) == pytest.approx(1 - 3 / (4 * (num - 1) - 1), rel=0.015)


def test_hedges_correction_needs_three_seeds():
    with pytest.raises(ValueError, match="at least 3 seeds, got 2"):
        hedges_correction(2)


@pytest.mark.parametrize("effect", [0.03, 0.2, -0.2, 0.5, 0.92, 2.0])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.9)])
def test_the_seeds_needed_are_statsmodels(effect, alpha, power):
    found = seeds_needed(effect, alpha=alpha, power=power)
    oracle = TTestPower()
    assert oracle.power(abs(effect), found, alpha) >= power
    assert oracle.power(abs(effect), found - 1, alpha) < power
    exact = oracle.solve_power(effect_size=abs(effect), alpha=alpha, power=power)
    assert found == math.ceil(exact)


def test_with_the_seeds_needed_four_in_five_experiments_tell(random):
    num = seeds_needed(0.7)
    low, high = paired_t_interval(0.7 + random.standard_normal((4000, num)))
    assert ((low > 0) | (high < 0)).mean() == pytest.approx(0.8, abs=0.03)


def test_fewer_seeds_show_larger_effects():
    effects = [1e-9, 1e-4, 2.8e-3, 2.81e-3, 0.01, 0.3, 1, 3, 20, 1e6]
    found = [seeds_needed(effect) for effect in effects]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 2


def test_a_huge_number_of_seeds_is_that_of_the_normal_test():
    z = scipy.stats.norm.isf(0.025) + scipy.stats.norm.isf(0.2)
    assert seeds_needed(1e-4) == math.ceil((z / 1e-4) ** 2)


@pytest.mark.parametrize("effect", [0.0, 1e-300])
def test_no_number_of_seeds_shows_nothing(effect):
    assert seeds_needed(effect) is None


@pytest.mark.parametrize(
    ("effect", "alpha", "power"), [(math.nan, 0.05, 0.8), (1, 0, 0.8), (1, 0.9, 0.8), (1, 0.1, 1)]
)
def test_power_is_above_alpha_and_both_are_probabilities(effect, alpha, power):
    with pytest.raises(ValueError, match="0 < alpha < power"):
        seeds_needed(effect, alpha=alpha, power=power)


# Over the test images of one run.


def test_the_interval_over_images_is_the_binomials(random):
    """Images drawn with replacement hold a binomial number of hits: its quantiles are known."""
    correct = np.arange(500) % 5 > 0
    found = image_interval(correct, generator=random, num_resamples=200_000)
    expected = scipy.stats.binom.ppf([0.025, 0.975], 500, 0.8) / 500
    assert found.interval == pytest.approx(expected, abs=1 / 500 + 1e-9)  # one image
    assert (found.mean, found.num_images, found.num_resamples) == (0.8, 500, 200_000)


def test_the_paired_interval_is_scipys_bootstrap(random):
    ours = random.random(300) < 0.8
    theirs = np.where(random.random(300) < 0.8, ours, ~ours)
    found = paired_image_interval(ours, theirs, generator=random, num_resamples=50_000)
    oracle = scipy.stats.bootstrap(
        (ours.astype(float), theirs.astype(float)),
        lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    )
    expected = oracle.confidence_interval
    # Both are random: at 5,000 resamples an end moves by about a tenth of the interval's half.
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)


def test_images_that_are_hard_for_both_do_not_widen_the_paired_interval(random):
    ours = random.random(1000) < 0.7
    theirs = ours.copy()
    theirs[:20] = ~theirs[:20]
    paired = paired_image_interval(ours, theirs, generator=random)
    alone = image_interval(ours, generator=random)
    assert np.ptp(paired.interval) < np.ptp(alone.interval) / 3


def test_the_same_answers_have_no_difference(random):
    correct = random.random(50) < 0.5
    found = paired_image_interval(correct, correct, generator=random)
    assert (found.mean, found.interval) == (0, (0, 0))


def test_swapping_the_runs_turns_the_interval_round(random):
    ours, theirs = random.random((2, 200)) < np.array([[0.8], [0.6]])
    found = paired_image_interval(ours, theirs, generator=np.random.default_rng(0))
    other = paired_image_interval(theirs, ours, generator=np.random.default_rng(0))
    assert other.mean == -found.mean
    assert other.interval == pytest.approx((-found.interval.high, -found.interval.low), abs=0.01)


def test_the_interval_over_images_holds_the_truth_as_often_as_it_says(random):
    """2,000 test splits of 300 images, on which runs with accuracies 0.8 and 0.7 agree in part."""
    hits = []
    for shared, first, second in random.random((2000, 3, 300)):
        easy = shared < 0.6  # both right
        ours, theirs = easy | (first < 0.5), easy | (second < 0.25)  # 0.8 and 0.7
        low, high = paired_image_interval(
            ours, theirs, generator=random, num_resamples=1000
        ).interval
        hits.append(low <= 0.1 <= high)
    assert 0.93 < np.mean(hits) < 0.97


def test_a_seeded_generator_repeats_the_interval():
    correct = np.arange(40) % 3 > 0
    found = [image_interval(correct, generator=np.random.default_rng(7)) for _ in range(2)]
    assert found[0] == found[1]


def test_more_images_narrow_and_a_higher_level_widens(random):
    correct = np.arange(100) % 4 > 0
    narrow = image_interval(np.tile(correct, 16), generator=random).interval
    plain = image_interval(correct, generator=random).interval
    wide = image_interval(correct, generator=random, level=0.999).interval
    assert np.ptp(narrow) == pytest.approx(np.ptp(plain) / 4, rel=0.1)
    assert np.ptp(wide) > np.ptp(plain)


def test_the_interval_over_images_says_what_it_does_not_say(random):
    found = image_interval(np.arange(2000) % 4 > 0, generator=random)
    low, high = found.interval
    assert found.sentence == (
        f"75.0 % (95 % interval {100 * low:.1f} to {100 * high:.1f}, over the 2,000 test images "
        "of one run; other seeds are not in it)."
    )


def test_correctness_is_one_truth_value_per_image(random):
    with pytest.raises(DataError, match=r"correct must be bool.*got float64"):
        image_interval([0.0, 1.0], generator=random)
    with pytest.raises(ShapeError, match=r"reference_correct must be \(images,\)"):
        paired_image_interval([True], [], generator=random)
    with pytest.raises(ShapeError, match="same test images; got 2 and 3"):
        paired_image_interval([True] * 2, [True] * 3, generator=random)
    with pytest.raises(ValueError, match="num_resamples must be at least 1"):
        image_interval([True], generator=random, num_resamples=0)
