"""A comparison's folder, read: its rows, its runs, what failed, and what tuning chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from limbeck.core.errors import RunFolderError
from limbeck.reports.comparison import ComparisonRow, Role, compare_runs
from limbeck.reports.runs import RunRecord, read_run

__all__ = [
    "Compared",
    "ComparedRow",
    "ComparedSettings",
    "Failure",
    "Tuning",
    "TuningTrial",
    "read_comparison",
]

_FILE = "comparison.json"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """What the comparison says of one row, whatever became of its runs.

    Attributes:
        title: what it is called.
        role: baseline, method or reference.
        method: its name.
        family: where its knowledge lies: none, output, feature or relation.
        chosen: settings that are not the published defaults, by dotted name.
        space: what tuning chose from: setting to low, high and "log" or "linear".
    """

    title: str
    role: Role
    method: str
    family: str
    chosen: dict[str, Any]
    space: dict[str, tuple[float, float, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TuningTrial:
    """One trial; its accuracy is that on validation."""

    number: NonNegativeInt
    values: dict[str, float]
    val_top1: float
    val_loss: float | None
    seconds: float
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What the trials of one row chose, and what they cost."""

    values: dict[str, float]
    best: NonNegativeInt
    trials: tuple[TuningTrial, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run ended without a result."""

    task: str
    reason: str
    traceback: str
    when: str


@dataclass(frozen=True, kw_only=True)
class ComparedSettings:
    """What all runs of a comparison share, as far as a report asks.

    Attributes:
        seeds: of every row.
        shared: the baseline's run.
        teacher: that was given; None where there is none, or it is trained here.
        teacher_training: the run that trains it.
        tuning: trials and their seed; None without tuning.
        threads: of each run.
    """

    seeds: tuple[int, ...]
    shared: dict[str, Any]
    teacher: dict[str, Any] | None = None
    teacher_training: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    settings: ComparedSettings
    rows: dict[str, ComparedRow]
    code: dict[str, Any]
    data: dict[str, dict[str, str]]
    looks: tuple[int, ...] = ()
    begun: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison as far as it has come.

    Attributes:
        folder: where it lies.
        settings: of all runs; ``shared`` is the baseline's run.
        facts: label to what is known of each row, in the order of the table.
        records: label to its finished runs by seed; a label may have none.
        failures: label to seed to why there is no run.
        rows: of the labels that have a finished run, in the order of the table; a row's label
            is its title, made unique.
        names: label to the row's own label in ``rows``.
        tuning: label to what its trials chose; empty without tuning, or before it is done.
        teacher: the run that trained the teacher here; None where it was given.
        code: version, commit, hashes of sources, versions of packages.
        data: label to split to fingerprint.
        looks: the numbers of seeds with which the table was made, in order.
        begun: when, in UTC.
        command: that began it.
    """

    folder: Path
    settings: ComparedSettings
    facts: Mapping[str, ComparedRow]
    records: Mapping[str, Mapping[int, RunRecord]]
    failures: Mapping[str, Mapping[int, Failure]]
    rows: tuple[ComparisonRow, ...]
    names: Mapping[str, str]
    tuning: Mapping[str, Tuning]
    teacher: RunRecord | None
    code: Mapping[str, Any]
    data: Mapping[str, Mapping[str, str]]
    looks: tuple[int, ...]
    begun: str
    command: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every row."""
        return self.settings.seeds

    @property
    def student(self) -> str:
        """The network that is taught."""
        return str((self.settings.shared.get("student") or {}).get("name", "the student"))

    @property
    def task(self) -> str:
        """The data in a few words."""
        data = self.settings.shared.get("data") or {}
        labels = data.get("num_labels")
        few = "" if labels is None else f" with {labels} labels"
        return f"{data.get('dataset', 'these data')}{few}"

    @property
    def num_missing(self) -> int:
        """Runs that are neither finished nor failed."""
        there = [self.records[label].keys() | self.failures[label].keys() for label in self.facts]
        return len(self.facts) * len(self.seeds) - sum(map(len, there))

    @property
    def teacher_top1(self) -> float | None:
        """The teacher on the test split, from any run that it taught."""
        for records in self.records.values():
            for run in records.values():
                if run.teacher_test is not None:
                    return run.teacher_test.top1
        return None

    def label_of(self, row: ComparisonRow) -> str:
        """A row's label in :attr:`facts`."""
        return next(label for label, name in self.names.items() if name == row.label)

    def settings_note(self, label: str) -> str:
        """How a row came by its settings, in a few words."""
        facts = self.facts[label]
        if facts.space:
            trials = (self.settings.tuning or {}).get("trials", "?")
            return f"tuned on validation, {trials} trials"
        if not facts.chosen:
            return "published defaults"
        return "set: " + ", ".join(f"{name} = {value}" for name, value in facts.chosen.items())

    def remarks(self) -> tuple[str, ...]:
        """What a reader of the table must know, a sentence each."""
        found = []
        sentences = [
            row.over_baseline.sentence for row in self.rows if row.over_baseline is not None
        ]
        if len(self.seeds) == 1:
            found.append("One seed: there are no intervals, and nothing can be told; run three.")
        found += sentences
        found += [
            f"{row.label} teaches no class scores: the accuracy in its row is that of a classifier "
            "as chance made it, and is not compared; its embedding is judged instead."
            for row in self.rows
            if not row.scores_taught
        ]
        for label, failed in self.failures.items():
            for seed, failure in failed.items():
                found.append(f"{self.names[label]}, seed {seed}, failed: {failure.reason}")
        if self.num_missing:
            verb = "run is" if self.num_missing == 1 else "runs are"
            found.append(f"{self.num_missing} {verb} still missing.")
        if len(self.looks) > 1:
            counts = ", then ".join(map(str, self.looks))
            found.append(
                f"Seeds were added after a look at the table ({counts}): that makes chance "
                "findings likelier than the p values say."
            )
        return tuple(found)


_RECORD = TypeAdapter(_Record)
_TUNING = TypeAdapter(Tuning)
_FAILURE = TypeAdapter(Failure)


def read_comparison(folder: Path | str) -> Compared:
    """A comparison's folder, finished or not.

    Args:
        folder: what `limbeck compare` wrote.

    Raises:
        RunFolderError: if it is none, a file in it is damaged, or its runs were not judged on the
            same test images; the message says which.
    """
    folder = Path(folder)
    if not (folder / _FILE).is_file():
        raise RunFolderError(
            f"{folder} holds no comparison: there is no {_FILE}; name the folder that "
            "`limbeck compare` wrote"
        )
    record = _read(folder / _FILE, _RECORD)
    records: dict[str, dict[int, RunRecord]] = {label: {} for label in record.rows}
    failures: dict[str, dict[int, Failure]] = {label: {} for label in record.rows}
    for label in record.rows:
        for seed in record.settings.seeds:
            name = f"{label}-seed{seed}"
            run, failed = folder / "runs" / name, folder / "failures" / f"{name}.json"
            if (run / "summary.json").is_file():
                records[label][seed] = read_run(run)
            elif failed.is_file():
                failures[label][seed] = _read(failed, _FAILURE)
    tuned = {label: folder / "tuning" / label / "tuned.json" for label in record.rows}
    teacher = folder / "teacher"
    names = _unique_names(record.rows)
    return Compared(
        folder=folder,
        settings=record.settings,
        facts=record.rows,
        records=records,
        failures=failures,
        rows=_rows(record.rows, records, names),
        names=names,
        tuning={label: _read(path, _TUNING) for label, path in tuned.items() if path.is_file()},
        teacher=read_run(teacher) if (teacher / "summary.json").is_file() else None,
        code=record.code,
        data=record.data,
        looks=record.looks,
        begun=record.begun,
        command=record.command,
    )


def _rows(
    facts: Mapping[str, ComparedRow],
    records: Mapping[str, Mapping[int, RunRecord]],
    names: Mapping[str, str],
) -> tuple[ComparisonRow, ...]:
    groups = {names[label]: list(runs.values()) for label, runs in records.items() if runs}
    if not groups:
        return ()
    base = [names[label] for label, row in facts.items() if row.role == "baseline"]
    kd = [names[k] for k, row in facts.items() if row.role == "method" and row.method == "kd"]
    return compare_runs(
        groups,
        baseline=next((name for name in base if name in groups), None),
        references=[
            names[label]
            for label, row in facts.items()
            if row.role == "reference" and names[label] in groups
        ],
        kd=next((name for name in kd if name in groups), None),
    )


def _unique_names(facts: Mapping[str, ComparedRow]) -> dict[str, str]:
    titles = [row.title for row in facts.values()]
    return {
        label: row.title if titles.count(row.title) == 1 else f"{row.title} ({label})"
        for label, row in facts.items()
    }


def _read(path: Path, kind: TypeAdapter[T]) -> T:
    try:
        return kind.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
        raise RunFolderError(
            f"{path} is not what a comparison writes ({reason}); was it edited, or written by "
            "another version?"
        ) from None
