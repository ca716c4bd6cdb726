r"""Noise labels: soft labels without a teacher, the control of what soft labels do by themselves.

.. math:: \mathcal{L} = CE(z^s, q), \quad
    q = \mathrm{softmax}((\mathrm{onehot}(y) + \epsilon) / T), \quad
    \epsilon_k \sim \mathcal{N}(0, \sigma^2)

A student that gains from a teacher may gain from any target that is softer than a label. What this
one gains, a teacher need not be thanked for; ``limbeck analyse --soft-label-control`` trains it.

Source: Ojha, Li, Sundara Rajan, Liang, Lee, "What Knowledge Gets Distilled in Knowledge
    Distillation?", NeurIPS 2023, https://arxiv.org/abs/2205.16004, its control of soft labels.
Defaults: variance 0.2 and T = 0.15, as in the paper.
Differs from the source: an image keeps its noise, which the paper does not state; of more than
    4096 training images, every 4096th has the same. Images without a label count for nothing.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from limbeck.core.errors import DataError
from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["NoiseLabel", "NoiseLabelConfig", "noise_label_loss"]

_ROWS = 4096  # of noise: ImageNet's images with each their own would take 5 GB


class NoiseLabelConfig(MethodConfig):
    """Settings of :class:`NoiseLabel`.

    Attributes:
        variance: of the noise on each class.
        temperature: that the target is softened by.
    """

    variance: NonNegativeFloat = 0.2
    temperature: PositiveFloat = 0.15

    @model_validator(mode="after")
    def _labels_are_softened_once(self) -> Self:
        if self.label_smoothing:
            raise ValueError("label_smoothing must be 0: the temperature softens the labels")
        return self


def noise_label_loss(
    student_logits: Tensor, label: Tensor, noise: Tensor, *, temperature: float = 0.15
) -> Tensor:
    r"""Cross-entropy with softened, noisy labels; see the module for formula and source.

    Args:
        student_logits: ``(B, K)``, raw.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        noise: ``(B, K)``, added to the labels as 0 and 1.
        temperature: ``> 0``.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``: mean over the labelled images, 0 where there
        are none.

    Example:
        >>> import torch
        >>> label, noise = torch.tensor([1, -1]), torch.zeros(2, 4)
        >>> noise_label_loss(torch.zeros(2, 4), label, noise).exp().round().item()
        4.0
    """
    known = label != UNLABELLED
    wide = widened(student_logits)
    one_hot = F.one_hot(label.clamp(min=0), wide.shape[1])
    target = F.softmax((one_hot + noise.to(wide.dtype)) / temperature, dim=1)
    losses = F.cross_entropy(wide, target, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


class NoiseLabel(Method[NoiseLabelConfig]):
    """See the module docstring."""

    noise: Tensor  # (R, K), of unit variance

    def __init__(self, config: NoiseLabelConfig, *, noise: Tensor) -> None:
        super().__init__(config)
        self.register_buffer("noise", noise)

    @classmethod
    def needs(cls, config: NoiseLabelConfig) -> Needs:
        """No teacher."""
        del config
        return Needs(teacher=False)

    @classmethod
    def from_probe(cls, config: NoiseLabelConfig, probe: Probe) -> Self:
        """Draw the noise.

        Raises:
            DataError: if no training image has a label.
        """
        if probe.labels is not None and not (probe.labels != UNLABELLED).any():
            raise DataError(
                "noise_label softens labels, and no training image has one; keep some "
                "(data.num_labels)"
            )
        rows = min(probe.num_images, _ROWS)
        return cls(config, noise=torch.randn(rows, probe.num_classes))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy with the noisy soft labels."""
        del teacher, progress
        noise = self.config.variance**0.5 * self.noise[batch.index % len(self.noise)]
        loss = noise_label_loss(
            student.logits, batch.label, noise, temperature=self.config.temperature
        )
        return LossTerms(total=loss, parts={"noise_label": loss})
