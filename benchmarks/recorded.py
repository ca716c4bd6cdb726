"""What the benchmarks that leave results share: rows in a CSV, a figure, a table in a page."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "relations.md"
FIGURES = ROOT / "docs" / "figures"
# Of the Okabe-Ito palette, which stays distinct for every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def machine() -> str:
    """System, architecture and kind of processor, without a name."""
    kind = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        kind = named[0] if named else kind
    return f"{platform.system()} {platform.machine()}, {kind}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV, as they stand; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Mapping[str, str]], *, identity: Sequence[str]) -> None:
    """Put rows into a CSV in place of those with the same identity, and behind all others."""
    rows = list(rows)
    new = {tuple(row[name] for name in identity) for row in rows}
    kept = [r for r in read_rows(path) if tuple(r[name] for name in identity) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def write_table(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Put a table between the page's two comments of that name."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("generated", "end"))
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, end, after = rest.partition(end)
    assert begin
    assert end
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def save_figure(figure: Figure, name: str) -> Path:
    """Write a picture of the page."""
    path = FIGURES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context("default"):
        FigureCanvasAgg(figure).print_figure(path, format="png", dpi=110)
    return path
