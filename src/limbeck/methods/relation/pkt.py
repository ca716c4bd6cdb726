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

from typing import Self

from pydantic import NonNegativeFloat
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.relations import (
    check_embeddings,
    shifted_cosines,
    smoothed_divergence,
)
from limbeck.methods.adapters import AlignedPair, Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["PKT", "PKTConfig", "pkt_loss"]


class PKTConfig(MethodConfig):
    """Settings of :class:`PKT`.

    Attributes:
        student_layer: the student's embedding, by name or meaning.
        teacher_layer: the teacher's; its length may differ.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        ce_weight: of the cross-entropy with the labels.
        pkt_weight: of the divergence between the neighbours' probabilities.
        gather: compare the images of all processes, where there are several.
    """

    student_layer: str = "penultimate"
    teacher_layer: str = "penultimate"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    ce_weight: NonNegativeFloat = 1.0
    pkt_weight: NonNegativeFloat = 30000.0
    gather: bool = False


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


class PKT(Method[PKTConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignment: of the two layers, as vectors.
    """

    def __init__(self, config: PKTConfig, *, alignment: Alignment) -> None:
        super().__init__(config)
        self.alignment = alignment

    @classmethod
    def needs(cls, config: PKTConfig) -> Needs:
        """One embedding of each network."""
        return Needs(student_layers=(config.student_layer,), teacher_layers=(config.teacher_layer,))

    @classmethod
    def from_probe(cls, config: PKTConfig, probe: Probe) -> Self:
        """Find how the two layers lie."""
        alignment = align(
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
            purpose="vector",
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        return cls(config, alignment=alignment)

    def describe(self) -> tuple[str, ...]:
        """The two embeddings."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, None),)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and divergence."""
        del progress
        config = self.config
        pair = self.alignment(
            student.features[config.student_layer], teacher.features[config.teacher_layer]
        )
        ce = self.cross_entropy(student.logits, batch.label)
        if config.gather:
            pair = AlignedPair(gathered(pair.student), gathered(pair.teacher))
        divergence = pkt_loss(*pair)
        return LossTerms(
            total=config.ce_weight * ce + config.pkt_weight * divergence,
            parts={"ce": ce, "divergence": divergence},
        )
