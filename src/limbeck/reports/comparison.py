"""Runs of several methods side by side: every seed, mean and spread, gain over the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from limbeck.core.errors import RunFolderError, UnknownNameError
from limbeck.reports.runs import HeldOutScores, RunRecord
from limbeck.reports.spread import Spread, spread
from limbeck.reports.statistics import PairedDifference, compare_over_seeds

__all__ = ["ComparisonRow", "Role", "compare_runs"]

Role = Literal["baseline", "method", "reference"]
_SAME_IN_A_GROUP = ("method", "optim", "schedule")  # parts of a run's settings


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
            None for the baseline, for references, where no seed is shared, and where no class
            scores were taught.
        num_parameters: of the student.
        seconds: mean over the runs.
        over_baseline: the same gain with its interval and verdict; None where ``gain`` is.
        best_over_baseline: that of the epochs that were best on validation.
        over_kd: the difference to plain KD, where that is another row of the match.
        records: the runs, by seed.
    """

    label: str
    role: Role
    last: Mapping[int, float]
    best_on_validation: Mapping[int, float]
    gain: Spread | None
    num_parameters: int
    seconds: float
    over_baseline: PairedDifference | None = None
    best_over_baseline: PairedDifference | None = None
    over_kd: PairedDifference | None = None
    records: Mapping[int, RunRecord] = field(default_factory=dict)

    @property
    def accuracy(self) -> Spread:
        """Of :attr:`last`."""
        return spread(list(self.last.values()))

    @property
    def scores_taught(self) -> bool:
        """Whether its accuracy says anything."""
        return all(run.scores_taught for run in self.records.values())

    @property
    def no_gain(self) -> str:
        """In a few words, why it has no gain."""
        if self.role != "method":
            return self.role
        return "no pair" if self.scores_taught else "scores not taught"

    @property
    def best_accuracy(self) -> Spread | None:
        """Of :attr:`best_on_validation`; None where no run has it."""
        values = list(self.best_on_validation.values())
        return spread(values) if values else None


def compare_runs(
    groups: Mapping[str, Sequence[RunRecord]],
    *,
    baseline: str | None,
    references: Collection[str] = (),
    kd: str | None = None,
) -> tuple[ComparisonRow, ...]:
    """One row per group of runs that differ in their seed alone.

    Args:
        groups: label to finished runs, in the order of the rows.
        baseline: the label of the matched student without distillation; None where all its runs
            failed, which leaves nothing to measure a gain against.
        references: labels outside the match, such as the student with all labels.
        kd: the label of plain KD, against which the others are measured, too.

    Returns:
        A row per group, in the order given.

    Raises:
        UnknownNameError: if ``baseline``, ``kd`` or a reference is no label.
        RunFolderError: if a group is empty, holds a seed twice, mixes students or settings, or
            has a run without a test result; if a matched group has another student than the
            baseline; or if the runs were judged on other test images or classes, or, in the
            match, learnt from other images or another teacher.
    """
    for name in (*references, *(other for other in (baseline, kd) if other is not None)):
        if name not in groups:
            raise UnknownNameError("group of runs", name, groups)
    by_label = {label: _by_seed(label, runs) for label, runs in groups.items()}
    matched = {label: runs for label, runs in by_label.items() if label not in references}
    _check_same_data(by_label.values(), ("test",))
    _check_same_data(matched.values(), ("train", "val"))
    _check_same_teacher(matched.values())
    scored = {
        label: runs
        for label, runs in matched.items()
        if all(run.scores_taught for run in runs.values())
    }
    last = {label: _top1(runs) for label, runs in scored.items()}
    best = {label: _best_top1(runs) for label, runs in scored.items()}
    against = {
        "over_baseline": _differences(last, baseline),
        "best_over_baseline": _differences({k: v for k, v in best.items() if v}, baseline),
        "over_kd": _differences({k: v for k, v in last.items() if k != baseline}, kd),
    }
    base = {} if baseline is None else by_label[baseline]
    rows = []
    for label, runs in by_label.items():
        role: Role = "method"
        if label == baseline:
            role = "baseline"
        elif label in references:
            role = "reference"
        gains = _paired_gains(runs, base) if role == "method" and label in scored else []
        rows.append(
            ComparisonRow(
                label=label,
                role=role,
                last=_top1(runs),
                best_on_validation=_best_top1(runs),
                gain=spread(gains) if gains else None,
                num_parameters=next(iter(runs.values())).num_parameters,
                seconds=statistics.fmean(run.seconds for run in runs.values()),
                records=runs,
                **{name: found.get(label) for name, found in against.items()},
            )
        )
    return tuple(rows)


def _top1(runs: Mapping[int, RunRecord]) -> dict[int, float]:
    return {seed: _held_out(run).last.top1 for seed, run in runs.items()}


def _best_top1(runs: Mapping[int, RunRecord]) -> dict[int, float]:
    return {
        seed: best.top1
        for seed, run in runs.items()
        if (best := _held_out(run).best_on_validation) is not None
    }


def _differences(
    scores: Mapping[str, Mapping[int, float]], reference: str | None
) -> dict[str, PairedDifference]:
    """To the reference, for the others that share a seed with it; corrected for their number."""
    if reference is None or reference not in scores:
        return {}
    found = compare_over_seeds(scores, reference=reference)
    return {
        row.name: row.difference
        for row in found
        if row.difference is not None and row.difference.mean is not None
    }


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


def _check_same_data(groups: Iterable[Mapping[int, RunRecord]], splits: Collection[str]) -> None:
    """All runs have the same of these splits and the same classes, as far as they say."""
    runs = [run for group in groups for run in group.values()]
    for run in runs[1:]:
        first = runs[0]
        if (
            None not in (first.class_names, run.class_names)
            and first.class_names != run.class_names
        ):
            same = sorted(first.class_names or ()) == sorted(run.class_names or ())
            what = "the order of the classes" if same else "the classes"
            raise RunFolderError(
                f"{what} of {first.folder} and {run.folder} differ; what is compared must be "
                "judged on the same classes in the same order"
            )
        differing = [
            split
            for split in splits
            if first.split_hashes and run.split_hashes
            if first.split_hashes.get(split) != run.split_hashes.get(split)
        ]
        if differing:
            raise RunFolderError(
                f"the {' and '.join(differing)} images or labels of {first.folder} and "
                f"{run.folder} differ; what is compared must have the same data and split. Set "
                "data.split_seed, so that all seeds share one"
            )


def _check_same_teacher(groups: Iterable[Mapping[int, RunRecord]]) -> None:
    taught = [run for group in groups for run in group.values() if run.teacher is not None]
    for run in taught[1:]:
        if run.teacher_hash != taught[0].teacher_hash:
            raise RunFolderError(
                f"{taught[0].folder} and {run.folder} had different teachers "
                f"({taught[0].teacher}, {run.teacher}); compare methods that one teacher taught"
            )


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
