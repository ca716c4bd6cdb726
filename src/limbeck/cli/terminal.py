"""Printing names that came from files: nothing in them may steer the terminal.

Rich's markup (``[red]``) and emoji names (``:x:``) are off everywhere; control characters are
spelt out by :func:`printable`.
"""

from __future__ import annotations

import os

from rich.console import Console

from limbeck.reports.table import printable

__all__ = ["duration", "make_console", "printable", "printable_lines"]

_UNWRAPPED = 10_000  # columns; a file or a pipe has no right edge


def duration(seconds: float) -> str:
    """About how long, in the unit a person would choose.

    Example:
        >>> duration(42.4), duration(600), duration(9000)
        ('42 s', '10 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text as it stands, and wraps it only on a terminal.

    Args:
        stderr: print there instead of on standard output.
        quiet: print nothing.
    """
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    return console


def printable_lines(text: str) -> str:
    r"""``text`` with its line breaks kept and everything else that does not print spelt out.

    Example:
        >>> print(printable_lines("two\nlines\x1b[2J"))
        two
        lines\x1b[2J
    """
    return "\n".join(printable(line) for line in text.split("\n"))
