r"""RKD: keep the distances and angles between a batch's embeddings as the teacher has them.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_d \, \frac{1}{B^2} \sum_{ij}
    h\Big(\frac{d^s_{ij}}{\mu^s} - \frac{d^t_{ij}}{\mu^t}\Big) + w_a \, \frac{1}{B^3} \sum_{ijk}
    h(\cos \angle^s_{ijk} - \cos \angle^t_{ijk})

where h is the Huber loss with threshold 1, d are Euclidean distances and mu is their mean.

Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019,
    https://arxiv.org/abs/1904.05068; reductions as in its authors' code.
Defaults: weights 1, 25 and 50 on the input of the last linear layer, as RepDistiller's CIFAR-100
    scripts (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699) and mdistiller.
Differs from the source: means over all pairs and triplets of the batch, those of an image with
    itself included, as in the authors' code, where the paper has sums. From that code: distances
    are computed from differences, and equal rows do not enter their mean; directions between rows
    that are equal up to rounding count as cosine 0 and give no gradient, where that code gives one
    of 1e10; and a batch of one gives 0, not NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Needs

__all__ = ["RKD", "RKDConfig", "rkd_angle_loss", "rkd_distance_loss"]

# Two rows nearer than this many rounding errors of the batch's largest entry are the same row:
# the direction between them is noise, and its gradient grows as one over their distance.
_NUM_ROUNDING_ERRORS = 64


class RKDConfig(MethodConfig):
    """Settings of :class:`RKD`.

    Attributes:
        student_layer: the student's embedding, one vector per image, by name or meaning.
        teacher_layer: the teacher's; its length may differ.
        ce_weight: of the cross-entropy with the labels.
        distance_weight: of the distances between pairs of images.
        angle_weight: of the angles in triplets of images.
    """

    student_layer: str = "penultimate"
    teacher_layer: str = "penultimate"
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
    _check(student_embedding, teacher_embedding)
    teacher = _relative_distances(teacher_embedding.detach())
    return F.smooth_l1_loss(_relative_distances(student_embedding), teacher)


def rkd_angle_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Huber loss between the two networks' cosines of angles in triplets; see the module.

    Invariant to translation, rotation and one scale for all rows. Needs ``O(B^2 D + B^3)``
    memory: 5 MB in float32 at B = 64 and D = 256, 200 MB at 256 and 512.

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
    _check(student_embedding, teacher_embedding)
    return F.smooth_l1_loss(_cosines(student_embedding), _cosines(teacher_embedding.detach()))


def _check(student_embedding: Tensor, teacher_embedding: Tensor) -> None:
    embeddings = student_embedding, teacher_embedding
    if any(e.ndim != 2 for e in embeddings) or len(student_embedding) != len(teacher_embedding):
        raise ShapeError(
            "student and teacher embedding must both be (batch, features), of the same batch; got "
            f"student {tuple(student_embedding.shape)}, teacher {tuple(teacher_embedding.shape)}. "
            "For a feature map, choose the layer behind the pooling, or pool and flatten it"
        )


def _relative_distances(embedding: Tensor) -> Tensor:
    """``(B, D)`` to ``(B, B)``: Euclidean distances over the mean of the positive ones."""
    wide = widened(embedding)
    # From differences and not from the Gram matrix, which cancels; and cdist's own backward,
    # which gives no gradient at distance 0 where that of a square root gives infinity.
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    # Without a positive distance there is nothing to divide, and 1 keeps the gradient finite.
    return distance / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    """``(B, D)`` to ``(B, B, B)``: at [i, j, k] the cosine at i between the ways to j and k."""
    # Autocast would multiply the float32 vectors in half precision.
    with torch.autocast(embedding.device.type, enabled=False):
        wide = widened(embedding)
        way = wide[None, :, :] - wide[:, None, :]
        length = torch.linalg.vector_norm(way, dim=2, keepdim=True)
        rounding = torch.finfo(wide.dtype).eps * wide.detach().abs().amax()
        apart = length.detach() > _NUM_ROUNDING_ERRORS * rounding
        direction = torch.where(apart, way / torch.where(apart, length, 1.0), 0.0)
        return direction @ direction.transpose(1, 2)


class RKD(Method[RKDConfig]):
    """See the module docstring."""

    @classmethod
    def needs(cls, config: RKDConfig) -> Needs:
        """One embedding of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, distances and angles."""
        del progress
        config = self.config
        embeddings = (
            student.features[config.student_layer],
            teacher.features[config.teacher_layer],
        )
        ce = self.cross_entropy(student.logits, batch.label)
        distance = rkd_distance_loss(*embeddings)
        angle = rkd_angle_loss(*embeddings)
        total = config.distance_weight * distance + config.angle_weight * angle
        return LossTerms(
            total=config.ce_weight * ce + total,
            parts={"ce": ce, "distance": distance, "angle": angle},
        )
