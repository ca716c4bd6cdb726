r"""Class by class: does the student confuse what its teacher confuses, and which classes gain?

For each true class y, a network's soft confusion is its mean probabilities

.. math:: P_{yk} = \frac{1}{N_y} \sum_{i: y_i = y} p_{ik}

The rank correlation of a student's row with the teacher's, true class left out, says whether it
mistakes the class for the same others. The class-mean-logit map is

.. math:: | \bar z^s_{yk} - \bar z^t_{yk} |, \quad y \ne k

of logits less their mean over classes, image by image, since a softmax does not see that mean.
Then, which classes gained over the independent student, and whether these are the teacher's
confusable ones, those with a large :math:`1 - P_{yy}`.

K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import rankdata

from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Picture, Subject
from limbeck.analysis.drawing import panels_png

__all__ = ["CLASSES", "class_means", "rank_correlation"]

_FEWEST = 4  # classes: the others of a class are three then, and can be ranked
_RESAMPLES = 2000
_SHOWN = 10  # classes at either end of the table


def class_means(
    values: NDArray[np.float64], label: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Mean rows of each class: ``(N, D)`` and ``(N,)`` to ``(K, D)``; NaN for an empty class."""
    sums = np.zeros((num_classes, values.shape[1]))
    np.add.at(sums, label, values)
    counts = np.bincount(label, minlength=num_classes).astype(np.float64)
    counts[counts == 0] = np.nan
    found: NDArray[np.float64] = sums / counts[:, None]
    return found


def rank_correlation(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Spearman's, along the last axis: ``(..., n)`` to ``(...)``; 0 where all ranks are tied."""
    ranks = [rankdata(values, axis=-1) for values in (first, second)]
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in ranks)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    found: NDArray[np.float64] = np.divide(
        (x * y).sum(axis=-1), scale, out=np.zeros_like(scale), where=scale > 0
    )
    return found


def _measure(case: Case) -> Measured:
    known = case.labels.numpy() >= 0
    label = case.labels.numpy()[known]
    present = np.unique(label)
    if len(present) < _FEWEST:
        raise NotApplicableError(
            f"the confusions of a class can be ranked among {_FEWEST} classes or more; the test "
            f"images are of {len(present)}"
        )
    theirs = case.answers(case.teacher)[known]
    if len(np.unique(theirs.argmax(axis=1))) == 1:
        raise NotApplicableError(
            f"the teacher gives every image the answer "
            f"{case.class_names[int(theirs[0].argmax())]!r}: it confuses no class more than another"
        )
    num_classes = len(case.class_names)
    apart = ~np.eye(num_classes, dtype=bool)[present]  # (present, K): all but the true class

    def confusion(subject: Subject) -> NDArray[np.float64]:
        p = softmax(case.answers(subject)[known].astype(np.float64), axis=1)
        found: NDArray[np.float64] = class_means(p, label, num_classes)[present]
        return found

    def logits(subject: Subject) -> NDArray[np.float64]:
        z = case.answers(subject)[known].astype(np.float64)
        z -= z.mean(axis=1, keepdims=True)
        found: NDArray[np.float64] = class_means(z, label, num_classes)[present]
        return found

    def wrong(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = rows[apart].reshape(len(present), num_classes - 1)
        return found

    teacher_confusion, teacher_logits = confusion(case.teacher), logits(case.teacher)

    def alike(student: Subject) -> NDArray[np.float64]:
        return rank_correlation(wrong(confusion(student)), wrong(teacher_confusion))

    def apart_by(student: Subject) -> NDArray[np.float64]:
        return np.abs(logits(student) - teacher_logits)

    def accuracy(subject: Subject) -> NDArray[np.float64]:
        hits = case.answers(subject)[known].argmax(axis=1) == label
        rows = class_means(hits[:, None].astype(np.float64), label, num_classes)
        found: NDArray[np.float64] = rows[present, 0]
        return found

    confusable = 1 - teacher_confusion[np.arange(len(present)), present]
    return Measured(
        readings=(
            case.reading(
                "rank correlation of a class's confusions with the teacher's",
                "classes",
                alike,
                unit="1",
                chance=0.0,
            ),
            case.reading(
                "distance of class-mean logits from the teacher's",
                "pairs of classes",
                lambda student: wrong(apart_by(student)).ravel(),
                unit="1",
                nearer="lower",
            ),
        ),
        pictures=(_picture(case, teacher_confusion, apart, apart_by),),
        tables={
            "Do the classes gain that the teacher confuses?": _transfer(case, accuracy, confusable),
            "Classes, by gain": _table(case, present, teacher_confusion, accuracy),
        },
        notes=(
            "A class that is hard leaves more room to gain and is confused more, with or without "
            "a teacher: a positive correlation alone does not show that the teacher's confusions "
            "are what helped.",
        ),
        settings={"temperature": 1, "images": int(known.sum()), "classes": len(present)},
    )


def _transfer(
    case: Case, accuracy: Callable[[Subject], NDArray[np.float64]], confusable: NDArray[np.float64]
) -> tuple[tuple[str, ...], ...]:
    """Whether gains go with the teacher's soft confusion; and what chance gives without one."""
    gain = _mean(case.distilled, accuracy) - _mean(case.independent, accuracy)
    generator = case.generator("classes")
    draws = generator.integers(len(gain), size=(_RESAMPLES, len(gain)))
    low, high = np.quantile(rank_correlation(gain[draws], confusable[draws]), [0.025, 0.975])
    rows: list[tuple[str, ...]] = [
        ("rank correlation with the teacher's soft confusion", "value", "95 % interval", "classes"),
        (
            "gain of the distilled over the independent student",
            f"{float(rank_correlation(gain, confusable)):+.2f}",
            f"{low:+.2f} to {high:+.2f}",
            str(len(gain)),
        ),
    ]
    strangers = [accuracy(student) for student in case.independent.values()]
    if len(strangers) > 1:
        chance = [
            abs(float(rank_correlation(first - second, confusable)))
            for first, second in itertools.combinations(strangers, 2)
        ]
        name = f"one independent student over another, largest of {len(chance)}, without sign"
        rows.append((name, f"{max(chance):.2f}", "", str(len(gain))))
    return tuple(rows)


def _table(
    case: Case,
    present: NDArray[np.int64],
    confusion: NDArray[np.float64],
    accuracy: Callable[[Subject], NDArray[np.float64]],
) -> tuple[tuple[str, ...], ...]:
    """The classes that gain most and least, and what the teacher takes them for."""
    ours, theirs = _mean(case.distilled, accuracy), _mean(case.independent, accuracy)
    teacher = accuracy(case.teacher)
    order = np.argsort(theirs - ours, kind="stable")
    if len(order) > 2 * _SHOWN:
        order = np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    images = np.bincount(case.labels.numpy()[case.labels.numpy() >= 0])[present]
    rows: list[tuple[str, ...]] = [
        (
            "class",
            "images",
            "teacher",
            "distilled",
            "independent",
            "gain, points",
            "teacher's soft confusion",
            "most with",
        )
    ]
    for place in order:
        others = confusion[place].copy()
        others[present[place]] = -1
        rows.append(
            (
                case.class_names[int(present[place])],
                str(images[place]),
                *(f"{values[place]:.1%}" for values in (teacher, ours, theirs)),
                f"{100 * (ours - theirs)[place]:+.1f}",
                f"{1 - confusion[place, present[place]]:.1%}",
                f"{case.class_names[int(others.argmax())]} ({others.max():.1%})",
            )
        )
    return tuple(rows)


def _mean(
    students: Mapping[int, Subject], value: Callable[[Subject], NDArray[np.float64]]
) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.mean([value(student) for student in students.values()], axis=0)
    return mean


def _picture(
    case: Case,
    confusion: NDArray[np.float64],
    apart: NDArray[np.bool_],
    apart_by: Callable[[Subject], NDArray[np.float64]],
) -> Picture:
    soft = np.where(apart, confusion, 0)
    ours, theirs = (
        np.where(apart, _mean(students, apart_by), 0)
        for students in (case.distilled, case.independent)
    )
    most = max(ours.max(), theirs.max()) or 1.0
    return Picture(
        name="logits",
        caption="Left: how far the mean logits of each true class (row) are from the teacher's, "
        f"class by class (column), mean over seeds; white is {most:.2f}, both on one scale. Right: "
        f"the teacher's soft confusion; white is {soft.max():.1%}. The diagonal is left out.",
        alt="Maps of the distance of class-mean logits from the teacher's. Distilled: mean "
        f"{ours[apart].mean():.2f}, largest {ours.max():.2f}; independent: mean "
        f"{theirs[apart].mean():.2f}, largest {theirs.max():.2f}.",
        png=panels_png(
            [[ours / most, theirs / most, soft / (soft.max() or 1.0)]],
            row_names=("true class",),
            column_names=("distilled", "independent", "teacher's confusion"),
        ),
    )


CLASSES = Experiment(
    key="classes",
    title="Class by class",
    question="Does the student confuse what its teacher confuses, and which classes gain?",
    source="the map as in the notebooks of Zhao et al., 'Decoupled Knowledge Distillation', "
    "CVPR 2022, https://arxiv.org/abs/2203.08679; soft confusion as dark knowledge: Hinton et "
    "al., 2015, https://arxiv.org/abs/1503.02531",
    measure=_measure,
    quick=True,
)
