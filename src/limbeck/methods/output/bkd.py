r"""BKD: KD from a teacher whose answers are balanced first, for classes of very unequal size.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, T^2 \, KL(q \,\|\, p^s_T), \quad
    q_k \propto \omega_k \, p^t_{T,k}, \quad \omega_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

with n_k the number of training images of class k and omega scaled to a mean of 1. The
cross-entropy stays as the images are (instance-balanced). With ``defer_epochs``, omega is 1 until
then (deferred re-weighting).

Source: Zhang, Chen, Hu, Peng, "Balanced Knowledge Distillation for Long-tailed Learning",
    Neurocomputing 2023, https://arxiv.org/abs/2104.10510; weights of Cui et al., "Class-Balanced
    Loss Based on Effective Number of Samples", CVPR 2019, https://arxiv.org/abs/1901.05555, eq. 1.
Defaults: T = 2, weights 1 and 1, beta 0.9999, re-weighting from the start, as the authors' code has
    it for CIFAR-100; for CIFAR-10 it defers to epoch 160 of 200.
Differs from the source: none in the loss; a class without a labelled image counts as one with one
    image, where the formula divides by 0.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import softened_kl
from limbeck.functional.logits import check_logits, check_temperature
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Probe

__all__ = ["BKD", "BKDConfig", "balanced_kd_loss", "effective_number_weights"]


class BKDConfig(MethodConfig):
    """Settings of :class:`BKD`.

    Attributes:
        temperature: by which both networks' scores are divided.
        effective_number_beta: in [0, 1): 0 weighs all classes alike, near 1 by 1 / n.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of the divergence from the balanced teacher, which already has T squared.
        defer_epochs: epochs in which the teacher is not yet balanced.
    """

    temperature: PositiveFloat = 2.0
    effective_number_beta: float = Field(0.9999, ge=0, lt=1)
    ce_weight: NonNegativeFloat = 1.0
    kd_weight: NonNegativeFloat = 1.0
    defer_epochs: NonNegativeInt = 0


def effective_number_weights(counts: Tensor, *, beta: float = 0.9999) -> Tensor:
    r"""A weight for each class, the larger the fewer its images; their mean is 1.

    .. math:: \omega_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

    Args:
        counts: ``(K,)``, images of each class; 0 counts as 1.
        beta: in [0, 1).

    Returns:
        ``(K,)`` float64, ``> 0``.

    Source:
        Cui et al. 2019, https://arxiv.org/abs/1901.05555, eq. 1.

    Example:
        >>> effective_number_weights(torch.tensor([7, 7])).tolist()
        [1.0, 1.0]
    """
    weight = (1 - beta) / (1 - beta ** counts.double().clamp(min=1))
    return weight / weight.mean()


def balanced_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    class_weight: Tensor,
    *,
    temperature: float = 2.0,
) -> Tensor:
    r"""KL(balanced teacher || student) at temperature T, times T squared.

    .. math:: T^2 \frac{1}{B} \sum_b KL(q_b \,\|\, p^s_b), \quad q_{bk} \propto \omega_k \, p^t_{bk}

    The sum over classes, the mean over the batch.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits: ``(B, K)``, raw; receives no gradient.
        class_weight: ``(K,)``, ``> 0``; only ratios count.
        temperature: ``> 0``.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if the logits differ in shape, are not 2-D, or the weights do not fit.
        SettingsError: if the temperature is not positive.

    Source:
        Zhang et al. 2023, https://arxiv.org/abs/2104.10510.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> balanced_kd_loss(logits, logits, torch.ones(2)).item()
        0.0
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    if class_weight.shape != teacher_logits.shape[1:]:
        raise ShapeError(
            f"class_weight must be one number for each class; got {tuple(class_weight.shape)} for "
            f"logits {tuple(teacher_logits.shape)}"
        )
    # The softmax of z/T + log w is that of z/T times w, scaled to a sum of 1.
    log_p = F.log_softmax(widened(teacher_logits.detach()) / temperature, dim=1)
    balanced = temperature * (log_p + class_weight.to(log_p.dtype).log())
    return softened_kl(student_logits, balanced, temperature).mean()


class BKD(Method[BKDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        class_counts: ``(K,)``, labelled training images of each class.

    Attributes:
        class_weight: ``(K,)``, mean 1; in the checkpoint.
    """

    takes_mixed = True

    class_weight: Tensor

    def __init__(self, config: BKDConfig, *, class_counts: Tensor) -> None:
        super().__init__(config)
        weight = effective_number_weights(class_counts, beta=config.effective_number_beta)
        self.register_buffer("class_weight", weight.float())

    @classmethod
    def from_probe(cls, config: BKDConfig, probe: Probe) -> Self:
        """Count the training images of each class.

        Raises:
            DataError: if the probe knows no labels.
        """
        if probe.labels is None:
            raise DataError(
                "bkd weighs classes by their number of training images, and got no labels of the "
                "training set; give them to the probe, or build BKD with class_counts"
            )
        known = probe.labels[probe.labels != UNLABELLED]
        return cls(config, class_counts=torch.bincount(known, minlength=probe.num_classes))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and balanced KL."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        deferred = progress.epoch < config.defer_epochs
        weight = torch.ones_like(self.class_weight) if deferred else self.class_weight
        kd = balanced_kd_loss(
            student.logits, teacher.logits, weight, temperature=config.temperature
        )
        return LossTerms(
            total=config.ce_weight * ce + config.kd_weight * kd, parts={"ce": ce, "kd": kd}
        )
