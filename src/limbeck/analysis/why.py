"""Why did it (not) help? The numbers that published work ties to distillation's success, together.

Each line is one number of the networks at hand, what such a number usually means, and who says so.
A line says no more than its number: where two numbers together mean something, both stand in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from limbeck.analysis.background import Background
from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Subject
from limbeck.metrics.calibration import expected_calibration_error
from limbeck.reports.statistics import Interval, paired_t_interval

__all__ = ["WHY"]

_HEADING = ("what", "here", "what it usually means", "source")
_SOFT = 0.01  # mean probability beside the answer; below it soft labels are nearly hard ones
_FEW_ERRORS = 20  # images; a share of fewer is not read
_FOLLOWS = 0.95  # agreement on training images from which on a student has learnt its teacher
_GAP = 0.02  # of agreement, between training and test images


class _Line(NamedTuple):
    what: str
    here: str
    meaning: str
    source: str


def _measure(case: Case) -> Measured:
    known = case.labels.numpy() >= 0
    if not known.any():
        raise NotApplicableError(
            "whether distillation helped is a question of accuracy, and no test image has a label"
        )
    label = case.labels.numpy()[known]

    def correct(subject: Subject) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = case.answers(subject)[known].argmax(axis=1) == label
        return found

    def agrees(student: Subject, what: str = "clean") -> NDArray[np.bool_]:
        images = None if what == "clean" or background is None else background.train_images
        ours, theirs = (case.answers(one, what, images) for one in (student, case.teacher))
        found: NDArray[np.bool_] = ours.argmax(axis=1) == theirs.argmax(axis=1)
        return found

    background = case.background
    teacher = float(correct(case.teacher).mean())
    readings = [
        case.reading(
            "accuracy",
            "images",
            correct,
            teacher=teacher,
            words=("more accurate than the independent one", "less accurate than it"),
        )
    ]
    lines = [
        _gain(case, correct),
        _capacity(case, agrees),
        _teacher_accuracy(case, correct),
        _teacher_calibration(case, known),
    ]
    notes = []
    if background is None:
        notes.append("Without run folders, training images, labels and cost cannot be told.")
        lines.append(_fidelity(case, agrees, trained=False))
    else:
        readings.append(
            case.reading(
                "agreement with the teacher on training images",
                "images",
                lambda student: agrees(student, "train"),
            )
        )
        lines += [
            _softness(case, background),
            _fidelity(case, agrees, trained=True),
        ]
    lines += [_errors(case, known, label), _seeds(case, correct)]
    if background is not None:
        lines += [_labels(case, background), *_cost(background)]
    return Measured(
        readings=tuple(readings),
        tables={"What the numbers usually mean": (_HEADING, *lines)},
        notes=tuple(notes),
        settings={
            "test images": int(known.sum()),
            "training images": 0 if background is None else len(background.train_images),
        },
    )


Value = Callable[[Subject], NDArray[np.bool_]]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _mean(students: Mapping[int, Subject], value: Value) -> float:
    return float(np.mean([np.mean(value(student)) for student in students.values()]))


def _paired(case: Case, value: Value) -> tuple[list[float], Interval | None]:
    """Differences by seed that both have, and the interval of their mean."""
    seeds = sorted(case.distilled.keys() & case.independent.keys())
    found = [
        float(value(case.distilled[seed]).mean() - value(case.independent[seed]).mean())
        for seed in seeds
    ]
    if len(found) < 2:
        return found, None
    low, high = paired_t_interval(found)
    return found, Interval(float(low), float(high))


def _gain(case: Case, correct: Value) -> _Line:
    gain = _mean(case.distilled, correct) - _mean(case.independent, correct)
    differences, interval = _paired(case, correct)
    if interval is None:
        here = f"{100 * gain:+.1f} points, no two seeds in common"
        meaning = (
            "Whether it helped cannot be told without the spread over seeds; the lines below "
            "describe these networks and explain nothing."
        )
    else:
        here = (
            f"{100 * gain:+.1f} points, 95 % interval {100 * interval.low:+.1f} to "
            f"{100 * interval.high:+.1f} over {len(differences)} seeds"
        )
        if interval.low > 0:
            meaning = (
                "Taken by itself it helped; the lines below are where to look for why. A table of "
                "several methods corrects for their number."
            )
        elif interval.high < 0:
            meaning = (
                "Taken by itself it did harm; the lines below are where to look for why. A table "
                "of several methods corrects for their number."
            )
        else:
            meaning = (
                "It cannot be told whether it helped: the lines below describe, and there is no "
                "effect yet for them to explain."
            )
    return _Line(
        "gain in accuracy over the independent student",
        here,
        meaning,
        "Bouthillier et al. 2021, https://arxiv.org/abs/2103.03098",
    )


def _capacity(case: Case, agrees: Callable[[Subject, str], NDArray[np.bool_]]) -> _Line:
    sizes = [
        sum(parameter.numel() for parameter in subject.network.parameters())
        for subject in (case.teacher, next(iter(case.distilled.values())))
    ]
    meaning = "A teacher much larger than its student can be hard to follow."
    if case.background is not None:
        follows = _mean(case.distilled, lambda student: agrees(student, "train"))
        meaning += (
            f" Here the student does follow it, on {_percent(follows)} of training images: the gap "
            "is not what stands in the way."
            if follows >= _FOLLOWS
            else f" Here the student follows it on {_percent(follows)} of training images; a wide "
            "gap, short training or strong regularisation would each look like this."
        )
    return _Line(
        "capacity gap",
        f"teacher {sizes[0]:,} parameters, student {sizes[1]:,}: {sizes[0] / sizes[1]:.1f} times",
        meaning,
        "Mirzadeh et al. 2020, https://arxiv.org/abs/1902.03393; Cho, Hariharan 2019, "
        "https://arxiv.org/abs/1910.01348",
    )


def _teacher_accuracy(case: Case, correct: Value) -> _Line:
    teacher = float(correct(case.teacher).mean())
    ours, theirs = _mean(case.distilled, correct), _mean(case.independent, correct)
    room = teacher - theirs
    here = (
        f"{_percent(teacher)}; the independent student {_percent(theirs)}, the distilled one "
        f"{_percent(ours)}"
    )
    if room <= 0:
        return _Line(
            "the teacher's accuracy",
            here,
            "The teacher is no better than the student is by itself. What it adds then acts like "
            "smoother labels, and is not better knowledge of them.",
            "Yuan et al. 2020, https://arxiv.org/abs/1909.11723",
        )
    return _Line(
        "the teacher's accuracy",
        here,
        f"The teacher is {100 * room:.1f} points above the independent student, which is the room; "
        f"{100 * (ours - theirs) / room:.0f} % of it was gained. A still better teacher would not "
        "by that alone teach better.",
        "Cho, Hariharan 2019, https://arxiv.org/abs/1910.01348",
    )


def _teacher_calibration(case: Case, known: NDArray[np.bool_]) -> _Line:
    label = case.labels.numpy()[known]

    def error(subject: Subject) -> float:
        return expected_calibration_error(case.answers(subject)[known], label)

    teacher = error(case.teacher)
    ours, theirs = (
        float(np.mean([error(student) for student in students.values()]))
        for students in (case.distilled, case.independent)
    )
    better = "better" if teacher < theirs else "no better"
    return _Line(
        "the teacher's calibration",
        f"expected calibration error {_percent(teacher)}; independent {_percent(theirs)}, "
        f"distilled {_percent(ours)}",
        "What helps a student is how near the teacher's probabilities are to the true ones, more "
        f"than its accuracy. This teacher is {better} calibrated than the independent student.",
        "Menon et al. 2021, https://arxiv.org/abs/2005.10419",
    )


def _softness(case: Case, background: Background) -> _Line:
    logits = case.answers(case.teacher, "train", background.train_images)
    beside = float(1 - softmax(logits.astype(np.float64), axis=1).max(axis=1).mean())
    meaning = (
        "Its answers on training images are nearly one-hot: at temperature 1 they repeat the "
        "answer alone, and what it knows of the other classes shows at higher temperatures."
        if beside < _SOFT
        else "Its answers on training images say something of the other classes, even at "
        "temperature 1."
    )
    return _Line(
        "the teacher's softness",
        f"{100 * beside:.2f} % of its probability beside its answer, mean over training images",
        meaning,
        "Hinton et al. 2015, https://arxiv.org/abs/1503.02531",
    )


def _fidelity(case: Case, agrees: Callable[..., NDArray[np.bool_]], *, trained: bool) -> _Line:
    test = {kind: _mean(getattr(case, kind), agrees) for kind in ("distilled", "independent")}
    here = (
        f"test images: distilled {_percent(test['distilled'])}, independent "
        f"{_percent(test['independent'])}"
    )
    excess = test["distilled"] - test["independent"]
    _, interval = _paired(case, agrees)
    if interval is not None and interval.low > 0:
        meaning = (
            f"The student is {100 * excess:.1f} points nearer to its teacher than the independent "
            "one."
        )
    elif interval is not None and interval.high < 0:
        meaning = "The student is further from its teacher than the independent one."
    else:
        meaning = (
            "That the student is nearer to its teacher than the independent one cannot be told: "
            "agreement shows no transfer here."
        )
    if trained:
        train = {
            kind: _mean(getattr(case, kind), lambda student: agrees(student, "train"))
            for kind in ("distilled", "independent")
        }
        here = (
            f"training images: distilled {_percent(train['distilled'])}, independent "
            f"{_percent(train['independent'])}; {here}"
        )
        gap = train["distilled"] - test["distilled"]
        if train["distilled"] < _FOLLOWS:
            meaning += (
                " Already on images it was taught on it answers otherwise on "
                f"{_percent(1 - train['distilled'])}: the limit is in the fitting, before it is "
                "in the data."
            )
        elif gap > _GAP:
            meaning += (
                f" It matches on training images and {100 * gap:.1f} points less on new ones: the "
                "limit is in how far the match carries over, which more images to learn from raise."
            )
        else:
            meaning += " It matches on new images nearly as on those that it was taught on."
    return _Line(
        "fidelity: agreement with the teacher",
        here,
        meaning,
        "Stanton et al. 2021, https://arxiv.org/abs/2106.05945",
    )


def _errors(case: Case, known: NDArray[np.bool_], label: NDArray[np.int64]) -> _Line:
    theirs = case.answers(case.teacher)[known].argmax(axis=1)

    def among(students: Mapping[int, Subject]) -> tuple[int, int]:
        """Images that both have wrong, and of these the same way; summed over seeds."""
        both = same = 0
        for student in students.values():
            ours = case.answers(student)[known].argmax(axis=1)
            wrong = (ours != label) & (theirs != label)
            both += int(wrong.sum())
            same += int((wrong & (ours == theirs)).sum())
        return both, same

    counts = {kind: among(getattr(case, kind)) for kind in ("distilled", "independent")}
    here = "; ".join(
        f"{kind} {same} of {both}" + (f" ({100 * same / both:.0f} %)" if both else "")
        for kind, (both, same) in counts.items()
    )
    if min(both for both, _ in counts.values()) < _FEW_ERRORS:
        meaning = f"Fewer than {_FEW_ERRORS} images that both have wrong: too few to read."
    else:
        ours, strangers = (same / both for both, same in counts.values())
        meaning = (
            "Right answers agree without a teacher, wrong ones need not: "
            + (
                "the distilled student errs more like its teacher than the independent one does"
                if ours > strangers
                else "here the distilled student errs no more like its teacher than the other"
            )
            + f", by {100 * (ours - strangers):+.1f} points, without an interval."
        )
    return _Line(
        "agreement among errors: the same wrong class where both are wrong, all seeds",
        here,
        meaning,
        "Stanton et al. 2021, https://arxiv.org/abs/2106.05945",
    )


def _seeds(case: Case, correct: Value) -> _Line:
    differences, interval = _paired(case, correct)
    source = "Bouthillier et al. 2021, https://arxiv.org/abs/2103.03098"
    if interval is None:
        return _Line(
            "variance over seeds",
            "fewer than two seeds in common",
            "A single seed's difference is as much luck as method; run three at least.",
            source,
        )
    spreads = [
        float(np.std([correct(s).mean() for s in students.values()], ddof=1))
        for students in (case.distilled, case.independent)
    ]
    half = (interval.high - interval.low) / 2
    return _Line(
        "variance over seeds",
        f"standard deviation: distilled {100 * spreads[0]:.1f}, independent "
        f"{100 * spreads[1]:.1f} points; {len(differences)} seeds",
        f"With these seeds a gain below {100 * half:.1f} points cannot be told from none.",
        source,
    )


def _labels(case: Case, background: Background) -> _Line:
    labelled, total = background.num_labelled, background.num_train
    here = f"{labelled:,} of {total:,} training images have a label"
    here += f", {labelled / len(case.class_names):.0f} a class"
    if labelled < total:
        meaning = (
            f"The teacher answers the other {total - labelled:,} images too, which the independent "
            "student could not learn from: part of any gain is that."
        )
    else:
        meaning = "Every image has its label: the teacher can add only what the labels do not say."
    return _Line(
        "label scarcity", here, meaning, "Chen et al. 2020, https://arxiv.org/abs/2006.10029"
    )


def _cost(background: Background) -> list[_Line]:
    if not background.distilled or not background.independent:
        return []
    ours, theirs = (
        float(np.mean([facts.seconds for facts in runs.values()]))
        for runs in (background.distilled, background.independent)
    )
    passes = [
        facts.teacher_seconds
        for facts in background.distilled.values()
        if facts.teacher_seconds is not None
    ]
    here = f"training {ours:,.1f} s with the teacher, {theirs:,.1f} s without"
    if theirs > 0:
        here += f": {ours / theirs:.1f} times"
    if passes and ours > 0:
        here += f"; {100 * float(np.mean(passes)) / ours:.0f} % of it in the teacher"
    return [
        _Line(
            "cost",
            here + "; the deployed student costs the same",
            "A gain is worth its price against what the same time buys without a teacher, as "
            "longer training does. The teacher's own training is not in these seconds.",
            "Schwartz et al. 2020, https://arxiv.org/abs/1907.10597; Beyer et al. 2022, "
            "https://arxiv.org/abs/2106.05237",
        )
    ]


WHY = Experiment(
    key="why",
    title="Why did it (not) help?",
    question="Did distillation help here, and which of the usual reasons do the numbers show?",
    source="Stanton et al., 'Does Knowledge Distillation Really Work?', NeurIPS 2021, "
    "https://arxiv.org/abs/2106.05945; each line names its own",
    measure=_measure,
    quick=True,
)
