"""What finished runs left behind, read from their folders and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

from limbeck.core.errors import RunFolderError

__all__ = ["EpochScore", "HeldOutScores", "RunRecord", "Score", "find_runs", "read_run"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy as a fraction in [0, 1], and the loss in nats."""

    top1: Fraction
    loss: Amount


@dataclass(frozen=True, kw_only=True)
class EpochScore:
    """The validation score of one epoch; None where there was no validation split."""

    epoch: NonNegativeInt
    val: Score | None


@dataclass(frozen=True, kw_only=True)
class HeldOutScores:
    """The one reading of the test split: the last epoch, and the one best on validation."""

    last: Score
    best_on_validation: Score | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run; see the run folder's ``summary.json``.

    Attributes:
        folder: where it lies.
        config: its resolved settings.
        num_parameters: of the deployed student.
        num_macs: multiply-accumulates of one image through it; None where not counted.
        seconds: of training, without evaluation.
        notices: what the run had to say, in its own words.
        split_hashes: of each split's images, labels and classes; empty where a run of an older
            version does not say.
        class_names: in the order of the outputs; None where they are not known.
        scores: network ("last", "best_on_validation", "teacher") to metric of
            :data:`~limbeck.metrics.info.METRICS` to value on the test split.
        teacher_seconds: the part of ``seconds`` that the teacher's forward passes took.
        peak_memory_bytes: the most that training had in use.
        deployed_bytes: of the deployed weights.
        inference_images_per_second: through what is deployed, on the run's device.
        floor_images_per_second: of the teacher's forward and a bare student step alone.
        split_sizes: images of each split.
        student_hash: of the deployed weights.
        scores_taught: whether the student's class scores were taught; else their accuracy says
            nothing.
        embedding: network ("before", "last", "teacher") to split to "linear_top1" and "knn_top1";
            empty where none was taught.
    """

    folder: Path
    config: dict[str, Any]
    version: str
    method: str
    seed: int
    student: str
    teacher: str | None
    config_hash: str
    data_hash: str
    teacher_hash: str | None = None
    num_parameters: NonNegativeInt
    num_macs: NonNegativeInt | None = None
    last: EpochScore
    best_on_validation: EpochScore | None = None
    test: HeldOutScores | None = None
    teacher_val: Score | None = None
    teacher_test: Score | None = None
    seconds: Amount
    images_per_second: Amount | None = None
    notices: tuple[str, ...] = ()
    split_hashes: dict[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    teacher_seconds: Amount | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    deployed_bytes: NonNegativeInt | None = None
    inference_images_per_second: Amount | None = None
    floor_images_per_second: Amount | None = None
    split_sizes: dict[str, NonNegativeInt] = field(default_factory=dict)
    student_hash: str = ""
    scores_taught: bool = True
    embedding: dict[str, dict[str, dict[str, Fraction]]] = field(default_factory=dict)

    @property
    def step_over_floor(self) -> float | None:
        """Time of a training step over that of its floor; None where one was not measured.

        Below 1 where a stage of the method stops early or does without the teacher, or the
        networks were compiled.
        """
        if not self.images_per_second or self.floor_images_per_second is None:
            return None
        return self.floor_images_per_second / self.images_per_second


_RECORD = TypeAdapter(RunRecord)


def read_run(folder: Path | str) -> RunRecord:
    """One finished run.

    Args:
        folder: a run folder, with ``config.json`` and ``summary.json``.

    Returns:
        Its record; keys that a newer version may have added are left out.

    Raises:
        RunFolderError: if the folder is no run, has not finished, or holds files that are not
            what a run writes; the message names every wrong field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; name a run's folder")
    if not (folder / "config.json").is_file():
        raise RunFolderError(
            f"{folder} is not a run: it has no config.json; name the folder that a run wrote"
        )
    if not (folder / "summary.json").is_file():
        raise RunFolderError(
            f"the run in {folder} has not finished: it has no summary.json; "
            f"finish it with 'limbeck resume {folder}'"
        )
    config = _read_object(folder / "config.json")
    summary = _read_object(folder / "summary.json")
    card = folder / "student.json"
    class_names = _read_object(card).get("class_names") if card.is_file() else None
    read = {"folder": folder, "config": config, "class_names": class_names}
    try:
        return _RECORD.validate_python(summary | read)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise RunFolderError(
            f"{folder / 'summary.json'} is not what a run writes ({faults}); "
            "was it edited, or written by another version?"
        ) from None


def find_runs(folder: Path | str) -> tuple[RunRecord, ...]:
    """Every run in ``folder`` and below it, in the order of their paths.

    Raises:
        RunFolderError: if there is none, or one of them has not finished: a comparison must not
            lose a seed unnoticed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; name one that holds runs")
    found = sorted(path.parent for path in folder.rglob("config.json"))
    if not found:
        raise RunFolderError(f"no run in {folder}: nothing there or below has a config.json")
    return tuple(read_run(run) for run in found)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
