"""``inspect --cka``: how alike the layers of a run's student and teacher are."""

from __future__ import annotations

import json
from collections.abc import Collection

from rich.table import Table

from limbeck.cli.terminal import make_console, printable
from limbeck.core.errors import SettingsError
from limbeck.core.files import write_durably
from limbeck.reports.similarity import similarity_csv, similarity_picture
from limbeck.runs.folder import RunFolder
from limbeck.runs.similarity import run_cka_map

__all__ = ["show_cka"]


def show_cka(
    run: str | None,
    *,
    split: str | None,
    best: bool,
    student_layers: str | None,
    teacher_layers: str | None,
    device: str,
    typed: Collection[str],
    as_json: bool,
) -> None:
    """Compare the layers of a run's student and teacher, and write the map into its folder.

    Args:
        run: a finished run's folder.
        split: whose images; None takes validation, or the test split where there is none.
        best: the best epoch on validation instead of the last.
        student_layers: names with commas between them; None takes stem, stages and embedding.
        teacher_layers: the same.
        device: where to compute.
        typed: names of models that may run code.
        as_json: print the map as JSON.

    Raises:
        LimbeckError: for anything the caller can mend.
    """
    if run is None or not RunFolder(run).path.is_dir():
        raise SettingsError(
            "--cka compares the student of a finished run with its teacher; give the run's folder: "
            f"limbeck inspect RUN --cka. Got {run or 'none'}"
        )
    found = run_cka_map(
        run,
        split=split,
        best=best,
        student_layers=_names(student_layers),
        teacher_layers=_names(teacher_layers),
        device=device,
        typed=typed,
    )
    layers = list(found.student_layers), list(found.teacher_layers)
    images = f"{found.num_images:,} {found.split} images"
    title = f"CKA of {found.student} and its teacher {found.teacher}, {images}"
    folder = RunFolder(run)
    folder.write_json(folder.cka("json"), found.plain())
    write_durably(folder.cka("csv"), similarity_csv(*layers, found.values).encode())
    picture = similarity_picture(*layers, found.values, title=title)
    write_durably(folder.cka("png"), picture)
    if as_json:
        print(json.dumps(found.plain()))  # noqa: T201
        return
    console = make_console()
    table = Table("student \\ teacher", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in layers[1]:
        table.add_column(printable(name), justify="right")
    for name, row in zip(layers[0], found.values, strict=True):
        table.add_row(printable(name), *(f"{value:.3f}" for value in row))
    console.print(table)
    files = ", ".join(folder.cka(form).name for form in ("json", "csv", "png"))
    console.print(f"\n{printable(title)}; {files} are in {printable(run)}", soft_wrap=True)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))
