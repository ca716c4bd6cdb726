"""The file of results: one line per finished run, never typed by hand."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck.core.errors import RunFolderError
from limbeck.core.sources import source_hash
from limbeck.methods import find_method
from limbeck.runs.folder import RunFolder, read_json
from limbeck.runs.summary import read_summary

__all__ = ["RESULT_COLUMNS", "add_result", "result_row"]

RESULT_COLUMNS = (
    "recipe",
    "protocol",
    "seed",
    "top1",
    "teacher_top1",
    "epochs",
    "date",
    "commit",
    "method_module",
    "method_sources",
    "settings",
    "data",
    "student",
    "teacher",
    "machine",
    "torch",
    "seconds",
    "images_per_second",
)


def result_row(run: Path, *, recipe: str, protocol: str) -> dict[str, str]:
    """What a finished run says, as a line of the file.

    Accuracies are fractions of the test images after the last epoch; hashes are SHA-256;
    ``seconds`` are those of training.

    Args:
        run: its folder.
        recipe: the name of what it repeats.
        protocol: "published" or "held-out".

    Raises:
        RunFolderError: if the run is not finished, or was never judged on a test split.
    """
    folder = RunFolder(run)
    summary = read_summary(run)
    if summary.test is None:
        raise RunFolderError(f"{run} has no test images; a result is of the test split")
    config, machine = read_json(folder.config), read_json(run / "environment.json")
    module = find_method(summary.method).card
    teacher = summary.teacher_test
    values: dict[str, Any] = {
        "recipe": recipe,
        "protocol": protocol,
        "seed": summary.seed,
        "top1": f"{summary.test.last['top1']:.4f}",
        "teacher_top1": "" if teacher is None else f"{teacher['top1']:.4f}",
        "epochs": config["schedule"]["epochs"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": machine.get("commit") or "",
        "method_module": module,
        "method_sources": source_hash(module),
        "settings": summary.config_hash,
        "data": summary.data_hash,
        "student": summary.student_hash,
        "teacher": summary.teacher_hash or "",
        "machine": f"{machine['device_name']}, {machine['threads']} threads",
        "torch": machine["packages"]["torch"],
        "seconds": f"{summary.seconds:.1f}",
        "images_per_second": f"{summary.images_per_second:.0f}",
    }
    return {name: str(values[name]) for name in RESULT_COLUMNS}


def add_result(path: Path, row: dict[str, str]) -> bool:
    """Write a line at the end of the file, unless that very run stands there already.

    Two processes may add at once; an interruption leaves the file as it was.

    Args:
        path: the file; made if it is not there.
        row: from :func:`result_row`.

    Returns:
        Whether the line is new.

    Raises:
        RunFolderError: if the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = list(csv.DictReader(io.StringIO(before)))
        if lines and tuple(lines[0]) != RESULT_COLUMNS:
            raise RunFolderError(
                f"{path} has the columns {', '.join(lines[0])}; wanted {', '.join(RESULT_COLUMNS)}."
                " Move it elsewhere"
            )
        own = ("recipe", "protocol", "seed", "student")
        if any(all(line[name] == row[name] for name in own) for line in lines):
            return False
        text = io.StringIO()
        writer = csv.DictWriter(text, RESULT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*lines, row])
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    return True
