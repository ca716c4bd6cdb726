"""The settings of a comparison: one student taught in several ways, each with several seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, PositiveInt, field_validator, model_validator

from limbeck.core.errors import SettingsError
from limbeck.core.settings import Settings, apply_overrides
from limbeck.methods import find_method
from limbeck.runs.config import RunConfig, TeacherConfig, resolved_method

__all__ = [
    "BASELINE",
    "TEACHER",
    "CompareConfig",
    "Contender",
    "TuningConfig",
    "run_differences",
    "settings_differences",
]

BASELINE = "ce"  # the label of the matched student without distillation
TEACHER = "teacher"  # the folder of a teacher that the comparison trains
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# What a method may have its own of: all else is the budget, the same for all.
_OWN = ("optim",)
# Places and machines: what lies there is known by its hash, and how fast it ran is no setting.
_NOT_COMPARED = re.compile(
    r"(.*\.)?(data\.data_dir|train\.(device|workers|checkpoint_\w+))"
    r"|(independent_)?teacher\.(members\.\d+\.)?(cache|run|checkpoint)"
)


class Contender(Settings):
    """One row of a comparison.

    Attributes:
        title: what the row is called; None calls it by its label. Any text.
        role: "baseline" is the matched student without distillation, against which the others
            are measured; a "reference" stands outside the match, such as the same with more
            labels.
        method: its ``name`` and settings.
        changes: further settings of its runs, by dotted name, such as ``{"optim.lr": 0.1}``.
            A method may change its optimiser; a reference anything but seed, method and teacher.
    """

    title: str | None = Field(None, min_length=1, max_length=200)
    role: Literal["baseline", "method", "reference"] = "method"
    method: dict[str, JsonValue]
    changes: dict[str, JsonValue] = Field({})

    @field_validator("method", mode="after")
    @classmethod
    def _method_is_known(cls, method: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return resolved_method(method)

    @model_validator(mode="after")
    def _changes_leave_the_budget(self) -> Self:
        parts = [name.partition(".")[0] for name in self.changes]
        if self.role == "reference":
            wrong = [part for part in parts if part in ("seed", "method", "teacher")]
        else:
            wrong = [part for part in parts if part not in _OWN]
        if wrong:
            raise ValueError(
                f"changes may not touch {', '.join(sorted(set(wrong)))}: what a {self.role} is "
                "compared at must be the same for all; change it for the whole comparison"
            )
        if self.role == "baseline" and self.needs_teacher:
            raise ValueError(f"the baseline learns without a teacher; {self.name!r} has one")
        return self

    @property
    def name(self) -> str:
        """Of the method."""
        return str(self.method["name"])

    @property
    def needs_teacher(self) -> bool:
        """Whether its runs have one."""
        entry = find_method(self.name)
        settings = {key: value for key, value in self.method.items() if key != "name"}
        stages = entry.stages(entry.config.read(settings))
        return any(stage.uses_run_teacher for stage in stages)

    def chosen(self) -> dict[str, JsonValue]:
        """Settings that are not the published defaults: of the method and of its runs."""
        defaults = resolved_method({"name": self.name})
        return _changed("method", self.method, defaults) | self.changes


def _changed(
    place: str, values: Mapping[str, JsonValue], defaults: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Values that are not the defaults, by dotted name."""
    found: dict[str, JsonValue] = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            found |= _changed(f"{place}.{name}", value, default)
        elif value != default:
            found[f"{place}.{name}"] = value
    return found


class TuningConfig(Settings):
    """How every method's few named settings are chosen, on validation alone.

    Attributes:
        trials: runs for each method, the baseline included. The first of them has the settings
            that the method starts from.
        seed: of the trials' runs; none of the comparison's own, which judge what was chosen.
    """

    trials: PositiveInt
    seed: int = 10_000


class CompareConfig(Settings):
    """Everything that a comparison's runs depend on.

    Attributes:
        shared: the baseline's run: what all runs have in common. Its seed does not count.
        contenders: label to row, in the order of the table. The baseline, under "ce", is put
            first where it is missing. A label names folders: letters, digits, ``_-``.
        seeds: of every row; they are paired.
        teacher: of all methods that have one; or several.
        teacher_training: a run whose student becomes the teacher, in place of ``teacher``.
        independent_teacher: a network of the teacher's kind that taught no student here; the
            control for how far students follow their own teacher.
        tuning: None leaves all settings as they are.
        threads: of a run on the CPU; sums depend on it, so it is one for all. None shares the
            machine's cores among the runs that go on at once, when the comparison begins.
    """

    shared: RunConfig
    contenders: dict[str, Contender] = Field({})
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    teacher: TeacherConfig | None = None
    teacher_training: RunConfig | None = None
    independent_teacher: TeacherConfig | None = None
    tuning: TuningConfig | None = None
    threads: PositiveInt | None = None

    @field_validator("contenders", mode="after")
    @classmethod
    def _labels_name_folders(cls, contenders: dict[str, Contender]) -> dict[str, Contender]:
        for label in contenders:
            if _LABEL.fullmatch(label) is None:
                raise ValueError(
                    f"label {label!r} must be at most 64 letters, digits, _ and -, since folders "
                    "have its name; give any other text as the title"
                )
        folded = {label.casefold() for label in contenders}
        if len(folded) < len(contenders):
            raise ValueError("two labels differ in upper and lower case alone; rename one")
        return contenders

    @field_validator("seeds", mode="after")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds {twice} are there twice; each may be once")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _baseline_is_there(cls, values: Any) -> Any:  # noqa: ANN401  (not yet checked)
        if not isinstance(values, dict):
            return values
        values = dict(values)
        contenders = values.get("contenders") or {}
        if isinstance(contenders, dict) and BASELINE not in contenders:
            row = {"role": "baseline", "method": {"name": "ce"}}
            values["contenders"] = {BASELINE: row, **contenders}
        for name in ("shared", "teacher_training"):  # not a run's own default
            if isinstance(values.get(name), dict):
                values[name] = {"method": {"name": "ce"}, **values[name]}
        return values

    @model_validator(mode="after")
    def _runs_can_be_made(self) -> Self:
        roles = {label: row.role for label, row in self.contenders.items()}
        if [label for label, role in roles.items() if role == "baseline"] != [BASELINE]:
            raise ValueError(f"{BASELINE!r} and no other is the baseline; got roles {roles}")
        if self.shared.teacher is not None:
            raise ValueError(
                "shared is the run without distillation; give the teacher as the comparison's own"
            )
        if self.teacher is not None and self.teacher_training is not None:
            raise ValueError("give either a teacher or teacher_training, not both")
        if self.tuning is not None and self.tuning.seed in self.seeds:
            raise ValueError(
                f"tuning.seed {self.tuning.seed} is one of the seeds; what is chosen must be "
                "judged by others"
            )
        for label in self.contenders:
            try:
                self.run_config(label, self.seeds[0])
            except SettingsError as error:
                faults = error.faults or (("", str(error)),)
                lines = [": ".join(filter(None, (label, *fault))) for fault in faults]
                raise ValueError("\n".join(lines)) from None
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether there is one, or will be."""
        return self.teacher is not None or self.teacher_training is not None

    @property
    def reads_teacher_scores(self) -> bool:
        """Whether there is a teacher whose class scores mean anything to any row."""
        if not self.has_teacher:
            return False
        seed = self.seeds[0]
        return any(self.run_config(label, seed).reads_teacher_scores for label in self.contenders)

    def resolved(self) -> Self:
        """The same with one split for all seeds: the first seed's, unless another is set."""
        seed = self.seeds[0]
        shared = self.shared.changed(seed=0, method={"name": "ce"})
        changes: dict[str, Any] = {"shared": _with_split_seed(shared, seed)}
        if self.teacher_training is not None:
            changes["teacher_training"] = _with_split_seed(self.teacher_training, seed)
        return self.changed(**changes)

    def run_config(
        self,
        label: str,
        seed: int,
        *,
        teacher_run: str = TEACHER,
        tuned: Mapping[str, JsonValue] | None = None,
    ) -> RunConfig:
        """The settings of one run.

        Args:
            label: of the row.
            seed: of the run.
            teacher_run: where the teacher lies that the comparison trains.
            tuned: what tuning chose, by dotted name; these come last.
        """
        row = self.contenders[label]
        values = self.shared.plain() | {"seed": seed, "method": row.method, "teacher": None}
        if row.needs_teacher:
            own = None if self.teacher is None else self.teacher.plain()
            values["teacher"] = {"run": teacher_run} if self.teacher_training is not None else own
        changes = row.changes | dict(tuned or {})
        texts = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
        return RunConfig.read(apply_overrides(values, texts))


def settings_differences(then: CompareConfig, now: CompareConfig) -> list[str]:
    """What keeps ``now`` from going on with what ``then`` began, each as a phrase.

    Further seeds and further rows do not: the runs that are there stay as they are. Neither do
    other places of the same data and teacher, or another machine's settings.
    """
    missing = [str(seed) for seed in then.seeds if seed not in now.seeds]
    found = [f"seeds ({', '.join(missing)} left out)"] if missing else []
    missing = [label for label in then.contenders if label not in now.contenders]
    found += [f"contenders ({', '.join(missing)} left out)"] if missing else []
    common = then.contenders.keys() & now.contenders.keys()
    old, new = (
        config.plain()
        | {
            "seeds": None,
            "contenders": {label: config.contenders[label].plain() for label in common},
        }
        for config in (then, now)
    )
    if now.threads is None:  # whoever goes on takes the number that is there
        new["threads"] = old["threads"]
    return found + _differing(old, new)


def run_differences(then: RunConfig, now: RunConfig) -> list[str]:
    """The settings in which two runs differ, each as a phrase; places and machines do not count."""
    return _differing(then.plain(), now.plain())


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(then), _flat(now)
    found = []
    for name in sorted(old.keys() | new.keys()):
        was, is_now = (
            json.dumps(values[name]) if name in values else "not set" for values in (old, new)
        )
        if was != is_now and not _NOT_COMPARED.fullmatch(name):
            found.append(f"{name} ({was} then, {is_now} now)")
    return found


def _with_split_seed(config: RunConfig, seed: int) -> RunConfig:
    if config.data.split_seed is not None:
        return config
    return config.changed(data=config.data.changed(split_seed=seed))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; of a list of settings each by its place."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(place): one for place, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
