"""One number of several runs over their epochs, as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from limbeck.core.errors import UnknownNameError
from limbeck.reports.table import printable

__all__ = ["curves_picture", "values_of"]

# Of the Okabe-Ito palette, which stays distinct for every common kind of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_FRACTIONS = ("top1", "top5")  # drawn in percent
_LONGEST = 48  # characters of a run's name


def values_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Epoch, counted from 1 over all stages, and value; epochs without one are left out.

    Args:
        rows: from :func:`~limbeck.reports.listing.read_rows`.
        metric: ``val.top1``, ``train.loss``, ``lr`` and the like.

    Raises:
        UnknownNameError: if no row has it; with the nearest names.
    """
    found = []
    known: dict[str, None] = {}
    for row in rows:
        numbers = dict(_numbers(row))
        known |= dict.fromkeys(numbers)
        if metric in numbers:
            found.append((int(row["run_epoch"]), numbers[metric]))
    if not found:
        raise UnknownNameError("metric of this run", metric, known)
    return found


def curves_picture(
    curves: Mapping[str, Sequence[tuple[int, float]]], *, metric: str, form: str = "png"
) -> bytes:
    """A line for each run.

    Args:
        curves: name to epochs and values.
        metric: their name.
        form: "png", "svg" or "pdf".

    Returns:
        The file's bytes, the same for the same curves.

    Raises:
        ValueError: if there are no curves.
    """
    if not curves:
        raise ValueError("a picture of curves needs at least one run, got none")
    percent = metric.rpartition(".")[2] in _FRACTIONS
    settings = {"text.parse_math": False, "font.size": 10, "svg.hashsalt": "limbeck"}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, (name, points) in enumerate(curves.items()):
            axes.plot(
                [epoch for epoch, _ in points],
                [100 * value if percent else value for _, value in points],
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_STYLES[place // len(_COLOURS) % len(_STYLES)],
                marker="." if len(points) < 2 else "",
                label=_short(name),
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{printable(metric)}{', %' if percent else ''}")
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
        file = io.BytesIO()
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn as boxes, and that is all.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            canvas.print_figure(file, format=form, dpi=150, metadata=dated.get(form))
    return file.getvalue()


def _numbers(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{inner}", number) for inner, number in _numbers(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((name, float(value)))
    return found


def _short(name: str) -> str:
    name = printable(name)
    # matplotlib leaves labels that begin with an underscore out of the legend.
    name = f"\u200b{name}" if name.startswith("_") else name
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
