"""Results of this library's own runs beside the published figures, as a page.

A figure is compared with a published one of the same pair only, and what protocol that one was
made by stands beside it: the last epoch, the epoch best on the test images, or not stated. The
three are never averaged together.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from limbeck.core.errors import RunFolderError, UnknownNameError
from limbeck.core.sources import source_hash

__all__ = ["PublishedFigure", "Result", "published_figures", "read_results", "results_page"]

_TASKS = {
    "cifar100": (
        "CIFAR-100",
        "Last epoch; nothing was chosen on the test split, which each run read once.",
    ),
    "cifar100_small": (
        "A smaller task: the first 20 classes of CIFAR-100, 8 epochs",
        "Made on CPUs, to show that everything works together. Nobody has published these "
        "figures, and they say little about the methods at full length.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One cell of a published table.

    Attributes:
        pair: ``TEACHER->STUDENT``.
        recipe: the part of the recipe's name that stands for the method; "ce" is the student
            without distillation, "teacher" the teacher.
        top1: percent of the test images.
        sd: over runs, in points; None where it is not given.
        protocol: "last epoch", "best epoch on test" or "not stated".
        note: "unverified" where it was not read at its source.
        source: where it was read.
    """

    pair: str
    recipe: str
    top1: float
    sd: float | None
    protocol: str
    note: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """All runs of one recipe by one protocol.

    Attributes:
        recipe: its name.
        protocol: "published" or "held-out".
        top1: percent of the test images after the last epoch, by seed.
        teacher_top1: the teacher's, of the first seed; None without one.
        commits: short, of the code that made them.
        is_stale: whether the method's code has changed since one of them was made.
        machines: that they were made on.
        seconds: of training, mean over the runs.
    """

    recipe: str
    protocol: str
    top1: Mapping[int, float]
    teacher_top1: float | None
    commits: tuple[str, ...]
    is_stale: bool
    machines: tuple[str, ...]
    seconds: float

    @property
    def task(self) -> str:
        """The first part of the recipe's name."""
        return self.recipe.split("/")[0]

    @property
    def key(self) -> str:
        """The part of the recipe's name that stands for the method."""
        return self.recipe.split("/")[1]

    @property
    def mean(self) -> float:
        """Percent."""
        return statistics.fmean(self.top1.values())

    @property
    def sd(self) -> float:
        """In points; NaN of one run."""
        return statistics.stdev(self.top1.values()) if len(self.top1) > 1 else math.nan


def published_figures() -> tuple[PublishedFigure, ...]:
    """Every published figure that the package knows of."""
    text = resources.files("limbeck.reports").joinpath("published_cifar100.csv").read_text("utf-8")
    return tuple(
        PublishedFigure(
            pair=line["pair"],
            recipe=line["recipe"],
            top1=float(line["top1_percent"]),
            sd=float(line["sd"]) if line["sd"] else None,
            protocol=line["protocol"],
            note=line["note"],
            source=line["source"],
        )
        for line in csv.DictReader(io.StringIO(text))
    )


def read_results(path: Path) -> tuple[Result, ...]:
    """The file that ``limbeck reproduce`` adds to, recipe by recipe.

    Of several runs of one recipe, protocol and seed, the last line counts.

    Raises:
        RunFolderError: if the file is missing or has other columns.
    """
    if not path.is_file():
        raise RunFolderError(f"{path}: no such file; `limbeck reproduce` writes one")
    groups: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            group = groups.setdefault((line["recipe"], line["protocol"]), {})
            group[int(line["seed"])] = line
        return tuple(_result(*name, lines) for name, lines in sorted(groups.items()))
    except (KeyError, ValueError) as error:
        raise RunFolderError(
            f"{path} is not a file of results: {error}; `limbeck reproduce` writes one"
        ) from error


def results_page(results: Iterable[Result]) -> str:
    """Markdown: every result, task by task and pair by pair, beside what was published.

    Args:
        results: from :func:`read_results`.
    """
    results = tuple(results)
    lines = [
        "# Results",
        "",
        "Made by `limbeck results`; every line stands for run folders made by `limbeck reproduce`.",
        "Top-1 in percent, mean ± standard deviation over seeds.",
    ]
    for task, (title, told) in _TASKS.items():
        ours = [result for result in results if result.task == task]
        if not ours:
            continue
        lines += ["", f"## {title}", "", told]
        compared = task == "cifar100"
        lines += _plain_table([result for result in ours if result.key == "ce"], compared)
        pairs = sorted({result.recipe.split("/")[2] for result in ours if result.key != "ce"})
        for pair in pairs:
            of_pair = [result for result in ours if result.recipe.split("/")[2] == pair]
            lines += _pair_table(pair, of_pair, ours, compared)
    if any(result.is_stale for result in results):
        lines += ["", "\\* The method's code has changed since these runs were made."]
    return "\n".join(lines) + "\n"


def _result(recipe: str, protocol: str, lines: Mapping[int, Mapping[str, str]]) -> Result:
    rows = [lines[seed] for seed in sorted(lines)]
    teacher = rows[0]["teacher_top1"]
    return Result(
        recipe=recipe,
        protocol=protocol,
        top1={seed: 100 * float(lines[seed]["top1"]) for seed in sorted(lines)},
        teacher_top1=100 * float(teacher) if teacher else None,
        commits=tuple(sorted({row["commit"][:8] for row in rows})),
        is_stale=any(_has_changed(row) for row in rows),
        machines=tuple(sorted({row["machine"] for row in rows})),
        seconds=statistics.fmean(float(row["seconds"]) for row in rows),
    )


def _has_changed(row: Mapping[str, str]) -> bool:
    try:
        return source_hash(row["method_module"]) != row["method_sources"]
    except UnknownNameError:
        return True


def _figure(result: Result) -> str:
    spread = "" if math.isnan(result.sd) else f" ± {result.sd:.2f}"
    return f"{result.mean:.2f}{spread}{'*' if result.is_stale else ''}"


def _seeds(result: Result) -> str:
    return ", ".join(str(seed) for seed in result.top1)


def _made(result: Result) -> str:
    return f"{result.protocol}; {', '.join(result.commits)}; {', '.join(result.machines)}"


def _plain_table(results: list[Result], compared: bool) -> list[str]:
    """Networks on labels alone."""
    if not results:
        return []
    figures = published_figures() if compared else ()
    lines = ["", "| on labels alone | top-1 | seeds | published | made |", "|---|---|---|---|---|"]
    for result in results:
        network = result.recipe.split("/")[2]
        published = {
            f"{figure.top1:.2f} ({figure.protocol})"
            for figure in figures
            if (figure.recipe == "teacher" and figure.pair.split("->")[0] == network)
            or (figure.recipe == "ce" and figure.pair.split("->")[1] == network)
        }
        told = "; ".join(sorted(published))
        lines.append(
            f"| {network} | {_figure(result)} | {_seeds(result)} | {told} | {_made(result)} |"
        )
    return lines


def _pair_table(
    pair: str, results: list[Result], all_results: list[Result], compared: bool
) -> list[str]:
    teacher, student = pair.split("-")
    published = {
        figure.recipe: figure
        for figure in (published_figures() if compared else ())
        if figure.pair == f"{teacher}->{student}"
    }
    lines = ["", f"### {teacher} → {student}", ""]
    known = sorted({f"{r.teacher_top1:.2f}" for r in results if r.teacher_top1 is not None})
    beside = published.get("teacher")
    told = "" if beside is None else f"; the published tables' teacher: {beside.top1:.2f}"
    lines += [f"The teacher here: {', '.join(known)}{told}.", ""]
    heads = ["recipe", "top-1", "seeds", "over the plain student"]
    heads += ["published", "of", "difference"] if compared else []
    heads += ["seconds a run", "made"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in sorted(results, key=lambda result: -result.mean):
        cells = [result.key, _figure(result), _seeds(result), _gain(result, student, all_results)]
        if compared:
            figure = published.get(result.key)
            cells += (
                ["", "", ""]
                if figure is None
                else [
                    f"{figure.top1:.2f}" + ("" if figure.sd is None else f" ± {figure.sd:.2f}"),
                    figure.protocol + (f", {figure.note}" if figure.note else ""),
                    f"{result.mean - figure.top1:+.2f}",
                ]
            )
        cells += [f"{result.seconds:,.0f}", _made(result)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _gain(result: Result, student: str, all_results: list[Result]) -> str:
    """Mean difference over the seeds that both have."""
    for plain in all_results:
        if plain.recipe == f"{result.task}/ce/{student}" and plain.protocol == result.protocol:
            shared = plain.top1.keys() & result.top1.keys()
            if shared:
                gain = statistics.fmean(result.top1[seed] - plain.top1[seed] for seed in shared)
                return f"{gain:+.2f} (n = {len(shared)})"
    return ""
