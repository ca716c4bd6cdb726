"""The pieces of a comparison: train the teacher, tune a row, make a run; each in one process.

A piece can be carried out again at any time: what is finished is read, what was interrupted goes
on, and what is missing starts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.core.errors import NonFiniteError, RunFolderError
from limbeck.data import DataBundle, build_data
from limbeck.data.images import joint_fingerprint
from limbeck.engine.loop import Interruption, drive
from limbeck.engine.recorder import Observer
from limbeck.runs.caching import open_teacher
from limbeck.runs.cohort import together
from limbeck.runs.compare import TEACHER, CompareConfig, run_differences
from limbeck.runs.comparison import (
    ComparisonFolder,
    ComparisonRecord,
    clear_stillborn,
    is_tuned,
    on_device,
)
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import (
    Asking,
    Parts,
    asking_resumed,
    asking_run,
    prepare_parts,
)
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import NamedNetwork
from limbeck.runs.provenance import sources_hash
from limbeck.runs.summary import RunSummary, read_summary
from limbeck.runs.tuning import Tuned, search
from limbeck.teacher_cache import CachedTeacher

__all__ = [
    "PreparedData",
    "Task",
    "carry_out",
    "carry_out_together",
    "check_data",
    "check_finished",
    "is_done",
    "run_or_resume",
    "tasks_of",
]


@dataclass(frozen=True)
class Task:
    """One piece.

    Attributes:
        kind: what it is.
        label: of the row; None for the teacher.
        seed: of a run; None for the others.
    """

    kind: Literal["teacher", "tune", "run"]
    label: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Unique within a comparison, and fit for a file's name."""
        match self.kind:
            case "teacher":
                return TEACHER
            case "tune":
                return f"tune-{self.label}"
            case "run":
                return f"{self.label}-seed{self.seed}"

    def text(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Task:
        """Undo :meth:`text`."""
        return cls(**json.loads(text))

    def waits_for(self, config: CompareConfig) -> tuple[Task, ...]:
        """The tasks that must have succeeded before this one can start."""
        if self.label is None:
            return ()
        found = []
        row = config.contenders[self.label]
        if config.teacher_training is not None and (row.needs_teacher or self.kind == "run"):
            found.append(Task("teacher"))
        if self.kind == "run" and is_tuned(config, self.label):
            found.append(Task("tune", self.label))
        return tuple(found)


def tasks_of(config: CompareConfig) -> tuple[Task, ...]:
    """All of a comparison, in the order in which one process carries them out.

    Seed by seed, all rows at each, so that what is there early can be compared.
    """
    teacher = [Task("teacher")] if config.teacher_training is not None else []
    tuning = [Task("tune", label) for label in config.contenders if is_tuned(config, label)]
    runs = [Task("run", label, seed) for seed in config.seeds for label in config.contenders]
    return (*teacher, *tuning, *runs)


def is_done(folder: ComparisonFolder, task: Task) -> bool:
    """Whether a task has left its result."""
    match task.kind:
        case "teacher":
            return RunFolder(folder.teacher).summary.exists()
        case "tune":
            assert task.label is not None
            return folder.tuned(task.label).exists()
        case "run":
            assert task.label is not None
            assert task.seed is not None
            return RunFolder(folder.run(task.label, task.seed)).summary.exists()


class PreparedData:
    """The data of a comparison's runs, each set read once by this process."""

    def __init__(self) -> None:
        self._found: dict[str, DataBundle] = {}

    def get(self, config: RunConfig) -> DataBundle:
        """What a run's settings name."""
        key = json.dumps([config.data.plain(), config.seed if _splits_by_seed(config) else None])
        if key not in self._found:
            self._found[key] = build_data(config.data, seed=config.seed)
        return self._found[key]


def carry_out(
    folder: ComparisonFolder,
    task: Task,
    *,
    device: str | None = None,
    typed: Collection[str] = (),
    data: PreparedData | None = None,
    observer: Observer | None = None,
) -> RunSummary | Tuned:
    """Do one piece of a comparison, or what is missing of it.

    Args:
        folder: a comparison that has begun, held by whoever calls.
        task: which piece; what it waits for is done.
        device: for its runs; None takes the settings' own.
        typed: names of models that the user gave here and now; these alone may run code.
        data: what is in memory already.
        observer: told of each run's progress.

    Raises:
        LimbeckError: for anything the user can mend.
        InterruptedRun: after Ctrl-C or SIGTERM, with the state saved.
    """
    record = folder.read()
    config = record.settings
    data = data or PreparedData()
    if task.kind == "teacher":
        assert config.teacher_training is not None
        run = on_device(config.teacher_training, device)
        parts = prepare_parts(run, typed=typed, data=data.get(run))
        return run_or_resume(run, folder.teacher, parts, observer)
    assert task.label is not None
    if task.kind == "tune":
        return _tune(folder, config, task.label, device, typed, data, observer)
    made = _prepare_run(folder, record, task, device=device, typed=typed, data=data)
    return run_or_resume(made.config, made.place, made.parts, observer)


def carry_out_together(
    folder: ComparisonFolder,
    tasks: Sequence[Task],
    *,
    device: str | None = None,
    typed: Collection[str] = (),
    data: PreparedData | None = None,
    observer: Observer | None = None,
) -> Iterator[tuple[Task, RunSummary | BaseException]]:
    """Make several runs of one seed in turns, with one pass of their teacher for all.

    Args:
        folder: a comparison that has begun, held by whoever calls.
        tasks: runs that have a teacher and differ in method and optimiser alone.
        device: for all; None takes the settings' own.
        typed: names of models that the user gave here and now; these alone may run code.
        data: what is in memory already.
        observer: told of the first run's progress.

    Yields:
        A task with its summary, or with what ended it, as soon as it has ended.
    """
    record, data = folder.read(), data or PreparedData()
    watch, teacher = Interruption(), None
    asking: dict[str, Asking] = {}
    for task in tasks:
        try:
            run = _prepare_run(
                folder, record, task, device=device, typed=typed, data=data, teacher=teacher
            )
        except Exception as error:  # noqa: BLE001  (one run's failure is not the others')
            yield task, error
            continue
        teacher = run.parts.teacher
        asking[task.name] = _asking(run.config, run.place, run.parts, observer, watch)
        observer = None
    by_name = {task.name: task for task in tasks}
    for name, ended in together(asking, watch):
        yield by_name[name], ended


@dataclass(frozen=True)
class _PreparedRun:
    """A run that can be made."""

    config: RunConfig
    place: Path
    parts: Parts


def _prepare_run(
    folder: ComparisonFolder,
    record: ComparisonRecord,
    task: Task,
    *,
    device: str | None,
    typed: Collection[str],
    data: PreparedData,
    teacher: NamedNetwork | CachedTeacher | None = None,
) -> _PreparedRun:
    config = record.settings
    assert task.label is not None
    assert task.seed is not None
    run = folder.run_config(config, task.label, task.seed, device=device)
    parts = prepare_parts(run, typed=typed, data=data.get(run), teacher=teacher)
    check_data(record, task.label, parts.data)
    parts = dataclasses.replace(parts, beside=_beside(folder, config, parts, typed))
    return _PreparedRun(run, folder.run(task.label, task.seed), parts)


def check_finished(folder: ComparisonFolder, record: ComparisonRecord, task: Task) -> None:
    """Refuse a finished run that is not this comparison's, by its settings and its hashes.

    Raises:
        RunFolderError: naming what differs.
    """
    config = record.settings
    if task.kind == "teacher":
        assert config.teacher_training is not None
        _check_same_run(folder.teacher, config.teacher_training)
    elif task.kind == "run":
        assert task.label is not None
        assert task.seed is not None
        teacher = cache = None
        if config.contenders[task.label].needs_teacher:
            teacher, cache = record.teacher_hash, record.teacher_cache
            if config.teacher_training is not None:
                teacher = read_summary(folder.teacher).student_hash
        _check_same_run(
            folder.run(task.label, task.seed),
            folder.run_config(config, task.label, task.seed),
            ("data_hash", joint_fingerprint(record.data[task.label])),
            ("teacher_hash", teacher),
            ("teacher_cache", cache),
        )


def check_data(record: ComparisonRecord, label: str, data: DataBundle) -> None:
    """Refuse data that have changed since the comparison began.

    Raises:
        RunFolderError: naming the splits.
    """
    begun, now = record.data[label], data.split_fingerprints()
    changed = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
    if changed:
        raise RunFolderError(
            f"the {' and '.join(changed)} images, labels or classes of {label} are not those that "
            "the comparison began with; put them back, or compare in another folder"
        )


def _beside(
    folder: ComparisonFolder, config: CompareConfig, parts: Parts, typed: Collection[str]
) -> dict[str, NamedNetwork | CachedTeacher]:
    """Networks whose answers are kept for the sake of fidelity: the baseline's, too."""
    found: dict[str, NamedNetwork | CachedTeacher] = {}
    if parts.teacher is None and config.reads_teacher_scores:
        run = folder.teacher_config(config)
        assert run is not None
        found["teacher"] = open_teacher(run, parts.data, typed=typed)
    if config.independent_teacher is not None:
        found["independent"] = open_teacher(config.independent_teacher, parts.data, typed=typed)
    return found


def _tune(
    folder: ComparisonFolder,
    config: CompareConfig,
    label: str,
    device: str | None,
    typed: Collection[str],
    data: PreparedData,
    observer: Observer | None,
) -> Tuned:
    """All trials of one row, none of which is given the test images."""

    def run_trial(number: int, run: RunConfig) -> RunSummary:
        run = on_device(run, device)
        place = folder.tuning(label) / f"trial{number}"
        failed = place.with_name(f"trial{number}-failed.json")
        if failed.exists():
            raise NonFiniteError(read_json(failed)["reason"])
        without_test = dataclasses.replace(data.get(run), test=None)
        try:
            parts = prepare_parts(run, typed=typed, data=without_test)
            return run_or_resume(run, place, parts, observer)
        except NonFiniteError as error:
            RunFolder(place).write_json(failed, {"reason": str(error)})
            raise

    tuned = search(config, label, run_trial, teacher_run=str(folder.teacher))
    RunFolder(folder.tuning(label)).write_json(folder.tuned(label), tuned.plain())
    return tuned


def run_or_resume(
    config: RunConfig, place: Path, parts: Parts, observer: Observer | None
) -> RunSummary:
    """Start a run, go on with it, or read its summary; but never another run's.

    Raises:
        RunFolderError: if ``place`` holds another run, or one of another version of the code.
        LimbeckError: for anything else the user can mend.
    """
    return drive(_asking(config, place, parts, observer))


def _asking(
    config: RunConfig,
    place: Path,
    parts: Parts,
    observer: Observer | None,
    watch: Interruption | None = None,
) -> Asking:
    """The same step by step."""
    clear_stillborn(place)
    folder = RunFolder(place)
    if folder.config.exists():
        _check_same_run(place, config)
        return (yield from asking_resumed(place, parts, config, observer=observer, watch=watch))
    return (yield from asking_run(config, place, parts, observer=observer, watch=watch))


def _check_same_run(place: Path, config: RunConfig, *hashes: tuple[str, str | None]) -> None:
    """Refuse a folder that holds another run, or one of another version of the code.

    With ``hashes``, the summary must have these values under these names.
    """
    folder = RunFolder(place)
    differing = run_differences(RunConfig.read(read_json(folder.config)), config)
    if read_json(place / "environment.json").get("sources") != sources_hash():
        differing.append("limbeck's own files")
    if hashes:
        summary = read_json(folder.summary)
        differing += [name for name, value in hashes if summary.get(name) != value]
    if differing:
        raise RunFolderError(
            f"{place} holds another run than the one wanted here; what differs: "
            f"{'; '.join(differing)}. Move it elsewhere"
        )


def _splits_by_seed(config: RunConfig) -> bool:
    return config.data.split_seed is None
