"""Which layers of a student hold images alike as which of its teacher's, drawn from ``cka.json``.

L M layers of the student and of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

from limbeck.core.errors import RunFolderError
from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import Cell, Column, Picture, Section, Table, amount, count, isolated
from limbeck.reports.svg import COLOURS, WIDTH, draw_svg
from limbeck.reports.table import printable

__all__ = ["LayerMap", "layer_map_svg", "layers", "read_layer_map"]

_FILE = "cka.json"
_MOST = 24  # layers a side up to which a map is drawn
_MOST_NUMBERS = 8  # up to which every cell has its number
_DARKEST = 0.55  # opacity of a cell at CKA 1: a number on it is still read, light or dark
_LONGEST = 16  # characters of a layer's name


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """Debiased linear CKA of a student's layers with its teacher's.

    Attributes:
        split: whose images.
        num_images: that counted.
        student_layers: names of the rows to their addresses, in the order of the forward pass.
        teacher_layers: the same of the columns.
        values: ``(L, M)``: at most 1, and near 0, of either sign, for nothing in common.
    """

    split: str
    num_images: NonNegativeInt
    student_layers: dict[str, str]
    teacher_layers: dict[str, str]
    values: tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], ...]


def read_layer_map(run: Path) -> LayerMap | None:
    """The map that ``limbeck inspect RUN --cka`` left in a run's folder; None where it did not.

    Raises:
        RunFolderError: if the file is damaged.
    """
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        found = _MAP.validate_json(path.read_bytes())
    except OSError as error:
        raise _damaged(path, str(error)) from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise _damaged(path, "; ".join(faults)) from None
    widths = {len(row) for row in found.values}
    if len(found.values) != len(found.student_layers) or widths != {len(found.teacher_layers)}:
        raise _damaged(path, "its values are not one for each two layers")
    return found


def _damaged(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is not what `limbeck inspect --cka` writes ({why}); make it anew, or remove it: "
        "the report is then made without it"
    )


def layers(evidence: Evidence) -> Section | None:
    """A map for each run that has one."""
    pictures: list[Picture] = []
    tables: list[Table] = []
    untold: list[str] = []
    for label, records in evidence.compared.records.items():
        for seed, run in records.items():
            found = read_layer_map(run.folder)
            if found is None:
                continue
            whose = f"{evidence.name(label)}, seed {seed}"
            images = count(found.num_images, f"{isolated(found.split)} image")
            if max(len(found.student_layers), len(found.teacher_layers)) <= _MOST:
                pictures.append(
                    Picture(
                        svg=layer_map_svg(f"layers-{len(pictures)}", found),
                        alt=f"CKA of the layers of {whose}, with the teacher's. {_nearest(found)}",
                        caption=f"{whose}, on {images}.",
                    )
                )
            else:
                untold.append(
                    f"The map of {whose} has too many layers to be drawn: see cka.png "
                    "in its folder."
                )
            tables.append(_table(found, f"CKA of {whose}, on {images}."))
    if not tables:
        return None
    return Section(
        name="layers",
        title="Layers that are alike",
        text=(
            "How far a layer of the student and a layer of the teacher hold the same images alike: "
            "debiased linear CKA, 1 for the same up to rotation and scale, about 0 for nothing in "
            "common. The input is below and left; darker is more alike. Neighbouring layers are "
            "alike in any network, and so are those of two that never met: what tells is how one "
            "map differs from another's. Each is of one run.",
        ),
        items=tuple(untold),
        pictures=tuple(pictures),
        tables=tuple(tables),
    )


def layer_map_svg(name: str, found: LayerMap) -> str:
    """The map as cells, the darker the more alike; the first layers are below and left."""
    rows, columns = len(found.student_layers), len(found.teacher_layers)
    side = 0.7 * WIDTH / max(rows, columns, 5)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, line in enumerate(found.values):
            for j, value in enumerate(line):
                opacity = _DARKEST * min(max(value, 0.0), 1.0)
                corner = (j - 0.5, i - 0.5)
                colour = COLOURS["output"]
                axes.add_patch(Rectangle(corner, 1, 1, color=colour, alpha=opacity, linewidth=0))
                if max(rows, columns) <= _MOST_NUMBERS:
                    axes.text(j, i, amount(value, 2), ha="center", va="center", fontsize=9.5)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(-0.5, rows - 0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        names = [_short(layer) for layer in found.teacher_layers]
        axes.set_xticks(range(columns), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(rows), [_short(layer) for layer in found.student_layers])
        axes.set_xlabel("teacher")
        axes.set_ylabel("student")

    return draw_svg(name, paint, height=1.4 + side * rows)


def _nearest(found: LayerMap) -> str:
    """In words: what each layer of the student is most alike to."""
    said = []
    for layer, line in zip(found.student_layers, found.values, strict=True):
        best = max(line)
        other = list(found.teacher_layers)[line.index(best)]
        said.append(f"{isolated(layer)}: most like {isolated(other)}, {amount(best, 2)}")
    return f"{'; '.join(said)}."


def _table(found: LayerMap, caption: str) -> Table:
    first = Column(title="student's layer", numeric=False)
    return Table(
        caption=caption,
        columns=(first, *(Column(title=printable(name)) for name in found.teacher_layers)),
        rows=tuple(
            (Cell(text=layer), *(Cell(text=amount(value, 3), value=value) for value in line))
            for layer, line in zip(found.student_layers, found.values, strict=True)
        ),
        folded=True,
    )


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


_MAP = TypeAdapter(LayerMap)
