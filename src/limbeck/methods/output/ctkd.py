r"""CTKD: KD at a temperature that is learnt against the student, ever more of it.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, \tau^2 \, KL(p^t_\tau \,\|\, p^s_\tau),
    \quad \tau = \tau_{start} + \tau_{range} \, \mathrm{sigmoid}(\theta)

The one parameter theta climbs where the student descends: its gradient is reversed, times a factor
that rises from 0 to 1 as half a cosine over the first epochs.

Source: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023, https://arxiv.org/abs/2211.16231; and its authors' code.
Defaults: the code's for CIFAR-100: tau = 1 + 20 sigmoid(theta), theta starts at 1, 10 epochs of
    curriculum, weights 0.1 and 0.9. On ImageNet 5 epochs and weights 1 and 1.
Differs from the source: the global temperature alone; the paper also has one for each image, from
    a small network. With standardize, both networks' scores are standardised first; LSKD's script
    then takes weight 9.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import softened_kl
from limbeck.functional.logits import Standardize, as_seen, check_logits
from limbeck.methods.base import Method, MethodConfig

__all__ = ["CTKD", "CTKDConfig", "curriculum_strength", "reversed_gradient"]


class CTKDConfig(MethodConfig):
    """Settings of :class:`CTKD`.

    Attributes:
        temperature_start: the lowest temperature there can be.
        temperature_range: how far above it the highest lies.
        curriculum_epochs: over which the reversed gradient comes to its full size.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of the divergence from the teacher, which already has the factor tau squared.
        standardize: whether the divergence sees each row less its mean over its deviation; true
            takes the unbiased deviation, "population" the other. The cross-entropy sees raw scores.
    """

    temperature_start: PositiveFloat = 1.0
    temperature_range: PositiveFloat = 20.0
    curriculum_epochs: PositiveInt = 10
    ce_weight: NonNegativeFloat = 0.1
    kd_weight: NonNegativeFloat = 0.9
    standardize: Standardize = False


def curriculum_strength(epoch: int, num_epochs: int) -> float:
    """The share of the reversed gradient in an epoch, 0-based: half a cosine, then 1.

    The first epoch counts as 1, as in the authors' code, so that it is not without any.

    Example:
        >>> [round(curriculum_strength(epoch, 10), 3) for epoch in (0, 4, 9, 99)]
        [0.024, 0.5, 1.0, 1.0]
    """
    return (1 - math.cos(math.pi * min(epoch + 1, num_epochs) / num_epochs)) / 2


def reversed_gradient(tensor: Tensor, strength: float) -> Tensor:
    """The same values; what comes back is multiplied by ``-strength``.

    Source:
        Ganin, Lempitsky 2015, https://arxiv.org/abs/1409.7495, section 3.
    """
    result: Tensor = _Reverse.apply(tensor, strength)
    return result


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, strength: float) -> Tensor:  # noqa: ANN401
        ctx.strength = strength
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return -ctx.strength * gradients[0], None


class CTKD(Method[CTKDConfig]):
    """See the module docstring.

    Attributes:
        theta: the learnt scalar behind the temperature.
    """

    takes_mixed = True

    def __init__(self, config: CTKDConfig) -> None:
        super().__init__(config)
        self.theta = nn.Parameter(torch.ones(()))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and KL at the temperature as it stands."""
        config = self.config
        check_logits(student.logits, teacher.logits)
        ce = self.label_loss(student.logits, batch)
        strength = curriculum_strength(progress.epoch, config.curriculum_epochs)
        theta = reversed_gradient(self.theta, strength)
        temperature = config.temperature_start + config.temperature_range * theta.sigmoid()
        seen = as_seen(student.logits, teacher.logits, config.standardize)
        kd = softened_kl(seen.student, seen.teacher, temperature).mean()
        return LossTerms(
            total=config.ce_weight * ce + config.kd_weight * kd,
            parts={"ce": ce, "kd": kd, "temperature": temperature},
        )
