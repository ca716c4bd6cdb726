"""The report of a comparison: one HTML file that needs nothing else and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from limbeck._version import __version__
from limbeck.reports.answer import answer, basis, question
from limbeck.reports.behaviour import agreement, calibration, classes
from limbeck.reports.compared import Compared
from limbeck.reports.costs import costs, families
from limbeck.reports.distilled import distilled, why
from limbeck.reports.embeddings import embeddings
from limbeck.reports.evidence import Evidence
from limbeck.reports.export import comparison_csv, comparison_markdown, runs_csv
from limbeck.reports.layers import layers
from limbeck.reports.layout import ISOLATES, Section
from limbeck.reports.lipschitz import lipschitz
from limbeck.reports.origin import definitions, failures, notices, reproduction, setting
from limbeck.reports.results import epochs, gains, overview
from limbeck.reports.table import printable

__all__ = ["SECTIONS", "report_page"]

# In the order of the page; one that has nothing to show returns None. A new section is a function
# and a line here.
SECTIONS: Final[tuple[Callable[[Evidence], Section | None], ...]] = (
    why,
    setting,
    overview,
    gains,
    epochs,
    embeddings,
    costs,
    calibration,
    agreement,
    classes,
    layers,
    lipschitz,
    distilled,
    families,
    notices,
    failures,
    reproduction,
    definitions,
)
_TEMPLATES = "templates"


def report_page(compared: Compared) -> str:
    """A comparison as one self-contained HTML page.

    Names of rows, classes and runs are text in it, whatever they contain. Its security policy
    allows its own style and script, by their hashes, and nothing else: no request leaves it.

    Args:
        compared: from :func:`~limbeck.reports.compared.read_comparison`.

    Returns:
        The file's text.

    Raises:
        RunFolderError: if a file in a run's folder is damaged.
    """
    evidence = Evidence(compared=compared)
    sections = [section for make in SECTIONS if (section := make(evidence)) is not None]
    title = f"{compared.student} on {compared.task}"
    style, script = _text("report.css"), _text("report.js")
    environment = Environment(
        loader=PackageLoader("limbeck.reports", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        question=question(evidence),
        answer=answer(evidence),
        basis=basis(evidence),
        remarks=_remarks(compared),
        sections=sections,
        downloads=_downloads(compared, title),
        version=__version__,
        markup=Markup,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _printable(value: object) -> object:
    """What stands in the page: everything that does not print is spelt out.

    Not what :func:`~limbeck.reports.layout.isolated` adds, which moves nothing outside a name.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(part if part in ISOLATES else printable(part) for part in value)


def _remarks(compared: Compared) -> list[str]:
    """What a reader must know before anything else; the rows' sentences stand with the gains."""
    sentences = {row.over_baseline.sentence for row in compared.rows if row.over_baseline}
    return [remark for remark in compared.remarks() if remark not in sentences]


def _downloads(compared: Compared, title: str) -> list[tuple[str, str]]:
    """The tables as files: name and ``data:`` address."""
    files = {
        "comparison.csv": ("text/csv", comparison_csv(compared.rows, compared=compared)),
        "runs.csv": ("text/csv", runs_csv(compared)),
        "comparison.md": ("text/markdown", comparison_markdown(compared, title=title)),
    }
    return [
        (name, f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}")
        for name, (kind, text) in files.items()
    ]


def _text(name: str) -> str:
    folder = resources.files("limbeck.reports") / _TEMPLATES
    return (folder / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what stands between two tags."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
