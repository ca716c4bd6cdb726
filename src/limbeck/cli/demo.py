"""``demo``: the runs of :mod:`limbeck.recipes.demo`, and an honest table of them."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import RunFolderError
from limbeck.recipes.demo import DEMO_METHODS, NUM_LABELS, SEEDS, TASK, demo_student, demo_teacher
from limbeck.reports.comparison import compare_runs
from limbeck.reports.files import write_comparison
from limbeck.reports.runs import read_run
from limbeck.reports.table import comparison_table
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts

__all__ = ["run_demo"]

_BASELINE = "cross-entropy"
_CEILING = "cross-entropy, all labels"


def run_demo(out: Path, *, quiet: bool) -> None:
    """Train everything, print the table, write run folders, CSV and picture under ``out``."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(
            f"{out} exists and is not an empty folder; choose another (--out), or remove it"
        )
    console = make_console(quiet=quiet)
    # Networks this small gain nothing from a second thread, and where another program holds the
    # other core they wait ten times as long for it. One thread also sums alike on every machine.
    torch.set_num_threads(1)
    start = time.monotonic()
    console.print(TASK)
    teacher_folder = out / "teacher"
    teacher = _run(demo_teacher(), teacher_folder)
    assert teacher is not None
    console.print(
        f"Teacher: top-1 {teacher:.2%} on the test split. Now {len(SEEDS)} seeds of each student:"
    )
    groups: dict[str, list[Path]] = {}
    for label, folder, config in _students(teacher_folder):
        path = out / folder
        top1 = _run(config, path)
        groups.setdefault(label, []).append(path)
        console.print(f"  {printable(label):<28} seed {config.seed}   {top1:7.2%}")
    rows = compare_runs(
        {label: [read_run(path) for path in paths] for label, paths in groups.items()},
        baseline=_BASELINE,
        references=(_CEILING,),
    )
    title = f"Digits with {NUM_LABELS} labels: test accuracy after the last epoch"
    files = write_comparison(rows, out, title=title, teacher_top1=teacher)
    console.print(comparison_table(rows, title=title))
    console.print(
        f"Gain: over {_BASELINE} with the same seed. Nothing was chosen on the test split; each "
        "method has its published defaults."
    )
    console.print(f"Runs, {files.csv.name} and {files.figure.name} are in {printable(str(out))}.")
    console.print(f"{time.monotonic() - start:.0f} s in all.")


def _students(teacher: Path) -> list[tuple[str, str, RunConfig]]:
    """Label, folder and settings of every student run, in the table's order."""
    runs = [(_BASELINE, f"ce-seed{seed}", demo_student("ce", seed, None)) for seed in SEEDS]
    runs += [
        (method, f"{method}-seed{seed}", demo_student(method, seed, str(teacher)))
        for method in DEMO_METHODS
        for seed in SEEDS
    ]
    return runs + [
        (_CEILING, f"ceiling-seed{seed}", demo_student("ce", seed, None, num_labels=None))
        for seed in SEEDS
    ]


def _run(config: RunConfig, folder: Path) -> float | None:
    """Carry out one run; its test accuracy after the last epoch."""
    summary = execute(config, folder, prepare_parts(config))
    return None if summary.test is None else summary.test.last["top1"]
