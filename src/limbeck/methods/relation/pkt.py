r"""PKT: match how probable the teacher finds each image as another's neighbour.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{pkt} \, \frac{1}{B^2} \sum_{ij} p^t_{j|i}
    \log \frac{p^t_{j|i} + \epsilon}{p^s_{j|i} + \epsilon}, \quad
    p_{j|i} = \frac{\cos(x_i, x_j) + 1}{\sum_k (\cos(x_i, x_k) + 1)}

where x are embeddings and epsilon is 1e-7.

Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    ECCV 2018, https://arxiv.org/abs/1803.10837, eq. 3-5; as in its authors' code.
Defaults: weights 1 and 30000 on the input of the last linear layer, at batch size 64:
    RepDistiller's CIFAR-100 script (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699).
Differs from the source: as in the authors' code, an image is among its own neighbours, and the sum
    is divided by B squared, 1 / B of the mean over images, hence the weight. A row that is zero up
    to rounding has cosine 0 to all others and gives no gradient, where that code gives NaN. A layer
    of maps or tokens is averaged over its places.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.relations import (
    check_embeddings,
    shifted_cosines,
    smoothed_divergence,
)
from limbeck.methods.embeddings import EmbeddingConfig, EmbeddingMethod

__all__ = ["PKT", "PKTConfig", "pkt_loss"]


class PKTConfig(EmbeddingConfig):
    """Settings of :class:`PKT`.

    Attributes:
        ce_weight: of the cross-entropy with the labels.
        pkt_weight: of the divergence between the neighbours' probabilities.
    """

    ce_weight: NonNegativeFloat = 1.0
    pkt_weight: NonNegativeFloat = 30000.0


def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""KL(teacher || student) of the probabilities of being neighbours; see the module.

    Invariant to rotations and, but for an epsilon of 1e-7, to the scale of every row; not to
    translations. Needs ``O(B^2)`` memory.

    Args:
        student_embedding: ``(B, D)``.
        teacher_embedding: ``(B, D')``; receives no gradient.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0`` up to rounding, the mean over all ``B^2`` pairs;
        0 for a batch of one.

    Raises:
        ShapeError: if an embedding is not 2-D, or the batch sizes differ.

    Source:
        Passalis, Tefas 2018, https://arxiv.org/abs/1803.10837, eq. 3-5.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> pkt_loss(student, student).item()
        0.0
    """
    check_embeddings(student_embedding, teacher_embedding)
    student, teacher = (_neighbours(e) for e in (student_embedding, teacher_embedding.detach()))
    return smoothed_divergence(student, teacher).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """``(B, D)`` to ``(B, B)``: probabilities, row by row."""
    likeness = shifted_cosines(embedding, embedding)
    return likeness / likeness.sum(dim=1, keepdim=True)


class PKT(EmbeddingMethod[PKTConfig]):
    """See the module docstring."""

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and divergence."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        divergence = pkt_loss(*self.embeddings(student, teacher))
        return LossTerms(
            total=config.ce_weight * ce + config.pkt_weight * divergence,
            parts={"ce": ce, "divergence": divergence},
        )
