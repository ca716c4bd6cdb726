"""Every run in a folder, whatever its state: what a person browses."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.core.errors import RunFolderError

__all__ = ["STATES", "ListedRun", "list_runs", "read_rows"]

State = Literal["finished", "running", "unfinished", "failed", "damaged"]
STATES: tuple[State, ...] = ("finished", "running", "unfinished", "failed", "damaged")


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """One run as far as it has come.

    Attributes:
        folder: where it lies.
        name: its path below the folder that was looked through.
        state: "finished" has its summary; "running" is held by a process; "unfinished" can be
            resumed; "failed" belongs to a comparison, which says why; "damaged" cannot be read.
        method: its name; None where it cannot be read, as all that follows.
        seed: of the run.
        student: name of the network.
        epochs: that were evaluated, over all stages.
        num_epochs: that it has in all, over all stages.
        val_top1: on validation, at the last of these epochs.
        test_top1: after the last epoch.
        reason: why it failed, or what is damaged.
    """

    folder: Path
    name: str
    state: State
    method: str | None = None
    seed: int | None = None
    student: str | None = None
    epochs: int | None = None
    num_epochs: int | None = None
    val_top1: float | None = None
    test_top1: float | None = None
    reason: str = ""


def list_runs(folder: Path | str) -> tuple[ListedRun, ...]:
    """The runs in ``folder`` and below, in the order of their paths.

    A run is a folder with a ``config.json`` and an ``environment.json``. Runs of a comparison
    that have failed before they had a folder are listed, too.

    Raises:
        RunFolderError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; name one that holds runs")
    failures = _failures(folder)
    found = [
        _listed(path.parent, folder, failures)
        for path in folder.rglob("config.json")
        if (path.parent / "environment.json").is_file()
    ]
    there = {run.folder for run in found}
    found += [
        ListedRun(folder=run, name=_name(run, folder), state="failed", reason=reason)
        for run, reason in failures.items()
        if run not in there
    ]
    return tuple(sorted(found, key=lambda run: run.folder.parts))


def read_rows(run: Path | str) -> tuple[dict[str, Any], ...]:
    """The evaluated epochs of a run, from its ``metrics.jsonl``; of one that is at work, too.

    Each row counts its ``epoch`` from 0 within its stage; ``run_epoch``, added here, counts from 1
    over all stages. The last line of a run at work may be half written, and is then left out.

    Raises:
        RunFolderError: if there is no such file, or a line in it is damaged.
    """
    path = Path(run) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}; name a run's folder") from None
    rows: list[dict[str, Any]] = []
    before, stage, last = 0, None, 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row["stage"] != stage:
                before, stage = before + last, row["stage"]
            last = row["epoch"] + 1
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunFolderError(f"{path}, line {number}, is not what a run writes") from None
        rows.append({**row, "run_epoch": before + last})
    return tuple(rows)


def _listed(run: Path, folder: Path, failures: Mapping[Path, str]) -> ListedRun:
    name = _name(run, folder)
    try:
        config = _read(run / "config.json")
        environment = _read(run / "environment.json")
        finished = (run / "summary.json").is_file()
        summary = _read(run / "summary.json") if finished else {}
        rows = read_rows(run) if (run / "metrics.jsonl").is_file() else ()
        state: State = "unfinished"
        if finished:
            state = "finished"
        elif _is_held(run):
            state = "running"
        elif run in failures:
            state = "failed"
        return ListedRun(
            folder=run,
            name=name,
            state=state,
            method=str(config["method"]["name"]),
            seed=int(config["seed"]),
            student=str(config["student"]["name"]),
            epochs=rows[-1]["run_epoch"] if rows else 0,
            num_epochs=int(environment.get("num_epochs", config["schedule"]["epochs"])),
            val_top1=_score(rows[-1].get("val") if rows else None),
            test_top1=_score((summary.get("test") or {}).get("last")),
            reason=failures.get(run, "") if state == "failed" else "",
        )
    except (RunFolderError, KeyError, TypeError, ValueError, AttributeError) as error:
        return ListedRun(folder=run, name=name, state="damaged", reason=str(error))


def _score(values: Mapping[str, Any] | None) -> float | None:
    return None if values is None else float(values["top1"])


def _failures(folder: Path) -> dict[Path, str]:
    """Run folders of comparisons to why there is no result in them."""
    found = {}
    for path in folder.rglob("failures/*.json"):
        comparison = path.parent.parent
        if (comparison / "comparison.json").is_file() and not path.stem.startswith("tune-"):
            place = "teacher" if path.stem == "teacher" else f"runs/{path.stem}"
            with suppress(RunFolderError):
                found[comparison / place] = str(_read(path).get("reason", ""))
    return found


def _is_held(run: Path) -> bool:
    """Whether a process says that it is at work here; of another machine it is believed."""
    try:
        owner = _read(run / ".owner.json")
        if owner["host"] != socket.gethostname():
            return True
        os.kill(int(owner["pid"]), 0)
    except PermissionError:  # there, and another user's
        return True
    except (RunFolderError, OSError, KeyError, ValueError):
        return False
    return True


def _name(run: Path, folder: Path) -> str:
    return run.relative_to(folder).as_posix()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
