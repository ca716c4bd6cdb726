"""The options of ``train`` and ``distill``: one table, from flag to setting.

Where timm's training script has a name for a flag, it is used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from limbeck.core.errors import SettingsError

__all__ = [
    "NOT_OF_A_CACHE",
    "OPTIONS",
    "GroupedCommand",
    "RunOption",
    "collect_settings",
    "read_settings",
    "settings_changes",
    "typed_models",
    "with_run_options",
]

# Settings that name a model: a file.py:function among them is run only if it was typed.
_MODEL_PATHS = (("student", "name"), ("teacher", "name"))
_TEACHER_WEIGHTS = ("teacher.checkpoint", "teacher.pretrained")
_OF_EACH_TEACHER = ("teacher", *_TEACHER_WEIGHTS, "teacher.cache")
_MODEL_LISTS = (("method", "assistants"), ("method", "peers"))
# What networks of timm and torchvision begin with, which are never folders of runs.
_LIBRARIES = ("timm/", "torchvision/", "hf-hub:", "local-dir:")


@dataclass(frozen=True)
class RunOption:
    """A flag that sets one field of the run's settings.

    Attributes:
        flags: as typed.
        path: the setting, dotted.
        kind: of its value: int, float, str, or bool for a switch.
        help: one line.
        teacher_only: not offered by ``train``.
        value: what a switch sets; None for flags that take their own value.
        many: a comma-separated list of ``kind``.
        repeated: may be given more than once; what came is then a list.
    """

    flags: tuple[str, ...]
    path: str
    kind: type
    help: str
    teacher_only: bool = False
    value: Any = None
    many: bool = False
    repeated: bool = False

    @property
    def parameter(self) -> str:
        """Its name as a Python parameter."""
        longest = next(flag for flag in self.flags if flag.startswith("--"))
        return longest.strip("-").replace("-", "_")

    @property
    def group(self) -> str:
        """The heading it stands under in the help."""
        return _GROUPS.get(self.path.partition(".")[0], "Machine")


_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
_GROUPS = {
    "student": "Networks and method",
    "teacher": "Networks and method",
    "method": "Networks and method",
    "data": "Data",
    "schedule": "Schedule",
    "optim": "Optimiser",
}

OPTIONS: tuple[RunOption, ...] = (
    RunOption(
        ("--student", "--model"),
        "student.name",
        str,
        "A model's name (`limbeck inspect` lists them), timm/NAME, torchvision/NAME, or "
        "file.py:function.",
    ),
    RunOption(
        ("--pretrained",),
        "student.pretrained",
        bool,
        "Start from the weights that timm or torchvision publish.",
        value=True,
    ),
    RunOption(
        ("--initial-checkpoint", "--student-run"),
        "student.initial_checkpoint",
        str,
        "Start from these weights: a file, or a finished run's folder.",
    ),
    RunOption(
        ("--teacher", "--kd-model-name"),
        "teacher",
        str,
        "A finished run's folder; or a model's name, with its weights. Repeat it for several.",
        teacher_only=True,
        repeated=True,
    ),
    RunOption(
        ("--teacher-pretrained",),
        "teacher.pretrained",
        bool,
        "The teacher's weights are those that timm or torchvision publish.",
        teacher_only=True,
        value=True,
    ),
    RunOption(
        ("--teacher-checkpoint",),
        "teacher.checkpoint",
        str,
        "The teacher's weights; of several teachers, repeated in their order.",
        teacher_only=True,
        repeated=True,
    ),
    RunOption(
        ("--teacher-cache",),
        "teacher.cache",
        str,
        "The folder of its logits that `limbeck cache` made; the network itself need not exist. "
        "Repeat it for several.",
        teacher_only=True,
        repeated=True,
    ),
    RunOption(
        ("--method",),
        "method.name",
        str,
        "See `limbeck methods`; kd+at is both in one run.  [default: kd]",
        teacher_only=True,
    ),
    RunOption(
        ("--kd-temperature",),
        "method.temperature",
        float,
        "The method's temperature, where it has one.",
        teacher_only=True,
    ),
    RunOption(
        ("--assistants",),
        "method.assistants",
        str,
        "Of takd and dgkd, with commas, the largest first: models, or finished runs' folders.",
        teacher_only=True,
        many=True,
    ),
    RunOption(
        ("--peers",),
        "method.peers",
        str,
        "Of dml, with commas: the models that learn beside the student.",
        teacher_only=True,
        many=True,
    ),
    RunOption(("--smoothing",), "method.label_smoothing", float, "Label smoothing, in [0, 1)."),
    RunOption(
        ("--dataset",),
        "data.dataset",
        str,
        "digits, cifar10, cifar100 or image_folder.  [default: digits]",
    ),
    RunOption(("--data-dir",), "data.data_dir", str, "The folder or zip of its files."),
    RunOption(("--img-size",), "data.image_size", int, "Side in pixels, for image folders."),
    RunOption(("--in-chans",), "data.in_chans", int, "1 greyscale, 3 colour."),
    RunOption(
        ("--val-fraction",),
        "data.val_fraction",
        float,
        "Share of the training images held out.  [default: 0.1]",
    ),
    RunOption(("--fraction",), "data.fraction", float, "Share of the training images used."),
    RunOption(
        ("--imbalance-factor",),
        "data.imbalance_factor",
        float,
        "Long tail: the first class this many times as frequent as the last.",
    ),
    RunOption(
        ("--num-labels",), "data.num_labels", int, "Training images that keep a label; 0 hides all."
    ),
    RunOption(("--crop-padding",), "data.augment.crop_padding", int, "Random crop's padding."),
    RunOption(("--hflip",), "data.augment.flip", bool, "Random mirroring.", value=True),
    RunOption(
        ("--mixup",),
        "data.augment.mixup_alpha",
        float,
        "Alpha: blend images two by two, shares from Beta(alpha, alpha).  [default: 0.0]",
    ),
    RunOption(
        ("--cutmix",),
        "data.augment.cutmix_alpha",
        float,
        "Alpha: put a box of another image into each; of such shares.  [default: 0.0]",
    ),
    RunOption(
        ("--mixup-prob",), "data.augment.mix_prob", float, "Share of images mixed.  [default: 1.0]"
    ),
    RunOption(
        ("--augment-cycle",),
        "data.augment.cycle",
        int,
        "Epochs after which the same changes of an image come again.",
    ),
    RunOption(("--augment-seed",), "data.augment.seed", int, "Of these changes, if not the run's."),
    RunOption(("--epochs",), "schedule.epochs", int, "Of the whole run.  [default: 240]"),
    RunOption(
        ("--sched",),
        "schedule.sched",
        str,
        "multistep, cosine, onecycle or constant.  [default: multistep]",
    ),
    RunOption(
        ("--decay-milestones", "--decay-epochs"),
        "schedule.decay_epochs",
        int,
        "Epochs after which the rate falls, e.g. 150,180,210.",
        many=True,
    ),
    RunOption(
        ("--decay-rate",), "schedule.decay_rate", float, "The factor it falls by.  [default: 0.1]"
    ),
    RunOption(
        ("--warmup-epochs",), "schedule.warmup_epochs", float, "Of linear rise, at the start."
    ),
    RunOption(("--opt",), "optim.opt", str, "sgd or adamw.  [default: sgd]"),
    RunOption(("--lr",), "optim.lr", float, "Learning rate.  [default: 0.05]"),
    RunOption(("--momentum",), "optim.momentum", float, "Of SGD.  [default: 0.9]"),
    RunOption(("--nesterov",), "optim.nesterov", bool, "Nesterov's momentum.", value=True),
    RunOption(
        ("--weight-decay",), "optim.weight_decay", float, "On all weights.  [default: 0.0005]"
    ),
    RunOption(("--clip-grad",), "optim.clip_grad", float, "Largest gradient norm."),
    RunOption(("--batch-size", "-b"), "train.batch_size", int, "Per process.  [default: 64]"),
    RunOption(
        ("--validation-batch-size",), "train.eval_batch_size", int, "When judging.  [default: 256]"
    ),
    RunOption(("--grad-accum-steps",), "train.grad_accum_steps", int, "Batches per update."),
    RunOption(("--amp",), "train.amp_dtype", bool, "Autocast to float16.", value="float16"),
    RunOption(
        ("--amp-dtype",),
        "train.amp_dtype",
        str,
        "float32, bfloat16 or float16.  [default: float32]",
    ),
    RunOption(
        ("--channels-last",),
        "train.channels_last",
        bool,
        "Memory format of weights and images.",
        value=True,
    ),
    RunOption(
        ("--torchcompile",), "train.torchcompile", bool, "Compile both networks.", value=True
    ),
    RunOption(
        ("--model-ema-decay",), "train.model_ema_decay", float, "Average the weights; judge that."
    ),
    RunOption(("--device",), "train.device", str, "auto, cpu, cuda or cuda:N.  [default: auto]"),
    RunOption(
        ("--workers", "-j"),
        "train.workers",
        int,
        "Reading ahead, for images not held in memory.  [default: 0]",
    ),
    RunOption(("--eval-every",), "train.eval_every", int, "Epochs between validations."),
    RunOption(("--checkpoint-hist",), "train.checkpoint_hist", int, "Checkpoints kept."),
    RunOption(("--checkpoint-steps",), "train.checkpoint_steps", int, "Steps between them."),
    RunOption(("--seed",), "seed", int, "Of weights, order, splits.  [default: 0]"),
)


# A cache depends on images and teacher, not on how a student learns.
NOT_OF_A_CACHE = tuple(
    option.path
    for option in OPTIONS
    if option.path.partition(".")[0] in ("student", "schedule", "optim")
    or option.path
    in (
        "method.temperature",
        "method.label_smoothing",
        "teacher.cache",
        "train.batch_size",
        "train.checkpoint_hist",
        "train.checkpoint_steps",
        "train.eval_every",
        "train.grad_accum_steps",
        "train.model_ema_decay",
        "train.torchcompile",
    )
)


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under the headings they were given."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  (click's, in typer)
        """One section per heading, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "rich_help_panel", None)
                heading = heading if isinstance(heading, str) else "Options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def with_run_options(
    *, teacher: bool, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of the table, passed to it as ``options``.

    Args:
        teacher: also those that concern a teacher.
        without: settings whose options are left out, by dotted name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "options"
        ]
        offered = [
            option
            for option in OPTIONS
            if (teacher or not option.teacher_only) and option.path not in without
        ]
        added = [
            inspect.Parameter(
                option.parameter,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    # Text, whatever the kind: the settings' own check says what came, and lists
                    # all faults at once.
                    list[str] | None
                    if option.repeated
                    else bool
                    if option.kind is bool
                    else str | None,
                    typer.Option(
                        *option.flags,
                        metavar=_METAVARS.get(option.kind),
                        help=option.help,
                        rich_help_panel=option.group,
                    ),
                ],
            )
            for option in offered
        ]

        def wrapped(**arguments: Any) -> None:  # noqa: ANN401  (typer fills them)
            given = {option: arguments.pop(option.parameter) for option in offered}
            # Identity, since 0 is a value and equals False.
            options = {
                o: v for o, v in given.items() if v is not None and v is not False and v != []
            }
            command(**arguments, options=options)

        wrapped.__name__ = command.__name__
        wrapped.__doc__ = command.__doc__
        parameters = [*own, *added]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def collect_settings(
    options: Mapping[RunOption, Any],
    *,
    config: Path | None,
    overrides: Sequence[str],
    teacher: bool,
) -> dict[str, Any]:
    """Plain settings: a file's, changed by flags, changed by ``--set``; not yet checked.

    Args:
        options: those that were given, with what came.
        config: a file like a run's ``config.json``.
        overrides: each ``a.b=value``.
        teacher: False takes teacher and method out of the file: what stays is the matched
            baseline of its run.

    Raises:
        SettingsError: if the file cannot be read, or a list or override is malformed.
    """
    from limbeck.core.settings import apply_overrides, parse_override  # pydantic is slow to load

    values = read_settings(config) if config is not None else {}
    changes = settings_changes(options) + [parse_override(text) for text in overrides]
    names = _combined(dict(changes).get(("method", "name")) or values.get("method"))
    changes = [(("method", *p) if p[0] in names else p, value) for p, value in changes]
    for path, value in changes if not teacher else ():
        if path[0] == "teacher" or (path[0] == "method" and path[1:] in ((), ("name",))):
            raise SettingsError(
                f"`limbeck train` trains by cross-entropy and has no teacher; got "
                f"--set {'.'.join(path)}={json.dumps(value)}. Use `limbeck distill`"
            )
    named = dict(changes).get(("method", "name")) if teacher else "ce"
    method = values.get("method")
    if named is not None and isinstance(method, dict) and method.get("name") != named:
        # A method of another name keeps what every method has.
        values["method"] = {k: v for k, v in method.items() if k == "label_smoothing"}
    if not teacher:
        values["teacher"] = None
        changes.append((("method", "name"), "ce"))
    elif any(option.path in ("teacher", "teacher.cache") for option in options):
        values["teacher"] = {}
    values = apply_overrides(values, [f"{'.'.join(p)}={json.dumps(v)}" for p, v in changes])
    method = values.setdefault("method", {})
    if isinstance(method, dict):
        method.setdefault("name", "kd")
    return values


def _combined(method: object) -> tuple[str, ...]:
    """The methods that a combination joins, whose settings --set takes by their names alone."""
    name = method.get("name") if isinstance(method, dict) else method
    return tuple(name.split("+")) if isinstance(name, str) and "+" in name else ()


def typed_models(options: Mapping[RunOption, Any], overrides: Sequence[str]) -> list[str]:
    """Names of models that stand on this command line: these alone may be files with code."""
    from limbeck.core.settings import parse_override

    changes = settings_changes(options) + [parse_override(text) for text in overrides]
    names: list[object] = [value for path, value in changes if path in _MODEL_PATHS]
    for path, value in changes:
        if path in _MODEL_LISTS and isinstance(value, list):
            names += value
        if path == ("teacher", "members") and isinstance(value, list):
            names += [one.get("name") for one in value if isinstance(one, dict)]
    return [name for name in names if isinstance(name, str)]


def settings_changes(options: Mapping[RunOption, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """What the given flags set: path and value."""
    by_name = any(o.path in _TEACHER_WEIGHTS for o in options)
    changes: list[tuple[tuple[str, ...], Any]] = []
    teachers = {o.path: v for o, v in options.items() if o.path in _OF_EACH_TEACHER}
    several = any(isinstance(given, list) and len(given) > 1 for given in teachers.values())
    if several:
        changes.append((("teacher", "members"), _several_teachers(teachers)))
    for option, given in options.items():
        if several and option.path in teachers:
            continue
        value = option.value if option.value is not None else given
        if isinstance(value, list):
            value = value[0]
        if option.many:
            try:
                value = [option.kind(item) for item in str(given).split(",") if item]
            except ValueError:
                raise SettingsError(
                    f"{option.flags[0]} takes whole numbers with commas between them, such as "
                    f"150,180,210; got {given!r}"
                ) from None
        path = option.path
        if path == "teacher":  # a model's name where its weights are given, else a run's folder
            named = by_name or str(value).startswith(_LIBRARIES)
            path = "teacher.name" if named else "teacher.run"
        changes.append((tuple(path.split(".")), value))
    return changes


def _several_teachers(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each of several teachers, from what the flags that concern one gave."""
    teachers, weights, caches = (
        given.get(path) or [] for path in ("teacher", "teacher.checkpoint", "teacher.cache")
    )
    if caches:
        if teachers and len(teachers) != len(caches):
            raise SettingsError(
                f"--teacher-cache goes with each --teacher, in their order; got {len(teachers)} "
                f"teachers and {len(caches)} caches. The caches alone suffice"
            )
        without = {path: value for path, value in given.items() if path != "teacher.cache"}
        each = _several_teachers(without) if teachers else [{} for _ in caches]
        return [one | {"cache": path} for one, path in zip(each, caches, strict=True)]
    if weights and len(weights) != len(teachers):
        raise SettingsError(
            f"--teacher-checkpoint goes with each --teacher, in their order; got {len(teachers)} "
            f"teachers and {len(weights)} checkpoints. Where some are finished runs and some are "
            "not, name them in a settings file (--config)"
        )
    if weights:
        pairs = zip(teachers, weights, strict=True)
        return [{"name": name, "checkpoint": path} for name, path in pairs]
    if "teacher.pretrained" in given:
        return [{"name": name, "pretrained": True} for name in teachers]
    return [{"name" if str(t).startswith(_LIBRARIES) else "run": t} for t in teachers]


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object of a settings file.

    Raises:
        SettingsError: if it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"--config {path} cannot be read: {error.strerror}; give a run's config.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"--config {path} is not JSON: {error}; give a run's config.json"
        ) from None
    if not isinstance(values, dict):
        raise SettingsError(
            f"--config {path} should hold a JSON object, as a run's config.json does; got "
            f"{type(values).__name__}"
        )
    return values
