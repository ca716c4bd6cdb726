"""Several runs of one seed, step by step in turns, that listen to the same answers of one teacher.

Runs of the same seed, data and budget see the same batches, so one pass of the teacher serves them
all. Each run is otherwise by itself: its folder, its checkpoints, its random streams and its
failures. On a CPU it ends bit-equal to the same run alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from limbeck.core.types import Outputs
from limbeck.engine.checkpoint import restore_rng_state, rng_state
from limbeck.engine.loop import Interruption, Question
from limbeck.runs.execute import Asking
from limbeck.runs.summary import RunSummary
from limbeck.teacher import Teacher

__all__ = ["together"]


def together(
    runs: Mapping[str, Asking], watch: Interruption
) -> Iterator[tuple[str, RunSummary | BaseException]]:
    """Take every run to its end.

    Args:
        runs: by name; all with the same teacher network, seed, data, batches and precision, and
            with ``watch``, in one process.
        watch: after a signal, every run saves its state at its next step's border.

    Yields:
        A run's name with its summary, or with what ended it, as soon as it has ended.
    """
    before = rng_state()
    members = [_Member(name, asking) for name, asking in runs.items()]
    speaker = _Speaker()
    try:
        with ExitStack() as stack, watch.watching():
            for member in members:
                stack.enter_context(closing(member.asking))
            waiting = members
            while waiting:
                for member in waiting:
                    member.advance()
                    if member.question is None:
                        assert member.ended is not None
                        yield member.name, member.ended
                members = [member for member in members if member.question is not None]
                waiting = speaker.serve(members)
    finally:
        speaker.close()
        restore_rng_state(before)


@dataclass(eq=False)
class _Member:
    """One run on its way.

    Attributes:
        name: of the run.
        asking: the run.
        question: what it waits for; None where it has ended.
        answer: what it is to be told next.
        ended: with what.
        rng: its random streams.
    """

    name: str
    asking: Asking
    question: Question | None = None
    answer: Outputs | None = None
    ended: RunSummary | BaseException | None = None
    rng: dict[str, Any] = field(default_factory=rng_state)

    def advance(self) -> None:
        """Go on to the next question, or to the end."""
        restore_rng_state(self.rng)
        try:
            if self.answer is None:
                self.question = next(self.asking)
            else:
                self.question = self.asking.send(self.answer)
        except StopIteration as stop:
            self.question, self.ended = None, stop.value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (one run's end is not the others')
            self.question, self.ended = None, error
        self.rng = rng_state()


class _Speaker:
    """The teacher of all members, asked once for each batch."""

    def __init__(self) -> None:
        # By network: whose teachers were joined, and the one in their place.
        self._joint: dict[int, tuple[tuple[Teacher, ...], Teacher]] = {}

    def serve(self, members: list[_Member]) -> list[_Member]:
        """Answer those that are furthest behind, so that all come to ask the same: who they are.

        After an interruption runs may stand at different steps.
        """
        behind = min((_done(member) for member in members), default=0)
        served = [member for member in members if _done(member) == behind]
        groups: dict[tuple[int, int], list[_Member]] = {}
        for member in served:
            assert member.question is not None
            loop = member.question.loop
            # A run of several stages begins each with the batches of epoch 0.
            groups.setdefault((loop.epoch, loop.step), []).append(member)
        for group in groups.values():
            self._answer(group)
        return served

    def _answer(self, group: list[_Member]) -> None:
        """One pass for all that listen to a network; it counts in full as each run's time."""
        listening: dict[int, list[_Member]] = {}
        for member in group:
            assert member.question is not None
            teacher = member.question.loop.teacher
            if isinstance(teacher, Teacher):  # an assistant of a run is heard by this run alone
                listening.setdefault(id(teacher.network), []).append(member)
            else:
                member.answer = member.question.answer()
        for members in listening.values():
            self._answer_together(members)

    def _answer_together(self, members: list[_Member]) -> None:
        questions = [member.question for member in members if member.question is not None]
        loop, start = questions[0].loop, time.monotonic()
        views = {name: view for q in questions for name, view in q.batch.views.items()}
        batch = dataclasses.replace(questions[0].batch, views=views)
        teacher = self._for(questions)
        with ExitStack() as stack:
            for question in questions:
                stack.enter_context(question.loop.teacher_clock)
            stack.enter_context(loop.config.autocast(loop.device))
            outputs = teacher.answer(batch, loop.epoch)
        seconds = time.monotonic() - start
        for member, question in zip(members, questions, strict=True):
            member.answer = outputs
            question.loop.seconds += seconds

    def _for(self, questions: list[Question]) -> Teacher:
        """A teacher that reads every layer that one of theirs does; all are of one network."""
        teachers = tuple(q.loop.teacher for q in questions if isinstance(q.loop.teacher, Teacher))
        first = teachers[0].observed
        known = self._joint.get(id(first.network))
        if known is not None and known[0] == teachers:
            return known[1]
        if known is not None:
            known[1].observed.tap.close()
        layers = [name for teacher in teachers for name in teacher.observed.tap.addresses]
        for teacher in teachers:
            teacher.observed.tap.close()
        joint = Teacher(
            first.network,
            normalization=first.normalize.normalization,
            layers=tuple(dict.fromkeys(layers)),
            classifier=any(teacher.observed.with_classifier for teacher in teachers),
            classes=first.classes.index.tolist() or None,
        ).to(questions[0].loop.device)
        self._joint[id(first.network)] = teachers, joint
        return joint

    def close(self) -> None:
        """Take the hooks away."""
        for _, joint in self._joint.values():
            joint.observed.tap.close()


def _done(member: _Member) -> int:
    """Steps behind it, over all stages."""
    assert member.question is not None
    loop = member.question.loop
    return loop.recorder.first_step + loop.epoch * loop.loader.num_steps + loop.step
