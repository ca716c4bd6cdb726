"""What the parts of a report are made of: text, tables and pictures, before they become HTML."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from limbeck.metrics.info import METRICS
from limbeck.reports.statistics import Interval
from limbeck.reports.table import printable

__all__ = [
    "ISOLATES",
    "Cell",
    "Column",
    "Picture",
    "Section",
    "Table",
    "amount",
    "count",
    "isolated",
    "listed",
    "metric_cell",
    "points",
]

_MINUS = "\u2212"
ISOLATES: Final = ("\u2068", "\u2069")  # around text of its own direction: begin, end
_RIGHT_TO_LEFT = ("R", "AL", "AN", "RLE", "RLO", "RLI")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        numeric: whether its cells are sorted as numbers, and stand at the right.
        source: the column of ``comparison.csv`` that has the same numbers at full precision.
        note: what it means, where the heading does not say.
    """

    title: str
    numeric: bool = True
    source: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is read.
        value: by what it is sorted, at full precision; None comes last. Text sorts as text.
        mark: a verdict, which has a sign beside its word.
    """

    text: str
    value: float | str | None = None
    mark: Literal["better", "worse", "cannot tell"] | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that its reader can sort.

    Attributes:
        caption: what it holds, and of how many.
        columns: of each row; the first names the row.
        rows: as many cells each.
        folded: shown when asked for.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as part of a page.

    Attributes:
        svg: an ``<svg>`` element, safe to be put into HTML as it is; or
        png: the bytes of a PNG. One of the two.
        alt: what it shows, for whoever does not see it.
        caption: how to read it, and of how many it is.
    """

    svg: str = ""
    png: bytes = b""
    alt: str
    caption: str

    @property
    def address(self) -> str:
        """The PNG as a ``data:`` address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report under its own heading; all its text is plain.

    Attributes:
        name: its anchor: lower-case letters and hyphens.
        title: its heading.
        text: paragraphs.
        facts: what and its value; or what and several lines, the first of which counts most.
        items: a list.
        pictures: drawn.
        tables: below these.
        code: text to be read as it stands, such as commands.
        parts: sections within it, under smaller headings; they have no parts of their own.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    facts: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    items: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[str, ...] = ()
    parts: tuple[Section, ...] = ()


def count(number: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> count(1, "seed"), count(1200, "image")
        ('1 seed', '1,200 images')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def amount(value: float | None, decimals: int, *, scale: float = 1, sign: str = "") -> str:
    """A number for people; nothing for None.

    Example:
        >>> amount(-0.0123, 1, scale=100, sign="+"), amount(None, 1)
        ('\u22121.2', '')
    """
    if value is None:
        return ""
    rounded = round(scale * value, decimals) + 0.0  # no negative zero
    return f"{rounded:{sign},.{decimals}f}".replace("-", _MINUS)


def points(mean: float | None, interval: Interval | None, decimals: int) -> str:
    """A difference in percentage points, with its interval where there is one.

    Example:
        >>> points(0.012, Interval(-0.001, 0.025), 1)
        '+1.2 [\u22120.1, +2.5]'
    """
    text = amount(mean, decimals, scale=100, sign="+")
    if interval is None:
        return text
    low, high = (amount(end, decimals, scale=100, sign="+") for end in interval)
    return f"{text} [{low}, {high}]"


def metric_cell(name: str, mean: float | None, sd: float | None, *, note: str = "") -> Cell:
    """A metric of :data:`~limbeck.metrics.info.METRICS` in its unit, fractions in percent."""
    if mean is None:
        return Cell(text="")
    scale, decimals = (100, 1) if METRICS[name].unit == "fraction" else (1, 3)
    spread = "" if sd is None else f" ± {amount(sd, decimals, scale=scale)}"
    return Cell(text=amount(mean, decimals, scale=scale) + spread + note, value=mean)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence.

    Example:
        >>> listed(["kd", "rkd", "dkd"]), listed(["kd"])
        ('kd, rkd and dkd', 'kd')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def isolated(name: str) -> str:
    """A name on one line; one that is written from right to left leaves what follows in order."""
    name = printable(name)
    if any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in name):
        begin, end = ISOLATES
        return f"{begin}{name}{end}"
    return name
