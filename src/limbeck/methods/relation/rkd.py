r"""RKD: keep the distances and angles between a batch's embeddings as the teacher has them.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_d \, \frac{1}{B^2} \sum_{ij}
    h\Big(\frac{d^s_{ij}}{\mu^s} - \frac{d^t_{ij}}{\mu^t}\Big) + w_a \, \frac{1}{B^3} \sum_{ijk}
    h(\cos \angle^s_{ijk} - \cos \angle^t_{ijk})

where h is the Huber loss with threshold 1, d are Euclidean distances and mu is their mean. A
layer of maps or tokens is averaged over its places, without class and register tokens.

Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019,
    https://arxiv.org/abs/1904.05068; reductions as in its authors' code.
Defaults: weights 1, 25 and 50 on the input of the last linear layer, as RepDistiller's CIFAR-100
    scripts (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699) and mdistiller.
Differs from the source: means over all pairs and triplets of the batch, those of an image with
    itself included, as in the authors' code, where the paper has sums. From that code: distances
    are computed from differences, and equal rows do not enter their mean; directions between rows
    that are equal up to rounding count as cosine 0 and give no gradient, where that code gives one
    of 1e10; and a batch of one gives 0, not NaN. RepDistiller gives vectors alone; the mean over
    the places of other layers is ours.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.relations import angle_cosines, check_embeddings, relative_distances
from limbeck.methods.embeddings import EmbeddingConfig, EmbeddingMethod

__all__ = ["RKD", "RKDConfig", "rkd_angle_loss", "rkd_distance_loss"]

# Of one network's angles at a time, with the ways that make them: 16 MB in float32. All of
# B = 64 and D = 512, or 21 of 256 corners at D = 512.
_MOST_ENTRIES = 2**22


class RKDConfig(EmbeddingConfig):
    """Settings of :class:`RKD`.

    Attributes:
        ce_weight: of the cross-entropy with the labels.
        distance_weight: of the distances between pairs of images.
        angle_weight: of the angles in triplets of images.
    """

    ce_weight: NonNegativeFloat = 1.0
    distance_weight: NonNegativeFloat = 25.0
    angle_weight: NonNegativeFloat = 50.0


def rkd_distance_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Huber loss between the two networks' relative distances; see the module.

    Invariant to translation, rotation and one scale for all rows. Needs ``O(B^2)`` memory.

    Args:
        student_embedding: ``(B, D)``.
        teacher_embedding: ``(B, D')``; receives no gradient.

    Returns:
        Scalar, float32 or wider, ``>= 0``, mean over all ``B^2`` pairs; 0 for a batch of one.

    Raises:
        ShapeError: if an embedding is not 2-D, or the batch sizes differ.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_distance_loss(student, 4 * student).item()
        0.0
    """
    check_embeddings(student_embedding, teacher_embedding)
    teacher = relative_distances(teacher_embedding.detach())
    return F.smooth_l1_loss(relative_distances(student_embedding), teacher)


def rkd_angle_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Huber loss between the two networks' cosines of angles in triplets; see the module.

    Invariant to translation, rotation and one scale for all rows. Needs ``O(B^2 D + B^3)``
    memory, 9 MB in float32 at B = 64 and D = 512, a few times; from 16 MB on the corners of the
    angles are taken in chunks, and computed again for the backward pass instead of being kept.

    Args:
        student_embedding: ``(B, D)``.
        teacher_embedding: ``(B, D')``; receives no gradient.

    Returns:
        Scalar, float32 or wider, in [0, 1.5], mean over all ``B^3`` triplets; 0 for a batch of
        one.

    Raises:
        ShapeError: if an embedding is not 2-D, or the batch sizes differ.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_angle_loss(student, student + 5).item()
        0.0
    """
    check_embeddings(student_embedding, teacher_embedding)
    count = len(student_embedding)
    widest = max(student_embedding.shape[1], teacher_embedding.shape[1])
    size = max(1, _MOST_ENTRIES // (count * (count + widest)))
    embeddings = student_embedding, teacher_embedding.detach()
    if size >= count:
        return _angle_sum(*embeddings, slice(None)) / count**3
    total = student_embedding.new_zeros(())
    for start in range(0, count, size):
        corners = slice(start, start + size)
        total = total + checkpoint(
            _angle_sum, *embeddings, corners, use_reentrant=False, preserve_rng_state=False
        )
    return total / count**3


def _angle_sum(student_embedding: Tensor, teacher_embedding: Tensor, corners: slice) -> Tensor:
    """Huber's loss of the angles at some corners, summed."""
    student = angle_cosines(student_embedding, corners)
    return F.smooth_l1_loss(student, angle_cosines(teacher_embedding, corners), reduction="sum")


class RKD(EmbeddingMethod[RKDConfig]):
    """See the module docstring."""

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, distances and angles."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        embeddings = self.embeddings(student, teacher)
        distance = rkd_distance_loss(*embeddings)
        angle = rkd_angle_loss(*embeddings)
        total = config.distance_weight * distance + config.angle_weight * angle
        return LossTerms(
            total=config.ce_weight * ce + total,
            parts={"ce": ce, "distance": distance, "angle": angle},
        )
