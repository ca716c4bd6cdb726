"""Where a comparison comes from: its setting, what its runs had to say, how to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.metrics.info import METRICS
from limbeck.reports.evidence import Evidence
from limbeck.reports.layout import Cell, Column, Section, Table, amount, count, isolated, listed
from limbeck.reports.runs import RunRecord

__all__ = ["definitions", "failures", "notices", "reproduction", "setting"]

_HASH = 16  # characters shown of one
_WARNING = "warning:"
_PROGRAMS = ("__main__.py", "limbeck")


def setting(evidence: Evidence) -> Section:
    """What all rows share, and what each has of its own."""
    compared = evidence.compared
    shared = compared.settings.shared
    run = next((run for runs in compared.records.values() for run in runs.values()), None)
    facts = [
        ("student", _student(shared, run)),
        ("teacher", _teacher(evidence)),
        ("data", _data(shared, run)),
        ("budget", _budget(shared)),
        ("optimiser", _named(shared.get("optim"), first="opt")),
        ("seeds", ", ".join(map(str, compared.seeds))),
        (
            "paired",
            "for each seed all rows have the same initial student, images, order and "
            "augmentation; gains are taken within a seed",
        ),
        ("settings", _chosen(evidence)),
    ]
    return Section(
        name="setting",
        title="The setting",
        facts=tuple((name, text) for name, text in facts if text),
        tables=_tuning(evidence),
    )


def notices(evidence: Evidence) -> Section:
    """Everything that any run had to say, warnings first."""
    compared = evidence.compared
    said: dict[str, list[str]] = {}
    runs = [
        (f"{compared.names[label]}, seed {seed}", run)
        for label, records in compared.records.items()
        for seed, run in records.items()
    ]
    if compared.teacher is not None:
        runs.insert(0, ("teacher", compared.teacher))
    for name, run in runs:
        for notice in run.notices:
            said.setdefault(notice, []).append(name)
    ordered = sorted(said, key=lambda notice: not notice.startswith(_WARNING))
    warnings = [notice for notice in ordered if notice.startswith(_WARNING)]
    rows = tuple(
        (
            Cell(text=notice, value=notice),
            Cell(text=str(len(said[notice])), value=len(said[notice])),
            Cell(text="all of them" if len(said[notice]) == len(runs) else "; ".join(said[notice])),
        )
        for notice in ordered
    )
    table = Table(
        caption=f"Notices of {count(len(runs), 'run')}, in their own words.",
        columns=(
            Column(title="notice", numeric=False),
            Column(title="runs"),
            Column(title="which", numeric=False),
        ),
        rows=rows,
        folded=not warnings,
    )
    text = (
        f"{count(len(warnings), 'warning')} in {count(len(runs), 'finished run')}."
        if warnings
        else f"No warning in {count(len(runs), 'finished run')}."
    )
    return Section(
        name="notices",
        title="Warnings and notices of the runs",
        text=(text,),
        tables=(table,) if rows else (),
    )


def failures(evidence: Evidence) -> Section:
    """Runs that ended without a result, and those that are not there yet."""
    compared = evidence.compared
    rows = []
    for label, failed in compared.failures.items():
        for seed, failure in failed.items():
            rows.append(
                (
                    evidence.name_cell(label),
                    Cell(text=str(seed), value=seed),
                    Cell(text=failure.reason, value=failure.reason),
                    Cell(text=failure.when, value=failure.when),
                )
            )
    total = len(compared.facts) * len(compared.seeds)
    text = [f"{len(rows)} of {count(total, 'planned run')} failed."]
    if compared.num_missing:
        text.append(f"{count(compared.num_missing, 'run')} more: not made yet.")
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="seed"),
        Column(title="reason", numeric=False),
        Column(title="when", numeric=False),
    )
    return Section(
        name="failures",
        title="Failed runs",
        text=tuple(text),
        tables=(Table(caption="Failed runs.", columns=columns, rows=tuple(rows)),) if rows else (),
    )


def reproduction(evidence: Evidence) -> Section:
    """Commands, hashes, versions and machine."""
    compared = evidence.compared
    machines = _machines(evidence)
    code = compared.code
    packages = code.get("packages") or {}
    facts = [
        ("begun", compared.begun),
        ("limbeck", f"{code.get('limbeck', '?')}, commit {code.get('commit') or 'not known'}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]
    facts += [
        ("machine" if len(machines) == 1 else f"machine of {count(number, 'run')}", text)
        for text, number in machines.items()
    ]
    base = compared.data.get(evidence.baseline or "", {})
    facts += [(f"SHA-256 of {split}", value) for split, value in base.items()]
    teacher = {
        run.teacher_hash
        for records in compared.records.values()
        for run in records.values()
        if run.teacher_hash
    }
    facts += [("SHA-256 of the teacher", value) for value in sorted(teacher)]
    text = [
        "The first command began this comparison; the second repeats it from its settings, which "
        "lie beside the runs in comparison.json. On the same CPU with the same number of threads "
        "the weights come out identical, so that their hashes below can be compared; elsewhere "
        "sums differ in their last digits."
    ]
    if len(machines) > 1:
        text.append(
            "The runs were made on different machines or with different versions: their times and "
            "memory are not comparable."
        )
    return Section(
        name="reproduce",
        title="How to make it again",
        text=tuple(text),
        code=(
            _command(compared.command),
            "limbeck compare --config comparison.json --output again",
        ),
        facts=tuple((name, value) for name, value in facts if value),
        tables=(_runs(evidence),),
    )


def definitions(evidence: Evidence) -> Section:
    """What each metric means and who defined it."""
    rows = tuple(
        (
            Cell(text=info.name, value=info.name),
            Cell(text=info.meaning),
            Cell(text=_unit(info.unit)),
            Cell(text=f"{info.low:g} to {info.high:g}".replace("inf", "∞")),
            Cell(
                text={True: "higher is better", False: "lower is better", None: "no merit"}[
                    info.higher_is_better
                ]
            ),
            Cell(text=info.source),
        )
        for info in METRICS.values()
        if info.name == "class_accuracy"
        or any(cells.get(f"test_{info.name}_mean") is not None for cells in evidence.cells.values())
    )
    columns = tuple(
        Column(title=title, numeric=False)
        for title in ("metric", "meaning", "unit", "range", "direction", "source")
    )
    return Section(
        name="definitions",
        title="What the numbers mean",
        text=(
            "An interval over seeds answers whether another training would turn out the same, and "
            "is what a claim about a method needs. A verdict is given only where the "
            "Holm-corrected p of the paired t-test is below 0.05; all else is “cannot tell”.",
        ),
        tables=(
            Table(caption="Metrics on the test split.", columns=columns, rows=rows, folded=True),
        ),
    )


def _student(shared: Mapping[str, Any], run: RunRecord | None) -> str:
    parts = [isolated(str((shared.get("student") or {}).get("name", "")))]
    if run is not None:
        parts.append(count(run.num_parameters, "parameter"))
        if run.num_macs is not None:
            parts.append(f"{run.num_macs:,} multiply-adds an image")
    return ", ".join(filter(None, parts))


def _teacher(evidence: Evidence) -> str:
    compared = evidence.compared
    names = {
        run.teacher
        for records in compared.records.values()
        for run in records.values()
        if run.teacher is not None
    }
    if not names:
        return ""
    parts = [isolated(name) for name in sorted(names)]
    if compared.teacher is not None:
        parts.append(count(compared.teacher.num_parameters, "parameter"))
        parts.append(f"trained here, seed {compared.teacher.seed}")
    else:
        parts.append("given")
    top1 = compared.teacher_top1
    if top1 is not None:
        accuracy = amount(top1, evidence.decimals, scale=100)
        parts.append(f"{accuracy} % on {evidence.test_images} (one network)")
    return ", ".join(parts)


def _data(shared: Mapping[str, Any], run: RunRecord | None) -> str:
    data = shared.get("data") or {}
    parts = [isolated(str(data.get("dataset", "")))]
    if run is not None and run.split_sizes:
        parts.append(
            listed(f"{number:,} {split}" for split, number in run.split_sizes.items()) + " images"
        )
    if run is not None and run.class_names is not None:
        parts.append(f"{len(run.class_names)} classes")
    if data.get("num_labels") is not None:
        parts.append(f"{data['num_labels']:,} of the training images keep their label")
    if data.get("fraction") not in (None, 1.0):
        parts.append(f"{data['fraction']:g} of the training images")
    if data.get("split_seed") is not None:
        parts.append(f"split by seed {data['split_seed']}, the same for all")
    augment = {k: v for k, v in (data.get("augment") or {}).items() if v}
    if augment:
        parts.append("augmented: " + ", ".join(f"{k} {v}" for k, v in augment.items()))
    return ", ".join(filter(None, parts))


def _budget(shared: Mapping[str, Any]) -> str:
    schedule, train = shared.get("schedule") or {}, shared.get("train") or {}
    parts = []
    if "epochs" in schedule:
        parts.append(f"{count(schedule['epochs'], 'epoch')} for every row, all stages together")
    if "sched" in schedule:
        parts.append(f"{schedule['sched']} schedule")
    if "batch_size" in train:
        parts.append(f"batches of {train['batch_size']}")
    if "amp_dtype" in train:
        parts.append(str(train["amp_dtype"]))
    return ", ".join(parts)


def _named(values: Any, *, first: str) -> str:  # noqa: ANN401  (settings as they are)
    if not isinstance(values, Mapping):
        return ""
    others = [f"{name} {value}" for name, value in values.items() if name != first]
    return ", ".join([str(values[first])] * (first in values) + others)


def _chosen(evidence: Evidence) -> str:
    compared = evidence.compared
    notes = {label: compared.settings_note(label) for label in compared.facts}
    if set(notes.values()) == {"published defaults"}:
        return "published defaults in every row; nothing was tuned"
    return "; ".join(f"{evidence.name(label)}: {note}" for label, note in notes.items())


def _tuning(evidence: Evidence) -> tuple[Table, ...]:
    compared = evidence.compared
    if not compared.tuning:
        return ()
    columns = (
        Column(title="taught by", numeric=False),
        Column(title="trials", source="tuning_trials"),
        Column(title="chosen from", numeric=False, source="tuning_space"),
        Column(title="chosen", numeric=False),
        Column(title="validation %, best trial"),
        Column(title="cost, s", source="tuning_seconds"),
        Column(title="failed trials"),
    )
    rows = []
    for label, tuned in compared.tuning.items():
        cells = evidence.cells[label]
        best = tuned.trials[tuned.best].val_top1
        failed = sum(trial.failure is not None for trial in tuned.trials)
        rows.append(
            (
                evidence.name_cell(label),
                Cell(text=str(cells["tuning_trials"]), value=cells["tuning_trials"]),
                Cell(text=cells["tuning_space"], value=cells["tuning_space"]),
                Cell(text=", ".join(f"{k} = {v:.4g}" for k, v in tuned.values.items())),
                Cell(text=amount(best, 1, scale=100), value=best),
                Cell(text=amount(tuned.seconds, 0), value=tuned.seconds),
                Cell(text=str(failed), value=failed),
            )
        )
    return (
        Table(
            caption=(
                "Tuning, on validation alone, by runs of other seeds than the comparison's; as "
                "many trials for every row, the baseline included."
            ),
            columns=columns,
            rows=tuple(rows),
        ),
    )


def _command(command: tuple[str, ...]) -> str:
    if not command:
        return "limbeck compare"
    name = Path(command[0]).name
    program = "limbeck" if name in _PROGRAMS else name
    return shlex.join([program, *command[1:]])


def _machines(evidence: Evidence) -> dict[str, int]:
    """What the runs say of where they were made, and how many say so."""
    found: dict[str, int] = {}
    for records in evidence.compared.records.values():
        for run in records.values():
            path = run.folder / "environment.json"
            if path.is_file():
                text = _machine(path)
                found[text] = found.get(text, 0) + 1
    return found


def _machine(path: Path) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return "environment.json cannot be read"
    packages = values.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    return (
        f"{values.get('device')} ({values.get('device_name')}), {values.get('threads')} of "
        f"{values.get('cpus')} threads, {values.get('platform')}, Python {values.get('python')}, "
        f"torch {versions.get('torch', '?')}"
    )


def _runs(evidence: Evidence) -> Table:
    compared = evidence.compared
    rows = []
    for label, records in compared.records.items():
        for seed, run in records.items():
            chosen = run.best_on_validation
            best = None if chosen is None else chosen.epoch + 1
            test = run.test
            top1 = None if test is None else test.last.top1
            val = None if run.last.val is None else run.last.val.top1
            rows.append(
                (
                    evidence.name_cell(label),
                    Cell(text=str(seed), value=seed),
                    Cell(text=amount(top1, evidence.decimals, scale=100), value=top1),
                    Cell(text=amount(val, 1, scale=100), value=val),
                    Cell(text="" if best is None else str(best), value=best),
                    Cell(text=amount(run.seconds, 1), value=run.seconds),
                    Cell(text=run.config_hash[:_HASH], value=run.config_hash),
                    Cell(text=run.student_hash[:_HASH], value=run.student_hash),
                )
            )
    return Table(
        caption=(
            f"{count(len(rows), 'run')}; of hashes (SHA-256) the first {_HASH} digits, in full in "
            "each run's summary.json."
        ),
        columns=(
            Column(title="taught by", numeric=False),
            Column(title="seed"),
            Column(title="test %"),
            Column(title="validation %"),
            Column(title="best epoch", note="of the last stage"),
            Column(title="training, s"),
            Column(title="settings", numeric=False),
            Column(title="weights", numeric=False),
        ),
        rows=tuple(rows),
        folded=True,
    )


def _unit(unit: str) -> str:
    return {"fraction": "%", "1": "1"}.get(unit, unit)
