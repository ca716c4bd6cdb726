"""Whether a network is as often right as it says, before and after temperature scaling.

N images, K classes, M bins. The distillation temperature has no place here: confidences are those
of the deployed network, at temperature 1 or at the one fitted on validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import softmax

from limbeck.metrics.arrays import as_labelled
from limbeck.metrics.info import METRICS
from limbeck.metrics.scores import correct

__all__ = ["TemperatureFit", "expected_calibration_error", "fit_temperature"]


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
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    scores, classes = as_labelled(logits, label)
    confidence = softmax(scores, axis=1).max(axis=1)
    # Inner edges alone: rounding may take a confidence a hair above 1.
    edges = np.arange(1, num_bins) / num_bins
    bin_of_image = np.searchsorted(edges, confidence, side="left")
    # n_m |acc_m - conf_m| is the absolute sum of the differences in the bin.
    gaps = np.bincount(bin_of_image, weights=correct(scores, classes) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


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
