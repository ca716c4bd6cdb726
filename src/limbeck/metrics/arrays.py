"""What every metric on arrays begins with: checked logits and labels, in float64 and int64.

Saved logits are judged by the same functions as logits just made, so nothing here or in the
metrics built on it imports torch. A torch tensor on the CPU that needs no gradient is taken as
it is. Log-probabilities are logits too: their softmax is the probabilities.

N images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.core.errors import DataError, NonFiniteError, ShapeError

__all__ = ["LabelledLogits", "as_label", "as_labelled", "as_logits", "as_logits_pair"]


class LabelledLogits(NamedTuple):
    """One split as a network answers it: raw scores ``(N, K)`` and labels ``(N,)``."""

    logits: ArrayLike
    label: ArrayLike


def as_logits(logits: ArrayLike, *, name: str = "logits") -> NDArray[np.float64]:
    """Raw class scores in float64: ``(N, K)``, at least one image and one class, all finite.

    Raises:
        ShapeError: if they are not ``(N, K)``, or empty.
        NonFiniteError: if any is NaN or infinite; the message counts them.
    """
    checked = np.asarray(logits).astype(np.float64)
    if checked.ndim != 2 or checked.size == 0:
        raise ShapeError(
            f"{name} must be (images, classes), at least one of each; got {checked.shape}"
        )
    wrong = ~np.isfinite(checked)
    if wrong.any():
        raise NonFiniteError(
            f"{name} must be finite; {wrong.sum()} of {wrong.size} values, in "
            f"{wrong.any(axis=1).sum()} of {len(wrong)} images, are NaN or infinite. "
            "The network that gave them has diverged, or its input was not finite"
        )
    return checked


def as_label(label: ArrayLike, *, num_images: int, num_classes: int) -> NDArray[np.int64]:
    """Labels in int64: ``(num_images,)``, each in ``[0, num_classes)``.

    Raises:
        ShapeError: if there are more or fewer labels than images.
        DataError: if they are not whole numbers, any is -1 (unlabelled), or is no class; the
            message counts them.
    """
    checked = np.asarray(label)
    if checked.shape != (num_images,):
        raise ShapeError(
            f"label must be (images,) = ({num_images},), one for each row of the logits; "
            f"got {checked.shape}"
        )
    if not np.issubdtype(checked.dtype, np.integer):
        raise DataError(f"labels must be whole numbers, class indices; got {checked.dtype}")
    unlabelled = int((checked == -1).sum())
    if unlabelled:
        raise DataError(
            f"every image must have a label; {unlabelled} of {num_images} have -1, which means "
            "unlabelled. Leave these images out of both logits and labels"
        )
    foreign = (checked < 0) | (checked >= num_classes)
    if foreign.any():
        raise DataError(
            f"labels must be classes of the logits, 0 to {num_classes - 1}; {foreign.sum()} of "
            f"{num_images} are not, the first {checked[foreign][0]}. Was the network made for "
            "another data set?"
        )
    return checked.astype(np.int64)


def as_labelled(
    logits: ArrayLike, label: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits ``(N, K)`` and their labels ``(N,)``, checked.

    Raises:
        ShapeError, NonFiniteError, DataError: as :func:`as_logits` and :func:`as_label`.
    """
    scores = as_logits(logits)
    return scores, as_label(label, num_images=scores.shape[0], num_classes=scores.shape[1])


def as_logits_pair(
    student_logits: ArrayLike, teacher_logits: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two networks' logits for the same images, both ``(N, K)``, checked.

    Raises:
        ShapeError, NonFiniteError: as :func:`as_logits`, or if the two differ in shape.
    """
    student = as_logits(student_logits, name="student_logits")
    teacher = as_logits(teacher_logits, name="teacher_logits")
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher logits must be of the same images and classes; got student "
            f"{student.shape}, teacher {teacher.shape}"
        )
    return student, teacher
