"""Numbers of a whole network that are no mean over items, each as a line of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from limbeck.analysis.base import Case, Subject
from limbeck.reports.statistics import paired_t_interval

__all__ = ["HEADING", "IMAGES_HEADING", "by_student", "over_images", "scalar_row"]

HEADING: Final = (
    "number",
    "teacher",
    "distilled",
    "independent",
    "difference",
    "95 % interval over seeds",
)
IMAGES_HEADING: Final = (*HEADING, "95 % interval over images")
_RESAMPLES = 200


def by_student(
    case: Case, value: Callable[[Subject], float]
) -> tuple[dict[int, float], dict[int, float]]:
    """Distilled and independent students' values by seed."""
    return (
        {seed: value(student) for seed, student in case.distilled.items()},
        {seed: value(student) for seed, student in case.independent.items()},
    )


def scalar_row(
    name: str,
    *,
    teacher: float | None,
    distilled: Mapping[int, float],
    independent: Mapping[int, float],
    form: str,
) -> tuple[str, ...]:
    """A line under :data:`HEADING`: means over seeds, and their difference paired by seed.

    Args:
        name: what the number is.
        teacher: its own; None where it has none.
        distilled: seed to value.
        independent: seed to value.
        form: how numbers are written, as ``".2f"`` or ``".1%"``.

    Example:
        >>> row = scalar_row(
        ...     "depth", teacher=None, distilled={0: 2, 1: 3}, independent={0: 1, 1: 2}, form=".1f"
        ... )
        >>> row[2:]
        ('2.5', '1.5', '+1.0', '+1.0 to +1.0')
    """
    means = [float(np.mean(list(values.values()))) for values in (distilled, independent)]
    shared = sorted(distilled.keys() & independent.keys())
    interval = "one seed: none"
    if len(shared) > 1:
        ends = paired_t_interval([distilled[seed] - independent[seed] for seed in shared])
        interval = " to ".join(f"{float(end):+{form}}" for end in ends)
    return (
        name,
        "" if teacher is None else f"{teacher:{form}}",
        *(f"{mean:{form}}" for mean in means),
        f"{means[0] - means[1]:+{form}}",
        interval,
    )


def over_images(
    case: Case, name: str, value: Callable[[Subject, NDArray[np.int64]], float], *, form: str
) -> tuple[str, ...]:
    """A line under :data:`IMAGES_HEADING`, of a number that can be taken of any images.

    Args:
        case: whose labelled images are resampled.
        name: what the number is.
        value: of a network and positions among the test images, which may repeat.
        form: as for :func:`scalar_row`.
    """
    known = np.flatnonzero(case.labels.numpy() >= 0)
    distilled, independent = by_student(case, lambda student: value(student, known))
    row = scalar_row(
        name,
        teacher=value(case.teacher, known),
        distilled=distilled,
        independent=independent,
        form=form,
    )
    generator = case.generator(f"over images.{name}")
    differences = []
    for _ in range(_RESAMPLES):
        drawn = known[generator.integers(len(known), size=len(known))]
        ours, theirs = by_student(case, lambda student, at=drawn: value(student, at))  # type: ignore[misc]
        differences.append(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    low, high = np.quantile(differences, [0.025, 0.975])
    return (*row, f"{low:+{form}} to {high:+{form}}")
