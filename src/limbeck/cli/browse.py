"""``runs`` and ``curves``: what is there, without training or loading anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import RunFolderError, SettingsError, UnknownNameError
from limbeck.reports.listing import STATES, ListedRun, list_runs, read_rows

__all__ = ["draw_curves", "show_runs"]

_SORTS: Mapping[str, Callable[[ListedRun], Any]] = {
    "run": lambda run: run.folder.parts,
    "method": lambda run: run.method,
    "seed": lambda run: run.seed,
    "epochs": lambda run: run.epochs,
    "val": lambda run: run.val_top1,
    "test": lambda run: run.test_top1,
    "state": lambda run: STATES.index(run.state),
}
_FORMS = ("png", "svg", "pdf")


def show_runs(
    folder: Path,
    *,
    method: str | None,
    seed: int | None,
    state: str | None,
    sort: str,
    reverse: bool,
    as_json: bool,
) -> None:
    """Print a line for each run.

    Args:
        folder: looked through, with all below it.
        method: show its runs alone; None shows all, as in the two that follow.
        seed: the same.
        state: the same.
        sort: by which column; runs that have nothing there come last.
        reverse: the other way round.
        as_json: print one JSON array.

    Raises:
        UnknownNameError: if there is no such state or column.
        RunFolderError: if there is no such folder.
    """
    if state is not None and state not in STATES:
        raise UnknownNameError("state of a run", state, STATES)
    if sort not in _SORTS:
        raise UnknownNameError("column to sort by", sort, _SORTS)
    key = _SORTS[sort]
    found = [
        run
        for run in list_runs(folder)
        if method in (None, run.method) and seed in (None, run.seed) and state in (None, run.state)
    ]
    known = sorted((run for run in found if key(run) is not None), key=key, reverse=reverse)
    found = known + [run for run in found if key(run) is None]
    if as_json:
        print(json.dumps([asdict(run) | {"folder": str(run.folder)} for run in found]))  # noqa: T201
        return
    console = make_console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "method", "seed", "epochs", "val %", "test %", "state"):
        right = heading in ("seed", "epochs", "val %", "test %")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for run in found:
        table.add_row(
            Text(printable(run.name)),
            Text(printable(run.method or "")),
            "" if run.seed is None else str(run.seed),
            "" if run.epochs is None else f"{run.epochs}/{run.num_epochs}",
            _percent(run.val_top1),
            _percent(run.test_top1),
            Text(printable(f"{run.state}: {run.reason}" if run.reason else run.state)),
        )
    console.print(table)
    plural = "run" if len(found) == 1 else "runs"
    console.print(f"{len(found)} {plural}")


def draw_curves(runs: list[Path], output: Path, *, metric: str, as_json: bool) -> None:
    """Write a picture with a line for each run; as JSON, also print what is drawn.

    Raises:
        SettingsError: if the picture's form is none of PNG, SVG and PDF.
        RunFolderError: if a run cannot be read, or the picture cannot be written.
        UnknownNameError: if a run has no such metric.
    """
    from limbeck.reports.curves import curves_picture, values_of  # matplotlib is slow to load

    form = output.suffix.lower().removeprefix(".")
    if form not in _FORMS:
        raise SettingsError(
            f"--output {output} should end in .png, .svg or .pdf; got {output.suffix or 'nothing'}"
        )
    curves = {str(run): values_of(read_rows(run), metric) for run in runs}
    picture = curves_picture(curves, metric=metric, form=form)
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise RunFolderError(
            f"{output} could not be written: {error.strerror}; choose another (--output)"
        ) from None
    if as_json:
        print(json.dumps({"metric": metric, "output": str(output), "curves": curves}))  # noqa: T201
        return
    console = make_console()
    for name, points in curves.items():
        best = max if metric.rpartition(".")[2].startswith("top") else min
        epoch, value = best(points, key=lambda point: point[1])
        last = points[-1]
        console.print(
            f"{printable(name)}: {_value(last[1])} at epoch {last[0]}; {best.__name__} "
            f"{_value(value)} at {epoch}",
            soft_wrap=True,
        )
    console.print(f"{metric} of {len(curves)} runs: {printable(str(output))}", soft_wrap=True)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _value(value: float) -> str:
    return f"{value:.4g}"
