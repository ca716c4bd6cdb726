"""All the numbers that judge one student on one split, in one call."""

from __future__ import annotations

from numpy.typing import ArrayLike

from limbeck.metrics.arrays import LabelledLogits, as_labelled
from limbeck.metrics.calibration import expected_calibration_error, fit_temperature
from limbeck.metrics.fidelity import (
    agreement,
    agreement_on_teacher_errors,
    kl_from_teacher,
    same_wrong_class_rate,
)
from limbeck.metrics.scores import (
    brier_score,
    negative_log_likelihood,
    shot_accuracy,
    top_k_accuracy,
    worst_class_accuracy,
)

__all__ = ["scorecard"]


def scorecard(
    student_logits: ArrayLike,
    label: ArrayLike,
    *,
    validation: LabelledLogits | None = None,
    teacher_logits: ArrayLike | None = None,
    independent_teacher_logits: ArrayLike | None = None,
    train_counts: ArrayLike | None = None,
) -> dict[str, float]:
    """Accuracy, calibration and fidelity of one student, as far as the inputs allow.

    Args:
        student_logits: ``(N, K)``, raw.
        label: ``(N,)``, in ``[0, K)``.
        validation: the student's answers on the validation split, on which the temperature of the
            ``_scaled`` numbers is fitted.
        teacher_logits: ``(N, K)``, raw, of the same images; for fidelity.
        independent_teacher_logits: ``(N, K)``, of a teacher of the same kind that did not teach
            this student; for the control of fidelity.
        train_counts: ``(K,)``, training images of each class; for accuracy by their number.

    Returns:
        Name to value, in the order of :data:`~limbeck.metrics.info.METRICS`, which says how to
        read each. Left out: ``top5`` for five classes or fewer, and what an input that is None
        would be needed for. NaN where a fraction is over no images.

    Raises:
        ShapeError, NonFiniteError, DataError: as the functions of :mod:`limbeck.metrics.arrays`.
        ValueError: for an independent teacher without a teacher.
    """
    student, classes = as_labelled(student_logits, label)
    card = {"top1": top_k_accuracy(student, classes, k=1)}
    if student.shape[1] > 5:
        card["top5"] = top_k_accuracy(student, classes, k=5)
    card["worst_class"] = worst_class_accuracy(student, classes)
    if train_counts is not None:
        card |= shot_accuracy(student, classes, train_counts)
    card["nll"] = negative_log_likelihood(student, classes)
    card["brier"] = brier_score(student, classes)
    card["ece"] = expected_calibration_error(student, classes)
    if validation is not None:
        temperature = fit_temperature(*validation).temperature
        scaled = student / temperature
        card["temperature"] = temperature
        card["nll_scaled"] = negative_log_likelihood(scaled, classes)
        card["ece_scaled"] = expected_calibration_error(scaled, classes)
    if teacher_logits is None:
        if independent_teacher_logits is not None:
            raise ValueError(
                "an independent teacher is the control of the student's own; give teacher_logits "
                "too"
            )
        return card
    return card | _fidelity(student, classes, teacher_logits, independent_teacher_logits)


def _fidelity(
    student: ArrayLike, label: ArrayLike, teacher: ArrayLike, independent: ArrayLike | None
) -> dict[str, float]:
    own = agreement(student, teacher)
    card = {
        "agreement": own,
        "kl_from_teacher": kl_from_teacher(student, teacher),
        "agreement_on_teacher_errors": agreement_on_teacher_errors(student, teacher, label),
        "same_wrong_class": same_wrong_class_rate(student, teacher, label),
    }
    if independent is not None:
        control = agreement(student, independent)
        card |= {"agreement_independent": control, "agreement_excess": own - control}
    return card
