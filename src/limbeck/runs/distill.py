"""``limbeck.distill``: one call from networks and data to a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.utils.data import Dataset

from limbeck.core.errors import SettingsError
from limbeck.core.normalization import Normalization
from limbeck.data import DataBundle, build_data, bundle_from_datasets
from limbeck.engine.recorder import Observer
from limbeck.models import is_vision_name, load_weights
from limbeck.runs.caching import open_teacher
from limbeck.runs.config import RunConfig, TeacherConfig
from limbeck.runs.execute import Parts, execute, resume
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.networks import (
    NamedNetwork,
    build_own_networks,
    build_student,
    build_teacher,
    join_teachers,
    take_student,
    take_teacher,
)
from limbeck.runs.summary import RunSummary
from limbeck.teacher_cache import CachedTeacher

__all__ = ["distill"]

_OneTeacher: TypeAlias = str | nn.Module


def distill(
    *,
    student: str | nn.Module,
    teacher: _OneTeacher | Sequence[_OneTeacher] | None,
    data: str | DataBundle | tuple[Dataset[Any], ...],
    output: str | Path,
    method: str = "kd",
    seed: int = 0,
    student_normalization: Normalization | None = None,
    teacher_normalization: Normalization | Sequence[Normalization | None] | None = None,
    teacher_checkpoint: str | Path | Sequence[str | Path | None] | None = None,
    settings: dict[str, Any] | None = None,
    observer: Observer | None = None,
) -> RunSummary:
    """Distil ``teacher`` into ``student`` on ``data`` and write a run folder.

    Args:
        student: a model's name, or a module, which is trained in place.
        teacher: the folder of a finished run; a model's name, with ``teacher_checkpoint`` or
            ``settings={"teacher": {"pretrained": True}}``; a module, which is frozen in place;
            or None, with ``method="ce"`` or "dml". A list of these for several.
        data: "digits"; a :class:`~limbeck.data.DataBundle`; or (train, test) or
            (train, val, test) datasets of (image, label), images as PIL or as tensors in [0, 1].
        output: the run folder to make. If it holds this very run unfinished, it is continued.
        method: its name; its settings go under ``settings["method"]``.
        seed: of everything random.
        student_normalization: None takes the data's own mean and deviation.
        teacher_normalization: None takes that of the teacher's run, or the data's; a list for
            several teachers, in their order.
        teacher_checkpoint: weights of a teacher given by name; a list likewise.
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
    fields["teacher"] = _teachers_fields(
        teacher, teacher_checkpoint, teacher_normalization, fields.get("teacher")
    )
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


def _is_several(teacher: _OneTeacher | Sequence[_OneTeacher] | None) -> bool:
    return isinstance(teacher, Sequence) and not isinstance(teacher, str)


def _teachers_fields(
    teacher: Any,  # noqa: ANN401  (as `distill` takes it)
    checkpoint: Any,  # noqa: ANN401
    normalization: Any,  # noqa: ANN401
    further: dict[str, Any] | None,
) -> dict[str, Any] | list[dict[str, Any]] | None:
    if not _is_several(teacher):
        return _teacher_fields(teacher, checkpoint, normalization, further)
    if further:
        raise SettingsError(
            f"settings['teacher'] is of one teacher, and there are {len(teacher)}; give lists of "
            "teachers, teacher_checkpoint and teacher_normalization, or a config with all of them"
        )
    checkpoints = _for_each("teacher_checkpoint", checkpoint, len(teacher))
    normalizations = _for_each("teacher_normalization", normalization, len(teacher))
    return [
        _teacher_fields(one, weights, own, None) or {}
        for one, weights, own in zip(teacher, checkpoints, normalizations, strict=True)
    ]


def _for_each(name: str, given: Any, count: int) -> Sequence[Any]:  # noqa: ANN401
    if given is None:
        return [None] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        raise SettingsError(
            f"{name} must be a list with an entry, or None, for each of the {count} teachers; got "
            f"{given!r}"
        )
    return given


def _teacher_fields(
    teacher: _OneTeacher | None,
    checkpoint: str | Path | None,
    normalization: Normalization | None,
    further: dict[str, Any] | None,
) -> dict[str, Any] | None:
    if teacher is None and further is None:
        return None
    fields = dict(further or {})
    if normalization is not None:
        fields["normalization"] = normalization
    if teacher is None:
        return fields
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
    teacher: _OneTeacher | Sequence[_OneTeacher] | None,
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
    master: NamedNetwork | CachedTeacher | None = None
    if config.teacher is not None and isinstance(teacher, Sequence) and _is_several(teacher):
        pairs = zip(teacher, config.teacher.members, strict=True)
        master = join_teachers([_member(one, settings, bundle) for one, settings in pairs])
    elif config.teacher is not None:
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
    own = build_own_networks(config, bundle, typed=(config.student.name,))
    return Parts(bundle, pupil, master, own=own)


def _member(teacher: _OneTeacher, config: TeacherConfig, bundle: DataBundle) -> NamedNetwork:
    if isinstance(teacher, nn.Module):
        return take_teacher(teacher, config, bundle)
    return build_teacher(config, bundle, typed=(teacher,))


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
