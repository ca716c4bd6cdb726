r"""SP: images that excite the teacher's layer alike shall excite the student's alike.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{sp} \, \frac{1}{B^2}
    \sum_{ij} (G^s_{ij} - G^t_{ij})^2, \quad
    G_{ij} = \frac{q_i \cdot q_j}{(\sum_k (q_i \cdot q_k)^2)^{1/2}}

where q are one layer's activations of each image, flattened. The loss is at most 4 / B, so that
its weight belongs to a batch size.

Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
    https://arxiv.org/abs/1907.09682, eq. 2-4.
Defaults: weights 1 and 3000 on the last feature map, at batch size 64: RepDistiller's CIFAR-100
    script (Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699), in a form its author
    verified.
Differs from the source: one pair of layers, where the paper sums over several. The layer is "last",
    what the pooling takes; for WRN, MobileNetV2 and ShuffleNetV2 RepDistiller takes the end of the
    last stage. Rows that are zero up to rounding are zero in the normalised matrix and give no
    gradient, where that code gives one of 1e12.
"""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.functional.relations import unit_rows, without_autocast
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["SP", "SPConfig", "sp_loss"]


class SPConfig(MethodConfig):
    """Settings of :class:`SP`.

    Attributes:
        student_layer: a layer of the student, by name or meaning.
        teacher_layer: the teacher's; shape and size may differ.
        ce_weight: of the cross-entropy with the labels.
        sp_weight: of the similarities.
        gather: compare the images of all processes, where there are several.
    """

    student_layer: str = "last"
    teacher_layer: str = "last"
    ce_weight: NonNegativeFloat = 1.0
    sp_weight: NonNegativeFloat = 3000.0
    gather: bool = False


def sp_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""Squared distance of the row-normalised Gram matrices; see the module for the formula.

    Invariant to one scale for all of an image's and all images' activations and to rotations of
    their space, but not to translations. Needs ``O(B^2)`` memory.

    Args:
        student_feature: ``(B, ...)``, what follows the batch is flattened.
        teacher_feature: ``(B, ...)``; receives no gradient.

    Returns:
        Scalar, float32 or wider, in [0, 4 / B], the mean over all ``B^2`` pairs; 0 for a batch of
        one.

    Raises:
        ShapeError: if a feature has no axis behind the batch, or the batch sizes differ.

    Source:
        Tung, Mori 2019, https://arxiv.org/abs/1907.09682, eq. 2-4.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> sp_loss(student, 4 * student).item()
        0.0
    """
    features = student_feature, teacher_feature
    if any(f.ndim < 2 for f in features) or len(student_feature) != len(teacher_feature):
        raise ShapeError(
            "student and teacher feature must both be (batch, ...), of the same batch; got student "
            f"{tuple(student_feature.shape)}, teacher {tuple(teacher_feature.shape)}. Run both "
            "networks on the same images"
        )
    return F.mse_loss(_similarities(student_feature), _similarities(teacher_feature.detach()))


def _similarities(feature: Tensor) -> Tensor:
    """``(B, ...)`` to ``(B, B)``, each row of length 1."""
    with without_autocast(feature):
        rows = widened(feature).flatten(1)
        return unit_rows(rows @ rows.T)


class SP(Method[SPConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        shapes: of one image's feature, the student's and the teacher's.
    """

    takes_mixed = True

    def __init__(
        self, config: SPConfig, *, shapes: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> None:
        super().__init__(config)
        self.shapes = shapes

    @classmethod
    def needs(cls, config: SPConfig) -> Needs:
        """One layer of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: SPConfig, probe: Probe) -> Self:
        """Remember the shapes, to describe them."""
        student = probe.feature("student", config.student_layer)
        teacher = probe.feature("teacher", config.teacher_layer)
        return cls(config, shapes=(tuple(student.shape[1:]), tuple(teacher.shape[1:])))

    def describe(self) -> tuple[str, ...]:
        """The two layers."""
        student, teacher = ("x".join(map(str, shape)) for shape in self.shapes)
        layers = self.config.student_layer, self.config.teacher_layer
        return (
            f"student {layers[0]} {student} -> teacher {layers[1]} {teacher}, flattened; "
            "no parameters",
        )

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and similarities."""
        del progress
        config = self.config
        features = student.features[config.student_layer], teacher.features[config.teacher_layer]
        ce = self.label_loss(student.logits, batch)
        if config.gather:
            features = gathered(features[0]), gathered(features[1])
        similarity = sp_loss(*features)
        return LossTerms(
            total=config.ce_weight * ce + config.sp_weight * similarity,
            parts={"ce": ce, "similarity": similarity},
        )
