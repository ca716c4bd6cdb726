"""What came out: the table, gains with their intervals, accuracy over the epochs."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from limbeck.core.errors import UnknownNameError
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.curves import values_of
from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import (
    Cell,
    Column,
    Picture,
    Section,
    Table,
    amount,
    count,
    listed,
    points,
)
from limbeck.reports.listing import read_rows
from limbeck.reports.pictures import Curves, Measured, curves_svg, forest_svg
from limbeck.reports.statistics import (
    Interval,
    PairedDifference,
    image_interval,
    paired_image_interval,
)

__all__ = ["epochs", "gains", "overview"]

_MOST_SEEDS = 6  # shown one by one


def overview(evidence: Evidence) -> Section:
    """The table of all rows."""
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="family", numeric=False),
        Column(title="n", source="num_seeds", note="seeds"),
        Column(title="test %, last epoch", source="test_top1_mean", note="mean ± sd over seeds"),
        Column(title="each seed"),
        Column(title="gain, points", source="gain_mean", note="over the baseline [95 % interval]"),
        Column(title="verdict", numeric=False, source="gain_verdict"),
        Column(title="p", source="gain_holm_p", note="Holm"),
        Column(title="effect", source="gain_hedges_gz", note="Hedges' g"),
        Column(
            title="test %, best on validation",
            source="best_on_validation_test_top1_mean",
            note="mean ± sd over seeds",
        ),
        Column(title="gain, best on validation", source="best_gain_mean", note="points [95 %]"),
        Column(title="over kd", source="over_kd_mean", note="points [95 %]"),
        Column(title="settings", numeric=False, source="settings"),
    )
    rows = [_overview_row(evidence, label) for label in evidence.compared.facts]
    return Section(
        name="table",
        title="The table",
        text=(
            f"Top-1 accuracy on {evidence.test_images}, which every run read once, after its last "
            "epoch and for the epoch that was best on validation; nothing was chosen on them. "
            "Gains are over the same student without a teacher, with the same seed.",
        ),
        tables=(
            Table(
                caption=f"All rows; {evidence.seeds}. Sort by any column.",
                columns=columns,
                rows=tuple(rows),
            ),
        ),
    )


def _overview_row(evidence: Evidence, label: str) -> tuple[Cell, ...]:
    facts, cells = evidence.facts(label), evidence.cells[label]
    row = evidence.rows.get(label)
    note = evidence.compared.settings_note(label)
    settings = Cell(text=note, value=note)
    family = facts.role if facts.family == "none" else facts.family
    start = (
        evidence.name_cell(label),
        Cell(text=family, value=family),
        Cell(text=str(cells["num_seeds"]), value=cells["num_seeds"]),
    )
    if row is None:
        return (*start, Cell(text="no run"), *[Cell(text="")] * 8, settings)
    decimals = evidence.decimals
    over = row.over_baseline
    gain = row.no_gain
    verdict = Cell(text="")
    if over is not None:
        gain = points(over.mean, over.interval, decimals)
        verdict = Cell(text=over.verdict, value=over.verdict, mark=over.verdict)
    return (
        *start,
        _percent_cell(cells, "test_top1", decimals),
        Cell(text=_each(row, decimals), value=min(row.last.values())),
        Cell(text=gain, value=cells["gain_mean"]),
        verdict,
        Cell(text=_p(cells["gain_holm_p"]), value=cells["gain_holm_p"]),
        Cell(text=amount(cells["gain_hedges_gz"], 2, sign="+"), value=cells["gain_hedges_gz"]),
        _percent_cell(cells, "best_on_validation_test_top1", decimals),
        _difference_cell(row.best_over_baseline, decimals),
        _difference_cell(row.over_kd, decimals),
        settings,
    )


def gains(evidence: Evidence) -> Section | None:
    """Every method less the baseline: over seeds, and apart from it over test images."""
    rows = {k: row for k, row in evidence.rows.items() if row.over_baseline is not None}
    if not rows:
        return None
    measured = []
    for label, row in rows.items():
        over = row.over_baseline
        if over is None or over.mean is None:
            continue
        measured.append(
            Measured(
                label=evidence.compared.names[label],
                kind=evidence.kind(label),
                each=list(over.by_seed.values()),
                mean=over.mean,
                interval=over.interval,
            )
        )
    told = [
        f"{evidence.name(label)} {points(row.over_baseline.mean, row.over_baseline.interval, 1)}"
        for label, row in rows.items()
        if row.over_baseline is not None
    ]
    has_interval = any(one.interval is not None for one in measured)
    lines = (
        "thick line: 95 % interval of the mean (Student's t)"
        if has_interval
        else ("no intervals, since there is no spread over seeds")
    )
    picture = Picture(
        svg=forest_svg(measured),
        alt=f"Gains over the baseline in points: {listed(told)}.",
        caption=(
            f"Large mark: mean gain; small marks: every seed; {lines}. {evidence.seeds}, paired: "
            "both runs of a pair have the same initial student, data and order of images. The "
            "intervals are each method's own, not corrected for their number; verdicts are."
        ),
    )
    items = [row.over_baseline.sentence for row in rows.values() if row.over_baseline is not None]
    return Section(
        name="gains",
        title="Gains over the same student without a teacher",
        pictures=(picture,),
        items=tuple(items),
        tables=_image_table(evidence),
    )


def _image_table(evidence: Evidence) -> tuple[Table, ...]:
    """What other test images would say of one run each."""
    base = evidence.answers.get(evidence.baseline or "", {})
    rows = []
    for label, runs in evidence.answers.items():
        if not runs:
            continue
        seed = next((seed for seed in runs if seed in base), min(runs))
        generator = np.random.default_rng(0)
        own = image_interval(runs[seed].correct, generator=generator)
        gain = None
        if label != evidence.baseline and seed in base:
            gain = paired_image_interval(
                runs[seed].correct, base[seed].correct, generator=generator
            )
        rows.append(
            (
                evidence.name_cell(label),
                Cell(text=str(seed), value=seed),
                Cell(text=f"{own.num_images:,}", value=own.num_images),
                Cell(text=_share(own.mean, own.interval, evidence.decimals), value=own.mean),
                Cell(text="")
                if gain is None
                else Cell(
                    text=points(gain.mean, gain.interval, evidence.decimals), value=gain.mean
                ),
            )
        )
    if not rows:
        return ()
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="seed"),
        Column(title="n", note="images"),
        Column(title="test % [95 %]"),
        Column(title="less the baseline, points [95 %]"),
    )
    return (
        Table(
            caption=(
                "Another question, not to be mixed with the one above: would other test images "
                "say the same of these very networks? One run of each row; percentile bootstrap "
                "over images, 10,000 resamples. Other seeds are not in it."
            ),
            columns=columns,
            rows=tuple(rows),
            folded=True,
        ),
    )


def epochs(evidence: Evidence) -> Section | None:
    """Accuracy on validation over the epochs."""
    found = []
    for label, records in evidence.compared.records.items():
        by_seed = {}
        for seed, run in records.items():
            if not (run.folder / "metrics.jsonl").is_file():
                continue
            try:
                by_seed[seed] = values_of(read_rows(run.folder), "val.top1")
            except UnknownNameError:  # a run without validation
                continue
        if by_seed:
            name = evidence.compared.names[label]
            found.append(Curves(label=name, kind=evidence.kind(label), by_seed=by_seed))
    if not found:
        return None
    names = evidence.compared.names
    baseline = next((k for k in found if k.label == names.get(evidence.baseline or "")), None)
    ends = [
        f"{curves.label} from "
        f"{amount(statistics.fmean(c[0][1] for c in curves.by_seed.values()), 1, scale=100)} to "
        f"{amount(statistics.fmean(c[-1][1] for c in curves.by_seed.values()), 1, scale=100)} %"
        for curves in found
    ]
    sizes = [
        run.split_sizes["val"]
        for records in evidence.compared.records.values()
        for run in records.values()
        if "val" in run.split_sizes
    ]
    images = f"{count(sizes[0], 'validation image')}" if sizes else "the validation images"
    return Section(
        name="epochs",
        title="Accuracy over the epochs",
        pictures=(
            Picture(
                svg=curves_svg(found, baseline=baseline, ylabel="accuracy, %"),
                alt=f"Validation accuracy over epochs: {listed(ends)}.",
                caption=(
                    f"Accuracy on {images}. Thin: every seed; thick: their mean; dashed: the "
                    f"baseline's mean; {evidence.seeds}. Epochs are counted over all stages of a "
                    "method; a stage that trains no classifier has no accuracy."
                ),
            ),
        ),
    )


def _percent_cell(cells: Any, name: str, decimals: int) -> Cell:  # noqa: ANN401  (a CSV line)
    mean, sd = cells[f"{name}_mean"], cells[f"{name}_sd"]
    spread = "" if sd is None else f" ± {amount(sd, decimals, scale=100)}"
    return Cell(text=amount(mean, decimals, scale=100) + spread, value=mean)


def _difference_cell(found: PairedDifference | None, decimals: int) -> Cell:
    if found is None:
        return Cell(text="")
    return Cell(text=points(found.mean, found.interval, decimals), value=found.mean)


def _each(row: ComparisonRow, decimals: int) -> str:
    values = [amount(value, decimals, scale=100) for value in row.last.values()]
    if len(values) > _MOST_SEEDS:
        ends = (min(row.last.values()), max(row.last.values()))
        return " to ".join(amount(end, decimals, scale=100) for end in ends)
    return " ".join(values)


def _share(mean: float, interval: Interval, decimals: int) -> str:
    low, high = (amount(end, decimals, scale=100) for end in interval)
    return f"{amount(mean, decimals, scale=100)} [{low}, {high}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3g}"
