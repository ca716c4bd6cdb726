"""A comparison written into its folder: tables of numbers, a figure, and the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from limbeck.reports.compared import Compared
from limbeck.reports.export import comparison_csv, comparison_markdown, runs_csv
from limbeck.reports.figure import comparison_png
from limbeck.reports.page import report_page

__all__ = ["ComparisonFiles", "comparison_title", "write_comparison"]


class ComparisonFiles(NamedTuple):
    """Where a comparison was written.

    Attributes:
        csv: a line per row.
        markdown: the same to read, with verdicts.
        runs: CSV with a line per run.
        report: all of it on one page of HTML.
        figure: PNG; None where no run has finished.
    """

    csv: Path
    markdown: Path
    runs: Path
    report: Path
    figure: Path | None


def comparison_title(compared: Compared) -> str:
    """The task in a few words."""
    return f"{compared.task}, {compared.student}: test accuracy after the last epoch"


def write_comparison(
    compared: Compared, *, title: str | None = None, out_dir: Path | str | None = None
) -> ComparisonFiles:
    """Write ``comparison.csv``, ``.md``, ``.png``, ``runs.csv`` and ``report.html`` anew.

    In the figure, the teacher's test accuracy and the mean of each reference row are lines.

    Args:
        compared: from :func:`~limbeck.reports.compared.read_comparison`.
        title: the task in a few words; None is :func:`comparison_title`.
        out_dir: made if it is not there; None is the comparison's own folder.

    Returns:
        The paths.

    Raises:
        OSError: if the folder cannot be written.
        RunFolderError: if a file in a run's folder is damaged.
    """
    title = comparison_title(compared) if title is None else title
    out_dir = compared.folder if out_dir is None else Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    texts = {
        "comparison.csv": comparison_csv(compared.rows, compared=compared),
        "comparison.md": comparison_markdown(compared, title=title),
        "runs.csv": runs_csv(compared),
    }
    for name, text in texts.items():
        _replace(out_dir / name, text.encode("utf-8"))
    figure = None
    if compared.rows:
        top1 = compared.teacher_top1
        lines = {} if top1 is None else {"teacher": top1}
        lines |= {row.label: row.accuracy.mean for row in compared.rows if row.role == "reference"}
        figure = out_dir / "comparison.png"
        _replace(figure, comparison_png(compared.rows, title=title, lines=lines))
    report = out_dir / "report.html"
    _replace(report, report_page(compared).encode("utf-8"))
    table, markdown, runs = (out_dir / name for name in texts)
    return ComparisonFiles(table, markdown, runs, report, figure)


def _replace(path: Path, content: bytes) -> None:
    """In one step, so that whoever reads meanwhile has the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
