"""How much a student answers as its teacher does, which is not how well it answers.

N images, K classes. Two good networks agree because both are right. So agreement proves little by
itself: compare it with the agreement with an independent teacher, of the same kind and trained the
same way, that did not teach this student, and look at the images that the teacher gets wrong.

Source: Stanton, Izmailov, Kirichenko, Alemi, Wilson, "Does Knowledge Distillation Really Work?",
    NeurIPS 2021, https://arxiv.org/abs/2106.05945.
Differs from the source: means are over images, where the authors' code averages the means of
    batches of unequal sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from limbeck.metrics.arrays import as_label, as_logits_pair

__all__ = [
    "agreement",
    "agreement_on_teacher_errors",
    "kl_from_teacher",
    "same_wrong_class_rate",
]


def agreement(student_logits: ArrayLike, teacher_logits: ArrayLike) -> float:
    """Share of images for which both name the same class; of equal scores the lower class.

    Args:
        student_logits: ``(N, K)``, raw.
        teacher_logits: ``(N, K)``, raw, of the same images.

    Returns:
        A fraction in [0, 1], higher is more faithful. Symmetric.

    Raises:
        ShapeError, NonFiniteError: as :func:`~limbeck.metrics.arrays.as_logits_pair`.

    Example:
        >>> agreement([[1.0, 0.0], [1.0, 0.0]], [[5.0, 0.0], [0.0, 5.0]])
        0.5
    """
    student, teacher = as_logits_pair(student_logits, teacher_logits)
    return float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean())


def kl_from_teacher(student_logits: ArrayLike, teacher_logits: ArrayLike) -> float:
    r"""KL(teacher || student) at temperature 1: sum over classes, mean over images.

    .. math:: \frac{1}{N} \sum_n \sum_k p^t_{nk} \log \frac{p^t_{nk}}{p^s_{nk}}

    Args:
        student_logits: ``(N, K)``, raw.
        teacher_logits: ``(N, K)``, raw, of the same images.

    Returns:
        Nats, ``>= 0``, lower is more faithful; 0 where the probabilities are the same.

    Raises:
        ShapeError, NonFiniteError: as :func:`~limbeck.metrics.arrays.as_logits_pair`.
    """
    student, teacher = as_logits_pair(student_logits, teacher_logits)
    log_student, log_teacher = log_softmax(student, axis=1), log_softmax(teacher, axis=1)
    # In log space, since a student's probability may be too small for float64.
    kl = (np.exp(log_teacher) * (log_teacher - log_student)).sum(axis=1)
    return max(0.0, float(kl.mean()))


def agreement_on_teacher_errors(
    student_logits: ArrayLike, teacher_logits: ArrayLike, label: ArrayLike
) -> float:
    """Share of the teacher's wrong answers that the student gives too.

    Args:
        student_logits: ``(N, K)``, raw.
        teacher_logits: ``(N, K)``, raw, of the same images.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        A fraction in [0, 1]; NaN where the teacher is never wrong. High is faithful and bad.

    Raises:
        ShapeError, NonFiniteError, DataError: as
            :func:`~limbeck.metrics.arrays.as_logits_pair` and
            :func:`~limbeck.metrics.arrays.as_label`.
    """
    student, teacher, classes = _answers(student_logits, teacher_logits, label)
    return _share(student == teacher, among=teacher != classes)


def same_wrong_class_rate(
    student_logits: ArrayLike, teacher_logits: ArrayLike, label: ArrayLike
) -> float:
    """Share with the same answer of the images that both get wrong.

    Args:
        student_logits: ``(N, K)``, raw.
        teacher_logits: ``(N, K)``, raw, of the same images.
        label: ``(N,)``, in ``[0, K)``.

    Returns:
        A fraction in [0, 1]; NaN where there is no such image. Wrong answers drawn evenly would
        give ``1 / (K - 1)``.

    Raises:
        ShapeError, NonFiniteError, DataError: as
            :func:`~limbeck.metrics.arrays.as_logits_pair` and
            :func:`~limbeck.metrics.arrays.as_label`.
    """
    student, teacher, classes = _answers(student_logits, teacher_logits, label)
    return _share(student == teacher, among=(teacher != classes) & (student != classes))


def _answers(
    student_logits: ArrayLike, teacher_logits: ArrayLike, label: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Student's, teacher's and true class of each image, ``(N,)`` each."""
    student, teacher = as_logits_pair(student_logits, teacher_logits)
    classes = as_label(label, num_images=student.shape[0], num_classes=student.shape[1])
    return student.argmax(axis=1), teacher.argmax(axis=1), classes


def _share(true: NDArray[np.bool_], *, among: NDArray[np.bool_]) -> float:
    return float(true[among].mean()) if among.any() else float("nan")
