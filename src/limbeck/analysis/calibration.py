r"""Calibration: is the student as sure as its teacher, and as often right as it is sure?

Image by image, how far the student's confidence is from the teacher's:

.. math:: \frac{1}{N} \sum_i | \max_k p^s_{ik} - \max_k p^t_{ik} |

and, network by network, what the confidence is worth: expected and largest calibration error over
15 bins, negative log-likelihood, Brier score, and confidence less accuracy, all at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Picture, Subject
from limbeck.analysis.scalars import IMAGES_HEADING, over_images
from limbeck.metrics.calibration import Reliability, expected_calibration_error, reliability
from limbeck.metrics.scores import brier_score, negative_log_likelihood
from limbeck.reports.pictures import Reliable, reliability_svg
from limbeck.reports.predictions import pooled

__all__ = ["CALIBRATION", "largest_gap", "overconfidence"]

Score = Callable[[NDArray[np.float32], NDArray[np.int64]], float]


def largest_gap(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Maximum calibration error: the largest gap of accuracy and confidence of a bin, of 15.

    Args:
        logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599, eq. 5.
    """
    bins = reliability(logits, label)
    full = bins.num_images > 0
    gaps = np.abs(bins.num_correct - bins.summed_confidence)[full] / bins.num_images[full]
    return float(gaps.max())


def overconfidence(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Mean confidence less accuracy; below 0 for a network that knows more than it says."""
    bins = reliability(logits, label, num_bins=1)
    return float((bins.summed_confidence - bins.num_correct)[0] / bins.num_images[0])


_SCORES: tuple[tuple[str, Score, str], ...] = (
    ("expected calibration error", expected_calibration_error, ".1%"),
    ("largest calibration error of a bin", largest_gap, ".1%"),
    ("confidence less accuracy", overconfidence, ".1%"),
    ("negative log-likelihood, nats", negative_log_likelihood, ".3f"),
    ("Brier score", brier_score, ".3f"),
)


def _measure(case: Case) -> Measured:
    label = case.labels.numpy()
    known = np.flatnonzero(label >= 0)
    if not len(known):
        raise NotApplicableError("calibration needs labels, and no test image has one")
    theirs = softmax(case.answers(case.teacher), axis=1).max(axis=1)

    def distance(student: Subject) -> NDArray[np.float64]:
        ours = softmax(case.answers(student), axis=1).max(axis=1)
        found: NDArray[np.float64] = np.abs(ours - theirs)
        return found

    rows: list[tuple[str, ...]] = [IMAGES_HEADING]
    for name, score, form in _SCORES:

        def value(subject: Subject, at: NDArray[np.int64], score: Score = score) -> float:
            return score(case.answers(subject)[at], label[at])

        rows.append(over_images(case, name, value, form=form))

    def bins(*subjects: Subject) -> Reliability:
        return pooled([reliability(case.answers(s)[known], label[known]) for s in subjects])

    drawn = [
        Reliable(label="teacher", kind="teacher", bins=bins(case.teacher)),
        Reliable(label="distilled", kind="output", bins=bins(*case.distilled.values())),
        Reliable(label="independent", kind="none", bins=bins(*case.independent.values())),
    ]
    errors = ", ".join(
        f"{name} {cell}" for name, cell in zip(IMAGES_HEADING[1:4], rows[1][1:4], strict=True)
    )
    return Measured(
        readings=(
            case.reading("confidence away from the teacher's", "images", distance, nearer="lower"),
        ),
        pictures=(
            Picture(
                name="reliability",
                caption="Accuracy in 15 equal bins of confidence; below the dashed diagonal a "
                "network claims more than it knows. A point is as large as its images are many. "
                "Students of all seeds pooled.",
                alt=f"Accuracy over confidence. Expected calibration error: {errors}.",
                svg=reliability_svg(drawn, name="reliability"),
            ),
        ),
        tables={"What the confidence is worth": tuple(rows)},
        notes=(
            "Lower is better in every line but confidence less accuracy, which is best at 0. The "
            "calibration error is biased upwards for few images.",
        ),
        settings={"bins": 15, "temperature": 1, "images": len(known)},
    )


CALIBRATION = Experiment(
    key="calibration",
    title="Calibration",
    question="Is the student as sure as its teacher, and as often right as it is sure?",
    source="Guo et al., 'On Calibration of Modern Neural Networks', ICML 2017, "
    "https://arxiv.org/abs/1706.04599; of distillation: Stanton et al., NeurIPS 2021, "
    "https://arxiv.org/abs/2106.05945",
    measure=_measure,
    quick=True,
)
