"""``limbeck.distill``: one call from networks and data to a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from limbeck.core.errors import SettingsError
from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, build_data, bundle_from_datasets
from limbeck.engine.recorder import Observer
from limbeck.models import is_vision_name, load_weights
from limbeck.runs.caching import open_teacher
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import Parts, execute, resume
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import build_student, take_student, take_teacher
from limbeck.runs.summary import RunSummary

__all__ = ["distill"]


def distill(
    *,
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    data: str | DataBundle | tuple[Dataset[Any], ...],
    output: str | Path,
    method: str = "kd",
    seed: int = 0,
    student_normalization: Normalization | None = None,
    teacher_normalization: Normalization | None = None,
    teacher_checkpoint: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    observer: Observer | None = None,
) -> RunSummary:
    """Distil ``teacher`` into ``student`` on ``data`` and write a run folder.

    Args:
        student: a model's name, or a module, which is trained in place.
        teacher: the folder of a finished run; a model's name, with ``teacher_checkpoint`` or
            ``settings={"teacher": {"pretrained": True}}``; a module, which is frozen in place;
            or None, with ``method="ce"``.
        data: "digits"; a :class:`~limbeck.data.DataBundle`; or (train, test) or
            (train, val, test) datasets of (image, label), images as PIL or as tensors in [0, 1].
        output: the run folder to make. If it holds this very run unfinished, it is continued.
        method: its name; its settings go under ``settings["method"]``.
        seed: of everything random.
        student_normalization: None takes the data's own mean and deviation.
        teacher_normalization: None takes that of the teacher's run, or the data's.
        teacher_checkpoint: weights of a teacher given by name.
        settings: further fields of :class:`~limbeck.RunConfig`, such as
            ``{"schedule": {"epochs": 30, "sched": "cosine"}}``.
        observer: told of progress; None is silent.

    Returns:
        What the run found: accuracies in [0, 1], times in seconds.

    Raises:
        LimbeckError: for anything the caller can mend; nothing is left behind before training.
    """
    fields: dict[str, Any] = {"seed": seed, **(settings or {})}
    fields["method"] = {**fields.get("method", {}), "name": method}
    name = student if isinstance(student, str) else _name(student)
    fields["student"] = {**fields.get("student", {}), "name": name}
    if student_normalization is not None:
        fields["student"]["normalization"] = student_normalization
    fields["teacher"] = _teacher_fields(teacher, teacher_checkpoint, fields.get("teacher"))
    if teacher_normalization is not None and fields["teacher"] is not None:
        fields["teacher"]["normalization"] = teacher_normalization
    dataset = data if isinstance(data, str) else "python"
    fields["data"] = {**fields.get("data", {}), "dataset": dataset}
    config = RunConfig(**fields)
    parts = _parts(config, student, teacher, data)
    folder = RunFolder(output)
    if folder.config.exists():
        _check_same(folder, config)
        summary = resume(output, parts, config, observer=observer)
        if isinstance(student, nn.Module):  # of a run that was finished, it has learnt nothing yet
            load_weights(student, folder.student)
        return summary
    return execute(config, output, parts, observer=observer)


def _name(network: nn.Module) -> str:
    return f"python:{type(network).__name__}"


def _teacher_fields(
    teacher: str | nn.Module | None,
    checkpoint: str | Path | None,
    further: dict[str, Any] | None,
) -> dict[str, Any] | None:
    if teacher is None:
        return further
    fields = dict(further or {})
    if isinstance(teacher, nn.Module):
        fields["name"] = _name(teacher)
    elif checkpoint is not None:
        fields |= {"name": teacher, "checkpoint": str(checkpoint)}
    elif fields.get("pretrained") or is_vision_name(teacher):
        fields["name"] = teacher
    else:
        fields["run"] = teacher
    return fields


def _parts(
    config: RunConfig,
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    data: str | DataBundle | tuple[Dataset[Any], ...],
) -> Parts:
    """What the settings name, made; what was passed as an object, taken as it is."""
    if isinstance(data, tuple):
        bundle = bundle_from_datasets(data, config.data, seed=config.seed)
    elif isinstance(data, DataBundle):
        bundle = data
    else:
        bundle = build_data(config.data, seed=config.seed)
    if isinstance(student, nn.Module):
        pupil = take_student(student, config.student, bundle, seed=config.seed)
    else:
        pupil = build_student(config.student, bundle, seed=config.seed, typed=(student,))
    master = None
    if config.teacher is not None:
        passed = None
        if isinstance(teacher, nn.Module):
            passed = take_teacher(teacher, config.teacher, bundle)
        master = open_teacher(
            config.teacher,
            bundle,
            typed=(str(teacher),),
            network=passed,
            scores=config.reads_teacher_scores,
        )
    return Parts(bundle, pupil, master)


def _check_same(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to continue a run that other settings began."""
    begun = RunConfig.read(read_json(folder.config))
    if begun.hash() != config.hash():
        old, new = begun.plain(), config.plain()
        different = [name for name in new if old.get(name) != new[name]]
        raise SettingsError(
            f"{folder.path} holds a run with other settings ({', '.join(different)} differ); "
            "choose another folder"
        )
