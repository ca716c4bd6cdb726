"""A comparison written into a folder, as a table of numbers and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.figure import comparison_png
from limbeck.reports.table import comparison_csv

__all__ = ["ComparisonFiles", "write_comparison"]


class ComparisonFiles(NamedTuple):
    """Where a comparison was written."""

    csv: Path
    figure: Path


def write_comparison(
    rows: Sequence[ComparisonRow],
    out_dir: Path | str,
    *,
    title: str,
    teacher_top1: float | None = None,
) -> ComparisonFiles:
    """Write ``comparison.csv`` and ``comparison.png``, in place of earlier ones.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`.
        out_dir: made if it is not there.
        title: the task in a few words.
        teacher_top1: the teacher's test accuracy in [0, 1], a line in the figure. The mean of
            each reference row is a further line.

    Returns:
        The two paths.

    Raises:
        ValueError: if there are no rows.
        OSError: if the folder cannot be written.
    """
    lines = {} if teacher_top1 is None else {"teacher": teacher_top1}
    lines |= {row.label: row.accuracy.mean for row in rows if row.role == "reference"}
    png = comparison_png(rows, title=title, lines=lines)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ComparisonFiles(out_dir / "comparison.csv", out_dir / "comparison.png")
    paths.csv.write_text(comparison_csv(rows), encoding="utf-8", newline="")
    paths.figure.write_bytes(png)
    return paths
