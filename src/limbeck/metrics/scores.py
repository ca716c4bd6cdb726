"""How often a network is right, and how good its probabilities are, from its logits.

N images, K classes. Each function wants at least one image and a label for every one; errors are
those of :func:`~limbeck.metrics.arrays.as_labelled`. Units, ranges and sources stand in
:data:`~limbeck.metrics.info.METRICS`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from limbeck.core.errors import ShapeError
from limbeck.metrics.arrays import as_labelled

__all__ = [
    "FEW_SHOTS",
    "MANY_SHOTS",
    "brier_score",
    "class_accuracy",
    "correct",
    "is_long_tailed",
    "negative_log_likelihood",
    "shot_accuracy",
    "top_k_accuracy",
    "worst_class_accuracy",
]

# Training images of a class: above the one it is a many-shot class, below the other a few-shot one.
MANY_SHOTS, FEW_SHOTS = 100, 20
_LONG = 5  # times as frequent


def correct(logits: ArrayLike, label: ArrayLike, *, k: int = 1) -> NDArray[np.bool_]:
    """Which images have their label among the ``k`` highest scores.

    Of equal scores the lower class comes first, as everywhere in this library.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        k: in ``[1, K]``.

    Returns:
        ``(N,)``, true where the label is among them.

    Raises:
        ValueError: if ``k`` is not in ``[1, K]``.

    Example:
        >>> correct([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]], [2, 0], k=2).tolist()
        [True, True]
    """
    scores, classes = as_labelled(logits, label)
    num_classes = scores.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be between 1 and the {num_classes} classes, got {k}")
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    tied_before = (scores == own) & (np.arange(num_classes) < classes[:, None])
    hits: NDArray[np.bool_] = ((scores > own) | tied_before).sum(axis=1) < k
    return hits


def top_k_accuracy(logits: ArrayLike, label: ArrayLike, *, k: int) -> float:
    """Share of images with their label among the ``k`` highest scores.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        k: in ``[1, K]``.

    Returns:
        A fraction in [0, 1], higher is better; 1 where ``k`` is ``K``.

    Example:
        >>> top_k_accuracy([[2.0, 0.0], [0.0, 1.0]], [0, 0], k=1)
        0.5
    """
    return float(correct(logits, label, k=k).mean())


def negative_log_likelihood(logits: ArrayLike, label: ArrayLike) -> float:
    r"""Mean of minus the log of the label's probability.

    .. math:: -\frac{1}{N} \sum_n \log \mathrm{softmax}(z_n)_{y_n}

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        Nats, ``>= 0``, lower is better; log K where all scores are equal.
    """
    scores, classes = as_labelled(logits, label)
    own = np.take_along_axis(log_softmax(scores, axis=1), classes[:, None], axis=1)
    return float(-own.mean())


def brier_score(logits: ArrayLike, label: ArrayLike) -> float:
    r"""Squared distance of the probabilities from the label's: sum over classes, mean over images.

    .. math:: \frac{1}{N} \sum_n \sum_k (p_{nk} - [k = y_n])^2, \quad p = \mathrm{softmax}(z)

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        A number in [0, 2], lower is better.

    Source:
        Brier 1950, Monthly Weather Review 78(1), with the sum over all classes: for two classes
        it is twice what others call the Brier score.
    """
    scores, classes = as_labelled(logits, label)
    target = np.arange(scores.shape[1]) == classes[:, None]
    return float(np.square(softmax(scores, axis=1) - target).sum(axis=1).mean())


def class_accuracy(logits: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """Top-1 accuracy among the images of each class.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        ``(K,)``, fractions in [0, 1]; NaN for a class without images.
    """
    scores, classes = as_labelled(logits, label)
    num_classes = scores.shape[1]
    images = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes, weights=correct(scores, classes), minlength=num_classes)
    accuracy = np.full(num_classes, np.nan)
    np.divide(hits, images, out=accuracy, where=images > 0)
    return accuracy


def worst_class_accuracy(logits: ArrayLike, label: ArrayLike) -> float:
    """Top-1 accuracy of the class that fares worst, of those that have images.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        A fraction in [0, 1], higher is better; never above top-1.
    """
    return float(np.nanmin(class_accuracy(logits, label)))


def is_long_tailed(train_counts: ArrayLike) -> bool:
    """Whether the most frequent class has five times the images of the rarest, or more.

    Args:
        train_counts: ``(K,)``, labelled training images of each class.

    Example:
        >>> is_long_tailed([500, 100]), is_long_tailed([500, 101])
        (True, False)
    """
    counts = np.asarray(train_counts)
    return bool(counts.max() >= max(1, _LONG * counts.min()))


def shot_accuracy(logits: ArrayLike, label: ArrayLike, train_counts: ArrayLike) -> dict[str, float]:
    """Mean top-1 accuracy of the classes with many, medium and few training images.

    Many are more than 100, few are fewer than 20.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        train_counts: ``(K,)``, labelled training images of each class.

    Returns:
        ``many_shot``, ``medium_shot`` and ``few_shot``, fractions in [0, 1]: means over the
        classes of a group, each counting alike, as far as they have images. NaN for a group
        without any.

    Raises:
        ShapeError: if there is not one count for each class.

    Source:
        Liu, Miao, Zhan, Wang, Gong, Yu, "Large-Scale Long-Tailed Recognition in an Open World",
        CVPR 2019, https://arxiv.org/abs/1904.05160, section 4. The authors' code also takes
        exactly 100 for many and exactly 20 for few; this is the paper's rule.

    Example:
        >>> logits = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> shot_accuracy(logits, [0, 1, 1], [500, 5])
        {'many_shot': 1.0, 'medium_shot': nan, 'few_shot': 0.5}
    """
    accuracy = class_accuracy(logits, label)
    counts = np.asarray(train_counts)
    if counts.shape != accuracy.shape:
        raise ShapeError(
            f"train_counts must be one number for each of {len(accuracy)} classes; got shape "
            f"{counts.shape}"
        )
    many, few = counts > MANY_SHOTS, counts < FEW_SHOTS
    groups = {"many_shot": many, "medium_shot": ~many & ~few, "few_shot": few}
    known = ~np.isnan(accuracy)
    return {
        name: float(accuracy[group & known].mean()) if (group & known).any() else math.nan
        for name, group in groups.items()
    }
