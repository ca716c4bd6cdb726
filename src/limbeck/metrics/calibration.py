"""Whether a network is as often right as it says, before and after temperature scaling.

N images, K classes, M bins. The distillation temperature has no place here: confidences are those
of the deployed network, at temperature 1 or at the one fitted on validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from limbeck.metrics.arrays import as_labelled
from limbeck.metrics.info import METRICS
from limbeck.metrics.scores import correct

__all__ = [
    "Reliability",
    "TemperatureFit",
    "expected_calibration_error",
    "fit_temperature",
    "reliability",
]


def expected_calibration_error(logits: ArrayLike, label: ArrayLike, *, num_bins: int = 15) -> float:
    r"""Mean gap of accuracy and confidence over bins of confidence, weighted by their images.

    .. math:: \sum_m \frac{n_m}{N} \, | \mathrm{acc}_m - \mathrm{conf}_m |

    The bins have equal widths and are closed on the right, ``((m - 1)/M, m/M]``; confidence is
    the highest class probability.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        num_bins: M, ``>= 1``.

    Returns:
        A fraction in [0, 1], lower is better. It is biased upwards for few images: compare
        networks on the same images and bins alone.

    Raises:
        ShapeError, NonFiniteError, DataError: as
            :func:`~limbeck.metrics.arrays.as_labelled`.
        ValueError: if there is no bin.

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599, eq. 3.

    Example:
        >>> expected_calibration_error([[0.0, 0.0], [0.0, 0.0]], [0, 1])  # half sure, half right
        0.0
    """
    found = reliability(logits, label, num_bins=num_bins)
    # n_m |acc_m - conf_m| is the absolute difference of the sums in the bin.
    gaps = np.abs(found.num_correct - found.summed_confidence)
    return float(gaps.sum() / found.num_images.sum())


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence and accuracy in bins of equal width, closed on the right; sums, which add up.

    Attributes:
        num_images: ``(M,)``, in each bin.
        num_correct: ``(M,)``, of these.
        summed_confidence: ``(M,)``, their highest class probabilities.
    """

    num_images: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    summed_confidence: NDArray[np.float64]


def reliability(logits: ArrayLike, label: ArrayLike, *, num_bins: int = 15) -> Reliability:
    """What a reliability diagram shows: see :func:`expected_calibration_error` for the bins.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        num_bins: M, ``>= 1``.

    Returns:
        Images, hits and confidence of each bin; accuracy is the second by the first.

    Raises:
        ShapeError, NonFiniteError, DataError: as
            :func:`~limbeck.metrics.arrays.as_labelled`.
        ValueError: if there is no bin.

    Source:
        DeGroot, Fienberg, "The Comparison and Evaluation of Forecasters", The Statistician
        32(1), 1983; Guo et al. 2017, section 2.

    Example:
        >>> reliability([[0.0, 0.0], [0.0, 0.0]], [0, 1], num_bins=2).num_correct.tolist()
        [1, 0]
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    scores, classes = as_labelled(logits, label)
    confidence = softmax(scores, axis=1).max(axis=1)
    # Inner edges alone: rounding may take a confidence a hair above 1.
    edges = np.arange(1, num_bins) / num_bins
    bin_of_image = np.searchsorted(edges, confidence, side="left")
    hits = bin_of_image[correct(scores, classes)]
    summed = np.zeros(num_bins)
    np.add.at(summed, bin_of_image, confidence)
    return Reliability(
        num_images=np.bincount(bin_of_image, minlength=num_bins),
        num_correct=np.bincount(hits, minlength=num_bins),
        summed_confidence=summed,
    )


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """The divisor of the logits that makes validation labels most likely.

    Attributes:
        temperature: above 1 where the network was over-confident. Dividing by it leaves every
            decision as it was.
        at_limit: the likelihood still rose at the end of the range that is searched, as it does
            where all images are right, or the network is worse than chance. The value is then
            that end and says little.
    """

    temperature: float
    at_limit: bool


def fit_temperature(logits: ArrayLike, label: ArrayLike) -> TemperatureFit:
    r"""Fit temperature scaling: the T that minimises the NLL of ``softmax(z / T)``.

    .. math:: \frac{d}{d\beta} \mathrm{NLL} = \frac{1}{N} \sum_n \sum_k
        \mathrm{softmax}(\beta z_n)_k (z_{nk} - z_{n y_n}), \quad \beta = 1/T

    The NLL is convex in the inverse temperature, so the root of its slope is the minimum.

    Args:
        logits: ``(N, K)``, raw, of images that neither trained the network nor test it.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        T within the range of ``METRICS["temperature"]``. 1 where every image has equal scores
        for all classes, so that no T changes anything.

    Raises:
        ShapeError, NonFiniteError, DataError: as
            :func:`~limbeck.metrics.arrays.as_labelled`.

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    scores, classes = as_labelled(logits, label)
    above_label = scores - np.take_along_axis(scores, classes[:, None], axis=1)
    info = METRICS["temperature"]
    if not above_label.any():
        return TemperatureFit(temperature=1.0, at_limit=False)

    def slope(inverse: float) -> float:
        return float((softmax(inverse * above_label, axis=1) * above_label).sum(axis=1).mean())

    if slope(1 / info.high) >= 0:
        return TemperatureFit(temperature=info.high, at_limit=True)
    if slope(1 / info.low) <= 0:
        return TemperatureFit(temperature=info.low, at_limit=True)
    inverse = brentq(slope, 1 / info.high, 1 / info.low, xtol=1e-12, rtol=1e-12)
    return TemperatureFit(temperature=1 / float(inverse), at_limit=False)
