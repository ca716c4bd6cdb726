"""Small pictures for the report: a table of panels, as PNG; lines over training, as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray
from torch import Tensor

from limbeck.reports.svg import COLOURS, draw_svg

__all__ = ["CLASS_COLOURS", "Panel", "lines_svg", "panel", "panels_png"]

# Twelve colours that differ in lightness as well as hue; more classes begin again.
CLASS_COLOURS = ListedColormap(
    [
        "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
        "#999999", "#44AA99", "#882255", "#DDCC77",
    ]
)  # fmt: skip
_PANEL = 1.35  # inches


def panel(image: Tensor) -> NDArray[np.float32]:
    """An image ``(C, H, W)``, uint8 or in [0, 1], as :func:`panels_png` takes it."""
    pixels = image if image.is_floating_point() else image.float() / 255
    arranged = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    shown: NDArray[np.float32] = arranged.cpu().numpy()
    return shown


def panels_png(
    rows: Sequence[Sequence[NDArray[np.generic]]],
    *,
    row_names: Sequence[str],
    column_names: Sequence[str],
    marks: Sequence[NDArray[np.float64]] | None = None,
    classes: bool = False,
) -> bytes:
    """A table of pictures.

    Args:
        rows: of panels: ``(H, W)`` or ``(H, W, 3)`` in [0, 1]; or, with ``classes``, integers.
        row_names: one for each row.
        column_names: one for each column.
        marks: points to mark in every panel of a column, ``(n, 2)`` as (x, y) in pixels.
        classes: panels are class numbers, drawn in :data:`CLASS_COLOURS`.

    Returns:
        The file's bytes.
    """
    with matplotlib.style.context(["default", {"text.parse_math": False, "font.size": 8}]):
        size = (1.0 + _PANEL * len(column_names), 0.4 + _PANEL * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(column_names), squeeze=False)
        for axes_row, panels, row_name in zip(grid, rows, row_names, strict=True):
            for column, (axes, panel) in enumerate(zip(axes_row, panels, strict=True)):
                shown = panel % CLASS_COLOURS.N if classes else panel
                axes.imshow(
                    shown,
                    cmap=CLASS_COLOURS if classes else "gray",
                    vmin=0,
                    vmax=CLASS_COLOURS.N - 1 if classes else 1,
                    interpolation="nearest",
                )
                if marks is not None:
                    axes.plot(*marks[column].T, "o", color="white", mec="black", ms=4)
                axes.set_xticks([])
                axes.set_yticks([])
            axes_row[0].set_ylabel(row_name)
        for axes, name in zip(grid[0], column_names, strict=True):
            axes.set_title(name)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.print_figure(file, format="png", dpi=90)
    return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one horizontal axis.

    Attributes:
        title: what is drawn, with its unit.
        lines: "distilled" and "independent" to a line of points for each seed.
        log: a logarithmic vertical axis.
    """

    title: str
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]]
    log: bool = False


_LOOKS = {"distilled": (COLOURS["output"], "-"), "independent": (COLOURS["ink"], "--")}


def lines_svg(name: str, panels: Sequence[Panel], *, xlabel: str) -> str:
    """Panels side by side, two a line: each seed thin, the mean of what all seeds have thick.

    Args:
        name: of the picture: letters and hyphens.
        panels: one at least.
        xlabel: of the horizontal axis.

    Returns:
        An ``<svg>`` element, see :func:`~limbeck.reports.svg.draw_svg`.
    """
    rows = -(-len(panels) // 2)

    def paint(figure: Figure) -> None:
        drawn = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axes in drawn[len(panels) :]:
            axes.remove()
        for axes, panel in zip(drawn, panels, strict=False):
            for kind, runs in panel.lines.items():
                colour, style = _LOOKS[kind]
                for run in runs:
                    axes.plot(*zip(*run, strict=True), style, color=colour, lw=0.6, alpha=0.6)
                shared = sorted(set.intersection(*({x for x, _ in run} for run in runs)))
                means = [np.mean([dict(run)[x] for run in runs]) for x in shared]
                axes.plot(shared, means, style, color=colour, lw=1.8)
            axes.set_title(panel.title)
            axes.set_xlabel(xlabel)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if panel.log:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

    return draw_svg(name, paint, height=0.3 + 1.7 * rows)
