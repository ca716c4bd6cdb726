"""What the results cost: each row against its accuracy, and families of methods side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import Cell, Column, Picture, Section, Table, amount, listed
from limbeck.reports.pictures import CostPanel, Priced, cost_svg, on_front
from limbeck.reports.runs import RunRecord

__all__ = ["costs", "families"]

_FAMILIES = ("output", "feature", "relation")
_MIB = 2**20


def costs(evidence: Evidence) -> Section | None:
    """What each row costs, and whether anybody has more accuracy for less."""
    rows = evidence.rows
    if not rows:
        return None
    panels, plain = [], []
    for title, unit, of_run, deployed in _PRICES:
        networks = []
        for label, row in rows.items():
            values = [value for run in row.records.values() if (value := of_run(run)) is not None]
            if values:
                networks.append(
                    Priced(
                        label=evidence.compared.names[label],
                        kind=evidence.kind(label),
                        cost=statistics.fmean(values),
                        accuracy=row.accuracy.mean,
                        matched=row.role != "reference",
                    )
                )
        teacher = evidence.compared.teacher
        if deployed and teacher is not None and teacher.test is not None:
            cost = of_run(teacher)
            if cost is not None:
                networks.append(
                    Priced(
                        label="teacher",
                        kind="teacher",
                        cost=cost,
                        accuracy=teacher.test.last.top1,
                        matched=False,
                    )
                )
        students = {one.cost for one in networks if one.kind != "teacher"}
        if len(students) == 1 and deployed:
            plain.append(f"all students have {students.pop():,.0f} {unit}")
        if len({one.cost for one in networks}) > 1:
            panels.append(CostPanel(title=title, networks=networks))
    text = [
        "Training time is what it was on this machine, evaluation left out, and the teacher's own "
        "training is not in it"
        + (
            f": that took {amount(evidence.compared.teacher.seconds, 0)} s."
            if evidence.compared.teacher is not None
            else "."
        )
    ]
    if plain:
        text.append(f"On what is deployed, {listed(plain)}.")
    pictures = []
    if panels:
        fronts = [
            f"{panel.title}: {listed([one.label for one in on_front(panel.networks)])}"
            for panel in panels
        ]
        pictures.append(
            Picture(
                svg=cost_svg(panels, ylabel="test accuracy, %"),
                alt=f"Accuracy against cost. On the Pareto front by {'; by '.join(fronts)}.",
                caption=(
                    "Ringed, on the dotted line: the Pareto front, where no other row of the match "
                    f"has at least this accuracy for less. Means over seeds ({evidence.seeds}), so "
                    "a front is no verdict. Hollow: outside the match, for orientation."
                ),
            )
        )
    return Section(
        name="costs",
        title="Accuracy against cost",
        text=tuple(text),
        pictures=tuple(pictures),
        tables=(_cost_table(evidence),),
    )


# Title, unit, what of a run, and whether it is paid where the student is used.
_PRICES: tuple[tuple[str, str, Callable[[RunRecord], float | None], bool], ...] = (
    ("parameters", "parameters", lambda run: run.num_parameters, True),
    ("multiply-adds of one image", "multiply-adds", lambda run: run.num_macs, True),
    ("training time of a run, s", "s", lambda run: run.seconds, False),
)


def _cost_table(evidence: Evidence) -> Table:
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="n", source="num_seeds", note="runs"),
        Column(title="parameters", source="num_parameters"),
        Column(title="multiply-adds", source="num_macs", note="of one image"),
        Column(title="size, KiB", source="deployed_bytes", note="of the deployed weights"),
        Column(
            title="images/s",
            source="mean_inference_images_per_second",
            note="deployed, batches of 64",
        ),
        Column(title="training, s", source="mean_seconds", note="mean of a run"),
        Column(
            title="of it teacher, s",
            source="mean_teacher_seconds",
            note="the teacher's forward passes",
        ),
        Column(
            title="step over floor",
            source="mean_step_over_floor",
            note="1 is the least; ± sd over runs",
        ),
        Column(title="peak memory, MiB", source="max_peak_memory_bytes", note="most of any run"),
    )
    rows = []
    for label in evidence.rows:
        cells = evidence.cells[label]
        deviation = cells["sd_step_over_floor"]

        def number(source: str, decimals: int = 0, scale: float = 1) -> Cell:
            value = cells[source]  # noqa: B023  (called before the loop goes on)
            return Cell(text=amount(value, decimals, scale=scale), value=value)

        rows.append(
            (
                evidence.name_cell(label),
                number("num_seeds"),
                number("num_parameters"),
                number("num_macs"),
                number("deployed_bytes", 1, 1 / 1024),
                number("mean_inference_images_per_second"),
                number("mean_seconds", 1),
                number("mean_teacher_seconds", 1),
                Cell(
                    text=amount(cells["mean_step_over_floor"], 2)
                    + ("" if deviation is None else f" ± {amount(deviation, 2)}"),
                    value=cells["mean_step_over_floor"],
                ),
                number("max_peak_memory_bytes", 0, 1 / _MIB),
            )
        )
    return Table(
        caption=(
            "Costs, means over the runs of a row. The floor of a training step is the teacher's "
            "forward pass and a bare step of the student, the quickest of some on one batch after "
            "training, in the same process; a run that other programs hold up is farther above it, "
            "one whose stages stop early can be below. On a CPU, memory is that of the whole "
            "process, with Python and torch in it."
        ),
        columns=columns,
        rows=tuple(rows),
    )


def families(evidence: Evidence) -> Section | None:
    """Output, feature and relation knowledge side by side."""
    columns = (
        Column(title="knowledge in", numeric=False),
        Column(title="methods", numeric=False),
        Column(title="n", note="runs"),
        Column(title="gain, points (from, to)", note="mean over methods, and their extremes"),
        Column(title="verdicts", numeric=False),
        Column(title="training time over the baseline's", note="mean over methods"),
        Column(title="step over floor", note="mean over methods"),
        Column(title="spread over seeds, points", note="mean standard deviation of test accuracy"),
        Column(title="peak memory, MiB (over the baseline's)", note="mean over methods"),
    )
    rows = []
    sizes = []
    for family in _FAMILIES:
        labels = [
            label
            for label, row in evidence.rows.items()
            if evidence.facts(label).family == family and row.role == "method"
        ]
        if labels:
            sizes.append(len(labels))
            rows.append(_family_row(evidence, family, labels))
    if not rows:
        return None
    single = "Each family is judged by the methods named here and by nothing else" + (
        "; where it has one method, the line is that method's." if 1 in sizes else "."
    )
    return Section(
        name="families",
        title="Output, feature and relation knowledge",
        text=(single,),
        tables=(
            Table(
                caption=f"Families of methods; {evidence.seeds} for each method.",
                columns=columns,
                rows=tuple(rows),
            ),
        ),
    )


def _family_row(evidence: Evidence, family: str, labels: Sequence[str]) -> tuple[Cell, ...]:
    rows = [evidence.rows[label] for label in labels]
    cells = [evidence.cells[label] for label in labels]
    base = evidence.cells.get(evidence.baseline or "", {})
    gain = [row.gain.mean for row in rows if row.gain is not None]
    spreads = [row.accuracy.sd for row in rows if row.accuracy.sd is not None]
    verdicts = [row.over_baseline.verdict for row in rows if row.over_baseline is not None]
    names = ", ".join(evidence.compared.names[label] for label in labels)
    runs = sum(len(row.records) for row in rows)

    def mean(values: Sequence[float]) -> float | None:
        return statistics.fmean(values) if values else None

    def over_baseline(source: str) -> list[float]:
        if not base.get(source):
            return []
        return [line[source] / base[source] for line in cells if line[source] is not None]

    def number(value: float | None, decimals: int, scale: float = 1) -> Cell:
        return Cell(text=amount(value, decimals, scale=scale), value=value)

    time = mean(over_baseline("mean_seconds"))
    bytes_used = [k["max_peak_memory_bytes"] for k in cells if k["max_peak_memory_bytes"]]
    memory, relative = mean(bytes_used), mean(over_baseline("max_peak_memory_bytes"))
    floor = mean(
        [k["mean_step_over_floor"] for k in cells if k["mean_step_over_floor"] is not None]
    )
    decimals = evidence.decimals
    span = (
        ""
        if len(gain) < 2
        else (
            f" ({amount(min(gain), decimals, scale=100, sign='+')}, "
            f"{amount(max(gain), decimals, scale=100, sign='+')})"
        )
    )
    told = ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("better", "worse", "cannot tell")
        if verdict in verdicts
    )
    return (
        Cell(text=family, value=family),
        Cell(text=names, value=names),
        number(runs, 0),
        Cell(text=amount(mean(gain), decimals, scale=100, sign="+") + span, value=mean(gain)),
        Cell(text=told, value=told),
        number(time, 2),
        number(floor, 2),
        number(mean(spreads), decimals, 100),
        Cell(
            text=amount(memory, 0, scale=1 / _MIB)
            + ("" if relative is None else f" ({amount(relative, 2)})"),
            value=memory,
        ),
    )
