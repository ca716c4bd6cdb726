r"""DGKD: assistants between teacher and student, each network taught by all larger ones.

.. math:: \mathcal{L} = (n + 1) \, (1 - \lambda) \, CE(z^s, y) + \lambda \sum_{i=0}^{n}
    T^2 \, KL(p^i_T \,\|\, p^s_T), \quad p^0 \text{ the teacher's}, p^1 \ldots p^n
    \text{ the assistants'}

The sum of n + 1 losses of TAKD. A run has a stage for each assistant, in the order in which they
are named, the largest first, and one for the student; see the method "takd" for naming them. In
the student's stage, and in no other, some teachers are left out of each step, drawn anew.

Source: Son, Na, Choi, Hwang, "Densely Guided Knowledge Distillation using Multiple Teacher
    Assistants", ICCV 2021, https://arxiv.org/abs/2009.08825, section 3.
Defaults: T = 5, lambda = 1, one teacher left out of each step, as in the authors' scripts. With
    lambda = 1 the labels have no effect.
Differs from the source: KL summed over the classes and the cross-entropy counted once for each
    teacher, as in the paper; the authors' code takes the mean over the classes too
    (``reduction="mean"``) and counts the cross-entropy once (``ce_per_teacher=false``). The paper
    keeps each teacher of a step with a probability that we could not find (``drop_count=0`` and
    ``keep_probability``); the code leaves out a fixed number of them, as here by default. Which,
    depends on seed and step alone, where the code draws from a generator that nobody seeds.
    Nothing is rescaled, as there. One command trains the assistants, too, for which the published
    scripts have no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, Stage, cross_entropy
from limbeck.methods.output.takd import Reduction, TAKDConfig, chain, reduced_kd

__all__ = ["DGKD", "DGKDConfig", "dense_guidance_loss", "dgkd_stages"]


class DGKDConfig(TAKDConfig):
    """Settings of every stage.

    Attributes:
        ce_per_teacher: count the cross-entropy once for each teacher, and not once in all.
        drop_count: teachers left out of each step of the student's stage; never all of them.
        keep_probability: in (0, 1], with which each of them is kept in such a step, by itself.
    """

    kd_share: float = Field(1.0, ge=0, le=1)
    ce_per_teacher: bool = True
    drop_count: NonNegativeInt = 1
    keep_probability: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _somebody_teaches(self) -> Self:
        if self.assistants and self.drop_count > len(self.assistants):
            raise ValueError(
                f"drop_count {self.drop_count} leaves none of {len(self.assistants) + 1} teachers; "
                f"it may be {len(self.assistants)} at most"
            )
        if self.drop_count and self.keep_probability < 1:
            raise ValueError(
                "give either drop_count, a fixed number of teachers, or keep_probability with "
                "drop_count=0"
            )
        return self


def dense_guidance_loss(
    student_logits: Tensor,
    teacher_logits_list: Sequence[Tensor],
    label: Tensor,
    *,
    temperature: float = 5.0,
    kd_share: float = 1.0,
    reduction: Reduction = "batchmean",
    ce_per_teacher: bool = True,
    keep: Sequence[bool] | None = None,
) -> Tensor:
    r"""The sum of TAKD's losses over several teachers.

    .. math:: (n + 1) \, (1 - \lambda) \, CE(z^s, y) + \lambda \sum_{i=0}^{n}
        T^2 \, KL(p^i_T \,\|\, p^s_T)

    KL is the sum over classes, the mean over the batch.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits_list: of each teacher, ``(B, K)``, raw; none receives a gradient.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        temperature: ``> 0``.
        kd_share: lambda, in [0, 1]; with 1 the labels have no effect.
        reduction: "mean" divides KL by K, as the authors' code does.
        ce_per_teacher: False has no factor n + 1, as that code.
        keep: for each teacher, whether its divergence counts; None keeps all. The factor n + 1
            counts them all.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if logits differ in shape, there is no teacher, or ``keep`` is of another
            length.
        SettingsError: if the temperature is not positive.

    Source:
        Son et al. 2021, https://arxiv.org/abs/2009.08825, section 3.

    Example:
        >>> student, label = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> dense_guidance_loss(student, [student, student], label).item()
        0.0
    """
    ce = cross_entropy(student_logits, label)
    guidance = _guidance(
        student_logits, teacher_logits_list, temperature=temperature, reduction=reduction, keep=keep
    )
    count = len(teacher_logits_list) if ce_per_teacher else 1
    return count * (1 - kd_share) * ce + kd_share * guidance


def _guidance(
    student_logits: Tensor,
    teacher_logits_list: Sequence[Tensor],
    *,
    temperature: float,
    reduction: Reduction,
    keep: Sequence[bool] | None,
) -> Tensor:
    """The sum of the kept divergences; a teacher that is left out is not even looked at."""
    keep = [True] * len(teacher_logits_list) if keep is None else keep
    if not teacher_logits_list or len(keep) != len(teacher_logits_list):
        raise ShapeError(
            "dense guidance takes the logits of one teacher at least, and as many entries of keep; "
            f"got {len(teacher_logits_list)} teachers, {len(keep)} entries"
        )
    losses = [
        reduced_kd(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
        for teacher_logits, kept in zip(teacher_logits_list, keep, strict=True)
        if kept
    ]
    return torch.stack(losses).sum() if losses else widened(student_logits).new_zeros(())


class DGKD(Method[DGKDConfig]):
    """One stage; see the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and the divergences from the teachers that this step keeps."""
        config = self.config
        teachers = teacher.members or (teacher,)
        ce = self.label_loss(student.logits, batch)
        guidance = _guidance(
            student.logits,
            [member.logits for member in teachers],
            temperature=config.temperature,
            reduction=config.reduction,
            keep=self._keep(len(teachers), progress),
        )
        count = len(teachers) if config.ce_per_teacher else 1
        return LossTerms(
            total=count * (1 - config.kd_share) * ce + config.kd_share * guidance,
            parts={"ce": ce, "kd": guidance},
        )

    def _keep(self, count: int, progress: Progress) -> list[bool]:
        """Which teachers count in this step: the same in all processes."""
        config = self.config
        generator = progress.generator("teachers kept")
        if config.drop_count:
            dropped = min(config.drop_count, count - 1)
            place = torch.randperm(count, generator=generator)
            kept = place >= dropped
        else:
            kept = torch.rand(count, generator=generator) < config.keep_probability
        found: list[bool] = kept.tolist()
        return found


def dgkd_stages(config: DGKDConfig) -> tuple[Stage, ...]:
    """A stage for each assistant and one for the student, each taught by all before it."""
    whole = config.changed(drop_count=0, keep_probability=1.0)
    return chain(DGKD, config, whole, dense=True)
