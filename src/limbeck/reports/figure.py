"""A comparison as one picture: each seed a point, each mean a bar."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.spread import Spread
from limbeck.reports.table import printable

__all__ = ["comparison_png"]

# Of the Okabe-Ito palette, which stays distinct for every common kind of colour blindness;
# the shapes tell seeds apart without any colour.
_COLOURS = {"baseline": "#000000", "method": "#0072B2", "reference": "#595959"}
_LINE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINE_STYLES = ("--", ":", "-.", (0, (5, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LONGEST_LABEL, _LONGEST_TITLE, _TITLE_WIDTH = 36, 160, 84  # characters


def comparison_png(
    rows: Sequence[ComparisonRow], *, title: str, lines: Mapping[str, float] | None = None
) -> bytes:
    """The comparison as a PNG: test accuracy of the last epoch, a row per method.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`, drawn from top to bottom.
        title: the task; the number of seeds is added to it.
        lines: accuracies in [0, 1] to draw across all rows, such as the teacher's, by name.

    Returns:
        The file's bytes.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("a figure needs at least one row of results, got none")
    # Names are text: "$" opens no formula, whatever the user's own matplotlib settings say.
    with matplotlib.style.context(["default", {"text.parse_math": False, "font.size": 10}]):
        figure = Figure(figsize=(8.6, 2.2 + 0.5 * len(rows)), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), rows, title, lines or {})
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn as boxes, and that is all.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            file = io.BytesIO()
            canvas.print_figure(file, format="png", dpi=150)
    return file.getvalue()


def _draw(
    axes: Axes, rows: Sequence[ComparisonRow], title: str, lines: Mapping[str, float]
) -> None:
    seeds = sorted({seed for row in rows for seed in row.last})
    shapes = {
        seed: _MARKERS[place] if len(seeds) <= len(_MARKERS) else "o"
        for place, seed in enumerate(seeds)
    }
    for place, row in enumerate(rows):
        colour = _COLOURS[row.role]
        axes.plot([100 * row.accuracy.mean] * 2, [place - 0.3, place + 0.3], color=colour, lw=2.5)
        for seed, accuracy in row.last.items():
            # Seeds lie a little apart, so that equal accuracies do not hide one another.
            offset = 0.0 if len(seeds) == 1 else 0.36 * (seeds.index(seed) / (len(seeds) - 1) - 0.5)
            axes.plot(
                100 * accuracy,
                place + offset,
                shapes[seed],
                color=colour,
                markerfacecolor="white",
                markersize=6,
            )
        _write_beside(axes, place, _text(row.accuracy), _gain(row))
    _write_beside(axes, -0.6, "mean ± sd" if len(seeds) > 1 else "mean", "gain, paired")
    for place, (name, accuracy) in enumerate(lines.items()):
        axes.axvline(
            100 * accuracy,
            color=_LINE_COLOURS[place % len(_LINE_COLOURS)],
            linestyle=_LINE_STYLES[place % len(_LINE_STYLES)],
            label=f"{_short(name)} {100 * accuracy:.1f}",
            zorder=0,
        )
    axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.margins(x=0.06)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test accuracy of the last epoch, %")
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    heading = f"{_short(title, _LONGEST_TITLE)}, {count}"
    # matplotlib's own wrapping measures "$" as the start of a formula, whatever parse_math says.
    axes.figure.suptitle(textwrap.fill(heading, _TITLE_WIDTH), x=0.01, ha="left")
    _legend(axes, shapes)


def _legend(axes: Axes, shapes: Mapping[int, str]) -> None:
    """Below the axes: the shapes of the seeds, the bar, the lines."""
    distinct = len(set(shapes.values())) == len(shapes)
    named = shapes if distinct else dict.fromkeys(["each seed"], "o")
    handles = [
        Line2D(
            [],
            [],
            color="#000000",
            marker=marker,
            linestyle="",
            markerfacecolor="white",
            label=f"seed {seed}" if distinct else str(seed),
        )
        for seed, marker in named.items()
    ]
    bar = Line2D([], [], color="#000000", marker="|", linestyle="", markersize=12, label="mean")
    bar.set_markeredgewidth(2.5)
    drawn, _ = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles=[*handles, bar, *drawn], loc="outside lower left", ncols=6, frameon=False
    )


def _write_beside(axes: Axes, height: float, accuracy: str, gain: str) -> None:
    """The two columns of numbers right of the axes."""
    for text, place in ((accuracy, 10), (gain, 85)):
        axes.annotate(
            text,
            (1, height),
            xytext=(place, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center_baseline",
            annotation_clip=False,
        )


def _gain(row: ComparisonRow) -> str:
    if row.gain is None:
        return row.no_gain
    return _text(row.gain, sign="+")


def _text(value: Spread, *, sign: str = "") -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:{sign}.1f}{sd}"


def _short(name: str, longest: int = _LONGEST_LABEL) -> str:
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
