"""A comparison for everything else than a terminal: CSV by row and by run, and Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from limbeck.metrics.info import METRICS
from limbeck.reports.compared import Compared
from limbeck.reports.comparison import ComparisonRow
from limbeck.reports.runs import EpochScore, RunRecord
from limbeck.reports.shots import SHOTS, shot_cells
from limbeck.reports.statistics import PairedDifference
from limbeck.reports.table import printable

__all__ = [
    "MACHINE_COLUMNS",
    "comparison_cells",
    "comparison_csv",
    "comparison_markdown",
    "runs_csv",
    "safe_cell",
]

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")
# What the same runs may have otherwise on another day: times, and memory.
MACHINE_COLUMNS: Final = frozenset(
    {
        "mean_seconds",
        "mean_teacher_seconds",
        "mean_inference_images_per_second",
        "mean_step_over_floor",
        "sd_step_over_floor",
        "max_peak_memory_bytes",
        "tuning_seconds",
        "seconds",
        "teacher_seconds",
        "images_per_second",
        "inference_images_per_second",
        "step_over_floor",
        "peak_memory_bytes",
    }
)
# Not one number a run, or there under another name.
_SCORES = tuple(name for name in METRICS if name not in ("top1", "class_accuracy"))
# What opens markup anywhere, and what opens a list or a heading at the start of a line.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_LIST = re.compile(r"^(\d*)([-+=.)])")

Cells = dict[str, Any]


def safe_cell(text: str) -> str:
    """A CSV text cell that no spreadsheet takes for a formula: such a one gets a leading ``'``.

    Example:
        >>> safe_cell("=1+1"), safe_cell("kd")
        ("'=1+1", 'kd')
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def comparison_csv(rows: Sequence[ComparisonRow], *, compared: Compared | None = None) -> str:
    """The comparison as CSV, a line per row.

    Accuracies and gains are fractions at full precision; a value that does not exist (the spread
    of one seed, the gain of the baseline) is an empty cell. The last columns hold the test
    accuracy of each seed.

    Args:
        rows: from :func:`~limbeck.reports.comparison.compare_runs`.
        compared: the comparison they belong to. Its settings, tuning and failures are then told,
            and a row all of whose runs failed has its line, too.

    Returns:
        The file's text, with a heading line.
    """
    return _text(comparison_cells(rows, compared=compared))


def comparison_cells(
    rows: Sequence[ComparisonRow], *, compared: Compared | None = None
) -> list[dict[str, Any]]:
    """The lines of :func:`comparison_csv`: column to value, None where there is none."""
    seeds = sorted({seed for row in rows for seed in row.last})
    lines = []
    for row in rows:
        label = None if compared is None else compared.label_of(row)
        lines.append(_told(compared, label, row.label, row.role) | _row_cells(row, seeds))
    blank = dict.fromkeys(_row_cells(rows[0], seeds), None) if rows else {}
    for label, records in {} if compared is None else compared.records.items():
        if not records and compared is not None:
            facts = compared.facts[label]
            told = _told(compared, label, compared.names[label], facts.role)
            lines.append(told | blank | {"num_seeds": 0})
    return lines


def runs_csv(compared: Compared) -> str:
    """A line for every run that was planned: all that is known of it, at full precision.

    ``last``, ``best`` and ``teacher`` begin the names of the metrics on the test split of the
    last epoch, the best on validation, and the teacher.
    """
    lines = []
    for label, facts in compared.facts.items():
        for seed in compared.seeds:
            run = compared.records[label].get(seed)
            failure = compared.failures[label].get(seed)
            told: Cells = {
                "label": safe_cell(compared.names[label]),
                "row": label,
                "role": facts.role,
                "method": facts.method,
                "seed": seed,
                "state": "missing"
                if run is None and failure is None
                else "failed"
                if run is None
                else "finished",
                "failure": "" if failure is None else safe_cell(failure.reason),
            }
            lines.append(told | ({} if run is None else _run_cells(run)))
    return _text(lines)


def comparison_markdown(compared: Compared, *, title: str) -> str:
    """The comparison as a Markdown table, and what its reader must know below it.

    Names are text: nothing in them is taken for markup.
    """
    heading = [
        "",
        "settings",
        "test % (last epoch)",
        "each seed",
        "best on validation",
        "gain in points",
        "95 % interval",
        "Holm p",
        "parameters",
        "s/run",
    ]
    lines = [f"# {_plain(title)}", "", _line(heading), _line(["---"] * len(heading))]
    for row in compared.rows:
        label = compared.label_of(row)
        over = row.over_baseline
        lines.append(
            _line(
                [
                    _plain(row.label),
                    _plain(compared.settings_note(label)),
                    _percent(row.accuracy.mean, row.accuracy.sd),
                    " ".join(f"{100 * value:.1f}" for value in row.last.values()),
                    ""
                    if row.best_accuracy is None
                    else _percent(row.best_accuracy.mean, row.best_accuracy.sd),
                    row.no_gain
                    if row.gain is None
                    else f"{100 * row.gain.mean:+.1f} (n = {row.gain.count})",
                    ""
                    if over is None or over.interval is None
                    else f"{100 * over.interval.low:+.1f} to {100 * over.interval.high:+.1f}",
                    "" if over is None or over.holm_p_value is None else f"{over.holm_p_value:.3g}",
                    f"{row.num_parameters:,}",
                    f"{row.seconds:.1f}",
                ]
            )
        )
    for label, records in compared.records.items():
        if not records:
            row_cells = [_plain(compared.names[label]), _plain(compared.settings_note(label))]
            lines.append(_line([*row_cells, "no run", *[""] * (len(heading) - 3)]))
    shots = [[_plain(row.label), *found] for row in compared.rows if (found := shot_cells(row))]
    if shots:
        heading = ["test %, by training images of a class", *SHOTS.values()]
        lines += [
            "",
            _line(map(_plain, heading)),
            _line(["---"] * len(heading)),
            *map(_line, shots),
        ]
    lines.append("")
    lines += [f"- {_plain(remark)}" for remark in compared.remarks()]
    return "\n".join(lines) + "\n"


def _told(compared: Compared | None, label: str | None, name: str, role: str) -> Cells:
    """What a row is, and how it came by its settings."""
    told: Cells = {"label": safe_cell(name), "role": role}
    if compared is None or label is None:
        return told
    facts = compared.facts[label]
    tuning = compared.tuning.get(label)
    failures = compared.failures[label]
    return told | {
        "row": label,
        "method": facts.method,
        "family": facts.family,
        "settings": safe_cell(compared.settings_note(label)),
        "tuning_trials": 0 if tuning is None else len(tuning.trials),
        "tuning_space": _space(facts.space),
        "tuned_values": "" if tuning is None else json.dumps(tuning.values),
        "tuning_seconds": None if tuning is None else tuning.seconds,
        "failed_seeds": " ".join(map(str, failures)),
        "failure": safe_cell("; ".join(sorted({f.reason for f in failures.values()}))),
    }


def _space(space: Mapping[str, tuple[float, float, str]]) -> str:
    return "; ".join(
        f"{name} {low:.4g} to {high:.4g} ({scale})" for name, (low, high, scale) in space.items()
    )


def _row_cells(row: ComparisonRow, seeds: Iterable[int]) -> Cells:
    best, gain = row.best_accuracy, row.gain
    cells: Cells = {
        "num_seeds": row.accuracy.count,
        "test_top1_mean": row.accuracy.mean,
        "test_top1_sd": row.accuracy.sd,
        "best_on_validation_test_top1_mean": best and best.mean,
        "best_on_validation_test_top1_sd": best and best.sd,
        "gain_mean": gain and gain.mean,
        "gain_sd": gain and gain.sd,
        "gain_num_seeds": gain and gain.count,
        **_difference_cells("gain", row.over_baseline),
        "best_gain_mean": row.best_over_baseline and row.best_over_baseline.mean,
        **_difference_cells("best_gain", row.best_over_baseline),
        "over_kd_mean": row.over_kd and row.over_kd.mean,
        **_difference_cells("over_kd", row.over_kd),
    }
    runs = list(row.records.values())
    for name in _SCORES:
        values = [run.scores.get("last", {}).get(name) for run in runs]
        numbers = [value for value in values if value is not None]
        cells[f"test_{name}_mean"] = statistics.fmean(numbers) if numbers else None
        cells[f"test_{name}_sd"] = statistics.stdev(numbers) if len(numbers) > 1 else None
    cells |= {
        "num_parameters": row.num_parameters,
        "num_macs": runs[0].num_macs if runs else None,
        "deployed_bytes": runs[0].deployed_bytes if runs else None,
        "mean_seconds": row.seconds,
        "mean_teacher_seconds": _over(runs, lambda run: run.teacher_seconds, statistics.fmean),
        "mean_inference_images_per_second": _over(
            runs, lambda run: run.inference_images_per_second, statistics.fmean
        ),
        "mean_step_over_floor": _over(runs, lambda run: run.step_over_floor, statistics.fmean),
        "sd_step_over_floor": _over(
            runs,
            lambda run: run.step_over_floor,
            lambda values: statistics.stdev(values) if len(values) > 1 else None,
        ),
        "max_peak_memory_bytes": _over(runs, lambda run: run.peak_memory_bytes, max),
    }
    return cells | {f"test_top1_seed_{seed}": row.last.get(seed) for seed in seeds}


def _difference_cells(prefix: str, found: PairedDifference | None) -> Cells:
    interval = found and found.interval
    return {
        f"{prefix}_low": interval and interval.low,
        f"{prefix}_high": interval and interval.high,
        f"{prefix}_p": found and found.p_value,
        f"{prefix}_holm_p": found and found.holm_p_value,
        f"{prefix}_hedges_gz": found and found.hedges_gz,
        f"{prefix}_seeds_needed": found and found.seeds_needed,
        f"{prefix}_verdict": found and found.verdict,
    }


def _over(
    runs: Sequence[RunRecord],
    value: Callable[[RunRecord], float | None],
    joined: Callable[[list[float]], float | None],
) -> float | None:
    numbers = [number for run in runs if (number := value(run)) is not None]
    return joined(numbers) if numbers else None


def _run_cells(run: RunRecord) -> Cells:
    schedule = run.config.get("schedule")
    cells: Cells = {
        "student": safe_cell(run.student),
        "teacher": safe_cell(run.teacher or ""),
        "epochs": schedule.get("epochs") if isinstance(schedule, dict) else None,
        **_val_cells("last", run.last),
        **_val_cells("best", run.best_on_validation),
        "last_top1": run.test and run.test.last.top1,
        "last_loss": run.test and run.test.last.loss,
    }
    best = run.test and run.test.best_on_validation
    cells |= {"best_top1": best and best.top1, "best_loss": best and best.loss}
    taught = run.teacher_test
    cells |= {"teacher_top1": taught and taught.top1, "teacher_loss": taught and taught.loss}
    for prefix, network in (("last", "last"), ("best", "best_on_validation"), ("teacher",) * 2):
        scores = run.scores.get(network, {})
        cells |= {f"{prefix}_{name}": scores.get(name) for name in _SCORES}
    return cells | {
        "num_parameters": run.num_parameters,
        "num_macs": run.num_macs,
        "deployed_bytes": run.deployed_bytes,
        "seconds": run.seconds,
        "teacher_seconds": run.teacher_seconds,
        "images_per_second": run.images_per_second,
        "inference_images_per_second": run.inference_images_per_second,
        "step_over_floor": run.step_over_floor,
        "peak_memory_bytes": run.peak_memory_bytes,
        "data_hash": run.data_hash,
        "teacher_hash": run.teacher_hash,
    }


def _val_cells(prefix: str, found: EpochScore | None) -> Cells:
    val = found and found.val
    return {
        f"{prefix}_epoch": found and found.epoch,
        f"{prefix}_val_top1": val and val.top1,
        f"{prefix}_val_loss": val and val.loss,
    }


def _text(lines: Sequence[Cells]) -> str:
    """CSV with the columns of all lines, in the order in which they first come."""
    columns = dict.fromkeys(name for line in lines for name in line)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(columns), restval=None)
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """``text`` on one line, its markup spelt out."""
    return _LIST.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", printable(text)))


def _percent(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
