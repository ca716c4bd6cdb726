"""Accuracy of classes with many, medium and few training images, where they have a long tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from limbeck.metrics.scores import FEW_SHOTS, MANY_SHOTS
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.spread import Spread, spread
from limbeck.reports.table import printable

__all__ = ["SHOTS", "shot_cells", "shot_spreads", "shot_table"]

# Metric to heading.
SHOTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "many_shot": f"many (> {MANY_SHOTS})",
        "medium_shot": f"medium ({FEW_SHOTS} to {MANY_SHOTS})",
        "few_shot": f"few (< {FEW_SHOTS})",
    }
)


def shot_spreads(row: ComparisonRow) -> dict[str, Spread | None]:
    """Each metric of :data:`SHOTS` on the test split, last epoch, over the row's seeds.

    None for a group without classes; empty where no run was judged so.
    """
    scores = [run.scores.get("last", {}) for run in row.records.values()]
    found = {name: [s[name] for s in scores if s.get(name) is not None] for name in SHOTS}
    if not any(found.values()):
        return {}
    return {
        name: spread([v for v in values if v is not None]) if values else None
        for name, values in found.items()
    }


def shot_cells(row: ComparisonRow) -> list[str]:
    """The same in percent, as text; empty where no run was judged so."""
    return ["-" if value is None else _percent(value) for value in shot_spreads(row).values()]


def shot_table(rows: Sequence[ComparisonRow]) -> Table | None:
    """The same for a terminal, a row each; None where no run was judged so."""
    cells = {row.label: found for row in rows if (found := shot_cells(row))}
    if not cells:
        return None
    table = Table(
        title="Test accuracy in %, by training images of a class",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("student", overflow="fold")
    for heading in SHOTS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for label, found in cells.items():
        table.add_row(Text(printable(label)), *found)
    return table


def _percent(value: Spread) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd}"
