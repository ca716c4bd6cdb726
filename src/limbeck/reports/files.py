"""A comparison written into its folder: tables of numbers, and a figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from limbeck.reports.compared import Compared
from limbeck.reports.export import comparison_csv, comparison_markdown, runs_csv
from limbeck.reports.figure import comparison_png

__all__ = ["ComparisonFiles", "write_comparison"]


class ComparisonFiles(NamedTuple):
    """Where a comparison was written.

    Attributes:
        csv: a line per row.
        markdown: the same to read, with verdicts.
        runs: CSV with a line per run.
        figure: PNG; None where no run has finished.
    """

    csv: Path
    markdown: Path
    runs: Path
    figure: Path | None


def write_comparison(
    compared: Compared, *, title: str, out_dir: Path | str | None = None
) -> ComparisonFiles:
    """Write ``comparison.csv``, ``.md`` and ``.png`` and ``runs.csv``, in place of earlier ones.

    In the figure, the teacher's test accuracy and the mean of each reference row are lines.

    Args:
        compared: from :func:`~limbeck.reports.compared.read_comparison`.
        title: the task in a few words.
        out_dir: made if it is not there; None is the comparison's own folder.

    Returns:
        The paths.

    Raises:
        OSError: if the folder cannot be written.
    """
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
    table, markdown, runs = (out_dir / name for name in texts)
    return ComparisonFiles(table, markdown, runs, figure)


def _replace(path: Path, content: bytes) -> None:
    """In one step, so that whoever reads meanwhile has the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
