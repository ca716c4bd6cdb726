r"""BAN: generations of one network, each taught by the one before it.

.. math:: \mathcal{L}_g = w_{ce} \, CE(z^g, y) + w_{kd} \, T^2 \, KL(p^{g-1}_T \,\|\, p^g_T)

The run's teacher is the first generation's teacher; the paper's is the same network, trained with
labels. A run has a stage for each generation, each with the run's epochs; every one is the run's
student drawn anew, and the last one is the student. At the end all generations are judged one by
one, and together: "ensemble" is the mean of their probabilities, without the teacher's.

Source: Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018,
    https://arxiv.org/abs/1805.04770, section 3.
Defaults: three generations taught by the teacher's probabilities alone, at T = 1: the paper's
    "BAN". Its "BAN+L" adds the labels: ``ce_weight=1``.
Differs from the source: KL in place of the cross-entropy with the teacher's probabilities: lower
    by the teacher's entropy, with the same gradient. "confidence" and "permuted" are the paper's
    CWTM and DKPP, which take apart what a teacher gives; both in place of KL, and the weights of
    the former are shared out among the labelled images of each process's batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.logits import check_logits
from limbeck.functional.precision import widened
from limbeck.methods.base import RUN_TEACHER, Method, MethodConfig, OwnNetwork, Stage

__all__ = [
    "BornAgain",
    "BornAgainConfig",
    "born_again_stages",
    "confidence_weighted_loss",
    "permute_dark_knowledge",
]


class BornAgainConfig(MethodConfig):
    """Settings of every generation.

    Attributes:
        generations: how many, the student included; the teacher is none of them.
        target: what is learnt from the generation before. "teacher": its probabilities. "permuted":
            the same, but those of all classes except the likeliest change places, drawn anew at
            every step. "confidence": how much each image's label counts.
        temperature: by which both networks' scores are divided.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of what is learnt from the generation before.
    """

    generations: PositiveInt = 3
    target: Literal["teacher", "permuted", "confidence"] = "teacher"
    temperature: PositiveFloat = 1.0
    ce_weight: NonNegativeFloat = 0.0
    kd_weight: NonNegativeFloat = 1.0


def confidence_weighted_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy in which each image counts by how sure the teacher is of it.

    .. math:: \sum_b \frac{\max_k p^t_{bk}}{\sum_u \max_k p^t_{uk}} \, CE(z^s_b, y_b)

    over the labelled images.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        temperature: of the teacher's probabilities, ``> 0``.
        label_smoothing: in [0, 1).

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``; zero where no image has a label. The weights
        add up to 1.

    Raises:
        ShapeError: if the two logits differ in shape or are not 2-D.

    Source:
        Furlanello et al. 2018, https://arxiv.org/abs/1805.04770, "confidence weighted by teacher
        max".

    Example:
        >>> teacher, label = torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
        >>> loss = confidence_weighted_loss(torch.zeros(2, 2), teacher, label)
        >>> round(loss.exp().item(), 3)
        2.0
    """
    check_logits(student_logits, teacher_logits)
    known = label != UNLABELLED
    losses = F.cross_entropy(
        widened(student_logits),
        label,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    probability = F.softmax(widened(teacher_logits.detach()) / temperature, dim=1)
    weight = probability.amax(dim=1) * known
    # Every maximum is at least 1/K: only a batch without labels has a smaller sum.
    return (weight * losses).sum() / weight.sum().clamp(min=1 / student_logits.shape[1])


def permute_dark_knowledge(teacher_logits: Tensor, *, generator: torch.Generator) -> Tensor:
    """Scores in which all but each row's largest have changed places.

    Args:
        teacher_logits: ``(B, K)``, raw.
        generator: on the CPU; each row has a permutation of its own.

    Returns:
        ``(B, K)``: the largest where it was, the others in any order.

    Source:
        Furlanello et al. 2018, https://arxiv.org/abs/1805.04770, "dark knowledge with permuted
        predictions".

    Example:
        >>> scores = torch.tensor([[1.0, 9.0, 2.0, 3.0]])
        >>> moved = permute_dark_knowledge(scores, generator=torch.Generator().manual_seed(0))
        >>> moved[0, 1].item(), moved.sort().values.tolist()
        (9.0, [[1.0, 2.0, 3.0, 9.0]])
    """
    falling, place = teacher_logits.sort(dim=1, descending=True)
    keys = torch.rand(teacher_logits[:, 1:].shape, generator=generator)
    others = falling[:, 1:].gather(1, keys.argsort(dim=1).to(place.device))
    return falling.scatter(1, place, torch.cat((falling[:, :1], others), dim=1))


class BornAgain(Method[BornAgainConfig]):
    """One generation; see the module docstring."""

    def __init__(self, config: BornAgainConfig) -> None:
        super().__init__(config)
        # A weight is of one label an image; the other targets read no label.
        self.takes_mixed = config.target != "confidence"

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and what the generation before gives."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        if config.target == "confidence":
            kd = confidence_weighted_loss(
                student.logits,
                teacher.logits,
                batch.label,
                temperature=config.temperature,
                label_smoothing=config.label_smoothing,
            )
        else:
            scores = teacher.logits
            if config.target == "permuted":
                scores = permute_dark_knowledge(scores, generator=progress.generator("permuted"))
            kd = kd_loss(student.logits, scores, temperature=config.temperature)
        return LossTerms(
            total=config.ce_weight * ce + config.kd_weight * kd, parts={"ce": ce, "kd": kd}
        )


def born_again_stages(config: BornAgainConfig) -> tuple[Stage, ...]:
    """A stage for each generation; the last one's network is the run's student."""
    names = [f"generation{number}" for number in range(1, config.generations + 1)]
    return tuple(
        Stage(
            name=name,
            method=BornAgain,
            config=config,
            student=None if name == names[-1] else OwnNetwork(),
            teachers=(before,),
            ensemble=tuple(names[:-1]) if name == names[-1] else (),
        )
        for before, name in zip((RUN_TEACHER, *names), names, strict=False)
    )
