"""Runs of several methods side by side: every seed, mean and spread, gain over the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.core.errors import RunFolderError, UnknownNameError
from limbeck.reports.runs import HeldOutScores, RunRecord

__all__ = ["ComparisonRow", "Spread", "compare_runs", "spread"]

_SAME_IN_A_GROUP = ("method", "optim", "schedule")  # parts of a run's settings


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of ``count`` numbers.

    Attributes:
        mean: of the numbers.
        sd: None for a single number, which has no spread.
        count: how many there were, ``>= 1``.
    """

    mean: float
    sd: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one number.

    Raises:
        ValueError: if there is no number.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, sd=1.4142135623730951, count=2)
        >>> spread([1.0]).sd is None
        True
    """
    if not values:
        raise ValueError("the spread of no numbers is not defined; give at least one")
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, count=len(values))


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """What is compared, over its seeds; accuracies and gains are fractions in [0, 1].

    Attributes:
        label: its name in the table.
        role: "baseline" is what gains are measured against, "reference" stands outside the
            match (another set of labels, say) and has no gain.
        last: test accuracy of the last epoch, by seed in ascending order.
        best_on_validation: test accuracy of the epoch that was best on validation, by seed; a
            seed without validation is missing here.
        gain: over the baseline, paired by seed; its count is the number of seeds that both have.
            None for the baseline, for references, and where no seed is shared.
        num_parameters: of the student.
        seconds: mean over the runs.
    """

    label: str
    role: Literal["baseline", "method", "reference"]
    last: Mapping[int, float]
    best_on_validation: Mapping[int, float]
    gain: Spread | None
    num_parameters: int
    seconds: float

    @property
    def accuracy(self) -> Spread:
        """Of :attr:`last`."""
        return spread(list(self.last.values()))

    @property
    def best_accuracy(self) -> Spread | None:
        """Of :attr:`best_on_validation`; None where no run has it."""
        values = list(self.best_on_validation.values())
        return spread(values) if values else None


def compare_runs(
    groups: Mapping[str, Sequence[RunRecord]],
    *,
    baseline: str,
    references: Collection[str] = (),
) -> tuple[ComparisonRow, ...]:
    """One row per group of runs that differ in their seed alone.

    Args:
        groups: label to finished runs, in the order of the rows.
        baseline: the label of the matched student without distillation.
        references: labels outside the match, such as the student with all labels.

    Returns:
        A row per group, in the order given.

    Raises:
        UnknownNameError: if ``baseline`` or a reference is no label.
        RunFolderError: if a group is empty, holds a seed twice, mixes students or settings, or
            has a run without a test result, or if a matched group has another student than the
            baseline.
    """
    for name in (baseline, *references):
        if name not in groups:
            raise UnknownNameError("group of runs", name, groups)
    rows = []
    base: dict[int, RunRecord] = {}
    # The baseline first: its checks come before anybody is measured against it.
    for label in (baseline, *(other for other in groups if other != baseline)):
        by_seed = _by_seed(label, groups[label])
        base = base or by_seed
        role: Literal["baseline", "method", "reference"] = "method"
        if label == baseline:
            role = "baseline"
        elif label in references:
            role = "reference"
        gains = _paired_gains(by_seed, base) if role == "method" else []
        rows.append(
            ComparisonRow(
                label=label,
                role=role,
                last={seed: _held_out(run).last.top1 for seed, run in by_seed.items()},
                best_on_validation={
                    seed: best.top1
                    for seed, run in by_seed.items()
                    if (best := _held_out(run).best_on_validation) is not None
                },
                gain=spread(gains) if gains else None,
                num_parameters=next(iter(by_seed.values())).num_parameters,
                seconds=statistics.fmean(run.seconds for run in by_seed.values()),
            )
        )
    order = list(groups)
    return tuple(sorted(rows, key=lambda row: order.index(row.label)))


def _by_seed(label: str, runs: Sequence[RunRecord]) -> dict[int, RunRecord]:
    """The group's runs by ascending seed, once it is sure that the seed alone tells them apart."""
    if not runs:
        raise RunFolderError(f"{label!r} has no runs; give at least one finished run")
    by_seed: dict[int, RunRecord] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        _held_out(run)
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            raise RunFolderError(
                f"{label!r} has seed {run.seed} twice, in {first.folder} and {run.folder}; "
                "leave one out"
            )
        if (run.student, run.num_parameters) != (runs[0].student, runs[0].num_parameters):
            raise RunFolderError(
                f"{label!r} mixes students: {runs[0].student} ({runs[0].num_parameters} "
                f"parameters) in {runs[0].folder}, {run.student} ({run.num_parameters}) in "
                f"{run.folder}; compare them under two labels"
            )
        for part in _SAME_IN_A_GROUP:
            if run.config.get(part) != runs[0].config.get(part):
                raise RunFolderError(
                    f"{label!r} mixes settings: {part!r} of {runs[0].folder} and {run.folder} "
                    "differ; only the seed may, so compare them under two labels"
                )
    return by_seed


def _paired_gains(ours: Mapping[int, RunRecord], base: Mapping[int, RunRecord]) -> list[float]:
    gains = []
    for seed in ours.keys() & base.keys():
        if ours[seed].student != base[seed].student:
            raise RunFolderError(
                f"{ours[seed].folder} trains {ours[seed].student}, its baseline "
                f"{base[seed].folder} {base[seed].student}: a gain compares one student with "
                "itself; make the group a reference, or give its own baseline"
            )
        gains.append(_held_out(ours[seed]).last.top1 - _held_out(base[seed]).last.top1)
    return gains


def _held_out(run: RunRecord) -> HeldOutScores:
    if run.test is None:
        raise RunFolderError(
            f"the run in {run.folder} has no test result, and a comparison needs one; "
            "train it on data that has a test split"
        )
    return run.test
