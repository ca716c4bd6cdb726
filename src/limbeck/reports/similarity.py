"""A map of how alike the layers of two networks are, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
import textwrap
import warnings
from collections.abc import Sequence

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from limbeck.reports.table import printable

__all__ = ["similarity_csv", "similarity_picture"]

_LONGEST = 28  # characters of a layer's name
_MOST_NUMBERS = 16  # layers a side up to which every cell has its number
_LIGHT = 0.5  # cells above this are dark, and their numbers white


def similarity_csv(
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    values: Sequence[Sequence[float]],
) -> str:
    """A line for each of the student's layers, a column for each of the teacher's.

    Example:
        >>> print(similarity_csv(["stage1"], ["stem", "stage1"], [[0.25, 0.5]]), end="")
        student,stem,stage1
        stage1,0.25,0.5
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["student", *teacher_layers])
    for name, row in zip(student_layers, values, strict=True):
        writer.writerow([name, *row])
    return file.getvalue()


def similarity_picture(
    student_layers: Sequence[str],
    teacher_layers: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    title: str,
) -> bytes:
    """The map as a PNG; the input is below and left, as the layers lie.

    Args:
        student_layers: names of the rows, in the order of the forward pass.
        teacher_layers: names of the columns.
        values: CKA, drawn from 0 to 1.
        title: what is compared.

    Returns:
        The file's bytes, the same for the same map.

    Raises:
        ValueError: if there are no layers.
    """
    if not student_layers or not teacher_layers:
        raise ValueError("a picture of a map needs at least one layer of each network")
    rows, columns = len(student_layers), len(teacher_layers)
    with matplotlib.style.context(["default", {"text.parse_math": False, "font.size": 10}]):
        size = 3.2 + 0.55 * min(columns, 24), 2.2 + 0.45 * min(rows, 24)
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        shown = axes.imshow(
            [list(row) for row in values], cmap="cividis_r", vmin=0, vmax=1, origin="lower"
        )
        if max(rows, columns) <= _MOST_NUMBERS:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    colour = "white" if value > _LIGHT else "black"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xticks(
            range(columns), [_short(n) for n in teacher_layers], rotation=60, ha="right"
        )
        axes.set_yticks(range(rows), [_short(n) for n in student_layers])
        axes.set_xlabel("teacher")
        axes.set_ylabel("student")
        width = int(10 * size[0])  # characters; matplotlib's own wrapping takes "$" for a formula
        figure.suptitle(textwrap.fill(printable(title), width), fontsize=10)
        figure.colorbar(shown, label="CKA", shrink=0.8)
        file = io.BytesIO()
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn as boxes, and that is all.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.print_figure(file, format="png", dpi=150)
    return file.getvalue()


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
