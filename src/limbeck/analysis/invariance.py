r"""Invariances: does the student ignore what its teacher learnt to ignore?

The agreement of a network with itself when its images are changed, labels aside:

.. math:: \frac{1}{N} \sum_i [\arg\max f(x_i) = \arg\max f(x'_i)]

A teacher that is steadier than the independent student, and a distilled student that is steadier
as well, have one thing to explain it: the teacher never showed the student a changed image.
Colour constancy is asked for itself.

Any soft label might do as much as a teacher's: students that learnt from soft labels of noise
(method "noise_label") are the control, where a case has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.analysis import transforms
from limbeck.analysis.base import Case, Experiment, Measured, NotApplicableError, Reading, Subject

__all__ = ["COLOUR_CONSTANCY", "INVARIANCE", "steadiness"]

_OJHA = (
    "Ojha et al., 'What Knowledge Gets Distilled in Knowledge Distillation?', NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004"
)
Change = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A change and its strengths, of which one is the headline's.

    Attributes:
        name: in the report, with a place for the strength.
        change: the function.
        strengths: from weak to strong.
        headline: which of them is a reading.
        twice: whether two changed images are compared, instead of one with the original.
    """

    name: str
    change: Change
    strengths: Sequence[float]
    headline: float
    twice: bool = False


_KINDS = (
    _Kind(
        name="colour jitter {}",
        change=transforms.colour_jitter,
        strengths=(0.2, 0.4, 0.6),
        headline=0.4,
    ),
    _Kind(
        name="two crops of {} of the area",
        change=transforms.crop,
        strengths=(0.8, 0.6, 0.4),
        headline=0.6,
        twice=True,
    ),
    _Kind(
        name="shift by up to {} pixels",
        change=transforms.shift,
        strengths=(1, 2, 4),
        headline=2,
    ),
    _Kind(
        name="rotation by {} degrees",
        change=transforms.rotate,
        strengths=(5, 15, 30),
        headline=15,
    ),
)
_CONSTANCY = (
    _Kind(name="tint {}", change=transforms.tint, strengths=(0.2, 0.4, 0.6), headline=0.4),
    _Kind(
        name="white balance {}",
        change=transforms.white_balance,
        strengths=(0.2, 0.4, 0.6),
        headline=0.4,
    ),
    _Kind(
        name="illumination {}",
        change=transforms.illumination,
        strengths=(0.5, 1.0, 2.0),
        headline=1.0,
    ),
)


def steadiness(
    case: Case, change: Change, strength: float, *, name: str, twice: bool = False
) -> Callable[[Subject], NDArray[np.bool_]]:
    """A function of a subject: for which images its answer stays when they are changed ``(N,)``.

    Args:
        case: whose images.
        change: of the images.
        strength: of the change.
        name: names the changed images, which are made once for all subjects.
        twice: compare two changed versions of each image instead of one with the original.
    """
    versions = {}
    for version in ("first", "second") if twice else ("first",):
        generator = case.torch_generator(f"{name}.{version}")
        versions[f"{name}.{version}"] = change(case.images.float() / 255, strength, generator)

    def stays(subject: Subject) -> NDArray[np.bool_]:
        answers = [
            case.answers(subject, label, images).argmax(axis=1)
            for label, images in versions.items()
        ]
        reference = answers[1] if twice else case.answers(subject).argmax(axis=1)
        same: NDArray[np.bool_] = answers[0] == reference
        return same

    return stays


def _measure(case: Case, kinds: Sequence[_Kind]) -> Measured:
    case.refuse_constant(case.teacher, case.answers(case.teacher).argmax(axis=1), "test images")
    readings: list[Reading] = []
    controls: list[Reading] = []
    heading = ("change", "teacher", "distilled", "independent")
    rows: list[tuple[str, ...]] = [heading + ("noise targets",) * bool(case.controls)]
    notes = [
        f"{student.name} gives every test image one answer: it is steady because it sees nothing."
        for student in case.subjects[1:]
        if len(np.unique(case.answers(student).argmax(axis=1))) == 1
    ]
    for kind in kinds:
        for strength in kind.strengths:
            name = kind.name.format(f"{strength:g}")
            try:
                stays = steadiness(case, kind.change, strength, name=name, twice=kind.twice)
            except NotApplicableError as reason:
                notes.append(f"{name.rsplit(' ', 1)[0]}: {reason}.")
                break
            reading = case.trait(f"answers that stay under {name}", "images", stays)
            control = _control(case, reading, stays) if case.controls else None
            means = [reading.teacher, _mean(reading.distilled), _mean(reading.independent)]
            means += [] if control is None else [_mean(control.distilled)]
            rows.append((name, *(f"{mean:.1%}" for mean in means if mean is not None)))
            if strength == kind.headline:
                readings.append(reading)
                controls += [] if control is None else [control]
    if not readings:
        raise NotApplicableError(" ".join(notes))
    return Measured(
        readings=(*readings, *controls),
        tables={"Answers that stay when the images change": tuple(rows)},
        notes=tuple(notes),
        settings={kind.name.format("").strip(): list(kind.strengths) for kind in kinds},
    )


def _control(
    case: Case, reading: Reading, stays: Callable[[Subject], NDArray[np.bool_]]
) -> Reading:
    """The same of the students of noise."""
    return replace(
        reading,
        name=f"{reading.name}, after noise targets",
        distilled={seed: stays(student) for seed, student in case.controls.items()},
        pupil="student of noise targets",
    )


def _mean(by_seed: Mapping[int, NDArray[Any]]) -> float:
    return float(np.mean([np.mean(values) for values in by_seed.values()]))


def _measure_invariance(case: Case) -> Measured:
    return _measure(case, _KINDS)


def _measure_constancy(case: Case) -> Measured:
    return _measure(case, _CONSTANCY)


INVARIANCE = Experiment(
    key="invariance",
    title="Data invariance",
    question="Does the student keep its answers under changes where its teacher keeps them?",
    source=_OJHA,
    measure=_measure_invariance,
    quick=True,
    reads=("controls",),
)
COLOUR_CONSTANCY = Experiment(
    key="colour_constancy",
    title="Colour constancy",
    question="Does the student see the same thing in light of another colour, if its teacher does?",
    source=_OJHA,
    measure=_measure_constancy,
    quick=True,
    reads=("controls",),
)
