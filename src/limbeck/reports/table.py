"""A comparison as a table for the terminal and as CSV for everything else."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from limbeck.reports.comparison import ComparisonRow, Spread

__all__ = ["comparison_csv", "comparison_table", "printable", "safe_cell"]

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")


def printable(text: str) -> str:
    r"""``text`` on one line, with everything that does not print spelt out.

    Names come from files and folders; an escape sequence in one must not reach a terminal.

    Example:
        >>> print(printable("kd\x1b[2J"))
        kd\x1b[2J
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def safe_cell(text: str) -> str:
    """A CSV text cell that no spreadsheet takes for a formula: such a one gets a leading ``'``.

    Example:
        >>> safe_cell("=1+1"), safe_cell("kd")
        ("'=1+1", 'kd')
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def comparison_table(rows: Sequence[ComparisonRow], *, title: str) -> Table:
    """The comparison for a terminal, accuracies and gains in percent.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`.
        title: the task in a few words.

    Returns:
        A rich table. Names in it are text, never markup, whatever they contain.
    """
    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("student", overflow="fold")
    for heading in (
        "test %\nlast epoch",
        "\neach seed",
        "best\non val.",
        "gain\nin points",
        "para-\nmeters",
        "s/run",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            # Text and not str: rich reads markup and emoji names out of a str.
            Text(printable(row.label)),
            _percent(row.accuracy),
            " ".join(f"{100 * value:.1f}" for value in row.last.values()),
            "-" if row.best_accuracy is None else f"{100 * row.best_accuracy.mean:.1f}",
            _gain(row),
            f"{row.num_parameters:,}",
            f"{row.seconds:.1f}",
        )
    return table


def comparison_csv(rows: Sequence[ComparisonRow]) -> str:
    """The comparison as CSV, a line per row.

    Accuracies and gains are fractions at full precision; a value that does not exist (the spread
    of one seed, the gain of the baseline) is an empty cell. The last columns hold the test
    accuracy of each seed.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`.

    Returns:
        The file's text, with a heading line.
    """
    seeds = sorted({seed for row in rows for seed in row.last})
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(
        [
            "label",
            "role",
            "num_seeds",
            "test_top1_mean",
            "test_top1_sd",
            "best_on_validation_test_top1_mean",
            "best_on_validation_test_top1_sd",
            "gain_mean",
            "gain_sd",
            "gain_num_seeds",
            "num_parameters",
            "mean_seconds",
            *(f"test_top1_seed_{seed}" for seed in seeds),
        ]
    )
    for row in rows:
        best, gain = row.best_accuracy, row.gain
        writer.writerow(
            [
                safe_cell(row.label),
                row.role,
                row.accuracy.count,
                row.accuracy.mean,
                row.accuracy.sd,
                best and best.mean,
                best and best.sd,
                gain and gain.mean,
                gain and gain.sd,
                gain and gain.count,
                row.num_parameters,
                row.seconds,
                *(row.last.get(seed) for seed in seeds),
            ]
        )
    return file.getvalue()


def _percent(value: Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd}"


def _gain(row: ComparisonRow) -> str:
    if row.gain is None:
        return "no pair" if row.role == "method" else row.role
    sd = "" if row.gain.sd is None else f" ± {100 * row.gain.sd:.1f}"
    shared = "" if row.gain.count == len(row.last) else f" ({row.gain.count} paired)"
    return f"{100 * row.gain.mean:+.1f}{sd}{shared}"
