"""A comparison's folder: what it was begun with, where its runs lie, what failed."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import Field, JsonValue

from limbeck.core.errors import RunFolderError, SettingsError
from limbeck.core.settings import Settings
from limbeck.methods import find_method
from limbeck.runs.compare import (
    BASELINE,
    TEACHER,
    CompareConfig,
    settings_differences,
)
from limbeck.runs.config import RunConfig, TeacherConfig
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.provenance import CodeVersion, code_differences

__all__ = [
    "COMPARISON_FILE",
    "ComparisonFolder",
    "ComparisonRecord",
    "FailedTask",
    "RowFacts",
    "check_record",
    "clear_stillborn",
    "is_tuned",
    "on_device",
    "row_facts",
    "utc_now",
]

COMPARISON_FILE = "comparison.json"
_ORPHAN_SECONDS = 10.0  # a worker whose comparison was killed ends by itself, at once


class RowFacts(Settings):
    """What a reader needs to know of a row and would have to ask the methods for.

    Attributes:
        title: what it is called.
        role: baseline, method or reference.
        method: its name.
        family: where its knowledge lies.
        chosen: settings that are not the published defaults, by dotted name.
        space: what tuning chose from: setting to low, high and "log" or "linear".
    """

    title: str
    role: str
    method: str
    family: str
    chosen: dict[str, JsonValue]
    space: dict[str, tuple[float, float, str]] = Field({})


class ComparisonRecord(Settings):
    """``comparison.json``.

    Attributes:
        settings: of all runs, resolved.
        code: that made them.
        data: label to split to the fingerprint of what its runs learn and are judged from.
        teacher_hash: of the teacher that was given; None where there is none, or it is trained
            here.
        teacher_cache: of its stored answers, where the runs learn from these.
        independent_teacher_hash: the same of the control.
        independent_teacher_cache: likewise.
        own_hashes: label to assistant to the same, of those that are finished runs' students.
        rows: label to facts.
        looks: the numbers of seeds with which the table has been made, in order. Adding seeds
            after a look makes a chance finding likelier, so it is no secret.
        begun: when, in UTC.
        command: that began it.
    """

    settings: CompareConfig
    code: CodeVersion
    data: dict[str, dict[str, str]]
    teacher_hash: str | None = None
    teacher_cache: str | None = None
    independent_teacher_hash: str | None = None
    independent_teacher_cache: str | None = None
    own_hashes: dict[str, dict[str, str]] = Field({})
    rows: dict[str, RowFacts] = Field({})
    looks: tuple[int, ...] = ()
    begun: str = ""
    command: tuple[str, ...] = ()


class FailedTask(Settings):
    """``failures/NAME.json``: a run that ended without a result.

    Attributes:
        task: its name, such as "kd-seed0".
        reason: in a sentence.
        traceback: of the exception, or the last lines of what its process printed.
        when: in UTC.
    """

    task: str
    reason: str
    traceback: str
    when: str

    @classmethod
    def of(cls, task: str, error: BaseException) -> FailedTask:
        """What ``error`` says of the task it ended."""
        return cls(
            task=task,
            reason=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
            when=utc_now(),
        )


class ComparisonFolder:
    """Paths inside a comparison's folder, and its record."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def file(self) -> Path:
        """There once the comparison has begun."""
        return self.path / COMPARISON_FILE

    @property
    def teacher(self) -> Path:
        """The run folder of a teacher that is trained here."""
        return self.path / TEACHER

    @property
    def runs(self) -> Path:
        """The folder of all run folders."""
        return self.path / "runs"

    def run(self, label: str, seed: int) -> Path:
        """One run's folder."""
        return self.runs / f"{label}-seed{seed}"

    def tuning(self, label: str) -> Path:
        """The folder of one row's trials."""
        return self.path / "tuning" / label

    def tuned(self, label: str) -> Path:
        """What its trials chose; there once all of them are done."""
        return self.tuning(label) / "tuned.json"

    def failure(self, task: str) -> Path:
        """Why a task failed; there while it has not succeeded."""
        return self.path / "failures" / f"{task}.json"

    def log(self, task: str) -> Path:
        """What a task's own process printed."""
        return self.path / "logs" / f"{task}.log"

    @property
    def exists(self) -> bool:
        """Whether a comparison has begun here."""
        return self.file.exists()

    def read(self) -> ComparisonRecord:
        """The record.

        Raises:
            RunFolderError: if no comparison is here, or its file is damaged.
        """
        if not self.exists:
            raise RunFolderError(
                f"{self.path} holds no comparison: there is no {COMPARISON_FILE}; name the folder "
                "that `limbeck compare` wrote"
            )
        try:
            return ComparisonRecord.read(read_json(self.file))
        except SettingsError as error:
            raise RunFolderError(
                f"{self.file} is not what a comparison writes:\n{error}\nWas it edited, or "
                "written by another version?"
            ) from None

    def check_free(self) -> None:
        """Refuse a folder that holds something else than a comparison."""
        if not self.exists:
            RunFolder(self.path).check_free()

    def begin(self, record: ComparisonRecord) -> None:
        """Write the record of a comparison that starts here."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(record.changed(begun=utc_now(), command=_command()))

    def write(self, record: ComparisonRecord) -> None:
        """Replace the record in one step."""
        RunFolder(self.path).write_json(self.file, record.plain())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; and wait for workers whose own comparison was killed.

        Raises:
            RunFolderError: if another process is at work here.
        """
        with RunFolder(self.path).locked():
            for lock in (*self.path.glob("*/.lock"), *self.path.glob("*/*/.lock"),
                         *self.path.glob("tuning/*/*/.lock")):  # fmt: skip
                with suppress(Timeout), FileLock(lock, timeout=_ORPHAN_SECONDS):
                    pass  # who holds it after that is named when the run is taken up
            yield

    # -- failures --------------------------------------------------------------------------

    def fail(self, failed: FailedTask) -> None:
        """Record a failure."""
        path = self.failure(failed.task)
        path.parent.mkdir(exist_ok=True)
        RunFolder(self.path).write_json(path, failed.plain())

    def clear_failure(self, task: str) -> None:
        """Forget an earlier failure of a task that starts again or has succeeded."""
        self.failure(task).unlink(missing_ok=True)

    def read_failure(self, task: str) -> FailedTask | None:
        """Why a task failed, or None."""
        path = self.failure(task)
        return FailedTask.read(read_json(path)) if path.exists() else None

    # -- settings of single runs ------------------------------------------------------------

    def run_config(
        self, config: CompareConfig, label: str, seed: int, *, device: str | None = None
    ) -> RunConfig:
        """The settings of one run, with what tuning chose for it.

        Raises:
            RunFolderError: if its row is to be tuned and has not been.
        """
        tuned: Mapping[str, JsonValue] | None = None
        if is_tuned(config, label):
            tuned = read_json(self.tuned(label))["values"]
        made = config.run_config(label, seed, teacher_run=str(self.teacher), tuned=tuned)
        return on_device(made, device)

    def teacher_config(self, config: CompareConfig) -> TeacherConfig | None:
        """The teacher, wherever it comes from."""
        if config.teacher_training is not None:
            return TeacherConfig(run=str(self.teacher))
        return config.teacher


def is_tuned(config: CompareConfig, label: str) -> bool:
    """Whether a row's settings are chosen by trials; a reference's are not."""
    return config.tuning is not None and config.contenders[label].role != "reference"


def on_device(config: RunConfig, device: str | None) -> RunConfig:
    """The same run on another device."""
    if device is None:
        return config
    return config.changed(train=config.train.changed(device=device))


def row_facts(config: CompareConfig, spaces: Mapping[str, Any]) -> dict[str, RowFacts]:
    """Facts of every row.

    Args:
        config: the comparison.
        spaces: label to what tuning chooses from.
    """
    return {
        label: RowFacts(
            title=row.title or label,
            role=row.role,
            method=row.name,
            family=find_method(row.name).family,
            chosen=row.chosen(),
            space=spaces.get(label, {}),
        )
        for label, row in config.contenders.items()
    }


def check_record(then: ComparisonRecord, now: ComparisonRecord, where: Path) -> None:
    """Refuse to add runs to those of other settings, another code version, data or teacher.

    Raises:
        RunFolderError: naming all that differs.
    """
    found = settings_differences(then.settings, now.settings)
    found += code_differences(then.code, now.code)
    for label in then.data.keys() & now.data.keys():
        splits = then.data[label].keys() | now.data[label].keys()
        changed = sorted(s for s in splits if then.data[label].get(s) != now.data[label].get(s))
        if changed:
            whose = "" if label == BASELINE else f" of {label}"
            found.append(f"the {' and '.join(changed)} images, labels or classes{whose}")
            if label == BASELINE:
                break  # the other rows have the same
    for name in ("teacher", "independent_teacher"):
        was, is_now = (getattr(record, f"{name}_hash") for record in (then, now))
        if was != is_now and f"{name} " not in " ".join(found):
            found.append(f"the weights of the {name.replace('_', ' ')}")
        was, is_now = (getattr(record, f"{name}_cache") for record in (then, now))
        if was != is_now:
            found.append(f"the cached logits of the {name.replace('_', ' ')}")
    for label in then.own_hashes.keys() & now.own_hashes.keys():
        was, is_now = then.own_hashes[label], now.own_hashes[label]
        changed = [name for name in was if was[name] != is_now.get(name)]
        if changed and f".{label}." not in " ".join(found):
            found.append(f"the weights of {label}'s {', '.join(changed)}")
    if found:
        raise RunFolderError(
            f"{where} holds runs made with something else; what differs: {'; '.join(found)}. "
            "Put it back as it was, or compare in another folder (--output)"
        )


def clear_stillborn(folder: Path) -> None:
    """Take away what a run left that was killed while its folder was being made.

    Raises:
        RunFolderError: if the folder holds anything that a run does not write at that point.
    """
    run = RunFolder(folder)
    if not folder.exists() or run.config.exists():
        return
    strangers = [
        path.name
        for path in folder.iterdir()
        if path.name != "environment.json" and not path.name.startswith(".")
    ]
    if strangers:
        raise RunFolderError(
            f"{folder} holds {strangers[0]!r} and no run; it belongs to the comparison, so move "
            "what is in it elsewhere"
        )
    with run.locked():
        pass  # nobody is making it at this moment
    shutil.rmtree(folder)


def utc_now() -> str:
    """The time, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def _command() -> tuple[str, ...]:
    return (Path(sys.argv[0]).name, *sys.argv[1:])
