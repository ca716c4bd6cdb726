"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.spread import Spread

__all__ = ["comparison_table", "printable"]

_MOST_SEEDS = 5  # shown one by one


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


def comparison_table(rows: Sequence[ComparisonRow], *, title: str) -> Table:
    """The comparison for a terminal, accuracies and gains in percent.

    A gain has its 95 % interval beside it, or its standard deviation where there is no interval.
    The number of parameters stands in the title where it is one for all.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`.
        title: the task in a few words.

    Returns:
        A rich table. Names in it are text, never markup, whatever they contain.
    """
    sizes = {row.num_parameters for row in rows}
    common = f" ({next(iter(sizes)):,} parameters)" if len(sizes) == 1 else ""
    table = Table(
        title=Text(printable(title) + common),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("student", overflow="fold")
    headings = ["test %\nlast epoch", "\neach seed", "best\non val.", "gain\nin points"]
    headings += ["s/run"] if common else ["para-\nmeters", "s/run"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            # Text and not str: rich reads markup and emoji names out of a str.
            Text(printable(row.label)),
            _percent(row.accuracy),
            _each(row),
            "-" if row.best_accuracy is None else f"{100 * row.best_accuracy.mean:.1f}",
            _gain(row),
            *([] if common else [f"{row.num_parameters:,}"]),
            f"{row.seconds:.1f}",
        )
    return table


def _percent(value: Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd}"


def _each(row: ComparisonRow) -> str:
    values = [100 * value for value in row.last.values()]
    if len(values) > _MOST_SEEDS:
        return f"{min(values):.1f} to {max(values):.1f}"
    return " ".join(f"{value:.1f}" for value in values)


def _gain(row: ComparisonRow) -> str:
    if row.gain is None:
        return row.no_gain
    sd = "" if row.gain.sd is None else f" ± {100 * row.gain.sd:.1f}"
    interval = None if row.over_baseline is None else row.over_baseline.interval
    if interval is not None:  # it says more than the deviation
        sd = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    shared = "" if row.gain.count == len(row.last) else f" ({row.gain.count} paired)"
    return f"{100 * row.gain.mean:+.1f}{sd}{shared}"
