"""``train``, ``distill`` and ``resume``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from limbeck.cli.observer import observing
from limbeck.cli.terminal import duration, make_console, printable, printable_lines
from limbeck.engine.loop import InterruptedRun
from limbeck.engine.recorder import Observer
from limbeck.reports.shots import SHOTS
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import Rehearsal, execute, prepare_parts, rehearse, resume
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.summary import RunSummary, read_summary

__all__ = ["resume_run", "run"]

_CLASSES_SHOWN = 12


def run(
    values: dict[str, Any],
    output: Path,
    *,
    typed: Collection[str],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check the settings, then train or rehearse, then print what came out.

    Args:
        values: settings, not yet checked.
        output: the run folder to make.
        typed: names of models that stand on the command line; these alone may run code.
        dry_run: rehearse only.
        quiet: print errors alone.
        as_json: print JSON lines.
    """
    config = RunConfig.read(values)
    RunFolder(output).check_free()  # before the data is read
    parts = prepare_parts(config, typed=typed)
    if dry_run:
        found = rehearse(config, parts, output)
        if _speaks():
            _print_rehearsal(found, quiet=quiet, as_json=as_json)
        return
    with _watching(output, quiet=quiet, as_json=as_json) as observer:
        summary = execute(config, output, parts, observer=observer)
    if _speaks():
        _print_summary(summary, output, quiet=quiet, as_json=as_json)


def resume_run(folder: Path, *, typed: Collection[str], quiet: bool, as_json: bool) -> None:
    """Continue a run with the settings it was started with; a finished one is shown as it is."""
    config = RunConfig.read(read_json(RunFolder(folder).config))
    with _watching(folder, quiet=quiet, as_json=as_json) as observer:
        if RunFolder(folder).summary.exists():
            observer.note(f"{folder} is finished already; nothing was done")
            summary = read_summary(folder)
        else:
            parts = prepare_parts(config, typed=typed)
            summary = resume(folder, parts, config, observer=observer)
    if _speaks():
        _print_summary(summary, folder, quiet=quiet, as_json=as_json)


def _speaks() -> bool:
    """Whether this process prints: under torchrun, the first one alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _watching(folder: Path, *, quiet: bool, as_json: bool) -> Iterator[Observer]:
    """An observer, which also says how to go on after an interruption."""
    with observing(quiet=quiet, as_json=as_json) as observer:
        try:
            yield observer
        except InterruptedRun as stop:
            stop.args = (f"{stop}; continue with: limbeck resume {shlex.quote(str(folder))}",)
            raise


def _print_summary(summary: RunSummary, folder: Path, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "summary", **summary.plain()}), flush=True)  # noqa: T201
        return
    console = make_console(quiet=quiet)
    taught = "" if summary.teacher is None else f", taught by {summary.teacher}"
    console.print(
        printable(f"{summary.method}: {summary.student}{taught}, seed {summary.seed}"),
        style="bold",
    )
    _line(console, "validation, last epoch", summary.last.epoch, summary.last.val)
    best = summary.best_on_validation
    if best is not None:
        _line(console, "validation, best epoch", best.epoch, best.val)
    if summary.test is not None:
        _line(console, "test, last epoch", None, summary.test.last)
        if summary.test.best_on_validation is not None:
            _line(console, "test, best on validation", None, summary.test.best_on_validation)
    for number, one in enumerate(summary.teachers, start=1):
        _line(console, f"test, teacher {number}", None, one.test)
    if summary.teacher_test is not None:
        whole = "teachers together" if summary.teachers else "teacher"
        _line(console, f"test, {whole}", None, summary.teacher_test)
    for name, network in summary.further.items():
        model = "" if network.model == summary.student else f" {network.model}"
        _line(console, f"test, {name}{model}", None, network.test)
    together = summary.scores.get("ensemble", {})
    if together.get("top1") is not None:
        scores = {"top1": together["top1"], "loss": together["nll"]}
        _line(console, "test, ensemble", None, scores)
    shots = {name: summary.scores.get("last", {}).get(name) for name in SHOTS}
    if any(value is not None for value in shots.values()):
        each = (f"{SHOTS[k]} {'-' if v is None else f'{v:.2%}'}" for k, v in shots.items())
        console.print(f"  test, by images of a class: {', '.join(each)}")
    for name, splits in summary.embedding.items():
        split = "test" if "test" in splits else next(iter(splits), None)
        if split is not None:
            found = splits[split]
            whose = {"last": "", "before": ", before training"}.get(name, f", {name}")
            console.print(
                f"  {f'embedding, {split}{whose}':<33} linear probe {found['linear_top1']:7.2%}   "
                f"nearest neighbours {found['knn_top1']:7.2%}"
            )
    console.print(
        f"  {summary.num_parameters:,} parameters, {summary.num_macs:,} multiply-adds; "
        f"{summary.seconds:.1f} s, {summary.images_per_second:,.0f} images/s"
    )
    console.print(f"  {printable(str(folder))}")


def _line(console: Console, what: str, epoch: int | None, scores: Mapping[str, Any] | None) -> None:
    if scores is None:
        return
    where = "" if epoch is None else f" ({epoch + 1})"
    console.print(f"  {what + where:<30} top-1 {scores['top1']:7.2%}   loss {scores['loss']:.4f}")


def _print_rehearsal(found: Rehearsal, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        values = {name: getattr(found, name) for name in Rehearsal.__dataclass_fields__}
        print(json.dumps({"event": "dry-run", **values}))  # noqa: T201
        return
    console = make_console(quiet=quiet)
    console.print("Settings", style="bold")
    for name, value in _flat(found.settings):
        console.print(f"  {name} = {printable(json.dumps(value))}")
    console.print("Data", style="bold")
    for split, counts in found.counts.items():
        listed = [f"{printable(name)}: {count}" for name, count in counts.items()]
        if len(listed) > _CLASSES_SHOWN:
            listed = [*listed[:_CLASSES_SHOWN], f"... ({len(counts)} classes)"]
        total = sum(counts.values())
        _indented(console, f"{split}: {total:,} images ({', '.join(listed)})")
    console.print("Found", style="bold")
    for notice in found.notices:
        _indented(console, printable_lines(notice))
    console.print("Would train", style="bold")
    for stage in found.stages:
        console.print(f"  {stage['name']}: {stage['epochs']} epochs, {stage['steps']:,} steps")
    _indented(
        console,
        f"about {duration(found.estimated_seconds)} without evaluation "
        f"({found.seconds_per_step * 1000:.1f} ms a step, measured on one batch); "
        f"peak memory {found.peak_memory_bytes / 2**20:,.0f} MiB",
    )
    console.print("The folder can be written. Nothing was trained, and nothing stays behind.")


def _indented(console: Console, text: str) -> None:
    """Print with two spaces before every line, wrapped ones too."""
    console.print(Padding(text, (0, 0, 0, 2), expand=False))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by the names that ``--set`` takes."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
