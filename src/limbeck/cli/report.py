"""``report``: a comparison as one page to send on."""

from __future__ import annotations

import json
from pathlib import Path

from limbeck.cli.terminal import make_console, printable
from limbeck.core.files import write_durably
from limbeck.reports.answer import answer, basis, question
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.files import write_comparison
from limbeck.reports.layout import ISOLATES
from limbeck.reports.page import report_page

__all__ = ["write_report"]


def write_report(folder: Path, out: Path | None, *, as_json: bool) -> None:
    """Write a comparison's report, print its two sentences and where it lies.

    Args:
        folder: the comparison's.
        out: the page alone, to this file; None writes it into the folder, with the tables.
        as_json: print JSON.

    Raises:
        RunFolderError: if there is no comparison, a file of it is damaged, or the page cannot be
            written.
    """
    compared = read_comparison(folder)
    if out is None:
        paths = [path for path in write_comparison(compared) if path is not None]
        out = compared.folder / "report.html"
    else:
        write_durably(out, report_page(compared).encode("utf-8"))
        paths = [out]
    evidence = Evidence(compared=compared)
    said = {"question": question(evidence), "answer": answer(evidence), "basis": basis(evidence)}
    said = {name: _without_isolates(sentence) for name, sentence in said.items()}
    if as_json:
        print(json.dumps({**said, "report": str(out), "files": list(map(str, paths))}))  # noqa: T201
        return
    console = make_console()
    for sentence in said.values():
        console.print(printable(sentence), soft_wrap=True)
    others = ", ".join(path.name for path in paths if path != out)
    if others:
        console.print(f"{others} are in {printable(str(folder))}.", soft_wrap=True)
    console.print(f"Report: {printable(str(out))}", soft_wrap=True)


def _without_isolates(text: str) -> str:
    """A terminal has an order of its own for text from right to left."""
    return text.translate(dict.fromkeys(map(ord, ISOLATES)))
