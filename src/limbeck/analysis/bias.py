r"""Bias: is the group that the teacher serves worst the one that its student serves worst?

The gap of a group is the accuracy on all other images less that on its own:

.. math:: \mathrm{gap}_g = \mathrm{acc}(\text{not } g) - \mathrm{acc}(g)

and the headline is that of the group whose gap is the teacher's largest. Groups come from a CSV
with the columns ``index`` and ``group``: an image's place in the test split, from 0, and its
group. (Pictures of a folder are in the order of their class and then of their name.)
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.analysis.base import (
    Case,
    Experiment,
    Measured,
    NotApplicableError,
    Subject,
    ratio_items,
)
from limbeck.core.errors import DataError

__all__ = ["BIAS", "read_groups"]

_COLUMNS = ("index", "group")


def read_groups(path: Path) -> dict[int, str]:
    """Place in the test split to group; rows without a group are left out.

    Raises:
        DataError: if the file is no such table, or a place is no number or stands there twice.
    """
    found: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r} but {rows.fieldnames}; wanted 'index', "
                    "an image's place in the test split from 0, and 'group'"
                )
            for row in rows:
                index, group = ((row[name] or "").strip() for name in _COLUMNS)
                if not index.isdecimal() or int(index) in found:
                    fault = "stands there twice" if index.isdecimal() else "is no place from 0 on"
                    raise DataError(f"{path}, line {rows.line_num}: index {index!r} {fault}")
                if group:
                    found[int(index)] = group
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    return found


def _measure(case: Case) -> Measured:
    path = case.given.groups
    if path is None:
        raise NotApplicableError(
            "groups are needed; give a CSV with the columns index and group with --groups"
        )
    table = read_groups(path)
    group_of = np.array([table.get(place, "") for place in case.positions.tolist()])
    label = case.labels.numpy()
    known = (group_of != "") & (label >= 0)
    groups = sorted(set(table.values()))
    sizes = {group: int((known & (group_of == group)).sum()) for group in groups}
    empty = [group for group, size in sizes.items() if not size]
    groups = [group for group in groups if sizes[group]]
    if len(groups) < 2:
        raise NotApplicableError(
            f"a gap is between groups, and the images looked at are of "
            f"{' and '.join(map(repr, groups)) or 'none'} alone, of those in {path}; are its "
            "indices places in the test split? --images looks at more of it"
        )
    group_of = group_of[known]
    case.refuse_constant(case.teacher, case.answers(case.teacher).argmax(axis=1), "test images")

    def right(subject: Subject) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = case.answers(subject).argmax(axis=1)[known] == label[known]
        return correct

    def gap(subject: Subject, group: str) -> NDArray[np.float64]:
        """``(n,)``, of mean the gap."""
        correct, within = right(subject), group_of == group
        return ratio_items(correct & ~within, ~within) - ratio_items(correct & within, within)

    kinds = case.kinds
    headings = [f"{what}, {kind}" for what in ("accuracy", "gap") for kind in kinds]
    rows = [("group", "images", *headings)]
    for group in groups:
        within = group_of == group
        accuracies = [np.mean([right(s)[within].mean() for s in kinds[kind]]) for kind in kinds]
        gaps = [np.mean([gap(s, group).mean() for s in kinds[kind]]) for kind in kinds]
        cells = [f"{accuracy:.1%}" for accuracy in accuracies]
        cells += [f"{100 * value:+.1f} points" for value in gaps]
        rows.append((group, f"{sizes[group]:,}", *cells))
    weakest = max(groups, key=lambda group: gap(case.teacher, group).mean())
    notes = [
        f"{weakest!r} is the group whose gap is the teacher's largest on these very images, so the "
        "teacher's own gap is a little too large."
    ]
    if empty:
        notes.append(f"No image looked at is of {', '.join(map(repr, empty))}.")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} images have no group or no label.")
    return Measured(
        readings=(
            case.trait(
                f"gap of accuracy between the others and {weakest!r}",
                "images",
                lambda subject: gap(subject, weakest),
            ),
        ),
        tables={"Accuracy by group": tuple(rows)},
        notes=tuple(notes),
        settings={"groups": sizes},
    )


BIAS = Experiment(
    key="bias",
    title="Bias",
    question="Does the student serve worst whom its teacher serves worst?",
    source="Ojha et al., 'What Knowledge Gets Distilled in Knowledge Distillation?', NeurIPS 2023, "
    "https://arxiv.org/abs/2205.16004, which compares accuracies by group",
    measure=_measure,
    quick=False,
    reads=("groups",),
)
