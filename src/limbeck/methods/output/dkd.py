r"""DKD: KD taken apart into "is it the label?" and "if not, what else?", weighed freely.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w(e) \, (\alpha \, TCKD + \beta \, NCKD)

.. math:: TCKD = T^2 \, KL(b^t \,\|\, b^s), \quad NCKD = T^2 \, KL(r^t \,\|\, r^s)

where b = (p_y, 1 - p_y) at temperature T, and r is the distribution over the classes but the
label's. KD itself is TCKD + (1 - p^t_y) NCKD, image by image: it hardly teaches the second
where the teacher is sure. With two classes NCKD is zero and TCKD is KD, so there is nothing to
take apart. The weight w(e) rises linearly over the first epochs.

Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
    https://arxiv.org/abs/2203.08679, eq. 7; and its authors' code, mdistiller.
Defaults: T = 4, alpha 1, beta 8, 20 epochs of warm-up: the authors' for CIFAR-100, where beta is 2
    for resnet56 -> resnet20 and resnet110 -> resnet32, and 6 for WRN-40-2 -> WRN-16-2 or WRN-40-1,
    VGG13 -> VGG8 or MobileNetV2, and ResNet50 -> WRN-16-2. On ImageNet T = 1, no warm-up, and beta
    0.5 (ResNet34 -> ResNet18) or 2 (ResNet50 -> MobileNetV1).
Differs from the source: logarithms are never taken of rounded probabilities, where the authors'
    code is infinite from a gap of 110 between scores on; the label's class is left out exactly, not
    by subtracting 1000. A term of weight 0 is not computed. An image without a label is taken apart
    at the class that the teacher scores highest. With standardize, both networks' scores are
    standardised first; that paper then multiplies alpha and beta by 9 and takes T = 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.logits import (
    Standardize,
    as_seen,
    check_logits,
    check_temperature,
    target_mask,
)
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig

__all__ = ["DKD", "DKDConfig", "DecoupledKL", "decoupled_kl", "dkd_loss"]


class DKDConfig(MethodConfig):
    """Settings of :class:`DKD`.

    Attributes:
        temperature: by which both networks' scores are divided.
        alpha: weight of the label's share, TCKD.
        beta: weight of the other classes' shares among themselves, NCKD.
        ce_weight: of the cross-entropy with the labels.
        warmup_epochs: over which the weight of both parts rises; 0 and 1 have them whole at once.
        standardize: whether the two parts see each row less its mean over its deviation; true
            takes the unbiased deviation, "population" the other. The cross-entropy sees raw scores.
    """

    temperature: PositiveFloat = 4.0
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 8.0
    ce_weight: NonNegativeFloat = 1.0
    warmup_epochs: NonNegativeInt = 20
    standardize: Standardize = False


class DecoupledKL(NamedTuple):
    """The two parts of each image's divergence, both ``(B,)``, both times T squared."""

    target: Tensor
    non_target: Tensor


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Divergence from the teacher in the label's share, and among the other classes.

    .. math:: \alpha \, TCKD + \beta \, NCKD

    Both are sums over their classes, means over the batch, times T squared.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        label: ``(B,)`` int64 in [0, K); -1 stands for the class that the teacher scores highest.
        alpha: weight of the first; 0 leaves it out.
        beta: weight of the second; 0 leaves it out.
        temperature: ``> 0``.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``; 0 when the two softmaxes agree.

    Raises:
        ShapeError: if the two logits differ in shape, are not 2-D, or the labels do not fit.
        SettingsError: if the temperature is not positive.

    Source:
        Zhao et al. 2022, https://arxiv.org/abs/2203.08679, eq. 7.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> dkd_loss(logits, logits, torch.tensor([0])).item()
        0.0
    """
    parts = decoupled_kl(student_logits, teacher_logits, label, temperature=temperature)
    total = torch.zeros((), dtype=parts.target.dtype, device=parts.target.device)
    for weight, part in ((alpha, parts.target), (beta, parts.non_target)):
        if weight:
            total = total + weight * part.mean()
    return total


def decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, *, temperature: float
) -> DecoupledKL:
    """The two parts of :func:`dkd_loss`, image by image.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        label: ``(B,)`` int64 in [0, K), or -1.
        temperature: ``> 0``.

    Raises:
        ShapeError: if the two logits differ in shape, are not 2-D, or the labels do not fit.
        SettingsError: if the temperature is not positive.
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    at_label = target_mask(label, teacher_logits)
    student = _Split.of(student_logits, at_label, temperature)
    teacher = _Split.of(teacher_logits.detach(), at_label, temperature)
    squared = temperature**2
    return DecoupledKL(
        target=squared * _kl(student.label_or_not, teacher.label_or_not),
        non_target=squared * _kl(student.others, teacher.others),
    )


class _Split(NamedTuple):
    """Log-probabilities of one network."""

    label_or_not: Tensor  # (B, 2)
    others: Tensor  # (B, K), among the classes but the label's; 0 there

    @classmethod
    def of(cls, logits: Tensor, at_label: Tensor, temperature: float) -> _Split:
        softened = widened(logits) / temperature
        log_p = F.log_softmax(softened, dim=1)
        label = torch.where(at_label, log_p, 0.0).sum(dim=1)
        others = F.log_softmax(softened.masked_fill(at_label, -torch.inf), dim=1)
        return cls(
            # One minus a rounded probability can be 0, and its logarithm infinite.
            label_or_not=torch.stack(
                [label, log_p.masked_fill(at_label, -torch.inf).logsumexp(dim=1)], dim=1
            ),
            # Zero and not minus infinity at the label, where both networks have no probability:
            # the difference of two infinities is not a number.
            others=others.masked_fill(at_label, 0.0),
        )


def _kl(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """KL(teacher || student) of each row; entries that are 0 in both add nothing."""
    return (teacher_log_p.exp() * (teacher_log_p - student_log_p)).sum(dim=1)


class DKD(Method[DKDConfig]):
    """See the module docstring."""

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy and the two parts, which rise with the epochs."""
        config = self.config
        ce = self.cross_entropy(student.logits, batch.label)
        seen = as_seen(student.logits, teacher.logits, config.standardize)
        parts = decoupled_kl(
            seen.student, seen.teacher, batch.label, temperature=config.temperature
        )
        tckd, nckd = (part.mean() for part in parts)
        # Arithmetic on the epoch alone, so that a resumed run stands where it stood.
        rise = min((progress.epoch + 1) / max(config.warmup_epochs, 1), 1.0)
        total = config.ce_weight * ce
        for weight, part in ((config.alpha, tckd), (config.beta, nckd)):
            if weight:
                total = total + rise * weight * part
        return LossTerms(total=total, parts={"ce": ce, "tckd": tckd, "nckd": nckd})
