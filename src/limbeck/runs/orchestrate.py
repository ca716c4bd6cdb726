"""Carry out a comparison: what is missing of it, here or in worker processes, whatever fails."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from limbeck.core.errors import DataError, LimbeckError, SettingsError
from limbeck.engine.loop import InterruptedRun, Interruption
from limbeck.engine.recorder import Observer, SilentObserver
from limbeck.runs.caching import check_cache, open_teacher
from limbeck.runs.compare import BASELINE, CompareConfig
from limbeck.runs.comparison import (
    ComparisonFolder,
    ComparisonRecord,
    FailedTask,
    check_record,
    row_facts,
    utc_now,
)
from limbeck.runs.config import RunConfig, TeacherConfig
from limbeck.runs.execute import Parts, check, teacher_hashes
from limbeck.runs.folder import read_json
from limbeck.runs.networks import NamedNetwork, build_own_networks, build_student
from limbeck.runs.provenance import code_version
from limbeck.runs.summary import RunSummary, read_summary
from limbeck.runs.tasks import (
    PreparedData,
    Task,
    carry_out,
    carry_out_together,
    check_finished,
    is_done,
    tasks_of,
)
from limbeck.runs.tuning import Tuned, check_tunable, space
from limbeck.teacher import state_hash
from limbeck.teacher_cache import CachedTeacher

__all__ = [
    "Audience",
    "SilentAudience",
    "compare",
    "describe",
    "parts_before_training",
    "torch_threads",
]

_POLL_SECONDS = 0.1
_LOG_LINES = 30  # of a worker that died, kept with the failure


class Audience(Protocol):
    """Who is told how a comparison goes."""

    def started(self, task: Task, number: int, total: int) -> None:
        """A task begins: the ``number``-th of ``total``, counted from 1."""

    def finished(self, task: Task, found: RunSummary | Tuned) -> None:
        """A task has left its result."""

    def failed(self, task: Task, reason: str) -> None:
        """A task has not, and will not in this sitting."""

    def observer(self, task: Task) -> Observer:
        """Who watches its runs, where they are made in this process."""


class SilentAudience:
    """Hears everything and says nothing."""

    def started(self, task: Task, number: int, total: int) -> None:
        """Nothing."""

    def finished(self, task: Task, found: RunSummary | Tuned) -> None:
        """Nothing."""

    def failed(self, task: Task, reason: str) -> None:
        """Nothing."""

    def observer(self, task: Task) -> Observer:
        """One that is silent, too."""
        del task
        return SilentObserver()


def compare(
    config: CompareConfig,
    output: str | Path,
    *,
    jobs: int = 1,
    cohort: int = 1,
    devices: Sequence[str] = (),
    typed: Collection[str] = (),
    audience: Audience | None = None,
) -> ComparisonFolder:
    """Make every run of a comparison that its folder does not hold yet.

    Args:
        config: the comparison. Where it has begun already, only rows and seeds may be added.
        output: its folder.
        jobs: runs at a time. One is made in this process; several, each in a process of its own.
        cohort: rows of a seed that are made in turns and share their teacher's passes; no number
            of them changes a result. It takes one job, and all their students in memory.
        devices: the runs' devices, taken in turns; empty takes the settings' own.
        typed: names of models that the user gave here and now; these alone may run code.
        audience: told of progress.

    Returns:
        The folder. Runs that failed are marked in it, and the others are there.

    Raises:
        LimbeckError: for anything the caller can mend before the first run: nothing is left
            behind, or what was there stays as it was.
        InterruptedRun: after Ctrl-C or SIGTERM, with the state of all runs saved.
    """
    if jobs < 1:
        raise SettingsError(f"jobs must be at least 1, got {jobs}")
    if cohort > 1 and jobs > 1:
        raise SettingsError(
            f"a cohort shares its teacher within one process, and {jobs} jobs are several; give "
            "one of the two"
        )
    if cohort > 1 and config.shared.train.torchcompile:
        raise SettingsError("a cohort's teacher is not compiled; leave --torchcompile out")
    audience = audience or SilentAudience()
    folder = ComparisonFolder(output)
    folder.check_free()
    data = PreparedData()
    record = _enter(folder, config.resolved(), jobs, typed, data)
    with folder.locked():
        config = record.settings
        tasks = tasks_of(config)
        for task in tasks:
            if is_done(folder, task):
                check_finished(folder, record, task)
                folder.clear_failure(task.name)
        missing = [task for task in tasks if not is_done(folder, task)]
        for task in missing:
            folder.clear_failure(task.name)
        sitting = _Sitting(
            folder=folder,
            config=config,
            missing=missing,
            done=len(tasks) - len(missing),
            devices=tuple(devices),
            typed=tuple(typed),
            audience=audience,
            cohort=cohort,
        )
        if jobs == 1:
            sitting.here(data)
        else:
            sitting.in_workers(jobs)
        folder.write(folder.read().changed(looks=_looks(record)))
    return folder


def describe(
    config: CompareConfig, *, typed: Collection[str] = (), data: PreparedData | None = None
) -> ComparisonRecord:
    """What a comparison with these settings, this code and the data as they are would be.

    Raises:
        LimbeckError: if no run could be made of it; the message names the row.
    """
    check_tunable(config)
    data = data or PreparedData()
    bundle = data.get(config.run_config(BASELINE, config.seeds[0]))
    if bundle.test is None:
        raise DataError(
            "a comparison is judged on the test split, and these data have none; add one (a "
            "folder 'test' beside 'train'), or train single runs"
        )
    hashes: dict[str, str | None] = {}
    teachers = {}
    for name in ("teacher", "independent_teacher"):
        given: TeacherConfig | None = getattr(config, name)
        opened = None
        if given is not None:
            opened = open_teacher(given, bundle, typed=typed, scores=config.reads_teacher_scores)
        teachers[name] = opened
        hashes |= {k.replace("teacher", name): v for k, v in teacher_hashes(opened).items()}
    splits: dict[int, dict[str, str]] = {}  # by object: rows share their data
    found = {}
    for label in config.contenders:
        own = data.get(config.run_config(label, config.seeds[0]))
        if id(own) not in splits:
            splits[id(own)] = own.split_fingerprints()
        found[label] = splits[id(own)]
        if found[label].get("test") != found[BASELINE].get("test"):
            raise DataError(
                f"{label!r} would be judged on other test images or classes than {BASELINE!r}; "
                "its changes may touch what is learnt from, not what is judged"
            )
        if isinstance(teachers["teacher"], CachedTeacher):
            _check_cache(teachers["teacher"], config, label, found[label])
    further: dict[str, dict[str, str]] = {}
    for label in config.contenders:
        run = config.run_config(label, config.seeds[0])
        finished = [stage.name for stage in run.stages() if stage.is_finished]
        if finished:
            networks = build_own_networks(run, bundle, typed=typed)
            further[label] = {name: state_hash(networks[name].network) for name in finished}
    spaces = {
        label: {n: (s.low, s.high, "log" if s.log else "linear") for n, s in spans.items()}
        for label, row in config.contenders.items()
        if config.tuning is not None and row.role != "reference"
        for spans in (space(config, label),)
    }
    return ComparisonRecord(
        settings=config,
        code=code_version(_models(config)),
        data=found,
        own_hashes=further,
        rows=row_facts(config, spaces),
        **hashes,
    )


def _check_cache(
    cached: CachedTeacher, config: CompareConfig, label: str, split_hashes: Mapping[str, str]
) -> None:
    """Refuse a cache that does not answer every run of a row, whatever its seed."""
    trials = () if config.tuning is None else (config.tuning.seed,)
    for seed in (*config.seeds, *trials) if config.contenders[label].needs_teacher else ():
        try:
            check_cache(cached, config.run_config(label, seed), split_hashes)
        except LimbeckError as error:
            raise SettingsError(f"{label}, seed {seed}: {error}") from error


def parts_before_training(
    config: CompareConfig, run: RunConfig, *, typed: Collection[str], data: PreparedData
) -> Parts:
    """A run's parts when its teacher may still have to be trained: that one with any weights."""
    bundle = data.get(run)
    student = build_student(run.student, bundle, seed=run.seed, typed=typed)
    teacher: NamedNetwork | CachedTeacher | None = None
    if run.teacher is not None and config.teacher_training is not None:
        teacher = build_student(config.teacher_training.student, bundle, seed=0, typed=typed)
    elif run.teacher is not None:
        teacher = open_teacher(run.teacher, bundle, typed=typed, scores=run.reads_teacher_scores)
    own = build_own_networks(run, bundle, typed=typed)
    return Parts(bundle, student, teacher, own=own)


def _enter(
    folder: ComparisonFolder,
    config: CompareConfig,
    jobs: int,
    typed: Collection[str],
    data: PreparedData,
) -> ComparisonRecord:
    """Begin the comparison, or see that what has begun is this one, perhaps with less of it."""
    now = describe(config, typed=typed, data=data)
    if folder.exists:
        then = folder.read()
        check_record(then, now, folder.path)
        settings = config.changed(threads=then.settings.threads)
        now = now.changed(
            settings=settings, looks=then.looks, begun=then.begun, command=then.command
        )
        if now != then.changed(code=now.code):  # the commit may be another one
            with folder.locked():
                folder.write(now)
        return now
    for label in config.contenders:
        run = config.run_config(label, config.seeds[0])
        try:
            check(run, parts_before_training(config, run, typed=typed, data=data))
        except LimbeckError as error:
            raise SettingsError(f"{label}: {error}") from error
    threads = config.threads or max(1, (os.cpu_count() or 1) // jobs)
    now = now.changed(settings=config.changed(threads=threads))
    folder.begin(now)
    return now


def _looks(record: ComparisonRecord) -> tuple[int, ...]:
    count = len(record.settings.seeds)
    return record.looks if record.looks[-1:] == (count,) else (*record.looks, count)


def _models(config: CompareConfig) -> list[str]:
    runs = [config.shared, *([config.teacher_training] if config.teacher_training else [])]
    teachers = [t for t in (config.teacher, config.independent_teacher) if t is not None]
    each = [one for teacher in teachers for one in (teacher.members or (teacher,))]
    own = [
        network.model
        for label in config.contenders
        for stage in config.run_config(label, config.seeds[0]).stages()
        for network in stage.own_networks().values()
        if network.model is not None
    ]
    return [
        *(run.student.name for run in runs),
        *(teacher.name for teacher in each if teacher.name is not None),
        *dict.fromkeys(own),
    ]


@dataclass(kw_only=True)
class _Sitting:
    """What is missing of a comparison, on its way.

    Attributes:
        folder: held by this process.
        config: its settings.
        missing: tasks, each behind those it waits for.
        done: how many were there before.
        devices: taken in turns.
        typed: names that may run code.
        audience: told of progress.
        cohort: rows of a seed that share their teacher's passes.
    """

    folder: ComparisonFolder
    config: CompareConfig
    missing: list[Task]
    done: int
    devices: tuple[str, ...]
    typed: tuple[str, ...]
    audience: Audience
    cohort: int = 1
    _failed: set[Task] = field(default_factory=set)
    _begun: int = 0

    @property
    def threads(self) -> int:
        """Of each run."""
        assert self.config.threads is not None
        return self.config.threads

    def here(self, data: PreparedData) -> None:
        """One after the other, in this process."""
        device = self.devices[0] if self.devices else None
        with torch_threads(self.threads):
            for tasks in self._groups():
                ready = [task for task in tasks if not self._is_lost(task)]
                for task in ready:
                    self._announce(task)
                if not ready:
                    continue
                shared = {
                    "device": device,
                    "typed": self.typed,
                    "data": data,
                    "observer": self.audience.observer(ready[0]),
                }
                if len(ready) == 1:
                    self._one(ready[0], shared)
                else:
                    self._together(ready, shared)

    def _one(self, task: Task, shared: Mapping[str, Any]) -> None:
        try:
            found = carry_out(self.folder, task, **shared)
        except Exception as error:  # noqa: BLE001  (one run's failure is not the others')
            self._fail(FailedTask.of(task.name, error), task)
        else:
            self.audience.finished(task, found)

    def _together(self, tasks: list[Task], shared: Mapping[str, Any]) -> None:
        stop = None
        for task, ended in carry_out_together(self.folder, tasks, **shared):
            if isinstance(ended, RunSummary):
                self.audience.finished(task, ended)
            elif isinstance(ended, Exception):
                self._fail(FailedTask.of(task.name, ended), task)
            else:
                stop = ended
        if stop is not None:  # all have saved their state
            raise stop

    def _groups(self) -> Iterator[list[Task]]:
        """The tasks in their order; of a cohort's seed, those that can share passes together."""
        left = list(self.missing)
        while left:
            group = [left[0]]
            if self._shares(left[0]):
                others = (t for t in left[1:] if t.seed == left[0].seed and self._shares(t))
                group += itertools.islice(others, self.cohort - 1)
            left = [task for task in left if task not in group]
            yield group

    def _shares(self, task: Task) -> bool:
        """Whether its run sees what the other methods' runs of its seed see, with one teacher."""
        if task.kind != "run" or task.label is None:
            return False
        row, given = self.config.contenders[task.label], self.config.teacher
        cached = given is not None and given.is_cached
        return row.needs_teacher and row.role == "method" and not cached

    def in_workers(self, jobs: int) -> None:
        """Several at a time, each in a process of its own, which can die without the others."""
        waiting = list(self.missing)
        running: dict[int, _Worker] = {}  # by slot
        watch = Interruption()
        try:
            with watch.watching():
                while (waiting or running) and watch.signum is None:
                    for slot in range(jobs):
                        if slot not in running:
                            task = self._next(waiting, running)
                            if task is not None:
                                running[slot] = self._start(task, slot)
                    for slot, worker in list(running.items()):
                        code = worker.process.poll()
                        if code is not None:
                            del running[slot]
                            self._end(worker, code)
                    time.sleep(_POLL_SECONDS)
                if watch.signum is not None:
                    for worker in running.values():
                        worker.process.terminate()  # it saves its state first
                    for worker in running.values():
                        worker.process.wait()
                    raise InterruptedRun(watch.signum)
        finally:
            for worker in running.values():
                if worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
                worker.close()

    def _next(self, waiting: list[Task], running: dict[int, _Worker]) -> Task | None:
        """The first task that can start now; those that never can are failed and dropped."""
        open_tasks = {*waiting, *(worker.task for worker in running.values())}
        for task in list(waiting):
            if self._is_lost(task):
                waiting.remove(task)
            elif not any(other in open_tasks for other in task.waits_for(self.config)):
                waiting.remove(task)
                return task
        return None

    def _is_lost(self, task: Task) -> bool:
        """Whether something that the task waits for has failed; it is then marked, too."""
        for other in task.waits_for(self.config):
            if other in self._failed:
                failed = self.folder.read_failure(other.name)
                because = "" if failed is None else f": {failed.reason}"
                reason = f"{other.name} failed, and this waits for it{because}"
                self._fail(
                    FailedTask(task=task.name, reason=reason, traceback="", when=utc_now()), task
                )
                return True
        return False

    def _announce(self, task: Task) -> None:
        self._begun += 1
        self.audience.started(task, self.done + self._begun, self.done + len(self.missing))

    def _fail(self, failed: FailedTask, task: Task) -> None:
        self._failed.add(task)
        self.folder.fail(failed)
        self.audience.failed(task, failed.reason)

    def _start(self, task: Task, slot: int) -> _Worker:
        self._announce(task)
        log = self.folder.log(task.name)
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "limbeck.runs.worker", str(self.folder.path), task.text()]
        if self.devices:
            command += ["--device", self.devices[slot % len(self.devices)]]
        for name in self.typed:
            command += ["--typed", name]
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*command, "--threads", str(self.threads)],
                stdin=subprocess.PIPE,  # its end tells the worker that nobody waits for it
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C is for this process, which then asks the workers
            )
        return _Worker(task, process, log)

    def _end(self, worker: _Worker, code: int) -> None:
        worker.close()
        task = worker.task
        if is_done(self.folder, task):
            self.audience.finished(task, _result(self.folder, task))
            return
        failed = self.folder.read_failure(task.name)
        if failed is None:
            failed = FailedTask(
                task=task.name,
                reason=_how_it_ended(code),
                traceback=worker.last_lines(),
                when=utc_now(),
            )
        self._fail(failed, task)


@dataclass(frozen=True)
class _Worker:
    """A process that carries out one task."""

    task: Task
    process: subprocess.Popen[bytes]
    log: Path

    def close(self) -> None:
        """Let go of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


def _result(folder: ComparisonFolder, task: Task) -> RunSummary | Tuned:
    if task.kind == "tune":
        assert task.label is not None
        return Tuned.read(read_json(folder.tuned(task.label)))
    if task.kind == "teacher":
        return read_summary(folder.teacher)
    assert task.label is not None
    assert task.seed is not None
    return read_summary(folder.run(task.label, task.seed))


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        why = "; the system does this when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}. Start again to go on from its last state"
    return f"its process ended with exit code {code}; its last lines are with the failure"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
