"""``compare``: several methods, several seeds, one table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.cli.observer import TextObserver
from limbeck.cli.options import RunOption, read_settings, settings_changes
from limbeck.cli.terminal import duration, make_console, printable, printable_lines
from limbeck.core.errors import LimbeckError, SettingsError, UnknownNameError
from limbeck.core.settings import apply_overrides, parse_override
from limbeck.engine.loop import InterruptedRun
from limbeck.engine.recorder import Observer, SilentObserver
from limbeck.methods import find_method
from limbeck.methods.combine import SEPARATOR
from limbeck.reports.compared import Compared, read_comparison
from limbeck.reports.files import comparison_title, write_comparison
from limbeck.reports.shots import shot_table
from limbeck.reports.table import comparison_table
from limbeck.runs.compare import BASELINE, CompareConfig
from limbeck.runs.comparison import COMPARISON_FILE, ComparisonFolder
from limbeck.runs.estimate import Plan, plan
from limbeck.runs.orchestrate import compare
from limbeck.runs.summary import RunSummary
from limbeck.runs.tasks import Task
from limbeck.runs.tuning import Tuned

__all__ = [
    "CompareAudience",
    "collect_comparison",
    "resume_comparison",
    "run_comparison",
    "seed_list",
    "show_comparison",
]

_OWN = frozenset(CompareConfig.model_fields)  # what --set means the comparison's own by


def collect_comparison(
    options: Mapping[RunOption, Any],
    *,
    output: Path,
    config: Path | None,
    overrides: Sequence[str],
    method_sets: Sequence[str],
    methods: str | None,
    seeds: str | None,
    teacher_model: str | None,
    independent_teacher: str | None,
    tune: int | None,
    threads: int | None,
) -> dict[str, Any]:
    """Plain settings of a comparison: a file's, changed by flags; not yet checked.

    The file is ``config``; or, without one, that of a comparison which has begun in ``output``,
    so that going on with it takes no flags, and adding seeds takes one.

    Args:
        options: the run's, that were given, with what came.
        output: the comparison's folder.
        config: a comparison's settings or its file, or a run's ``config.json``.
        overrides: each ``a.b=value``, of what all runs share, or of the comparison itself.
        method_sets: each ``LABEL.SETTING=value``.
        methods: ``kd,rkd`` or, where a method comes twice, ``kd,hot=kd``.
        seeds: a count, or a list with commas.
        teacher_model: the network to train as a teacher, where no teacher is given.
        independent_teacher: a run's folder.
        tune: trials of each method.
        threads: of a run.

    Raises:
        SettingsError: if the file or a flag cannot be read.
    """
    begun = output / COMPARISON_FILE
    values: dict[str, Any] = {}
    if config is not None or begun.is_file():
        values = _from_file(config or begun)
    if methods is not None:
        values["contenders"] = _rows(methods, values.get("contenders") or {})
    if not values.get("contenders"):
        raise SettingsError("name the methods to compare: --methods kd,fitnet,rkd")
    baseline = {"role": "baseline", "method": {"name": BASELINE}}
    values["contenders"] = {BASELINE: baseline} | values["contenders"]
    if seeds is not None:
        values["seeds"] = seed_list(seeds)
    if tune is not None:
        values["tuning"] = {**(values.get("tuning") or {}), "trials": tune}
    if threads is not None:
        values["threads"] = threads
    if independent_teacher is not None:
        values["independent_teacher"] = {"run": independent_teacher}
    if any(option.path in ("teacher", "teacher.cache") for option in options):
        values["teacher"], values["teacher_training"] = {}, None
    changes = settings_changes(options) + [parse_override(text) for text in overrides]
    for path, value in changes:
        values = _changed(values, path, value)
    for text in method_sets:
        (label, *name), value = parse_override(text)
        if label not in values["contenders"]:  # a combination by the name of its method
            label = label.replace(SEPARATOR, "-")
        if label not in values["contenders"]:
            raise UnknownNameError("row of the comparison", label, values["contenders"])
        if not name:
            raise SettingsError(f"--method-set reads LABEL.SETTING=VALUE, got {text!r}")
        values = _set(values, ("contenders", label, "method", *name), value)
    if teacher_model is not None and not values.get("teacher"):
        first = (values.get("seeds") or [0])[0]
        student = {"name": teacher_model}
        values["teacher_training"] = {**values["shared"], "student": student, "seed": first}
    return values


def seed_list(text: str) -> list[int]:
    """``"3"`` is the seeds 0, 1, 2; ``"0,3,7"`` are those; ``"7,"`` is one seed.

    Raises:
        SettingsError: if it is neither.

    Example:
        >>> seed_list("3"), seed_list("0,3,7"), seed_list("7,")
        ([0, 1, 2], [0, 3, 7], [7])
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or ("," not in text and numbers[0] < 1):
        raise SettingsError(
            f"--seeds takes how many (5), or which, with commas (0,3,7); got {text!r}"
        )
    return numbers if "," in text else list(range(numbers[0]))


def run_comparison(
    values: Mapping[str, Any],
    output: Path,
    *,
    typed: Collection[str],
    jobs: int | None,
    cohort: int,
    devices: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make what is missing of a comparison, or say what that would take; print the table.

    Args:
        values: settings, not yet checked.
        output: the comparison's folder.
        typed: names of models that stand on the command line; these alone may run code.
        jobs: runs at a time; None is one for each device.
        cohort: rows of a seed that share their teacher's passes.
        devices: with commas between them.
        dry_run: plan only.
        quiet: print errors alone.
        as_json: print JSON lines.

    Raises:
        LimbeckError: also when the table has been printed, if a run failed.
    """
    config = CompareConfig.read(values)
    places = [device.strip() for device in (devices or "").split(",") if device.strip()]
    jobs = jobs if jobs is not None else max(1, len(places))
    if dry_run:
        device = places[0] if places else None
        _print_plan(
            plan(config, output, jobs=jobs, device=device, typed=typed),
            jobs=jobs,
            quiet=quiet,
            as_json=as_json,
        )
        return
    audience = CompareAudience(config, quiet=quiet, as_json=as_json)
    with _saying_how_to_go_on(output):
        compare(
            config,
            output,
            jobs=jobs,
            cohort=cohort,
            devices=places,
            typed=typed,
            audience=audience,
        )
    compared = read_comparison(output)
    show_comparison(compared, quiet=quiet, as_json=as_json)
    failed = sum(len(failures) for failures in compared.failures.values())
    if failed:
        total = len(compared.facts) * len(compared.seeds)
        raise LimbeckError(
            f"{failed} of {total} runs failed; the reasons are above and in "
            f"{output / 'failures'}. The same command again makes these runs alone"
        )


def resume_comparison(folder: Path, *, typed: Collection[str], quiet: bool, as_json: bool) -> None:
    """Go on with a comparison as it was begun, in this process."""
    config = ComparisonFolder(folder).read().settings
    run_comparison(
        config.plain(),
        folder,
        typed=typed,
        jobs=None,
        cohort=1,
        devices=None,
        dry_run=False,
        quiet=quiet,
        as_json=as_json,
    )


def show_comparison(compared: Compared, *, quiet: bool, as_json: bool) -> None:
    """Write a comparison's report, tables and figure into its folder, and print the table."""
    files = write_comparison(compared)
    if as_json:
        rows = [
            {
                "label": compared.label_of(row),
                "title": row.label,
                "role": row.role,
                "test_top1": dict(row.last),
                "mean": row.accuracy.mean,
                "gain": row.gain and row.gain.mean,
                "verdict": row.over_baseline and row.over_baseline.verdict,
            }
            for row in compared.rows
        ]
        event = {
            "event": "comparison",
            "folder": str(compared.folder),
            "report": str(files.report),
            "rows": rows,
            "remarks": compared.remarks(),
        }
        print(json.dumps(event))  # noqa: T201
        return
    console = make_console(quiet=quiet)
    console.print(comparison_table(compared.rows, title=comparison_title(compared)))
    shots = shot_table(compared.rows)
    if shots is not None:
        console.print(shots)
    for remark in compared.remarks():
        console.print(printable_lines(remark), soft_wrap=True)
    notes = {compared.settings_note(label) for label in compared.facts}
    console.print(
        "Gain: over the baseline with the same seed"
        + (", with its 95 % interval" if len(compared.seeds) > 1 else "")
        + ". Nothing was chosen on the test split. "
        + ("All rows have their published defaults." if notes == {"published defaults"} else "")
    )
    if notes != {"published defaults"}:
        for label in compared.facts:
            note = f"  {compared.names[label]}: {compared.settings_note(label)}"
            console.print(printable(note), soft_wrap=True)
    names = ", ".join(path.name for path in files if path not in (None, files.report))
    console.print(f"Runs, {names} are in {printable(str(compared.folder))}.", soft_wrap=True)
    console.print(f"Report: {printable(str(files.report))}", soft_wrap=True)


class CompareAudience:
    """Prints a line for every run that ends; on a terminal also the bar of the one going on.

    Args:
        config: the comparison, for its titles.
        quiet: print nothing.
        as_json: print JSON lines.
        start: print where a run begins.
    """

    def __init__(
        self, config: CompareConfig, *, quiet: bool, as_json: bool, start: bool = True
    ) -> None:
        self._titles = {label: row.title or label for label, row in config.contenders.items()}
        self._console = make_console(quiet=quiet or as_json)
        self._errors = make_console(stderr=True, quiet=quiet)
        self._as_json = as_json
        self._start = start
        self._bar: _Bar | None = None

    def started(self, task: Task, number: int, total: int) -> None:
        """A task begins."""
        if self._as_json:
            self._json("started", task, number=number, total=total)
        elif self._start and self._console.is_terminal:
            self._console.print(f"[{number}/{total}] {self._called(task)}")

    def finished(self, task: Task, found: RunSummary | Tuned) -> None:
        """A line with its accuracy."""
        self._stop_bar()
        if isinstance(found, Tuned):
            score, split = found.trials[found.best].val_top1, "validation"
        else:
            score, split = found.test.last["top1"] if found.test else float("nan"), "test"
        if self._as_json:
            self._json("finished", task, top1=score, split=split)
        else:
            of_what = "" if split == "test" else " on validation"
            self._console.print(f"  {self._called(task)}   {score:7.2%}{of_what}")

    def failed(self, task: Task, reason: str) -> None:
        """A line with the reason, on standard error."""
        self._stop_bar()
        if self._as_json:
            self._json("failed", task, reason=reason)
        else:
            text = f"  {self._called(task)}   failed: {reason}"
            self._errors.print(printable_lines(text), soft_wrap=True)

    def observer(self, task: Task) -> Observer:
        """A bar, on a terminal."""
        del task
        if self._as_json or not self._console.is_terminal:
            return SilentObserver()
        self._bar = _Bar(self._console)
        return self._bar

    def _called(self, task: Task) -> str:
        title = self._titles.get(task.label or "", task.label or "")
        match task.kind:
            case "teacher":
                return f"{'teacher':<36}"
            case "tune":
                return f"{printable(title):<28} tuned  "
            case "run":
                return f"{printable(title):<28} seed {task.seed:<2}"

    def _json(self, event: str, task: Task, **values: Any) -> None:  # noqa: ANN401  (any JSON)
        line = {"event": event, "task": task.name, "label": task.label, "seed": task.seed}
        print(json.dumps(line | values), flush=True)  # noqa: T201

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Bar:
    """A run's bar without its sentences, which stand in its summary."""

    def __init__(self, console: Console) -> None:
        self._inner = TextObserver(console)
        self.step = self._inner.step
        self.epoch = self._inner.epoch
        self.stop = self._inner.stop

    def note(self, message: str) -> None:
        """Nothing."""


@contextmanager
def _saying_how_to_go_on(output: Path) -> Iterator[None]:
    try:
        yield
    except InterruptedRun as stop:
        stop.args = (f"{stop}; continue with: limbeck resume {shlex.quote(str(output))}",)
        raise


def _from_file(path: Path) -> dict[str, Any]:
    """A comparison's settings, from any of the files that hold some."""
    found = read_settings(path)
    if isinstance(found.get("settings"), dict):
        return dict(found["settings"])
    if "shared" in found or "student" not in found:
        return found
    method = found.get("method") or {}
    name = method.get("name") if isinstance(method, dict) else None
    rows = {} if name in (None, BASELINE) else {str(name): {"method": method}}
    shared = {**found, "method": {"name": BASELINE}, "teacher": None}
    return {"shared": shared, "teacher": found.get("teacher"), "contenders": rows}


def _rows(methods: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by label; one that is known keeps its settings, and the baseline and references stay."""
    rows: dict[str, Any] = {k: v for k, v in known.items() if v.get("role") == "baseline"}
    for item in filter(None, (part.strip() for part in methods.split(","))):
        label, _, name = item.rpartition("=")
        named, label = bool(label), label or name.replace(SEPARATOR, "-")
        if label == BASELINE:
            continue
        find_method(name)  # an unknown one is refused here
        if label in rows:
            raise SettingsError(
                f"--methods names {label!r} twice; give the second one a label: {label}2={name}"
            )
        old = known.get(label)
        same = old is not None and old.get("method", {}).get("name") == name
        title = {} if named or label == name else {"title": name}
        rows[label] = old if same else {"method": {"name": name}, **title}
    return rows | {k: v for k, v in known.items() if v.get("role") == "reference"}


def _changed(values: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """The settings with one of them changed, wherever a comparison keeps it."""
    match path:
        case ("seed", *_):
            raise SettingsError("a comparison has several seeds; give them with --seeds 0,3,7")
        case ("method", "label_smoothing" | "temperature" as name):
            for label, row in values["contenders"].items():
                if _has_setting(row, name):
                    values = _set(values, ("contenders", label, "method", name), value)
            return values
        case ("method", "assistants" | "peers" as name):
            rows = values["contenders"].items()
            taking = [k for k, row in rows if _has_setting(row, name)]
            if not taking:
                raise SettingsError(
                    f"no row of the comparison takes {name}; name a method that does in --methods "
                    "(takd and dgkd take assistants, dml takes peers), or leave them out"
                )
            for label in taking:
                values = _set(values, ("contenders", label, "method", name), value)
            return values
        case ("method", *_):
            raise SettingsError(
                f"{'.'.join(path)} is one method's own; name the row: --method-set kd.temperature=2"
            )
        case (first, *_) if first in _OWN:
            return _set(values, path, value)
        case _:
            return _set(values, ("shared", *path), value)


def _has_setting(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row's method has it; one that cannot be had is refused when all is checked."""
    try:
        fields = find_method(str(row.get("method", {}).get("name"))).config.model_fields
    except LimbeckError:
        return False
    return name in fields


def _set(values: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    return apply_overrides(values, [f"{'.'.join(path)}={json.dumps(value)}"])


def _print_plan(found: Plan, *, jobs: int, quiet: bool, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "label": row.name,
                "method": row.method,
                "chosen": row.chosen,
                "runs": row.num_runs,
                "finished": row.num_finished,
                "trials": row.num_trials,
                "epochs": row.epochs,
                "run_seconds": row.run_seconds,
                "peak_memory_bytes": row.peak_memory_bytes,
            }
            for row in found.rows
        ]
        values = {
            "event": "dry-run",
            "settings": found.settings.plain(),
            "rows": rows,
            "runs": found.num_runs,
            "seconds": found.seconds,
            "jobs": jobs,
            "threads": found.threads,
            "joules": found.joules,
            "energy_note": found.energy_note,
        }
        print(json.dumps(values))  # noqa: T201
        return
    console = make_console(quiet=quiet)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (
        "",
        "method",
        "settings",
        "trials",
        "runs",
        "there",
        "epochs",
        "each",
        "memory",
    ):
        table.add_column(
            heading, justify="left" if heading in ("", "method", "settings") else "right"
        )
    for row in found.rows:
        chosen = ", ".join(f"{name} = {value}" for name, value in row.chosen.items())
        table.add_row(
            printable(row.name),
            row.method,
            printable(chosen or "published defaults"),
            str(row.num_trials),
            str(row.num_runs),
            str(row.num_finished),
            str(row.epochs),
            duration(row.run_seconds),
            f"{row.peak_memory_bytes / 2**20:,.0f} MiB",
        )
    console.print(table)
    seeds = ", ".join(map(str, found.settings.seeds))
    console.print(f"Seeds {seeds}, the same for all rows; {found.threads} threads a run.")
    console.print(
        f"{found.num_runs} runs to make: about {duration(found.seconds)} of training, without "
        "evaluation, measured on one batch of each"
        + (
            f"; at best {duration(found.seconds / jobs)} with {jobs} at a time."
            if jobs > 1
            else "."
        )
    )
    if found.joules is None:
        console.print(f"Energy cannot be metered: {printable(found.energy_note)}.", soft_wrap=True)
    else:
        left_out = f"; {found.energy_note}" if found.energy_note else ""
        console.print(
            f"About {found.joules / 3.6e6:.3f} kWh at the {found.watts:.0f} W that the "
            f"processors drew meanwhile{left_out}."
        )
    console.print("Nothing was trained, and nothing stays behind.")
