r"""KD: match the teacher's softened class probabilities.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, T^2 \, KL(p^t_T \,\|\, p^s_T)

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep
    Learning Workshop, https://arxiv.org/abs/1503.02531, section 2.
Defaults: T = 4, weights 0.1 and 0.9, as RepDistiller's CIFAR-100 scripts (Tian et al., ICLR 2020,
    https://arxiv.org/abs/1910.10699) and mdistiller; the paper has no results on CIFAR.
Differs from the source: the KL divergence in place of the cross-entropy with the teacher's
    probabilities: lower by the teacher's entropy, with the same gradient. With standardize, both
    networks' scores are standardised first (method "lskd").
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.logits import Standardize, as_seen
from limbeck.methods.base import Method, MethodConfig

__all__ = ["KD", "KDConfig"]


class KDConfig(MethodConfig):
    """Settings of :class:`KD`.

    Attributes:
        temperature: by which both networks' scores are divided; the higher, the softer.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of the divergence from the teacher, which already has the factor T squared.
        standardize: whether the divergence sees each row less its mean over its deviation; true
            takes the unbiased deviation, "population" the other. The cross-entropy sees raw scores.
    """

    temperature: PositiveFloat = 4.0
    ce_weight: NonNegativeFloat = 0.1
    kd_weight: NonNegativeFloat = 0.9
    standardize: Standardize = False


class KD(Method[KDConfig]):
    """See the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and softened KL."""
        del progress
        ce = self.label_loss(student.logits, batch)
        seen = as_seen(student.logits, teacher.logits, self.config.standardize)
        kd = kd_loss(seen.student, seen.teacher, temperature=self.config.temperature)
        return LossTerms(
            total=self.config.ce_weight * ce + self.config.kd_weight * kd,
            parts={"ce": ce, "kd": kd},
        )
