"""How the students answer: what their confidence is worth, whom they follow, which classes gain.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.metrics.info import METRICS
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
    metric_cell,
)
from limbeck.reports.pictures import (
    ClassGains,
    Measured,
    Reliable,
    class_gains_svg,
    interval_svg,
    reliability_svg,
)
from limbeck.reports.predictions import mean_class_accuracy, pooled

__all__ = ["agreement", "calibration", "classes"]

_CALIBRATION = ("nll", "brier", "ece", "temperature", "nll_scaled", "ece_scaled", "top5")
_AGREEMENT = (
    "agreement",
    "agreement_independent",
    "agreement_excess",
    "kl_from_teacher",
    "agreement_on_teacher_errors",
    "same_wrong_class",
)
_TITLES = {
    "nll": "NLL, nats",
    "brier": "Brier",
    "ece": "ECE, %",
    "temperature": "fitted T",
    "nll_scaled": "NLL after, nats",
    "ece_scaled": "ECE after, %",
    "top5": "top-5, %",
    "agreement": "agreement, %",
    "agreement_independent": "with an independent teacher, %",
    "agreement_excess": "excess, points",
    "kl_from_teacher": "KL from teacher, nats",
    "agreement_on_teacher_errors": "where the teacher errs, %",
    "same_wrong_class": "same wrong class, %",
}
_MOST_CLASSES = 50  # lines of the table of classes


def calibration(evidence: Evidence) -> Section | None:
    """Whether the students are as often right as they say."""
    drawn, told = [], []
    for label, runs in evidence.answers.items():
        if not runs:
            continue
        name = evidence.compared.names[label]
        bins = pooled([run.reliability for run in runs.values()])
        ece, note = evidence.cells[label]["test_ece_mean"], ""
        if ece is not None:
            note = f", ECE {amount(ece, 1, scale=100)} %"
            told.append(f"{evidence.name(label)} {amount(ece, 1, scale=100)} %")
        drawn.append(Reliable(label=name, kind=evidence.kind(label), bins=bins, note=note))
    table = _metric_table(evidence, _CALIBRATION, "Calibration after the last epoch")
    if table is None:
        return None
    if evidence.teacher is not None:
        drawn.append(Reliable(label="teacher", kind="teacher", bins=evidence.teacher.reliability))
    pictures = []
    if drawn:
        pictures.append(
            Picture(
                svg=reliability_svg(drawn),
                alt=f"Accuracy over confidence. Expected calibration error: {listed(told)}."
                if told
                else "Accuracy over confidence.",
                caption=(
                    "Accuracy in 15 equal bins of confidence, and its distance from the dashed "
                    "diagonal, below which a network claims more than it knows. A point is as "
                    "large as its images are many: the smallest rest on a handful. Each panel "
                    f"pools the answers of all finished seeds ({evidence.seeds}) to "
                    f"{evidence.test_images}; the teacher is one network. ECE is the mean of the "
                    "seeds' own."
                ),
            )
        )
    return Section(
        name="calibration",
        title="Calibration",
        text=(
            "The temperature is fitted on validation, never on test; the columns after it are the "
            "same numbers once all scores are divided by it. The error is biased upwards for few "
            "images: compare rows with each other, not with other data.",
        ),
        pictures=tuple(pictures),
        tables=(table,),
    )


def agreement(evidence: Evidence) -> Section | None:
    """How far the students follow their teacher, beside how far they would anyway."""
    rows = []
    for label, row in evidence.rows.items():
        scores = [run.scores.get("last", {}) for run in row.records.values()]
        each = [value for one in scores if (value := one.get("agreement")) is not None]
        if not each:
            continue
        control = [v for one in scores if (v := one.get("agreement_independent")) is not None]
        rows.append(
            Measured(
                label=evidence.compared.names[label],
                kind=evidence.kind(label),
                each=each,
                mean=float(np.mean(each)),
                control=control,
            )
        )
    table = _metric_table(evidence, _AGREEMENT, "Fidelity to the teacher after the last epoch")
    if not rows or table is None:
        return None
    controlled = any(row.control for row in rows)
    errors = None
    if evidence.teacher is not None:
        errors = evidence.teacher.num_images - int(evidence.teacher.correct.sum())
    text = [
        "Two good networks agree because both are right, so agreement alone proves no transfer: "
        "compare with the baseline, which had no teacher"
        + (
            ", and with the agreement with an independent teacher that taught nobody here."
            if controlled
            else ". No independent teacher was given as a further control."
        )
    ]
    if errors is not None:
        text.append(
            f"The teacher errs on {count(errors, 'test image')} of "
            f"{evidence.teacher.num_images if evidence.teacher else 0:,}: the columns on its "
            "errors rest on these alone."
        )
    told = [f"{row.label} {amount(row.mean, 1, scale=100)} %" for row in rows]
    return Section(
        name="agreement",
        title="Agreement of student and teacher",
        text=tuple(text),
        pictures=(
            Picture(
                svg=interval_svg("agreement", rows, xlabel="agreement with the teacher, %"),
                alt=f"Test images on which student and teacher name one class: {listed(told)}.",
                caption=(
                    f"Share of {evidence.test_images} on which both name the same class. Large "
                    f"mark: mean; small marks below: every seed ({evidence.seeds})"
                    + (
                        "; hollow marks above: the same with the independent teacher."
                        if controlled
                        else "."
                    )
                ),
            ),
        ),
        tables=(table,),
    )


def classes(evidence: Evidence) -> Section | None:
    """What each class gains or loses."""
    base = evidence.baseline
    if base is None or not evidence.answers.get(base):
        return None
    shared = {
        label: [seed for seed in runs if seed in evidence.answers[base]]
        for label, runs in evidence.answers.items()
        if label != base and evidence.facts(label).role == "method"
    }
    shared = {label: seeds for label, seeds in shared.items() if seeds}
    if not shared:
        return None
    one = next(iter(evidence.answers[base].values()))
    names = _class_names(evidence, len(one.class_images))
    drawn = []
    for label, seeds in shared.items():
        ours = mean_class_accuracy(evidence.answers[label][seed] for seed in seeds)
        theirs = mean_class_accuracy(evidence.answers[base][seed] for seed in seeds)
        drawn.append(
            ClassGains(
                label=evidence.compared.names[label],
                kind=evidence.kind(label),
                gains=ours - theirs,
                names=names,
            )
        )
    told = []
    for row in drawn:
        best, worst = int(np.nanargmax(row.gains)), int(np.nanargmin(row.gains))
        ends = (
            f"{names[index]} {amount(row.gains[index], 1, scale=100, sign='+')}"
            for index in (best, worst)
        )
        told.append(f"{row.label}: from {' down to '.join(ends)}")
    images = one.class_images[one.class_images > 0]
    per_class = count(int(images.min()), "test image")
    if images.min() != images.max():
        per_class = f"{images.min():,} to {images.max():,} test images"
    return Section(
        name="classes",
        title="Gains class by class",
        text=(
            f"A class has {per_class} here, so one image more or less is "
            f"{amount(1 / float(images.max()), 1, scale=100)} points or more of one run; "
            f"the extremes of {len(images)} classes look large by chance alone.",
        ),
        pictures=(
            Picture(
                svg=class_gains_svg(drawn),
                alt=f"Gain over the baseline in each class, points. {'; '.join(told)}.",
                caption=(
                    "Every mark is a class: its accuracy less the baseline's, means over the "
                    f"seeds that both have ({evidence.seeds}). The two classes at either end are "
                    "named."
                ),
            ),
        ),
        tables=(_class_table(evidence, drawn, base),),
    )


def _class_table(evidence: Evidence, drawn: Sequence[ClassGains], base: str) -> Table:
    names = drawn[0].names
    runs = list(evidence.answers[base].values())
    images, accuracy = runs[0].class_images, mean_class_accuracy(runs)
    there = np.flatnonzero(images)
    largest = np.max([np.abs(row.gains[there]) for row in drawn], axis=0)
    chosen = there[np.sort(np.argsort(-largest, kind="stable")[:_MOST_CLASSES])]
    left_out = len(there) - len(chosen)
    worst = ", ".join(
        f"{evidence.name(label)} {amount(value, 1, scale=100)} %"
        for label in evidence.rows
        if (value := evidence.cells[label]["test_worst_class_mean"]) is not None
    )
    rows = []
    for index in chosen:
        gains = [float(row.gains[index]) for row in drawn]
        rows.append(
            (
                Cell(text=names[index], value=int(index)),
                Cell(text=f"{images[index]:,}", value=int(images[index])),
                Cell(
                    text=amount(float(accuracy[index]), 1, scale=100),
                    value=float(accuracy[index]),
                ),
                *(Cell(text=amount(gain, 1, scale=100, sign="+"), value=gain) for gain in gains),
            )
        )
    return Table(
        caption=(
            f"Classes, means over seeds: the baseline's accuracy and each row's gain in points. "
            f"Mean accuracy of the worst class: {worst}."
            + (
                f" The {len(chosen)} classes that change most; {left_out} others change less."
                if left_out
                else ""
            )
        ),
        columns=(
            Column(title="class"),
            Column(title="n", note="images"),
            Column(title="baseline, %"),
            *(Column(title=row.label) for row in drawn),
        ),
        rows=tuple(rows),
        folded=True,
    )


def _class_names(evidence: Evidence, num_classes: int) -> tuple[str, ...]:
    for records in evidence.compared.records.values():
        for run in records.values():
            if run.class_names is not None and len(run.class_names) == num_classes:
                return run.class_names
    return tuple(map(str, range(num_classes)))


def _metric_table(evidence: Evidence, names: Sequence[str], what: str) -> Table | None:
    """Metrics that at least one row has, with their means and deviations over seeds."""
    lines = {label: evidence.cells[label] for label in evidence.rows}
    there = [n for n in names if any(k[f"test_{n}_mean"] is not None for k in lines.values())]
    if not there:
        return None
    return Table(
        caption=f"{what}: mean ± standard deviation over seeds ({evidence.seeds}).",
        columns=(
            Column(title="taught by", numeric=False),
            Column(title="n", source="num_seeds", note="seeds"),
            *(
                Column(title=_TITLES[name], source=f"test_{name}_mean", note=METRICS[name].meaning)
                for name in there
            ),
        ),
        rows=tuple(
            (
                evidence.name_cell(label),
                Cell(text=str(cells["num_seeds"]), value=cells["num_seeds"]),
                *(
                    metric_cell(
                        name,
                        cells[f"test_{name}_mean"],
                        cells[f"test_{name}_sd"],
                        note=_fewer(evidence, label, name),
                    )
                    for name in there
                ),
            )
            for label, cells in lines.items()
        ),
    )


def _fewer(evidence: Evidence, label: str, metric: str) -> str:
    """The number of seeds, where a metric is not defined for all of them."""
    records = evidence.compared.records[label].values()
    defined = sum(run.scores.get("last", {}).get(metric) is not None for run in records)
    return "" if defined == len(records) else f" (n = {defined})"
