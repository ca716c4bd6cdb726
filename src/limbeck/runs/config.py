"""The settings of a whole run: what ``config.json`` holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import (
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from limbeck.core.normalization import Normalization
from limbeck.core.settings import Settings
from limbeck.data.config import DataConfig
from limbeck.engine.config import TrainConfig
from limbeck.engine.optim import OptimConfig, ScheduleConfig
from limbeck.methods import METHODS, find_method
from limbeck.methods.base import MethodConfig, Stage, several_refused

__all__ = [
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "check_logits_suffice",
    "resolved_method",
]


def resolved_method(method: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A method's name and all its settings, checked, with the defaults in place.

    Raises:
        ValueError: if there is no such method, or its settings are wrong.
    """
    settings = dict(method)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        # pydantic takes a ValueError alone
        raise ValueError("needs the method's name, as in {'name': 'kd'}")  # noqa: TRY004
    try:
        entry = find_method(name)
    except KeyError as error:
        raise ValueError(str(error)) from None
    for given in ("assistants", "peers"):
        if given in settings and given not in entry.config.model_fields:
            takers = [n for n, other in METHODS.items() if given in other.config.model_fields]
            raise ValueError(
                f"method {name!r} takes no {given}; those that do: {', '.join(takers)}"
            )
    config = entry.config.read(settings)
    return {"name": name, **config.plain()}


def check_logits_suffice(method: str, stages: Sequence[Stage]) -> None:
    """Refuse a method whose steps read more of a teacher than the logits that a cache holds.

    Raises:
        ValueError: naming the method and what to do.
    """
    if all(stage.method.needs(stage.config).logits_suffice for stage in stages):
        return
    raise ValueError(
        f"method {method!r} reads its teacher's features in every step, and a cache holds logits "
        "alone; give the teacher itself (--teacher), or learn from the cache by a method of "
        "outputs, such as kd or dkd (`limbeck methods` lists them)"
    )


class StudentConfig(Settings):
    """The network that learns.

    Attributes:
        name: a model's name, ``timm/NAME`` and ``torchvision/NAME`` among them;
            ``file.py:function`` where the user names it; ``python:CLASS`` stands for a module
            passed in Python.
        pretrained: start from the weights that timm or torchvision publish.
        initial_checkpoint: weights to start from: a file of exactly this network, or the folder
            of a finished run. A classifier of another number of classes stays fresh.
        new_head: the classifier stays fresh in any case.
        freeze: names of layers or parameters, with ``*`` for any text, that do not train;
            batch-norm statistics in them rest too.
        img_size: side in pixels that the network is fed; None takes what it is made for, or what
            there is.
        in_chans: channels that it takes; None takes the data's.
        model_kwargs: further arguments of timm's or torchvision's function, as ``patch_size``.
        normalization: its own; None takes that of timm or torchvision, or the data's.
    """

    name: str
    pretrained: bool = False
    initial_checkpoint: str | None = None
    new_head: bool = False
    freeze: tuple[str, ...] = ()
    img_size: PositiveInt | None = None
    in_chans: PositiveInt | None = None
    model_kwargs: dict[str, JsonValue] = Field({})
    normalization: Normalization | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.initial_checkpoint is not None:
            raise ValueError("give either pretrained or initial_checkpoint: one start")
        if self.new_head and not self.pretrained and self.initial_checkpoint is None:
            raise ValueError("new_head is for weights to start from; without any, all is new")
        return self


class TeacherConfig(Settings):
    """The network that teaches: a finished run, or a model and its weights; or what it once said.

    In place of these fields a list may stand, of the fields of each of several teachers.

    Attributes:
        cache: the folder of its logits for the run's images, as ``limbeck cache`` makes it; the
            network then need not exist. If it is named, too, the cache must be of this one.
        run: the folder of a finished run, whose student becomes the teacher.
        name: a model's name; ``python:CLASS`` stands for a module passed in Python.
        checkpoint: the weights of ``name``.
        pretrained: ``name`` with the weights that timm or torchvision publish.
        class_map: which of its classes are the data's, where it has others: its class for each
            class of the data, in order; or a JSON file of ``{class name: number}``.
        img_size: side in pixels that it is fed; None takes what it was made or trained for.
        in_chans: channels that it takes; None takes those of its weights, or the data's.
        model_kwargs: further arguments of timm's or torchvision's function.
        normalization: its own; None takes the run's, that of timm or torchvision, or the data's.
        members: several teachers, each with fields of its own, in place of all these.
    """

    cache: str | None = None
    run: str | None = None
    name: str | None = None
    checkpoint: str | None = None
    pretrained: bool = False
    class_map: tuple[NonNegativeInt, ...] | str | None = None
    img_size: PositiveInt | None = None
    in_chans: PositiveInt | None = None
    model_kwargs: dict[str, JsonValue] = Field({})
    normalization: Normalization | None = None
    members: tuple[TeacherConfig, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _list_is_several(cls, value: Any) -> Any:  # noqa: ANN401  (not yet checked)
        return {"members": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _several_are_several(self) -> Self:
        beside = self.model_dump(exclude_defaults=True, exclude={"members"})
        if self.members and beside:
            raise ValueError(
                f"{', '.join(beside)} cannot be for several teachers at once; give each its own, "
                "inside members"
            )
        if len(self.members) == 1:
            raise ValueError("several teachers are two at least, got one; give it without a list")
        if any(member.members for member in self.members):
            raise ValueError("a member is one teacher; name all of them in one list")
        if 0 < sum(member.cache is not None for member in self.members) < len(self.members):
            raise ValueError(
                "some of the teachers have a cache of their logits and some have none; give one "
                "for each, or none"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_known(self) -> Self:
        if self.members:
            return self
        if self.run is None and self.name is None and self.cache is not None:
            given = self.model_fields_set - {"cache"}
            of_the_network = sorted(name for name in given if getattr(self, name))
            if of_the_network:
                raise ValueError(
                    f"the cache alone was given, and no network that {', '.join(of_the_network)} "
                    "could be of; leave that out, or name the teacher as well"
                )
            return self
        if (self.run is None) == (self.name is None):
            raise ValueError("give either run, or name and checkpoint; or a cache of its logits")
        if self.pretrained and (self.run is not None or self.checkpoint is not None):
            raise ValueError("give one source of weights: run, checkpoint or pretrained")
        passed_in = self.name is not None and self.name.startswith("python:")
        weights = self.pretrained or self.checkpoint is not None or passed_in
        if self.name is not None and not weights:
            raise ValueError(
                f"teacher {self.name!r} needs its weights (--teacher-checkpoint FILE), or the "
                "published ones of timm and torchvision (--teacher-pretrained): a random teacher "
                "teaches nothing"
            )
        return self

    @property
    def is_cached(self) -> bool:
        """Whether it answers from a cache of its logits, or each of several does."""
        return self.cache is not None or any(member.is_cached for member in self.members)


class RunConfig(Settings):
    """Everything a run depends on; the same settings and seed give the same run.

    Attributes:
        seed: of the students' initial weights, the order, the augmentation, and the splits
            where they have no seed of their own.
        data: source, splits, labels, augmentation.
        student: the network that learns.
        teacher: the network that teaches, or several; None for a method without one.
        method: its ``name`` and settings.
        optim: optimiser.
        schedule: epochs and learning rate.
        train: batch, precision, device, checkpoints.
    """

    seed: int = 0
    data: DataConfig = DataConfig()
    student: StudentConfig
    teacher: TeacherConfig | None = None
    method: dict[str, JsonValue] = Field({"name": "kd"})
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("method", mode="after")
    @classmethod
    def _method_is_known(cls, method: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return resolved_method(method)

    @model_validator(mode="after")
    def _teacher_matches_method(self) -> Self:
        stages = self.stages()
        of_teacher = [stage for stage in stages if stage.uses_run_teacher]
        if self.teacher is None and not all(stage.is_finished for stage in of_teacher):
            raise ValueError(f"method {self.method_name!r} needs a teacher (--teacher)")
        if self.teacher is not None and not of_teacher:
            raise ValueError(
                f"method {self.method_name!r} uses no teacher; leave the teacher out, or choose a "
                "method that has one (`limbeck methods`)"
            )
        if self.teacher is not None and self.teacher.is_cached:
            check_logits_suffice(self.method_name, stages)
        count = len(self.teacher.members) if self.teacher is not None else 0
        if count and any(stage.method.needs(stage.config).one_teacher for stage in stages):
            raise ValueError(several_refused(f"method {self.method_name!r}", count))
        own = [stage for stage in stages if stage.student is None]
        if self.schedule.epochs < len(own):
            raise ValueError(
                f"method {self.method_name!r} has {len(own)} stages and needs at least "
                f"as many epochs; got {self.schedule.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _further_networks_fit(self) -> Self:
        for name, wanted in find_method(self.method_name).required.items():
            if not getattr(self.method_config, name):
                raise ValueError(f"method {self.method_name!r} needs {name}: {wanted}")
        for stage in self.stages():
            if stage.student is not None and stage.student.model == self.student.name:
                raise ValueError(
                    f"{stage.name} {self.student.name!r} is the student's own model; name another "
                    "network, larger than the student"
                )
            if stage.in_turn and self.train.grad_accum_steps > 1:
                raise ValueError(
                    f"stage {stage.name!r} updates its networks one after the other, each on every "
                    f"batch; got grad_accum_steps {self.train.grad_accum_steps}. Use 1, and a "
                    "larger batch if there is room, or update all networks at once"
                )
        return self

    @property
    def method_name(self) -> str:
        """The row of the table of methods."""
        return str(self.method["name"])

    @property
    def method_config(self) -> MethodConfig:
        """The method's own settings."""
        settings = {key: value for key, value in self.method.items() if key != "name"}
        return find_method(self.method_name).config.read(settings)

    def stages(self) -> tuple[Stage, ...]:
        """The run's stages, in order."""
        return find_method(self.method_name).stages(self.method_config)

    @property
    def reads_teacher_scores(self) -> bool:
        """Whether the teacher's class scores mean anything to any stage."""
        wanted = [stage.method.needs(stage.config) for stage in self.stages()]
        return any(needs.teacher and needs.teacher_scores for needs in wanted)

    def stage_epochs(self) -> tuple[int, ...]:
        """Whole epochs of each stage.

        Of those that train the run's student: by share, at least one each, adding up to all. Of
        others: their own number, or all; none where the network is trained already.
        """
        stages = self.stages()
        epochs, left = [], self.schedule.epochs
        for position, stage in enumerate(stages[:-1]):
            if stage.student is not None:
                own = stage.epochs or self.schedule.epochs
                epochs.append(0 if stage.is_finished else own)
                continue
            behind = sum(later.student is None for later in stages[position + 1 :])
            wanted = max(1, round(stage.share * self.schedule.epochs))
            epochs.append(min(wanted, left - behind))
            left -= epochs[-1]
        return (*epochs, left)

    def hash(self) -> str:
        """SHA-256 of the settings, as hex; device and checkpoint times do not count."""
        values: dict[str, Any] = self.plain()
        for name in ("device", "workers", "checkpoint_steps", "checkpoint_seconds"):
            del values["train"][name]
        del values["train"]["checkpoint_hist"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
