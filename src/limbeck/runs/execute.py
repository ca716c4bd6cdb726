"""Carry out a run, from its settings to its summary; continue one that was interrupted."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck._version import __version__
from limbeck.core.errors import CheckpointError, ModelError, RunFolderError, TeacherChangedError
from limbeck.core.types import Batch, Outputs, keyed_generator
from limbeck.data import DataBundle, ImageSource, TrainLoader, build_data, eval_batches
from limbeck.data.images import joint_fingerprint
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.engine.distributed import (
    World,
    check_ranks_agree,
    pick_device,
    process_group,
    share_buffers,
)
from limbeck.engine.evaluate import KeptLogits, evaluate_together, judge_logits
from limbeck.engine.learner import NO_TEACHER, Learner, check_takes_mixed
from limbeck.engine.loop import Interruption, Question, StageLoop, drive
from limbeck.engine.mutual import AlternatingStepper
from limbeck.engine.optim import ScheduleConfig
from limbeck.engine.probe import build_learner, check_fit, dry_forward, freeze_idle
from limbeck.engine.recorder import Observer, Recorder, SilentObserver
from limbeck.engine.step import Stepper
from limbeck.functional.logits import joint_logits
from limbeck.methods.base import RUN_TEACHER, Method, Needs, Stage
from limbeck.methods.feature.simkd import ReusedClassifier
from limbeck.models import load_weights, save_weights, summarise
from limbeck.runs.caching import check_cache, open_teacher
from limbeck.runs.config import RunConfig
from limbeck.runs.embedding import judge_embeddings
from limbeck.runs.folder import RunFolder, describe_environment
from limbeck.runs.measure import (
    PeakMemory,
    deployed_bytes,
    floor_images_per_second,
    images_per_second,
)
from limbeck.runs.networks import (
    NamedNetwork,
    StudentCard,
    build_own_networks,
    build_student,
)
from limbeck.runs.predictions import judge_answers, write_predictions
from limbeck.runs.prepared import keep_buffers, prepared_path, recall_buffers
from limbeck.runs.provenance import sources_hash
from limbeck.runs.summary import (
    EpochResult,
    FurtherNetwork,
    RunSummary,
    TeacherResult,
    TestResult,
    read_summary,
)
from limbeck.teacher import Teacher, TeacherEnsemble, joint_hash, state_hash
from limbeck.teacher_cache import CachedTeacher

__all__ = [
    "Asking",
    "Parts",
    "Rehearsal",
    "asking_resumed",
    "asking_run",
    "check",
    "execute",
    "prepare_parts",
    "rehearse",
    "resume",
    "teacher_hashes",
]

Asking = Generator[Question, Outputs, RunSummary]

_DRY_IMAGES = 8  # enough for batch statistics and pairs, little enough to cost nothing


@dataclass(frozen=True)
class Parts:
    """What settings name, made: data and networks.

    Attributes:
        data: splits in place.
        student: fresh.
        teacher: with its weights, or several, or what one once answered; None where the method
            has none.
        beside: further networks whose answers are kept beside the student's and judge its
            fidelity; they teach nothing. "teacher" where the run has none of its own, as the
            matched baseline, and "independent", the control.
        own: networks of single stages, by the names of stages and peers: assistants, generations,
            peers.
    """

    data: DataBundle
    student: NamedNetwork
    teacher: NamedNetwork | CachedTeacher | None
    beside: Mapping[str, NamedNetwork | CachedTeacher] = field(default_factory=dict)
    own: Mapping[str, NamedNetwork] = field(default_factory=dict)


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found.

    Attributes:
        settings: resolved.
        counts: images per split and class.
        stages: per stage: name, epochs, steps, names of idle parameters.
        notices: what is worth saying.
        seconds_per_step: of one whole training batch, measured.
        estimated_seconds: of the whole training at that speed, without evaluation.
        peak_memory_bytes: of one whole training batch: device memory on CUDA, else the
            process's largest resident size.
    """

    settings: dict[str, Any]
    counts: dict[str, dict[str, int]]
    stages: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]
    seconds_per_step: float
    estimated_seconds: float
    peak_memory_bytes: int


def prepare_parts(
    config: RunConfig,
    *,
    typed: Collection[str] = (),
    data: DataBundle | None = None,
    teacher: NamedNetwork | CachedTeacher | None = None,
) -> Parts:
    """Data and networks of a run.

    Args:
        config: the run.
        typed: names that the user gave here and now. Only among these may be a name that runs
            code, ``file.py:function``; in a settings file or a checkpoint it is refused.
        data: what the settings name, if the caller has it already.
        teacher: likewise.
    """
    if data is None:
        data = build_data(config.data, seed=config.seed)
    student = build_student(config.student, data, seed=config.seed, typed=typed)
    if config.teacher is not None and teacher is None:
        teacher = open_teacher(
            config.teacher, data, typed=typed, scores=config.reads_teacher_scores
        )
    return Parts(data, student, teacher, own=build_own_networks(config, data, typed=typed))


def execute(
    config: RunConfig, output: str | Path, parts: Parts, *, observer: Observer | None = None
) -> RunSummary:
    """Train every stage, judge the student, write the run folder.

    Args:
        config: the run.
        output: its folder; must not hold anything yet.
        parts: made for ``config``; the student is trained in place.
        observer: who is told of progress.

    Raises:
        LimbeckError: for anything the caller can mend; before training starts, nothing is left
            behind.
        InterruptedRun: after Ctrl-C or SIGTERM, with the state saved.
    """
    return drive(asking_run(config, output, parts, observer=observer))


def asking_run(
    config: RunConfig,
    output: str | Path,
    parts: Parts,
    *,
    observer: Observer | None = None,
    watch: Interruption | None = None,
) -> Asking:
    """:func:`execute` step by step: see :meth:`~limbeck.engine.loop.StageLoop.asking`.

    With ``watch``, the caller's, signals are left to whoever watches it.
    """
    folder = RunFolder(output)
    with _session(config, parts, observer) as session, ExitStack() as stack:
        if session.world.is_main:
            folder.check_free()
        session.open_teacher()
        session.check_later_stages()
        session.enter_stage(session.first)  # what does not fit fails here, before the folder
        if session.world.is_main:
            stack.enter_context(folder.created())
            environment = describe_environment(session.device)
            # Of all stages: what the settings say is of those that train the run's student.
            environment["num_epochs"] = sum(session.stage_epochs)
            folder.write_json(folder.path / "environment.json", environment)
            folder.write_json(folder.config, config.plain())
        return (yield from session.train(folder, watch=watch))


def resume(
    output: str | Path, parts: Parts, config: RunConfig, *, observer: Observer | None = None
) -> RunSummary:
    """Continue an interrupted run from its newest whole checkpoint, to the same end.

    A finished run stays as it is, and so does the student that was passed in.

    Raises:
        RunFolderError: if the folder holds no run, a run is working in it, or it began with
            other data.
        CheckpointError: if checkpoints were written and none of them is whole.
        TeacherChangedError: if the run began with another teacher.
    """
    return drive(asking_resumed(output, parts, config, observer=observer))


def asking_resumed(
    output: str | Path,
    parts: Parts,
    config: RunConfig,
    *,
    observer: Observer | None = None,
    watch: Interruption | None = None,
) -> Asking:
    """:func:`resume` step by step, as :func:`asking_run` is of :func:`execute`."""
    folder = RunFolder(output)
    if not folder.config.exists():
        raise RunFolderError(f"{folder.path} holds no run to continue; start one there instead")
    if folder.summary.exists():
        found = read_summary(output)
        hashes = teacher_hashes(parts.teacher)
        _check_same_inputs(folder, found.plain(), parts.data.fingerprint(), hashes)
        for name, network in found.further.items():
            if network.run is not None:
                now = state_hash(parts.own[name].network)
                _check_same_network(folder, name, network.state_hash, now)
        return found
    with _session(config, parts, observer) as session, ExitStack() as stack:
        if session.world.is_main:
            stack.enter_context(folder.locked())
        state: dict[str, Any] | None = None
        store = CheckpointStore(folder.checkpoints)
        if store.paths():
            state, faults = store.load_newest()
            for fault in faults:
                session.note(f"{fault}; continuing from the checkpoint before it")
        else:
            session.note("no checkpoint yet; starting from the beginning")
        session.open_teacher()
        if state is not None:
            _check_same_inputs(folder, state, session.data_hash, session.teacher_hashes)
            session.load_own_networks(folder, state)
            if state["loop"]["threads"] != torch.get_num_threads():
                session.note(
                    f"the run used {state['loop']['threads']} threads, now there are "
                    f"{torch.get_num_threads()}: the result will differ in the last digits"
                )
        if state is None:
            session.enter_stage(session.first)
        else:  # what `prepare` found is in the checkpoint
            session.enter_stage(state["stage"], prepare=False)
        return (yield from session.train(folder, state, watch=watch))


def check(config: RunConfig, parts: Parts) -> None:
    """Build every stage for the networks as they are, so that what does not fit is found.

    The teacher's weights may still be missing: only its shape counts.

    Raises:
        LimbeckError: for anything the caller can mend.
    """
    with _session(config, parts, None) as session:
        session.open_teacher(judge=False)
        session.check_later_stages()
        session.enter_stage(session.first, prepare=False)


def rehearse(
    config: RunConfig, parts: Parts, output: str | Path | None = None, *, judge: bool = True
) -> Rehearsal:
    """Everything but training: one whole batch through every stage, and the write test.

    Args:
        config: the run.
        parts: made for ``config``; the student stays as it is.
        output: its folder, which is tried and left as it was; None tries none.
        judge: say how good the teacher is, for which it must have its weights.
    """
    if output is not None:
        RunFolder(output).check_free()
    with _session(config, parts, None) as session:
        session.open_teacher(judge=judge)
        return session.rehearse()


@contextmanager
def _session(config: RunConfig, parts: Parts, observer: Observer | None) -> Iterator[_Session]:
    """One sitting of a run; the caller's random streams are put back afterwards."""
    kind = pick_device(config.train.device).type
    with process_group(kind) as world, torch.random.fork_rng():
        torch.manual_seed(keyed_generator(config.seed, "run", world.rank).initial_seed())
        session = _Session(config, parts, observer or SilentObserver(), world)
        try:
            yield session
        finally:
            session.close()


@dataclass(frozen=True)
class _Passes:
    """Batches that can be gone through more than once."""

    begin: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.begin()


class _Session:
    """One sitting of a run: its device, its networks there, the stage it is in."""

    def __init__(self, config: RunConfig, parts: Parts, observer: Observer, world: World) -> None:
        self.config = config
        self.parts = parts
        self.world = world
        self.observer = observer if world.is_main else SilentObserver()
        self.device = pick_device(config.train.device, local_rank=world.local_rank)
        self.notices: list[str] = []
        self.stages = config.stages()
        self.stage_epochs = config.stage_epochs()
        for placed in (parts.student, *parts.own.values()):
            self._place(placed.network)
        wanted = [stage.method.needs(stage.config) for stage in self.stages]
        self.taught_scores = any(needs.student_scores for needs in wanted)
        # What the embedding was before training, to compare with.
        embeds = any(needs.embeds for needs in wanted)
        self.before = copy.deepcopy(parts.student.network) if embeds else None
        self.trainable = _trainable(parts)
        self.split_hashes = parts.data.split_fingerprints()
        self.data_hash = joint_fingerprint(self.split_hashes)
        self.is_rehearsal = False  # which writes nothing
        self.memory = PeakMemory(self.device)
        self.loader = self._make_loader()
        self._taps = ExitStack()  # hooks on the two networks
        self.teacher_hashes = teacher_hashes(None)
        self.member_hashes: dict[str, str] = {}  # by role; see `_members`
        self.teacher_val: dict[str, dict[str, float]] = {}  # by role; see `_teacher_roles`
        # Of stages' own networks, as they are once they are trained.
        self.own_hashes: dict[str, str] = {}
        self.stage_index = self.first = min(
            index for index, stage in enumerate(self.stages) if not stage.is_finished
        )
        self.teacher: Teacher | TeacherEnsemble | CachedTeacher | None = None
        self.opened: list[Teacher] = []  # the same, one by one, but for a cache
        self.learner: Learner
        noted: tuple[DataBundle | NamedNetwork, ...] = (parts.data, parts.student)
        if isinstance(parts.teacher, NamedNetwork):
            noted += (parts.teacher,)
        for note in (note for part in noted for note in part.notes):
            self.note(note)
        for name, named in parts.own.items():
            for note in named.notes:
                self.note(f"{name}: {note}")
        if not self.taught_scores:
            self.note("the student's class scores are not taught: their accuracy says nothing")

    def close(self) -> None:
        """Leave the networks, which are the caller's, without hooks and compiled code."""
        self._taps.close()
        self._make_trainable()
        parts = self.parts
        teachers = parts.teacher.each if isinstance(parts.teacher, NamedNetwork) else ()
        for named in (parts.student, *teachers, *parts.own.values()):
            named.network._compiled_call_impl = None

    def _make_trainable(self) -> None:
        """What a stage froze, or a teacher that was a stage's student, takes a gradient again."""
        for parameter, trainable in self.trainable:
            parameter.requires_grad_(trainable)

    @property
    def pupil(self) -> NamedNetwork:
        """Who learns in the stage: the run's student, or the stage's own."""
        stage = self.stage
        return self.parts.student if stage.student is None else self.parts.own[stage.name]

    @property
    def student(self) -> nn.Module:
        """Its network."""
        return self.pupil.network

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(self.device).to(memory_format=self.config.train.memory_format)

    def note(self, message: str) -> None:
        """Say it now, and in the summary."""
        self.notices.append(message)
        self.observer.note(message)

    # -- teacher ---------------------------------------------------------------------------

    def open_teacher(self, *, judge: bool = True) -> None:
        """Move the teachers that are trained to the device, seal them, and say how good they are.

        These are the run's, one or several, and the students of stages that come from finished
        runs.
        """
        named = self.parts.teacher
        self.teacher_hashes = teacher_hashes(named)
        if isinstance(named, CachedTeacher):
            check_cache(named, self.config, self.split_hashes)
            self.note(f"teacher: {named.describe()}")
        elif named is not None:
            _check_apart(self.parts.student.network, named.network)
            self._place(named.network)
        own = {stage.name: self.parts.own[stage.name] for stage in self.stages if stage.is_finished}
        batch = self._dry_batch(_DRY_IMAGES)
        needs = Needs(teacher_scores=self.config.reads_teacher_scores)
        for role, one in (_members(named) | own).items():
            if isinstance(one, CachedTeacher):
                self.member_hashes[role] = one.card.teacher_hash
                continue
            hashes = self.own_hashes if role in own else self.member_hashes
            hashes[role] = state_hash(self._place(one.network))
            with _naming(role, one):
                outputs = dry_forward("teacher", self._open(one, needs), batch)
                check_fit(Outputs(), outputs, num_classes=self.parts.data.num_classes)
        if judge:
            self._say_how_good(own)

    def _say_how_good(self, own: Mapping[str, NamedNetwork]) -> None:
        """The run's teachers, and students of finished stages, on validation."""
        named, split = self.parts.teacher, self.parts.data.val
        if named is not None and not self.config.reads_teacher_scores:
            self.note(f"teacher {named.name}: its class scores are not used, and not judged")
            return
        teachers = {**({} if named is None else _teacher_roles(named)), **own}
        if not teachers:
            return
        if split is None:
            self.note("no validation split: the teacher's accuracy is not checked before training")
            return
        self.teacher_val = self._judge(teachers, "val")
        chance = 1 / self.parts.data.num_classes
        for role, one in teachers.items():
            if role == RUN_TEACHER and len(self.member_hashes) > 1:
                continue
            top1, called = self.teacher_val[role]["top1"], _called(role)
            self.note(f"{called} {one.name}: {top1:.2%} on validation ({len(split)} images)")
            # Three standard errors above guessing.
            if top1 < chance + 3 * math.sqrt(chance * (1 - chance) / len(split)):
                self.note(
                    f"warning: the {called} is hardly better than guessing ({chance:.2%}); are "
                    "these its weights, its normalisation and its classes?"
                )
        if len(self.member_hashes) > 1:
            top1 = self.teacher_val[RUN_TEACHER]["top1"]
            self.note(
                f"the {len(self.member_hashes)} teachers together, by their mean probability: "
                f"{top1:.2%} on validation"
            )

    def _open(self, named: NamedNetwork, needs: Needs) -> Teacher:
        """A network as a teacher: frozen from now on."""
        return Teacher(
            named.network,
            normalization=named.normalization,
            layers=needs.teacher_layers,
            classifier=needs.teacher_classifier,
            classes=named.classes,
            scores=needs.teacher_scores,
        ).to(self.device)

    def _judge(
        self,
        networks: Mapping[str, NamedNetwork | CachedTeacher],
        split: str,
        kept: KeptLogits | None = None,
    ) -> dict[str, dict[str, float]]:
        """Scores by network; every image is read once for all of them."""
        source = self.parts.data.splits[split]
        found = {}
        answering = {}
        for name, named in networks.items():
            if isinstance(named, CachedTeacher):
                logits = named.logits_of(split, self.split_hashes[split])
                found[name] = judge_logits(logits, source.labels.cpu())
                if kept is not None:
                    kept.logits[name] = logits
            else:
                answering[name] = named.answering(self.device)
        if answering:
            found |= evaluate_together(
                answering,
                self._eval_batches(source)(),
                config=self.config.train,
                device=self.device,
                world=self.world,
                kept=kept,
            )
        return found

    def _eval_batches(self, split: ImageSource) -> Callable[[], Iterator[Batch]]:
        return lambda: eval_batches(
            split,
            self.config.train.eval_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.train.workers,
            device=self.device,
        )

    # -- stages ----------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """The stage the session is in."""
        return self.stages[self.stage_index]

    def check_later_stages(self) -> None:
        """Build every stage but the first, so that what does not fit is found before training."""
        for index in range(self.first + 1, len(self.stages)):
            if not self.stages[index].is_finished:
                self._build_stage(index, prepare=False)

    def enter_stage(self, index: int, *, prepare: bool = True) -> None:
        """Build the stage's method and learner for the student as it stands, and say of them."""
        self._build_stage(index, prepare=prepare)
        stage = self.stage
        for whose, tap in (
            ("student", self.learner.observed.tap),
            *(
                (f"teacher {number}" if len(self.opened) > 1 else "teacher", one.observed.tap)
                for number, one in enumerate(self.opened, start=1)
            ),
        ):
            for asked, address in tap.addresses.items():
                meant = "" if asked == address else f" = {address}"
                if asked in tap.reasons:
                    meant += f" ({tap.reasons[asked]})"
                self.note(f"stage {stage.name}: reads {whose} layer {asked}{meant}")
        for line in self.learner.method.describe():
            self.note(f"stage {stage.name}: {line}")
        if self.idle:
            shown = ", ".join(self.idle[:4]) + (", ..." if len(self.idle) > 4 else "")
            self.note(
                f"stage {stage.name}: {len(self.idle)} parameters receive no gradient and rest: "
                f"{shown}"
            )
        if self.config.train.torchcompile:
            self._compile(stopped=stage.method.needs(stage.config).stop_student)

    def _build_stage(self, index: int, *, prepare: bool) -> None:
        self.stage_index = index
        stage = self.stage
        needs = stage.method.needs(stage.config)
        self._taps.close()
        self._make_trainable()
        self.loader = self._make_loader(needs.views)
        self._open_teachers(stage, needs)
        batch = self._dry_batch(_DRY_IMAGES, needs.views)
        peers: list[Learner] = []
        for named in (*self._peers(stage).values(), self.pupil):  # the student knows its peers
            self.learner = build_learner(
                stage,
                named.network,
                self.teacher,
                batch,
                normalization=named.normalization,
                num_images=len(self.parts.data.train),
                num_classes=self.parts.data.num_classes,
                seed=self.config.seed,
                prepare=self._prepare if prepare else None,
                frozen=named.frozen,
                labels=self.parts.data.train.labels,
                peers=peers if named is self.pupil else (),
            ).to(memory_format=self.config.train.memory_format)
            self._taps.callback(self.learner.observed.tap.close)
            peers.append(self.learner)
        if self.config.data.augment.mixes:
            check_takes_mixed(self.learner.method, self.config.method_name)
        epochs = self.stage_epochs[index]
        teacher_outputs = NO_TEACHER
        if self.teacher is not None:
            teacher_outputs = self.teacher.answer(batch, 0)
        self.idle = freeze_idle(
            self.learner,
            teacher_outputs,
            batch,
            num_epochs=epochs,
            num_steps=epochs * self.loader.num_steps,
            seed=self.config.seed,
        )

    def _open_teachers(self, stage: Stage, needs: Needs) -> None:
        """Those of a stage, as its method needs them: the run's, students of earlier stages."""
        each: list[Teacher | CachedTeacher] = []
        for name in stage.teachers if needs.teacher else ():
            named = self.parts.teacher if name == RUN_TEACHER else self.parts.own[name]
            if isinstance(named, CachedTeacher):
                cycle = self.config.data.augment.cycle
                each += [one.placed(self.device, cycle=cycle) for one in named.each]
            elif named is not None:
                each += [self._open(one, needs) for one in named.each]
        self.opened = [one for one in each if isinstance(one, Teacher)]
        for teacher in self.opened:
            self._taps.callback(teacher.observed.tap.close)
        self.teacher = TeacherEnsemble(each) if len(each) > 1 else each[0] if each else None

    def _peers(self, stage: Stage) -> dict[str, NamedNetwork]:
        """By name, in order."""
        return {name: self.parts.own[name] for name in stage.own_networks() if name != stage.name}

    def _prepare(self, method: Method[Any]) -> None:
        if self.teacher is None:
            return
        if isinstance(self.teacher, CachedTeacher):
            method.load_state_dict(self.teacher.buffers(self.stage.name), strict=False)
            return
        kept = self._kept_preparation(method)
        if kept is not None and kept.exists():
            try:
                recall_buffers(method, kept)
            except CheckpointError as error:
                self.note(f"{error}; the pass over the data is made anew")
            else:
                self.note(
                    f"stage {self.stage.name}: no pass over the data; its result is in {kept}"
                )
                return
        before = {name: buffer.clone() for name, buffer in method.named_buffers()}
        method.prepare(self.teacher, _Passes(self._whole_training_set))
        found = {n: b for n, b in method.named_buffers() if not torch.equal(b, before[n])}
        if found and kept is not None and self.world.is_main and not self.is_rehearsal:
            try:
                keep_buffers(found, kept)
            except RunFolderError as error:
                self.note(f"the result of the pass over the data is not kept: {error}")

    def _kept_preparation(self, method: Method[Any]) -> Path | None:
        """Where the result of the method's pass over the data may lie; None where none is kept."""
        names = method.needs(method.config).before_training
        settings = method.config.plain()
        if settings.keys() >= set(names):  # not of a method within another
            settings = {name: settings[name] for name in names}
        named, train = self.parts.teacher, self.config.train
        if not isinstance(named, NamedNetwork) or not names:
            return None
        if type(method).prepare is Method.prepare:
            return None
        return prepared_path(
            {
                "method": type(method).__qualname__,
                "settings": settings,
                "teacher": [
                    named.name,
                    self.teacher_hashes["teacher_hash"],
                    named.normalization.plain(),
                ],
                "classes": None if named.classes is None else list(named.classes),
                "images": self.split_hashes["train"],
                "code": [sources_hash(), torch.__version__],
                "machine": [self.device.type, torch.get_num_threads()],
                "batches": [train.eval_batch_size, train.channels_last],
            }
        )

    def _whole_training_set(self) -> Iterator[Batch]:
        """Every training image, in every process, so that all of them find the same."""
        whole = eval_batches(
            self.parts.data.train,
            self.config.train.eval_batch_size,
            workers=self.config.train.workers,
            device=self.device,
        )
        for batch in whole:
            yield batch.to(self.device, memory_format=self.config.train.memory_format)

    def _make_loader(self, views: Sequence[str] = ()) -> TrainLoader:
        """Training batches of this process."""
        return TrainLoader(
            self.parts.data.train,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            augment=self.config.data.augment,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.train.workers,
            views=views,
            device=self.device,
        )

    def _compile(self, *, stopped: bool) -> None:
        """Compile both networks in place; their state dicts keep their names."""
        import torch._dynamo

        # Hooks set before compiling must fire in the compiled graph, also where another
        # instance of the same class was compiled without any.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        for network in (
            *(teacher.network for teacher in self.opened),
            *(peer.network for peer in self._peers(self.stage).values()),
        ):
            network.compile()
        if stopped:
            self.note(f"stage {self.stage.name}: its stopped forward pass is not compiled")
        else:
            self.student.compile()

    def _dry_batch(self, count: int, views: Sequence[str] = ()) -> Batch:
        """The first training images as they are; each view shows the same."""
        source = self.parts.data.train
        index = torch.arange(min(count, len(source), max(2, self.config.train.batch_size)))
        first = next(iter(eval_batches(source.subset(index), len(index))))
        first = dataclasses.replace(first, views=dict.fromkeys(views, first.image))
        return first.to(self.device, memory_format=self.config.train.memory_format)

    def _loop(
        self, recorder: Recorder, store: CheckpointStore | None, watch: Interruption
    ) -> StageLoop:
        offset = recorder.first_step = self._steps_before()

        def save(step: int, loop: dict[str, Any]) -> None:
            assert store is not None
            state = {
                "stage": self.stage_index,
                "data_hash": self.data_hash,
                **self.teacher_hashes,
                "own_hashes": dict(self.own_hashes),
                "metrics_bytes": recorder.offset(),
                "loop": loop,
                "past": {**self.past, "peak_memory_bytes": self._peak_memory()},
            }
            store.save(offset + step, state)

        val = self.parts.data.val
        return StageLoop(
            name=self.stage.name,
            learner=self.learner,
            teacher=self.teacher,
            loader=self.loader,
            val_batches=None if val is None else self._eval_batches(val),
            normalization=self.pupil.normalization,
            optim=self.config.optim,
            schedule=self._stage_schedule(),
            config=self.config.train,
            seed=self.config.seed,
            device=self.device,
            world=self.world,
            recorder=recorder,
            save=None if store is None else save,
            interruption=watch,
            stepper_type=AlternatingStepper if self.stage.in_turn else Stepper,
        )

    def _steps_before(self) -> int:
        """Steps of the stages before this one."""
        return sum(self.stage_epochs[: self.stage_index]) * self.loader.num_steps

    def _stage_schedule(self) -> ScheduleConfig:
        if len(self.stages) == 1 and self.stage.schedule == "run":
            return self.config.schedule
        return self.config.schedule.squeezed(
            self.stage_epochs[self.stage_index], sched=self.stage.schedule
        )

    # -- the whole -------------------------------------------------------------------------

    def train(
        self,
        folder: RunFolder,
        state: dict[str, Any] | None = None,
        *,
        watch: Interruption | None = None,
    ) -> Asking:
        """Every stage from here on, then judge and write."""
        main = self.world.is_main
        self.past: dict[str, Any] = {
            "seconds": 0.0,
            "images": 0,
            "teacher_seconds": 0.0,
            "peak_memory_bytes": 0,
        }
        offset, step = 0, 1
        if state is not None:
            self.past = state["past"]
            offset = state["metrics_bytes"]
            done = state["loop"]["epoch"] * self.loader.num_steps + state["loop"]["step"]
            step = self._steps_before() + done + 1
        recorder = Recorder(folder.path if main else None, self.observer, offset=offset, step=step)
        store = None
        if main:
            store = CheckpointStore(folder.checkpoints, keep=self.config.train.checkpoint_hist)
        watch = Interruption() if watch is None else watch
        try:
            with watch.watching():
                for index in range(self.stage_index, len(self.stages)):
                    if self.stages[index].is_finished:
                        continue
                    if index != self.stage_index:
                        self.enter_stage(index)
                    check_ranks_agree(self.learner, self.config.plain(), self.world)
                    loop = self._loop(recorder, store, watch)
                    if state is not None:
                        loop.load_state(state["loop"])
                        state = None
                    yield from loop.asking()
                    self.past = {
                        "seconds": self.past["seconds"] + loop.seconds,
                        "images": self.past["images"] + loop.images,
                        "teacher_seconds": self.past["teacher_seconds"]
                        + loop.teacher_clock.seconds(),
                        "peak_memory_bytes": self._peak_memory(),
                    }
                    self._take_average(loop)
                    self._keep_own_networks(folder)
        finally:
            recorder.close()
        return self._finish(folder, loop)

    def _peak_memory(self) -> int:
        """Over all sittings so far."""
        before: int = self.past["peak_memory_bytes"]
        return max(before, self.memory.read())

    def _take_average(self, loop: StageLoop) -> None:
        """Where weights are averaged: of networks that are kept, the average is what they are."""
        last = self.stage_index + 1 == len(self.stages)
        if loop.stepper.evaluated is not self.learner and (last or self.stage.own_networks()):
            self.learner.load_state_dict(loop.stepper.evaluated.state_dict())

    # -- networks of single stages -----------------------------------------------------------

    def _keep_own_networks(self, folder: RunFolder) -> None:
        """Save the stage's own networks, now trained: for later stages, a resume, other runs."""
        for name, own in self.stage.own_networks().items():
            named = self.parts.own[name]
            share_buffers(named.network, self.world)
            self.own_hashes[name] = state_hash(named.network)
            if self.world.is_main:
                like_student = own.model is None
                card = self._card(named, self.config.student.model_kwargs if like_student else {})
                place = folder.stage(name)
                try:
                    place.path.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise RunFolderError(f"{place.path} could not be made: {error}") from None
                save_weights(
                    named.network.state_dict(), place.student, {"limbeck": json.dumps(card.plain())}
                )
                place.write_json(place.student_card, card.plain())

    def load_own_networks(self, folder: RunFolder, state: Mapping[str, Any]) -> None:
        """What earlier stages left, as a checkpoint remembers it.

        Raises:
            CheckpointError: if weights are missing or not those.
            TeacherChangedError: if a finished run's are others than those the run began with.
        """
        begun: Mapping[str, str] = state.get("own_hashes", {})  # older runs have no such networks
        for name, then in begun.items():
            if name in self.own_hashes:
                _check_same_network(folder, name, then, self.own_hashes[name])
                continue
            network = self.parts.own[name].network
            path = folder.stage(name).student
            load_weights(network, path)
            self.own_hashes[name] = state_hash(network)
            if self.own_hashes[name] != then:
                raise CheckpointError(
                    f"{path} is not what this run has trained (SHA-256 {then[:12]} then, "
                    f"{self.own_hashes[name][:12]} now); put it back, or start a new run"
                )

    def _further(
        self, scores: Mapping[str, Mapping[str, dict[str, float]]]
    ) -> dict[str, FurtherNetwork]:
        """What the summary says of stages' own networks."""
        sources = {n: own.run for stage in self.stages for n, own in stage.own_networks().items()}
        return {
            name: FurtherNetwork(
                model=self.parts.own[name].name,
                run=run,
                state_hash=self.own_hashes[name],
                val=scores.get("val", {}).get(name),
                test=scores.get("test", {}).get(name),
            )
            for name, run in sources.items()
        }

    # -- the end -----------------------------------------------------------------------------

    def _finish(self, folder: RunFolder, loop: StageLoop) -> RunSummary:
        data, named = self.parts.data, self.parts.student
        self._taps.close()
        deployed = self.learner.method.deployed(self.student.eval()).eval()
        deployed._compiled_call_impl = None  # copied, and its layers counted, in eager mode
        last_weights = {n: v.detach().cpu().clone() for n, v in deployed.state_dict().items()}
        best = loop.best if loop.best.epoch >= 0 else None
        networks = self._judged(deployed, None if best is None else best.weights)
        held_out, answers = self._read_held_out(networks)
        test, taught = held_out.get("test"), self.parts.teacher
        for role, one in _members(taught).items():
            if isinstance(one, NamedNetwork):
                with _naming(role, one):
                    Teacher(one.network).check_unchanged(self.member_hashes[role])
        for name, was in self.own_hashes.items():
            with _naming(name, self.parts.own[name]):
                Teacher(self.parts.own[name].network).check_unchanged(was)
        peak_memory = self._peak_memory()  # before anything is measured that training did not do
        embedding = self._judge_embedding(networks["last"])
        speed = self._speed(deployed)
        floor = self._floor()
        scores, faults = judge_answers(
            answers.get("test"), answers.get("val"), data.label_counts().tolist()
        )
        if self.world.is_main:
            left_out = write_predictions(answers, folder.predictions)
            faults += [] if left_out is None else [left_out]
        for fault in faults:
            self.note(fault)
        shape = summarise(deployed.to("cpu"), named.normalization.input_shape(data.image_shape))
        seconds = self.past["seconds"]
        summary = RunSummary(
            version=__version__,
            method=self.config.method_name,
            seed=self.config.seed,
            student=named.name,
            teacher=None if taught is None else taught.name,
            config_hash=self.config.hash(),
            data_hash=self.data_hash,
            student_hash=state_hash(deployed),
            **self.teacher_hashes,
            num_parameters=shape.num_parameters,
            num_macs=shape.num_macs,
            last=EpochResult(epoch=loop.schedule.epochs - 1, val=loop.last or None),
            best_on_validation=None
            if best is None
            else EpochResult(epoch=best.epoch, val=best.metrics),
            test=None
            if test is None
            else TestResult(last=test["last"], best_on_validation=test.get("best_on_validation")),
            teacher_val=self.teacher_val.get("teacher"),
            teacher_test=None if test is None or taught is None else test.get("teacher"),
            seconds=round(seconds, 3),
            images_per_second=round(self.past["images"] / max(seconds, 1e-9), 1),
            notices=tuple(self.notices),
            split_hashes=self.split_hashes,
            scores=scores,
            teacher_seconds=round(self.past["teacher_seconds"], 3)
            if any(stage.method.needs(stage.config).teacher for stage in self.stages)
            else None,
            peak_memory_bytes=peak_memory,
            deployed_bytes=deployed_bytes(deployed),
            inference_images_per_second=round(speed, 1),
            scores_taught=self.taught_scores,
            embedding=embedding,
            floor_images_per_second=None if floor is None else round(floor, 1),
            split_sizes={name: len(source) for name, source in data.splits.items()},
            teachers=self._teacher_results(test),
            further=self._further(held_out),
        )
        if self.world.is_main:
            weights = (last_weights, None if best is None else best.weights)
            self._write(folder, deployed, *weights, summary)
        return summary

    def _teacher_results(
        self, test: Mapping[str, dict[str, float]] | None
    ) -> tuple[TeacherResult, ...]:
        """Of several teachers, each."""
        named = self.parts.teacher
        if named is None or len(named.each) == 1:
            return ()
        return tuple(
            TeacherResult(
                name=one.name,
                state_hash=self.member_hashes[role],
                val=self.teacher_val.get(role),
                test=None if test is None else test.get(role),
            )
            for role, one in _members(named).items()
        )

    def _judged(
        self, deployed: nn.Module, best: Mapping[str, Tensor] | None
    ) -> dict[str, NamedNetwork | CachedTeacher]:
        """All whose answers are wanted: student last and best, teacher, own, those beside."""
        student = self.parts.student
        networks: dict[str, NamedNetwork | CachedTeacher] = {
            "last": NamedNetwork(deployed, student.normalization, student.name)
        }
        if best is not None:
            chosen = copy.deepcopy(deployed)
            chosen.load_state_dict(best)
            networks["best_on_validation"] = NamedNetwork(
                chosen, student.normalization, student.name
            )
        for name, named in self.parts.beside.items():
            if isinstance(named, NamedNetwork):
                self._place(named.network)
            networks[name] = named
        if self.parts.teacher is not None and self.config.reads_teacher_scores:
            networks |= _teacher_roles(self.parts.teacher)
        return networks | dict(self.parts.own)

    def _read_held_out(
        self, networks: Mapping[str, NamedNetwork | CachedTeacher]
    ) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, KeptLogits]]:
        """The one reading of the test split, by all networks at once: scores, and answers.

        Both by split and network. Validation is read once more as well, for the answers alone.
        """
        answers: dict[str, KeptLogits] = {}
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for split in ("val", "test"):
            if split in self.parts.data.splits:
                kept = answers[split] = KeptLogits()
                scores[split] = self._judge(networks, split, kept)
                if self.stage.ensemble:
                    members = [kept.logits[name] for name in (*self.stage.ensemble, "last")]
                    kept.logits["ensemble"] = joint_logits(members)
        return scores, answers

    def _judge_embedding(
        self, student: NamedNetwork | CachedTeacher
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Of the student after and before training and of the teacher, if one was taught."""
        if self.before is None or not self.world.is_main:
            return {}
        assert isinstance(student, NamedNetwork)
        networks = {
            "last": student,
            "before": NamedNetwork(self.before, student.normalization, student.name),
        }
        if isinstance(self.parts.teacher, NamedNetwork):
            self.parts.teacher.network._compiled_call_impl = None  # which would not call a tap
            networks["teacher"] = self.parts.teacher
        splits = self.parts.data.splits
        scores, notes = judge_embeddings(
            networks,
            splits.pop("train"),
            splits,
            config=self.config.train,
            device=self.device,
            seed=self.config.seed,
        )
        for note in notes:
            self.note(note)
        return scores

    def _speed(self, deployed: nn.Module) -> float:
        """Images a second through what is deployed."""
        student = self.parts.student
        student = NamedNetwork(deployed, student.normalization, student.name)
        network = student.answering(self.device).eval()
        return images_per_second(network, self.parts.data.image_shape, config=self.config.train)

    def _floor(self) -> float | None:
        """Training images a second of teacher and bare student, over all processes.

        Without the teacher where its answers come from a cache. None where stages train networks
        of their own: a step of theirs is another than a step of the student's.
        """
        if self.parts.own:
            return None
        self._make_trainable()
        try:
            student = copy.deepcopy(self.parts.student.network).train()
            named = dataclasses.replace(self.parts.student, network=student)
            teacher = self.parts.teacher
            floor = floor_images_per_second(
                named.answering(self.device),
                teacher.answering(self.device).eval()
                if isinstance(teacher, NamedNetwork)
                else None,
                self.parts.data.image_shape,
                optim=self.config.optim,
                config=self.config.train,
            )
        except torch.OutOfMemoryError:  # the run is done, and must not end for this
            self.note("no room to measure the floor of a training step beside what is there")
            return None
        return floor * self.world.size

    def _write(
        self,
        folder: RunFolder,
        deployed: nn.Module,
        last: Mapping[str, Tensor],
        best: Mapping[str, Tensor] | None,
        summary: RunSummary,
    ) -> None:
        reused = deployed.config if isinstance(deployed, ReusedClassifier) else None
        card = self._card(self.parts.student, self.config.student.model_kwargs)
        card = card.changed(reused_classifier=reused)
        metadata = {"limbeck": json.dumps(card.plain())}
        folder.write_json(folder.student_card, card.plain())
        save_weights(last, folder.student, metadata)
        if best is not None:
            save_weights(best, folder.student_best, metadata)
        folder.write_json(folder.summary, summary.plain())

    def _card(self, named: NamedNetwork, model_kwargs: Mapping[str, Any]) -> StudentCard:
        """What the weights of a network that was trained here are of."""
        data = self.parts.data
        return StudentCard(
            model=named.name,
            num_classes=data.num_classes,
            in_chans=data.image_shape[0],
            image_size=data.image_shape[1:],
            class_names=data.train.class_names,
            normalization=named.normalization,
            model_kwargs=dict(model_kwargs),
        )

    def rehearse(self) -> Rehearsal:
        """One whole batch through every stage, a few times: once to warm up, then to measure."""
        self._work_on_copies()
        self.is_rehearsal = True
        stages, total, per_step = [], 0.0, 0.0
        for index, (stage, epochs) in enumerate(zip(self.stages, self.stage_epochs, strict=True)):
            if stage.is_finished:
                continue
            self.enter_stage(index)
            loop = self._loop(Recorder(None, self.observer), None, Interruption())
            per_step = loop.time_one_step()
            steps = epochs * self.loader.num_steps
            total += per_step * steps
            stages.append(
                {"name": stage.name, "epochs": epochs, "steps": steps, "idle": list(self.idle)}
            )
        return Rehearsal(
            settings=self.config.plain(),
            counts=self.parts.data.counts(),
            stages=tuple(stages),
            notices=tuple(self.notices),
            seconds_per_step=per_step,
            estimated_seconds=total,
            peak_memory_bytes=self.memory.read(),
        )

    def _work_on_copies(self) -> None:
        """So that the networks that came in stay as they are."""

        def copied(named: NamedNetwork) -> NamedNetwork:
            return dataclasses.replace(named, network=copy.deepcopy(named.network))

        own = {name: copied(named) for name, named in self.parts.own.items()}
        self.parts = dataclasses.replace(self.parts, student=copied(self.parts.student), own=own)
        self.trainable = _trainable(self.parts)


def _trainable(parts: Parts) -> list[tuple[nn.Parameter, bool]]:
    """Parameters of all that learn, and whether they take a gradient."""
    return [
        (parameter, parameter.requires_grad)
        for named in (parts.student, *parts.own.values())
        for parameter in named.network.parameters()
    ]


def _check_same_network(folder: RunFolder, name: str, then: str, now: str) -> None:
    if then != now:
        raise TeacherChangedError(
            f"{folder.path} was begun with another {name} than the one there now (SHA-256 "
            f"{then[:12]} then, {now[:12]} now); restore it, or start a new run"
        )


def teacher_hashes(teacher: NamedNetwork | CachedTeacher | None) -> dict[str, str | None]:
    """What a run is taught by: the network's state, and its stored answers where there are some."""
    if isinstance(teacher, CachedTeacher):
        state, cache = teacher.hashes()
        return {"teacher_hash": state, "teacher_cache": cache}
    each = [] if teacher is None else [state_hash(one.network) for one in teacher.each]
    joint = joint_hash(each) if len(each) > 1 else each[0] if each else None
    return {"teacher_hash": joint, "teacher_cache": None}


def _members(named: NamedNetwork | CachedTeacher | None) -> dict[str, NamedNetwork | CachedTeacher]:
    """Teachers one by one: "teacher", or "teacher1" and so on where there are several."""
    if named is None:
        return {}
    each: Sequence[NamedNetwork | CachedTeacher] = named.each
    if len(each) == 1:
        return {RUN_TEACHER: named}
    return {f"{RUN_TEACHER}{number}": one for number, one in enumerate(each, start=1)}


def _teacher_roles(
    named: NamedNetwork | CachedTeacher,
) -> dict[str, NamedNetwork | CachedTeacher]:
    """The same, and "teacher" for all together."""
    return {RUN_TEACHER: named} | _members(named)


def _called(role: str) -> str:
    """For people: "teacher1" is teacher 1; an assistant keeps its name."""
    number = role.removeprefix(RUN_TEACHER)
    return f"{RUN_TEACHER} {number}" if number.isdigit() else role


@contextmanager
def _naming(role: str, one: NamedNetwork) -> Iterator[None]:
    """Say which of several teachers an error is of."""
    try:
        yield
    except (ModelError, TeacherChangedError) as error:
        if role == RUN_TEACHER:
            raise
        raise type(error)(f"{_called(role)}, {one.name}: {error}") from error


def _check_same_inputs(
    folder: RunFolder,
    begun: Mapping[str, Any],
    data_hash: str,
    hashes: Mapping[str, str | None],
) -> None:
    """Refuse to continue with other data or another teacher than the run began with."""
    if begun["data_hash"] != data_hash:
        raise RunFolderError(
            f"{folder.path} was trained on other images, labels or splits than those there now; "
            "restore the data, or start a new run"
        )
    for name, what in (("teacher_hash", "teacher"), ("teacher_cache", "cache of its teacher")):
        then, now = begun.get(name), hashes[name]
        if then != now:
            raise TeacherChangedError(
                f"{folder.path} was begun with another {what} than the one there now (SHA-256 "
                f"{str(then)[:12]} then, {str(now)[:12]} now); restore the {what.split()[0]}, or "
                "start a new run"
            )


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student that shares memory with its teacher."""
    theirs = {tensor.untyped_storage().data_ptr() for tensor in _state(teacher)}
    if any(tensor.untyped_storage().data_ptr() in theirs for tensor in _state(student)):
        raise ModelError(
            "student and teacher share parameters; pass two networks (copy.deepcopy makes one)"
        )


def _state(network: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that hold something."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.numel():
            yield tensor
