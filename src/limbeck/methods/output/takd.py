r"""TAKD: distil through assistants, networks between teacher and student in size.

.. math:: \mathcal{L} = (1 - \lambda) \, CE(z^s, y) + \lambda \, T^2 \, KL(p^t_T \,\|\, p^s_T)

A run has a stage for each assistant, in the order in which they are named, the largest first: the
teacher teaches the first, each assistant the next, and the last of them the student. With
``--assistants resnet56,resnet20`` both are trained, each for as many epochs as the student; a
finished run's folder in the place of a name is used as it is.

Source: Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation
    via Teacher Assistant", AAAI 2020, https://arxiv.org/abs/1902.03393, section "Background".
Defaults: T = 5 and lambda = 0.15, which an author gives for resnet110 -> resnet20 -> resnet8 on
    CIFAR-100; there, both are searched anew for each pair, lambda from 0.05 to 1 and T from 1 to
    20.
Differs from the source: KL summed over the classes, as the paper writes it; the authors' code
    takes the mean over them too, by which their lambda weighs the divergence a hundred times less
    on CIFAR-100 (``reduction="mean"``). Settings are not chosen on the test split.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.methods.base import RUN_TEACHER, Method, MethodConfig, OwnNetwork, Stage

__all__ = ["TAKD", "Reduction", "TAKDConfig", "chain", "reduced_kd", "takd_stages"]

Reduction: TypeAlias = Literal["batchmean", "mean"]


class TAKDConfig(MethodConfig):
    """Settings of every stage.

    Attributes:
        assistants: the largest first: a model's name, trained here, or a finished run's folder.
        assistant_epochs: of each assistant that is trained; null for as many as the student has.
        temperature: by which all scores are divided.
        kd_share: lambda, the divergence's weight; the cross-entropy has the rest of 1.
        reduction: "batchmean" sums the divergence over the classes, "mean" is its mean over them.
    """

    assistants: tuple[OwnNetwork, ...] = ()
    assistant_epochs: PositiveInt | None = None
    temperature: PositiveFloat = 5.0
    kd_share: float = Field(0.15, ge=0, le=1)
    reduction: Reduction = "batchmean"


def reduced_kd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction
) -> Tensor:
    """:func:`~limbeck.functional.divergences.kd_loss`; with "mean", over the number of classes.

    Raises:
        ValueError: if the reduction is neither.
    """
    loss = kd_loss(student_logits, teacher_logits, temperature=temperature)
    match reduction:
        case "batchmean":
            return loss
        case "mean":
            return loss / student_logits.shape[1]
        case _:
            raise ValueError(f"reduction must be 'batchmean' or 'mean', got {reduction!r}")


class TAKD(Method[TAKDConfig]):
    """One hop of the chain; see the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy and divergence, whose weights add up to 1."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        kd = reduced_kd(
            student.logits,
            teacher.logits,
            temperature=config.temperature,
            reduction=config.reduction,
        )
        return LossTerms(
            total=(1 - config.kd_share) * ce + config.kd_share * kd, parts={"ce": ce, "kd": kd}
        )


def takd_stages(config: TAKDConfig) -> tuple[Stage, ...]:
    """A stage for each assistant and one for the student, each taught by the one before it."""
    return chain(TAKD, config, config, dense=False)


def chain(
    method: type[Method[Any]],
    config: TAKDConfig,
    assistant_config: TAKDConfig,
    *,
    dense: bool,
) -> tuple[Stage, ...]:
    """Stages "assistant1" and so on, and "student".

    Args:
        method: of all stages.
        config: of the student's stage.
        assistant_config: of the others.
        dense: each is taught by all before it, and not by the last of them alone.
    """
    stages: list[Stage] = []
    teachers = [RUN_TEACHER]
    for number, assistant in enumerate(config.assistants, start=1):
        stages.append(
            Stage(
                name=f"assistant{number}",
                method=method,
                config=assistant_config,
                student=assistant,
                epochs=config.assistant_epochs,
                teachers=tuple(teachers if dense else teachers[-1:]),
            )
        )
        teachers.append(stages[-1].name)
    last = Stage(
        name="student",
        method=method,
        config=config,
        teachers=tuple(teachers if dense else teachers[-1:]),
    )
    return (*stages, last)
