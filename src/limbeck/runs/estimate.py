"""What a comparison would take: its plan, with times and energy measured on one batch of each."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck.core.errors import LimbeckError, SettingsError
from limbeck.runs.compare import CompareConfig
from limbeck.runs.comparison import ComparisonFolder, check_record, is_tuned
from limbeck.runs.config import RunConfig
from limbeck.runs.energy import EnergyMeter
from limbeck.runs.execute import Parts, rehearse
from limbeck.runs.orchestrate import describe, parts_before_training, torch_threads
from limbeck.runs.tasks import PreparedData, Task, is_done

__all__ = ["Plan", "PlannedRow", "plan"]


@dataclass(frozen=True)
class PlannedRow:
    """The runs of one row, or the teacher's.

    Attributes:
        name: of the row; "teacher" for the run that trains it.
        method: its name.
        chosen: settings that are not the published defaults, by dotted name.
        num_runs: to be made.
        num_finished: there already.
        num_trials: of tuning, to be made before.
        epochs: of each.
        run_seconds: of one, without evaluation, as measured on one batch of every stage.
        peak_memory_bytes: of that batch.
    """

    name: str
    method: str
    chosen: Mapping[str, object]
    num_runs: int
    num_finished: int
    num_trials: int
    epochs: int
    run_seconds: float
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Of all that is to be made."""
        return (self.num_runs + self.num_trials) * self.run_seconds


@dataclass(frozen=True)
class Plan:
    """All that a comparison would do.

    Attributes:
        settings: resolved.
        rows: the teacher first, where it is trained.
        threads: of each run.
        watts: that the processors drew while the batches were measured; None where they cannot
            be metered.
        energy_note: why not, or what is not in it.
    """

    settings: CompareConfig
    rows: tuple[PlannedRow, ...]
    threads: int
    watts: float | None
    energy_note: str

    @property
    def num_runs(self) -> int:
        """To be made, trials included."""
        return sum(row.num_runs + row.num_trials for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of all runs, one after the other."""
        return sum(row.seconds for row in self.rows)

    @property
    def joules(self) -> float | None:
        """Of all runs, one after the other."""
        return None if self.watts is None else self.watts * self.seconds


def plan(
    config: CompareConfig,
    output: str | Path,
    *,
    jobs: int = 1,
    device: str | None = None,
    typed: Collection[str] = (),
) -> Plan:
    """Check everything that :func:`~limbeck.runs.orchestrate.compare` checks, and write nothing.

    Args:
        config: the comparison.
        output: its folder, which may hold a part of it.
        jobs: runs at a time, among which cores are shared.
        device: the first of the runs' devices; None takes the settings' own.
        typed: names of models that the user gave here and now; these alone may run code.

    Raises:
        LimbeckError: for anything the caller can mend.
    """
    folder = ComparisonFolder(output)
    folder.check_free()
    config = config.resolved()
    data = PreparedData()
    record = describe(config, typed=typed, data=data)
    threads = config.threads or max(1, (os.cpu_count() or 1) // jobs)
    if folder.exists:
        then = folder.read()
        check_record(then, record, folder.path)
        threads = then.settings.threads or threads
    rows = []
    with torch_threads(threads), EnergyMeter() as meter:
        if config.teacher_training is not None:
            run = config.teacher_training
            parts = parts_before_training(config, run, typed=typed, data=data)
            done = is_done(folder, Task("teacher"))
            rows.append(_row("teacher", run, parts, {}, int(not done), int(done), 0, device))
        for label, contender in config.contenders.items():
            run = config.run_config(label, config.seeds[0])
            parts = parts_before_training(config, run, typed=typed, data=data)
            finished = sum(is_done(folder, Task("run", label, seed)) for seed in config.seeds)
            trials = 0
            if is_tuned(config, label) and not is_done(folder, Task("tune", label)):
                assert config.tuning is not None
                trials = config.tuning.trials
            missing = len(config.seeds) - finished
            chosen = contender.chosen()
            try:
                rows.append(_row(label, run, parts, chosen, missing, finished, trials, device))
            except LimbeckError as error:
                raise SettingsError(f"{label}: {error}") from error
    on_gpu = (device or config.shared.train.device).startswith("cuda")
    note = meter.reason or ("the graphics cards' share is not metered" if on_gpu else "")
    watts = None if meter.joules is None else meter.joules / max(meter.seconds, 1e-9)
    return Plan(config, tuple(rows), threads, watts, note)


def _row(
    name: str,
    run: RunConfig,
    parts: Parts,
    chosen: Mapping[str, object],
    missing: int,
    finished: int,
    trials: int,
    device: str | None,
) -> PlannedRow:
    if device is not None:
        run = run.changed(train=run.train.changed(device=device))
    found = rehearse(run, parts, judge=False)
    return PlannedRow(
        name=name,
        method=run.method_name,
        chosen=chosen,
        num_runs=missing,
        num_finished=finished,
        num_trials=trials,
        epochs=run.schedule.epochs,
        run_seconds=found.estimated_seconds,
        peak_memory_bytes=found.peak_memory_bytes,
    )
