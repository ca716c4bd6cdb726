"""Fidelity: do the students answer as the teacher does, and err as it errs?

Agreement of the answers, Kullback-Leibler divergence from the teacher at temperature 1, and the
share of the teacher's errors that a student repeats, each image by image. Two good networks agree
without having met; the independent student says how much of the agreement that is. The rate of
the same wrong class among the images that both have wrong, whose images differ from student to
student, is in a table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Subject

__all__ = ["FIDELITY"]


def _measure(case: Case) -> Measured:
    theirs = case.answers(case.teacher)
    choice, label = theirs.argmax(axis=1), case.labels.numpy()
    if len(np.unique(choice)) == 1:
        raise NotApplicableError(
            f"the teacher gives every image the answer {case.class_names[int(choice[0])]!r}: "
            "agreement with it says nothing; look at its training, or give another teacher"
        )
    log_teacher = log_softmax(theirs.astype(np.float64), axis=1)
    wrong = (choice != label) & (label >= 0)

    def agrees(student: Subject) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = case.answers(student).argmax(axis=1) == choice
        return same

    def divergence(student: Subject) -> NDArray[np.float64]:
        log_student = log_softmax(case.answers(student).astype(np.float64), axis=1)
        terms = np.exp(log_teacher) * (log_teacher - log_student)
        summed: NDArray[np.float64] = terms.sum(axis=1)
        return summed

    readings = [
        case.reading("agreement with the teacher", "images", agrees),
        case.reading(
            "divergence from the teacher", "images", divergence, unit="nats", nearer="lower"
        ),
    ]
    notes = []
    if wrong.any():
        readings.append(
            case.reading(
                "the teacher's errors repeated with the same wrong class",
                "errors of the teacher",
                lambda student: agrees(student)[wrong],
            )
        )
    else:
        notes.append("The teacher makes no error on these images.")
    return Measured(
        readings=tuple(readings),
        tables={"Among the images that teacher and student both have wrong": _both_wrong(case)},
        notes=tuple(notes),
    )


def _both_wrong(case: Case) -> tuple[tuple[str, ...], ...]:
    theirs, label = case.answers(case.teacher).argmax(axis=1), case.labels.numpy()
    rows: list[tuple[str, ...]] = [
        ("student", "seed", "both wrong", "the same wrong class", "rate")
    ]
    for kind, students in (("distilled", case.distilled), ("independent", case.independent)):
        for seed, student in students.items():
            ours = case.answers(student).argmax(axis=1)
            wrong = (ours != label) & (theirs != label) & (label >= 0)
            both, same = int(wrong.sum()), int((ours == theirs)[wrong].sum())
            rate = f"{same / both:.1%}" if both else ""
            rows.append((kind, str(seed), str(both), str(same), rate))
    return tuple(rows)


FIDELITY = Experiment(
    key="fidelity",
    title="Fidelity",
    question="Does the student answer as its teacher does, and repeat its errors?",
    source="Stanton et al., 'Does Knowledge Distillation Really Work?', NeurIPS 2021, "
    "https://arxiv.org/abs/2106.05945",
    measure=_measure,
    quick=True,
)
