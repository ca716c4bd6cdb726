"""Student and method as one module: what the optimiser, EMA, DDP and the checkpoint see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from limbeck.core.errors import SettingsError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.engine.freezing import freeze_parts, rest_parts
from limbeck.features import ObservedNetwork
from limbeck.methods.base import Method

__all__ = [
    "NO_TEACHER",
    "Learner",
    "LearnerOutput",
    "answers_of_others",
    "check_takes_mixed",
    "joined_terms",
]

NO_TEACHER = Outputs(missing="this run has no teacher")


class LearnerOutput(NamedTuple):
    """What one training forward pass yields."""

    terms: LossTerms
    logits: Tensor | None  # (B, K); None where the forward pass was stopped


class Learner(nn.Module):
    """A student and the method that trains it; the teacher stays outside.

    It may have peers, learners themselves, that learn beside it: each then hears, in the place of
    a teacher's members, what all others say, and the loss is the sum of theirs.

    The loss is computed inside :meth:`forward`, so that under DDP every use of a parameter, the
    method's own ones included, lies within the wrapped module.

    Args:
        student: images to logits ``(B, K)``.
        method: built for this student and its teacher.
        normalization: the student's own.
        frozen: names of the student's modules and parameters that do not train; the modules stay
            in eval mode.
        peers: learners of the same kind, without peers of their own.

    Example:
        >>> import torch
        >>> from limbeck.methods.output.kd import KD, KDConfig
        >>> student = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> learner = Learner(student, KD(KDConfig()))
        >>> batch = Batch(
        ...     index=torch.arange(2), image=torch.rand(2, 1, 2, 2), label=torch.tensor([0, 2])
        ... )
        >>> learner(batch, Outputs(torch.zeros(2, 3))).terms.total.ndim
        0
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method[Any],
        *,
        normalization: Normalization | None = None,
        frozen: Sequence[str] = (),
        peers: Sequence[Learner] = (),
    ) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        freeze_parts(student, self.frozen)
        needs = method.needs(method.config)
        self.observed = ObservedNetwork(
            student,
            normalization=normalization,
            layers=needs.student_layers,
            classifier=needs.student_classifier,
            stop=needs.stop_student,
        )
        self.method = method
        self.peers = nn.ModuleList(peers)
        # DDP reads this attribute.
        self._ddp_params_and_buffers_to_ignore = [
            f"method.{name}" for name in method.buffers_kept_equal
        ]

    @property
    def student(self) -> nn.Module:
        """The network that is being trained."""
        return self.observed.network

    @property
    def everyone(self) -> tuple[Learner, ...]:
        """Itself and its peers."""
        return (self, *(peer for peer in self.peers if isinstance(peer, Learner)))

    def train(self, mode: bool = True) -> Self:
        """Change the mode of all but the frozen parts, which stay in eval mode."""
        super().train(mode)
        rest_parts(self.student, self.frozen)
        return self

    def forward(
        self, batch: Batch, teacher: Outputs = NO_TEACHER, progress: Progress | None = None
    ) -> LearnerOutput:
        """The method's loss of one batch, given what the teacher said of it.

        Raises:
            SettingsError: for mixed images, if the method cannot take them.
        """
        if batch.other_label is not None:
            check_takes_mixed(self.method)
        progress = progress or Progress()
        student: Outputs = self.observed(batch.image, batch.views)
        if not self.peers:
            terms = self.method(batch, student, teacher, progress)
        else:
            answers = [student]
            answers += [peer.observed(batch.image, batch.views) for peer in self.everyone[1:]]
            terms = joined_terms(
                [
                    one.method(batch, answers[place], answers_of_others(answers, place), progress)
                    for place, one in enumerate(self.everyone)
                ]
            )
        return LearnerOutput(terms, student.logits if student.has_logits else None)


def answers_of_others(answers: Sequence[Outputs], place: int) -> Outputs:
    """What all but one of several networks say, as ``members`` that receive no gradient."""
    members = tuple(
        Outputs(answer.logits.detach())
        for position, answer in enumerate(answers)
        if position != place
    )
    return Outputs(members=members, missing="networks that learn from each other have no teacher")


def joined_terms(terms: Sequence[LossTerms]) -> LossTerms:
    """The sum of a learner's loss and its peers'; its own parts, and each peer's total."""
    peers = {f"peer{number}": term.total for number, term in enumerate(terms[1:], start=1)}
    total = torch.stack([term.total for term in terms]).sum()
    return LossTerms(total, {**terms[0].parts, **peers})


def check_takes_mixed(method: Method[Any], name: str | None = None) -> None:
    """Refuse a method whose loss is of one label an image, where images have two.

    Args:
        method: any.
        name: what the user calls it; None takes that of its class.

    Raises:
        SettingsError: naming it.
    """
    if not method.takes_mixed:
        raise SettingsError(
            f"method {name or type(method).__name__!r} takes one label an image, and mixed images "
            "have two: leave data.augment.mixup_alpha and cutmix_alpha at 0, or choose a method "
            "that takes them, such as kd or soft_label"
        )
