r"""CC as the paper writes it: match the batch's correlations under a Gaussian kernel.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, T^2 \, KL(p^t_T \,\|\, p^s_T) + w_{cc} \,
    \frac{1}{B^2} \| K^s - K^t \|_F^2, \quad K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P}
    \frac{(2 \gamma)^p}{p!} (f_i \cdot f_j)^p

where f are embeddings of length 1: the Taylor series, up to P, of a Gaussian kernel. The method
"cc" is what benchmark codes run under this name, and has nothing in common with it.

Source: Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, "Correlation Congruence for Knowledge
    Distillation", ICCV 2019, https://arxiv.org/abs/1904.01802, section 3.2 and 3.3.
Defaults: gamma 0.4, P = 2, and weights 0, 1 and 0.003 with T = 1: torchdistill's sample for
    ImageNet (Matsubara, 2021, https://arxiv.org/abs/2011.12913), which is meant to be tuned, on the
    input of the last linear layer.
Differs from the source: the embeddings are the networks' own, where that sample, as the paper's
    fully connected layer, puts a trained linear layer of 128 behind each. torchdistill divides the
    norm itself by B squared, not its square. Rows that are zero up to rounding give no gradient. A
    layer of maps or tokens is averaged over its places.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.relations import check_embeddings, taylor_kernel
from limbeck.methods.embeddings import EmbeddingConfig, EmbeddingMethod

__all__ = ["CCKernel", "CCKernelConfig", "kernel_correlation_loss"]


class CCKernelConfig(EmbeddingConfig):
    """Settings of :class:`CCKernel`.

    Attributes:
        gamma: of the kernel; a larger one tells nearer images apart.
        order: P, the series' last power.
        temperature: T, of the divergence between the networks' probabilities.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of that divergence.
        cc_weight: of the correlations.
    """

    gamma: PositiveFloat = 0.4
    order: NonNegativeInt = 2
    temperature: PositiveFloat = 1.0
    ce_weight: NonNegativeFloat = 0.0
    kd_weight: NonNegativeFloat = 1.0
    cc_weight: NonNegativeFloat = 0.003


def kernel_correlation_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, *, gamma: float = 0.4, order: int = 2
) -> Tensor:
    """Squared distance of the two correlation matrices; see the module for the formula.

    Invariant to rotations and to the scale of every row, not to translations. Needs ``O(B^2)``
    memory.

    Args:
        student_embedding: ``(B, D)``; its rows are brought to length 1 here.
        teacher_embedding: ``(B, D')``; receives no gradient.
        gamma: ``> 0``, of the kernel.
        order: ``>= 0``, the series' last power; with 0 all images are equally correlated.

    Returns:
        Scalar, float32 or wider, ``>= 0``, the mean over all ``B^2`` pairs; 0 for a batch of one
        whose rows are not zero.

    Raises:
        ShapeError: if an embedding is not 2-D, or the batch sizes differ.
        SettingsError: if gamma is not positive, or the order is negative.

    Source:
        Peng et al. 2019, https://arxiv.org/abs/1904.01802, section 3.3.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> kernel_correlation_loss(student, 4 * student).item()
        0.0
    """
    if not gamma > 0 or order < 0:
        raise SettingsError(
            f"a kernel needs gamma > 0 and order >= 0, got gamma {gamma} and order {order}; the "
            "paper has an order of 2"
        )
    check_embeddings(student_embedding, teacher_embedding)
    student, teacher = (
        taylor_kernel(embedding, embedding, gamma=gamma, order=order)
        for embedding in (student_embedding, teacher_embedding.detach())
    )
    return F.mse_loss(student, teacher)


class CCKernel(EmbeddingMethod[CCKernelConfig]):
    """See the module docstring."""

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, divergence and correlations."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        kd = kd_loss(student.logits, teacher.logits, temperature=config.temperature)
        pair = self.embeddings(student, teacher)
        correlation = kernel_correlation_loss(*pair, gamma=config.gamma, order=config.order)
        total = config.kd_weight * kd + config.cc_weight * correlation
        return LossTerms(
            total=config.ce_weight * ce + total,
            parts={"ce": ce, "kd": kd, "correlation": correlation},
        )
