r"""What an embedding is worth to somebody with labels: a linear probe, and nearest neighbours.

Both see the vectors alone, as numpy arrays, and neither changes the network. The probe is logistic
regression on standardised vectors, by scikit-learn's defaults (L2 penalty, C = 1). The neighbours
are the k = 20 known vectors nearest by cosine, each with a vote of

.. math:: \exp(\cos(x, x_j) / \tau), \quad \tau = 0.07

N M images, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.core.errors import DataError, NonFiniteError, ShapeError

__all__ = ["EmbeddingScores", "LabelledFeatures", "judge_embedding"]

_NUM_NEIGHBORS = 20
_TEMPERATURE = 0.07
_MOST_ITERATIONS = 1000  # of the probe's L-BFGS


class LabelledFeatures(NamedTuple):
    """One split as a network holds it: vectors ``(N, D)`` and labels ``(N,)``."""

    features: ArrayLike
    label: ArrayLike


class EmbeddingScores(NamedTuple):
    """Accuracies in [0, 1], and whether the probe converged."""

    linear_top1: float
    knn_top1: float
    converged: bool


def judge_embedding(
    known: LabelledFeatures, judged: Mapping[str, LabelledFeatures]
) -> dict[str, EmbeddingScores]:
    """Accuracy of a linear probe and of nearest neighbours, both fitted on ``known``.

    Args:
        known: vectors ``(N, D)`` with labels of two classes at least.
        judged: by name, ``(M, D)`` each with one image at least.

    Returns:
        By the same names.

    Raises:
        ShapeError: if vectors are not ``(N, D)`` of one D, labels are not one each, or a split is
            empty.
        NonFiniteError: if a vector is not finite.
        DataError: if there are fewer than two known classes.

    Source:
        Wu, Xiong, Yu, Lin, CVPR 2018, https://arxiv.org/abs/1805.01978, section 3.4, for the
        neighbours' votes; k and tau as in Caron et al., "DINO", ICCV 2021,
        https://arxiv.org/abs/2104.14294.

    Example:
        >>> known = LabelledFeatures([[0.0, 1.0], [1.0, 0.0]], [0, 1])
        >>> judge_embedding(known, {"test": LabelledFeatures([[0.1, 2.0]], [0])})["test"].knn_top1
        1.0
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, label = _checked("known", known)
    num_classes = len(np.unique(label))
    if num_classes < 2:
        raise DataError(
            f"an embedding is judged by labels of two classes at least; the {len(label)} known "
            f"images have {num_classes}. Label images of further classes"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_ITERATIONS))
    neighbors = KNeighborsClassifier(
        n_neighbors=min(_NUM_NEIGHBORS, len(label)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / _TEMPERATURE),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells it
        probe.fit(features, label)
    neighbors.fit(features, label)
    converged = bool(probe[-1].n_iter_.max() < _MOST_ITERATIONS)
    found = {}
    for name, split in judged.items():
        vectors, truth = _checked(name, split)
        if vectors.shape[1] != features.shape[1]:
            raise ShapeError(
                f"all vectors must be as long as the known ones, {features.shape[1]}; those of "
                f"{name!r} have {vectors.shape[1]}. Take both from one layer of one network"
            )
        found[name] = EmbeddingScores(
            linear_top1=float(np.mean(probe.predict(vectors) == truth)),
            knn_top1=float(np.mean(neighbors.predict(vectors) == truth)),
            converged=converged,
        )
    return found


def _checked(name: str, split: LabelledFeatures) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    features, label = np.asarray(split.features), np.asarray(split.label)
    if features.ndim != 2 or features.size == 0 or label.shape != features.shape[:1]:
        raise ShapeError(
            f"the {name} split must be vectors (images, features), one image at least, and a "
            f"label each; got {features.shape} and {label.shape}"
        )
    if not np.isfinite(features).all():
        raise NonFiniteError(
            f"the {name} split's vectors must be finite; some are NaN or infinite. The network "
            "that gave them has diverged"
        )
    return features.astype(np.float64), label.astype(np.int64)
