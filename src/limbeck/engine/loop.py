"""One stage of a run, from where it stands to its end."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.core.errors import LimbeckError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs, Progress, keyed_generator
from limbeck.engine.checkpoint import restore_rng_state, rng_state
from limbeck.engine.config import TrainConfig
from limbeck.engine.distributed import World, sum_over_ranks
from limbeck.engine.evaluate import evaluate
from limbeck.engine.learner import NO_TEACHER, Learner
from limbeck.engine.optim import OptimConfig, ScheduleConfig, build_optimizer, build_scheduler
from limbeck.engine.recorder import Recorder, RunningMeans
from limbeck.engine.step import Stepper
from limbeck.engine.stopwatch import Stopwatch
from limbeck.features import LogitNetwork
from limbeck.teacher import Teacher, TeacherEnsemble
from limbeck.teacher_cache import CachedTeacher

__all__ = [
    "BestWeights",
    "InterruptedRun",
    "Interruption",
    "Loader",
    "Question",
    "StageLoop",
    "drive",
]

_GUARD_STEPS = 50  # how often a GPU is asked whether something was not finite
_TIMED_STEPS, _TIMED_SECONDS = 12, 1.0  # of a rehearsal, at most
_STOP_STEPS = 20  # how often several ranks agree on whether to stop


class InterruptedRun(BaseException):
    """A signal asked the run to stop, and its state has been saved.

    Not an ``Exception``, as ``KeyboardInterrupt`` is none: nobody catches it by accident.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; the state is saved")


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into a flag, read at step borders; a second one acts."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Handle both signals inside the block; only the main thread may."""
        try:
            old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the caller keeps its own handling
            yield self
            return
        try:
            yield self
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


class Loader(Protocol):
    """What the loop asks of the training data."""

    @property
    def num_steps(self) -> int:
        """Batches of one epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from ``start_step`` on."""


@dataclass
class BestWeights:
    """The epoch with the highest validation accuracy so far; ties go to the earlier one."""

    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, epoch: int, metrics: dict[str, float], network: nn.Module) -> None:
        """Keep a copy of ``network`` if it is better than what is kept."""
        if self.epoch < 0 or metrics["top1"] > self.metrics["top1"]:
            self.epoch, self.metrics = epoch, dict(metrics)
            self.weights = {
                name: value.detach().cpu().clone() for name, value in network.state_dict().items()
            }


@dataclass(frozen=True)
class Question:
    """What a loop asks before each of its steps: what does the teacher say of this batch?

    A loop that asks can be one of several that take their steps in turns.

    Attributes:
        loop: who asks.
        batch: on the loop's device.
    """

    loop: StageLoop
    batch: Batch

    def answer(self) -> Outputs:
        """By the loop's own teacher."""
        loop, start = self.loop, time.monotonic()
        outputs = NO_TEACHER
        if loop.teacher is not None:
            with loop.teacher_clock, loop.config.autocast(loop.device):
                outputs = loop.teacher.answer(self.batch, loop.epoch)
        loop.seconds += time.monotonic() - start
        return outputs


Found = TypeVar("Found")


def drive(asking: Generator[Question, Outputs, Found]) -> Found:
    """Go through to the end, every question answered by its own teacher: what came out."""
    with closing(asking):  # also where the teacher fails
        try:
            question = next(asking)
            while True:
                question = asking.send(question.answer())
        except StopIteration as stop:
            found: Found = stop.value
            return found


@dataclass(kw_only=True)
class StageLoop:
    """Trains one learner for one stage; everything it needs is given to it.

    Attributes:
        name: of the stage.
        learner: on ``device``.
        teacher: on ``device``, one or several; or None.
        loader: training batches.
        val_batches: makes this rank's validation batches anew, or None.
        normalization: the student's own.
        optim: optimiser settings.
        schedule: of this stage alone.
        config: batch, precision, checkpoint times.
        seed: the run's.
        device: where everything is.
        world: the processes of this run.
        recorder: told of every epoch.
        save: called with the loop's state when a checkpoint is due; None saves nothing.
        interruption: read at step borders.
        stepper_type: how the learner is updated, batch by batch.
    """

    name: str
    learner: Learner
    teacher: Teacher | TeacherEnsemble | CachedTeacher | None
    loader: Loader
    val_batches: Callable[[], Iterable[Batch]] | None
    normalization: Normalization
    optim: OptimConfig
    schedule: ScheduleConfig
    config: TrainConfig
    seed: int
    device: torch.device
    world: World
    recorder: Recorder
    save: Callable[[int, dict[str, Any]], None] | None
    interruption: Interruption
    stepper_type: type[Stepper] = Stepper

    def __post_init__(self) -> None:
        steps, accum = self.loader.num_steps, self.config.grad_accum_steps
        self.num_steps = steps * self.schedule.epochs
        optimizer = build_optimizer([self.learner], self.optim)
        scheduler = build_scheduler(optimizer, self.schedule, updates_per_epoch=-(-steps // accum))
        wrapped: nn.Module = self.learner
        if self.world.size > 1:
            wrapped = DistributedDataParallel(self.learner)
        self.stepper = self.stepper_type(
            self.learner,
            wrapped,
            optimizer,
            scheduler,
            self.config,
            device=self.device,
            clip_grad=self.optim.clip_grad,
        )
        self.epoch = 0
        self.step = 0  # within the epoch
        self.means = RunningMeans()
        self.best = BestWeights()
        self.last: dict[str, float] = {}
        self.seconds = 0.0  # of training without evaluation, over all sittings
        self.images = 0
        self.teacher_clock = Stopwatch(self.device)  # its forward passes, over all sittings
        self._since = (0.0, 0)  # seconds and images at the last row

    @property
    def deployed(self) -> nn.Module:
        """What is evaluated and exported, without its normalisation."""
        learner = self.stepper.evaluated
        return learner.method.deployed(learner.student)

    def run(self) -> None:
        """Train to the end of the stage by the loop's own teacher; see :meth:`asking`."""
        drive(self.asking())

    def asking(self) -> Generator[Question, Outputs, None]:
        """Train to the end of the stage, a question and its answer for each step.

        Time between the two does not count as this loop's.

        Raises:
            InterruptedRun: after saving, when a signal asked for it.
            NonFiniteError: if a loss or gradient is not finite; the last checkpoint stays.
        """
        clock = saved = time.monotonic()
        self.learner.train()
        for epoch in range(self.epoch, self.schedule.epochs):
            for shown in self.loader.epoch(epoch, self.step):
                batch = shown.to(self.device, memory_format=self.config.memory_format)
                self.seconds += time.monotonic() - clock
                outputs = yield Question(self, batch)
                clock = time.monotonic()
                self._train_on(batch, outputs)
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                done = epoch * self.loader.num_steps + self.step
                self.recorder.observer.step(self.name, done, self.num_steps)
                stop = self._stop_asked(done)
                due = now - saved > self.config.checkpoint_seconds or (
                    self.config.checkpoint_steps is not None
                    and done % self.config.checkpoint_steps == 0
                )
                # At an epoch's last step the checkpoint waits for the evaluation.
                inside = self.step < self.loader.num_steps
                if inside and self._update_closed() and (stop is not None or due):
                    self._save_now()
                    saved = time.monotonic()
                    if stop is not None:
                        raise InterruptedRun(stop)
            self.epoch, self.step = epoch + 1, 0
            self.stepper.guard.read()
            self.teacher_clock.seconds()  # the device has just been waited for: events are read
            self.seconds += time.monotonic() - clock
            self._finish_epoch(epoch)
            stop = self._stop_asked(0)
            by_time = time.monotonic() - saved > self.config.checkpoint_seconds
            # Always after the last one: what follows may fail, and the training is done.
            last = epoch + 1 == self.schedule.epochs
            if last or stop is not None or by_time or self.config.checkpoint_steps is not None:
                self._save_now()
                saved = time.monotonic()
            if stop is not None:
                raise InterruptedRun(stop)
            clock = time.monotonic()

    def time_one_step(self) -> float:
        """Seconds of a step, the median of some on the same batch; the learner is changed."""
        batch = next(self.loader.epoch(0)).to(self.device, memory_format=self.config.memory_format)
        self.learner.train()
        seconds: list[float] = []
        # The first warms up. A step of a small network takes milliseconds, and one is no measure.
        while len(seconds) < 2 or (len(seconds) < _TIMED_STEPS and sum(seconds) < _TIMED_SECONDS):
            self.step = 0
            start = time.perf_counter()
            self._train_on(batch, Question(self, batch).answer())
            self.stepper.guard.read()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    def _update_closed(self) -> bool:
        """Whether no gradient is waiting: a checkpoint holds none."""
        return self.step % self.config.grad_accum_steps == 0

    def _train_on(self, batch: Batch, teacher: Outputs) -> None:
        steps, accum = self.loader.num_steps, self.config.grad_accum_steps
        first_of_group = self.step - self.step % accum
        group = min(accum, steps - first_of_group)
        progress = Progress(
            seed=self.seed,
            epoch=self.epoch,
            step=self.epoch * steps + self.step,
            num_epochs=self.schedule.epochs,
            num_steps=self.num_steps,
        )
        terms = self.stepper.step(
            batch,
            teacher,
            progress,
            share=1 / group,
            update=self.step + 1 == first_of_group + group,
        )
        self.means.add({"loss": terms.total, **terms.parts}, weight=len(batch))
        self.images += len(batch) * self.world.size
        self.step += 1
        if progress.step % _GUARD_STEPS == 0:
            self.stepper.guard.read()

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate and record, on the epochs that are asked for and on the last."""
        if (epoch + 1) % self.config.eval_every and epoch + 1 < self.schedule.epochs:
            return
        lr = self.stepper.optimizer.param_groups[0]["lr"]
        if self.world.size > 1:
            for sums in self.means.sums().values():
                sum_over_ranks(sums, self.world)
        train = self.means.read()
        self.means = RunningMeans()
        val = None
        stopped = self.learner.method.needs(self.learner.method.config).stop_student
        if self.val_batches is not None and not stopped:
            network = LogitNetwork(self.deployed, normalization=self.normalization)
            network.normalize.to(self.device)
            val = evaluate(
                network,
                self.val_batches(),
                config=self.config,
                device=self.device,
                world=self.world,
            )
            self.learner.train()
            self.last = val
            self.best.offer(epoch, val, self.deployed)
        seconds, images = self.seconds - self._since[0], self.images - self._since[1]
        self._since = (self.seconds, self.images)
        self.recorder.row(
            {
                "stage": self.name,
                "epoch": epoch,
                "step": (epoch + 1) * self.loader.num_steps,
                "lr": lr,
                "train": train,
                "val": val,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / max(seconds, 1e-9), 1),
            }
        )

    def _stop_asked(self, done: int) -> int | None:
        """The signal to stop for, once all ranks know of it."""
        if self.world.size == 1:
            return self.interruption.signum
        if done % _STOP_STEPS:
            return None
        flag = torch.tensor(self.interruption.signum or 0, device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag) or None

    def _save_now(self) -> None:
        self.stepper.guard.read()
        if self.save is not None:
            self.save(self.epoch * self.loader.num_steps + self.step, self.state())

    def state(self) -> dict[str, Any]:
        """What an exact continuation needs, as tensors and plain values."""
        return {
            "stage": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "stepper": self.stepper.state(),
            "means": self.means.sums(),
            "best": {
                "epoch": self.best.epoch,
                "metrics": self.best.metrics,
                "weights": self.best.weights,
            },
            "last": self.last,
            "seconds": self.seconds,
            "images": self.images,
            "teacher_seconds": self.teacher_clock.seconds(),
            "since": list(self._since),
            "rng": rng_state(),
            "threads": torch.get_num_threads(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`.

        Raises:
            LimbeckError: if the state is another stage's.
        """
        if state["stage"] != self.name:
            raise LimbeckError(f"the checkpoint is of stage {state['stage']!r}, not {self.name!r}")
        self.epoch, self.step = state["epoch"], state["step"]
        self.stepper.load_state(state["stepper"])
        self.means.load(state["means"], self.device)
        self.best = BestWeights(**state["best"])
        self.last = state["last"]
        self.seconds, self.images = state["seconds"], state["images"]
        self.teacher_clock.start_from(state["teacher_seconds"])
        self._since = (state["since"][0], state["since"][1])
        restore_rng_state(state["rng"])
        if self.world.rank > 0:  # the checkpoint is rank 0's; dropout must differ between ranks
            self.means = RunningMeans()
            key = (self.seed, self.epoch, self.step, self.world.rank)
            torch.manual_seed(keyed_generator(*key).initial_seed())
