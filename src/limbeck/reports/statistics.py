"""Whether a difference between methods is more than the luck of their seeds.

Two questions, kept apart. *Would another training turn out the same?* is asked over seeds, by
:func:`compare_over_seeds`: the one that a claim about a method needs. *Would other test images
say the same of these very networks?* is asked over the images of one run, by
:func:`image_interval` and :func:`paired_image_interval`; it says nothing about the method.

Source: Colas, Sigaud, Oudeyer, "How Many Random Seeds?", 2018, https://arxiv.org/abs/1806.08295
    (tests over seeds and their power); Holm, "A Simple Sequentially Rejective Multiple Test
    Procedure", Scandinavian Journal of Statistics 6(2), 1979; Hedges, "Distribution Theory for
    Glass's Estimator of Effect Size", Journal of Educational Statistics 6(2), 1981; Efron,
    Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

n seeds, N images, M methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ncfdtr, ndtri, stdtr, stdtrit

from limbeck.core.errors import DataError, NonFiniteError, ShapeError, UnknownNameError
from limbeck.metrics.info import METRICS, MetricInfo
from limbeck.reports.spread import Spread, spread

__all__ = [
    "ImageInterval",
    "Interval",
    "MethodStatistics",
    "PairedDifference",
    "compare_over_seeds",
    "hedges_correction",
    "holm_adjusted",
    "image_interval",
    "paired_image_interval",
    "paired_t_interval",
    "paired_t_p_value",
    "seeds_needed",
]

# Differences of scores that are equal on paper differ by a few roundings of the scores.
_ROUNDINGS = 8 * float(np.finfo(np.float64).eps)
_MANY_SEEDS = 1000  # more than anybody trains; a sentence does not count beyond
_POWER = 0.8  # the customary chance of seeing what is there


class Interval(NamedTuple):
    """Two ends, the lower first."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A method less the reference, seed by seed, and what may be concluded.

    Whatever cannot be computed is None: all but ``by_seed`` without a shared seed; whatever needs
    a spread for one seed, or where every seed differs by the same amount.

    Attributes:
        by_seed: method minus reference, for the seeds that both have, ascending.
        mean: of these, and their standard deviation ``sd``, divisor n - 1.
        interval: of the mean, from Student's t with n - 1 degrees of freedom; of this method
            alone, not corrected for the others.
        p_value: two-sided, of the paired t-test.
        holm_p_value: the same, corrected for all methods that could be tested.
        cohens_dz: mean by sd of the differences.
        hedges_gz: that times :func:`hedges_correction`; None for two seeds, too.
        seeds_needed: about how many would tell; see :func:`seeds_needed`.
        verdict: "better" and "worse" only where ``holm_p_value`` allows it.
        sentence: the same in plain English.
    """

    by_seed: Mapping[int, float]
    mean: float | None
    sd: float | None
    interval: Interval | None
    p_value: float | None
    holm_p_value: float | None
    cohens_dz: float | None
    hedges_gz: float | None
    seeds_needed: int | None
    verdict: Literal["better", "worse", "cannot tell"]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class MethodStatistics:
    """One method over its seeds.

    Attributes:
        name: of the method.
        by_seed: its score, seeds ascending.
        spread: mean and standard deviation of these.
        difference: to the reference; None for the reference itself.
    """

    name: str
    by_seed: Mapping[int, float]
    spread: Spread
    difference: PairedDifference | None


def compare_over_seeds(
    scores: Mapping[str, Mapping[int, float]],
    *,
    reference: str,
    metric: MetricInfo = METRICS["top1"],
    level: float = 0.95,
) -> tuple[MethodStatistics, ...]:
    """Every method over its seeds, and its difference to the reference paired by seed.

    Args:
        scores: method to seed to score, in the unit of ``metric``; all methods that were tried,
            since the correction counts them.
        reference: the method that the others are measured against.
        metric: what the scores are, from :data:`~limbeck.metrics.info.METRICS`.
        level: of the intervals, in (0, 1); a verdict needs a Holm-corrected p below ``1 - level``.

    Returns:
        One value per method, in the order given.

    Raises:
        UnknownNameError: if ``reference`` is no method.
        ValueError: if a method has no seed, the level is not in (0, 1), or ``metric`` has no
            better direction.
        NonFiniteError: if a score is NaN or infinite.

    Example:
        >>> scores = {"ce": {0: 0.90, 1: 0.91, 2: 0.89}, "kd": {0: 0.94, 1: 0.96, 2: 0.93}}
        >>> compare_over_seeds(scores, reference="ce")[1].difference.sentence
        'kd is better than ce by 4.3 points (95 % interval 2.9 to 5.8, n = 3 seeds, p = 0.00587).'
    """
    if reference not in scores:
        raise UnknownNameError("method", reference, scores)
    if metric.higher_is_better is None:
        raise ValueError(
            f"neither direction of {metric.name!r} is better, so there is no verdict; "
            "compare another metric"
        )
    _check_level(level)
    for name, by_seed in scores.items():
        _check_scores(name, by_seed)
    methods = [name for name in scores if name != reference]
    pairs = {name: _Pairs.of(scores[name], scores[reference]) for name in methods}
    p_values = {
        name: paired_t_p_value(pair.differences) for name, pair in pairs.items() if pair.testable
    }
    holm = dict(zip(p_values, holm_adjusted(list(p_values.values())), strict=True))
    wording = _Wording(reference=reference, metric=metric, level=level, num_tests=len(p_values))
    return tuple(
        MethodStatistics(
            name=name,
            by_seed=dict(sorted(by_seed.items())),
            spread=spread([by_seed[seed] for seed in sorted(by_seed)]),
            difference=None
            if name == reference
            else _difference(name, pairs[name], holm.get(name), wording),
        )
        for name, by_seed in scores.items()
    )


def paired_t_interval(
    differences: ArrayLike, *, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Confidence interval of the mean of paired differences.

    .. math:: \bar d \pm t_{n-1, (1 + level)/2} \, s_d / \sqrt n

    Args:
        differences: ``(..., n)``, one per seed, ``n >= 2``; leading axes are further experiments.
        level: in (0, 1).

    Returns:
        The lower and the upper ends, ``(...)`` each.

    Raises:
        ShapeError: if there are fewer than two differences.
        ValueError: if the level is not in (0, 1).

    Source:
        Student, "The Probable Error of a Mean", Biometrika 6(1), 1908. It wants differences that
        are nearly normal.
    """
    _check_level(level)
    values = _at_least_two(differences)
    num = values.shape[-1]
    mean = values.mean(axis=-1)
    half = stdtrit(num - 1, (1 + level) / 2) * values.std(axis=-1, ddof=1) / math.sqrt(num)
    return mean - half, mean + half


def paired_t_p_value(differences: ArrayLike) -> float:
    """Two-sided p of the paired t-test that the mean difference is zero.

    Args:
        differences: ``(n,)``, one per seed, ``n >= 2``, not all equal.

    Returns:
        A probability in [0, 1].

    Raises:
        ShapeError: if they are fewer than two, or not a vector.
        DataError: if all are equal, which leaves nothing to test against.
    """
    values = _at_least_two(differences)
    if values.ndim != 1:
        raise ShapeError(f"differences must be (seeds,), got {values.shape}")
    sd = values.std(ddof=1)
    if sd == 0:
        raise DataError(
            f"all {len(values)} differences are {values[0]}, so there is no spread to test "
            "against; run more seeds"
        )
    t = values.mean() * math.sqrt(len(values)) / sd
    return float(2 * stdtr(len(values) - 1, -abs(t)))


def holm_adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """P values corrected for their number, so that one false "better" in all is as rare as alpha.

    The j-th smallest of M is multiplied by M - j + 1, raised to those before it, cut at 1.

    Args:
        p_values: M of them, each in [0, 1]; M may be 0.

    Returns:
        M corrected ones, in the order given, none below its own.

    Raises:
        ValueError: if one is not in [0, 1].

    Source:
        Holm 1979, the step-down form of Bonferroni.

    Example:
        >>> holm_adjusted([0.03, 0.01])
        (0.03, 0.02)
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must be in [0, 1], got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def hedges_correction(num_seeds: int) -> float:
    r"""Factor that takes the bias of few seeds out of Cohen's d_z.

    .. math:: J = \frac{\Gamma(\nu / 2)}{\sqrt{\nu / 2} \; \Gamma((\nu - 1) / 2)},
        \quad \nu = n - 1

    Args:
        num_seeds: n, ``>= 3``; for two the expectation of d_z does not exist.

    Returns:
        A factor in (0, 1), nearly ``1 - 3 / (4 nu - 1)``.

    Raises:
        ValueError: for fewer than three seeds.

    Source:
        Hedges 1981; the exact form, by the gamma function.
    """
    if num_seeds < 3:
        raise ValueError(f"Hedges' correction needs at least 3 seeds, got {num_seeds}")
    half = (num_seeds - 1) / 2
    return math.exp(gammaln(half) - gammaln(half - 0.5)) / math.sqrt(half)


def seeds_needed(effect: float, *, alpha: float = 0.05, power: float = _POWER) -> int | None:
    r"""Smallest number of seeds with which the paired t-test would likely see the effect.

    The power for n seeds, from the squared t, a non-central F:

    .. math:: P\left(F_{1, n-1}(n d^2) > t_{n-1, 1-\alpha/2}^2\right)

    An estimate from an effect that few seeds showed is rough: the effect itself may be luck.

    Args:
        effect: Cohen's d_z; its sign does not matter.
        alpha: of the two-sided test, in (0, 1).
        power: the chance wanted of a p below alpha, in (alpha, 1).

    Returns:
        ``>= 2``; None where there is no effect, which no number of seeds would show.

    Raises:
        ValueError: if the effect is not finite, or alpha and power are not ``0 < alpha < power
            < 1``.

    Example:
        >>> seeds_needed(0.5)
        34
    """
    if not math.isfinite(effect) or not 0 < alpha < power < 1:
        raise ValueError(
            "the effect must be finite and 0 < alpha < power < 1; "
            f"got effect {effect}, alpha {alpha}, power {power}"
        )
    if effect == 0:
        return None
    # Without the price of an unknown sd: a lower bound, and all there is to say when it is huge.
    normal = (float(ndtri(1 - alpha / 2)) + float(ndtri(power))) / effect
    normal *= normal
    if not math.isfinite(normal):
        return None
    if normal > 1e6:
        return math.ceil(normal)

    def reached(num: int) -> bool:
        critical = stdtrit(num - 1, 1 - alpha / 2) ** 2
        return bool(1 - ncfdtr(1, num - 1, num * effect**2, critical) >= power)

    too_few, enough = 1, max(2, math.ceil(normal))
    while not reached(enough):
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if reached(middle) else (middle, enough)
    return enough


@dataclass(frozen=True, kw_only=True)
class ImageInterval:
    """What other test images would make of the same networks: no statement about seeds.

    Attributes:
        mean: accuracy, or difference of accuracies, as a fraction.
        interval: of it, over resampled test images.
        num_images: of the test split.
        level: of the interval.
        num_resamples: of the images, with replacement.
    """

    mean: float
    interval: Interval
    num_images: int
    level: float
    num_resamples: int

    @property
    def sentence(self) -> str:
        """The same in plain English, with what it does not say."""
        low, high = self.interval
        decimals = _decimals(50 * (high - low))
        ends = f"{_number(100 * low, decimals)} to {_number(100 * high, decimals)}"
        return (
            f"{_number(100 * self.mean, decimals)} % ({100 * self.level:g} % interval {ends}, "
            f"over the {self.num_images:,} test images of one run; other seeds are not in it)."
        )


def image_interval(
    correct: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    num_resamples: int = 10_000,
) -> ImageInterval:
    """Accuracy of one run with its percentile bootstrap interval over test images.

    Args:
        correct: ``(N,)`` bool, from :func:`limbeck.metrics.scores.correct`.
        generator: the only randomness.
        level: in (0, 1).
        num_resamples: ``>= 1``.

    Returns:
        Fractions in [0, 1].

    Raises:
        ShapeError: if it is not a vector of at least one image.
        DataError: if the values are not bool.
        ValueError: if the level is not in (0, 1), or there is no resample.
    """
    values = _as_correct(correct, name="correct").astype(np.int64)
    return _bootstrap(values, generator=generator, level=level, num_resamples=num_resamples)


def paired_image_interval(
    correct: ArrayLike,
    reference_correct: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    num_resamples: int = 10_000,
) -> ImageInterval:
    """Difference in accuracy of two runs, with its interval over the test images they share.

    An image is drawn with both runs' answers, so what is hard for both does not widen it.

    Args:
        correct: ``(N,)`` bool, from :func:`limbeck.metrics.scores.correct`.
        reference_correct: ``(N,)`` bool, of the same images in the same order.
        generator: the only randomness.
        level: in (0, 1).
        num_resamples: ``>= 1``.

    Returns:
        ``correct`` less ``reference_correct``, fractions in [-1, 1].

    Raises:
        ShapeError: if they are not vectors of the same length, at least one image.
        DataError: if the values are not bool.
        ValueError: if the level is not in (0, 1), or there is no resample.
    """
    ours = _as_correct(correct, name="correct")
    theirs = _as_correct(reference_correct, name="reference_correct")
    if ours.shape != theirs.shape:
        raise ShapeError(
            "both runs must have answered the same test images; got "
            f"{len(ours)} and {len(theirs)} of them"
        )
    values = ours.astype(np.int64) - theirs.astype(np.int64)
    return _bootstrap(values, generator=generator, level=level, num_resamples=num_resamples)


class _Pairs(NamedTuple):
    """Differences by seed, and whether they have a spread."""

    by_seed: dict[int, float]
    testable: bool

    @property
    def differences(self) -> list[float]:
        return list(self.by_seed.values())

    @classmethod
    def of(cls, ours: Mapping[int, float], theirs: Mapping[int, float]) -> _Pairs:
        seeds = sorted(ours.keys() & theirs.keys())
        by_seed = {seed: ours[seed] - theirs[seed] for seed in seeds}
        size = max(
            (abs(value) for seed in seeds for value in (ours[seed], theirs[seed])), default=0
        )
        testable = len(seeds) > 1 and (
            max(by_seed.values()) - min(by_seed.values()) > _ROUNDINGS * size
        )
        return cls(by_seed, testable)


def _difference(
    name: str, pairs: _Pairs, holm: float | None, wording: _Wording
) -> PairedDifference:
    differences = pairs.differences
    mean = spread(differences).mean if differences else None
    if holm is None or mean is None:
        return PairedDifference(
            by_seed=pairs.by_seed,
            mean=mean,
            sd=None if len(differences) < 2 else spread(differences).sd,
            interval=None,
            p_value=None,
            holm_p_value=None,
            cohens_dz=None,
            hedges_gz=None,
            seeds_needed=None,
            verdict="cannot tell",
            sentence=wording.untested(name, mean, len(differences)),
        )
    sd = spread(differences).sd
    assert sd, "tested differences have a spread"
    effect = mean / sd
    low, high = (float(end) for end in paired_t_interval(differences, level=wording.level))
    # The strictest step of Holm's, so that whoever cannot tell is never told to need fewer.
    needed = seeds_needed(effect, alpha=(1 - wording.level) / wording.num_tests)
    verdict: Literal["better", "worse", "cannot tell"] = "cannot tell"
    if holm < 1 - wording.level:
        verdict = "better" if (mean > 0) == wording.metric.higher_is_better else "worse"
    return PairedDifference(
        by_seed=pairs.by_seed,
        mean=mean,
        sd=sd,
        interval=Interval(low, high),
        p_value=paired_t_p_value(differences),
        holm_p_value=holm,
        cohens_dz=effect,
        hedges_gz=effect * hedges_correction(len(differences)) if len(differences) > 2 else None,
        seeds_needed=needed,
        verdict=verdict,
        sentence=wording.undecided(name, mean, Interval(low, high), len(differences), holm, needed)
        if verdict == "cannot tell"
        else wording.decided(name, verdict, mean, Interval(low, high), len(differences), holm),
    )


@dataclass(frozen=True, kw_only=True)
class _Wording:
    """What all sentences of one comparison share."""

    reference: str
    metric: MetricInfo
    level: float
    num_tests: int

    def decided(
        self, name: str, verdict: str, mean: float, interval: Interval, num: int, holm: float
    ) -> str:
        # "by" has no sign: the interval turns round with the mean.
        low, high = interval if mean > 0 else Interval(-interval.high, -interval.low)
        by, ends = self._amount(abs(mean), Interval(low, high), signed=False)
        return (
            f"{name} is {verdict} than {self.reference}{self._what} by {by} "
            f"({100 * self.level:g} % interval {ends}, n = {num} seeds, {self._p(holm)})."
        )

    def undecided(
        self,
        name: str,
        mean: float,
        interval: Interval,
        num: int,
        holm: float,
        needed: int | None,
    ) -> str:
        by, ends = self._amount(mean, interval, signed=True)
        clears_zero = interval.low > 0 or interval.high < 0
        but = f", but {self._p(holm)}" if clears_zero else ""
        return (
            f"{self._cannot_tell(name, num)}: {by} ({100 * self.level:g} % interval {ends}{but})"
            f"{_would_tell(needed)}."
        )

    def untested(self, name: str, mean: float | None, num: int) -> str:
        """Where there is no spread between seeds."""
        if mean is None:
            return (
                f"cannot tell {name} from {self.reference}{self._what}: "
                "they have no seed in common."
            )
        by, _ = self._amount(mean, Interval(mean, mean), signed=True)
        if num == 1:
            return (
                f"{self._cannot_tell(name, 1)}: {by}, and one seed has no interval; "
                "run at least three."
            )
        return (
            f"{self._cannot_tell(name, num)}: {by} in every one, so the spread between seeds, on "
            "which a test rests, is unknown; run more."
        )

    @property
    def _what(self) -> str:
        return "" if self.metric.name == "top1" else f" in {self.metric.name}"

    def _cannot_tell(self, name: str, num: int) -> str:
        seeds = "one seed" if num == 1 else f"{num} seeds"
        return f"cannot tell {name} from {self.reference}{self._what} with {seeds}"

    def _amount(self, mean: float, interval: Interval, *, signed: bool) -> tuple[str, str]:
        scale, unit = {
            "fraction": (100.0, " points"),
            "nats": (1.0, " nats"),
            "1": (1.0, ""),
        }[self.metric.unit]
        half = scale * (interval.high - interval.low) / 2
        # One digit of a mean that has no interval.
        decimals = _decimals(half or abs(10 * scale * mean))
        low, high = (_number(scale * end, decimals) for end in interval)
        return f"{_number(scale * mean, decimals, signed=signed)}{unit}", f"{low} to {high}"

    def _p(self, holm: float) -> str:
        label = "p" if self.num_tests == 1 else "Holm-corrected p"
        return f"{label} < 0.001" if holm < 0.001 else f"{label} = {holm:.3g}"


def _would_tell(needed: int | None) -> str:
    if needed is None:
        return ""
    if needed > _MANY_SEEDS:
        return f"; more than {_MANY_SEEDS:,} seeds would be needed to tell"
    return f"; about {needed} seeds would tell"


def _decimals(uncertainty: float) -> int:
    """Enough for two digits of the uncertainty, at least one decimal, at most eight."""
    if uncertainty <= 0:
        return 1
    return min(8, max(1, 1 - math.floor(math.log10(uncertainty))))


def _number(value: float, decimals: int, *, signed: bool = False) -> str:
    rounded = round(value, decimals) + 0.0  # no negative zero
    return f"{rounded:+.{decimals}f}" if signed else f"{rounded:.{decimals}f}"


def _bootstrap(
    values: NDArray[np.int64], *, generator: np.random.Generator, level: float, num_resamples: int
) -> ImageInterval:
    """Percentile interval of the mean of a few distinct values."""
    _check_level(level)
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    distinct, counts = np.unique(values, return_counts=True)
    # Drawing N images with replacement is drawing how many have each of the distinct values.
    drawn = generator.multinomial(len(values), counts / len(values), size=num_resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn @ distinct / len(values), [tail, 1 - tail])
    return ImageInterval(
        mean=float(values.mean()),
        interval=Interval(float(low), float(high)),
        num_images=len(values),
        level=level,
        num_resamples=num_resamples,
    )


def _as_correct(correct: ArrayLike, *, name: str) -> NDArray[np.bool_]:
    values = np.asarray(correct)
    if values.ndim != 1 or values.size == 0:
        raise ShapeError(f"{name} must be (images,), at least one; got {values.shape}")
    if values.dtype != np.bool_:
        raise DataError(
            f"{name} must be bool, true where the run is right; got {values.dtype}. "
            "limbeck.metrics.scores.correct makes it of logits and labels"
        )
    return values


def _at_least_two(differences: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(differences).astype(np.float64)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ShapeError(
            "a spread needs the differences of at least two seeds on the last axis; "
            f"got {values.shape}"
        )
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}")


def _check_scores(name: str, by_seed: Mapping[int, float]) -> None:
    if not by_seed:
        raise ValueError(f"{name!r} has no score; give at least one seed, or leave it out")
    wrong = [seed for seed, score in by_seed.items() if not math.isfinite(score)]
    if wrong:
        raise NonFiniteError(
            f"the scores of {name!r} must be finite; those of seeds {wrong} are not. "
            "Did these runs diverge?"
        )
