r"""IRG: match the graph of a batch's squared distances, and how images move from layer to layer.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_e \, \frac{1}{2B} \| A^s - A^t \|_F^2
    + w_v \, \frac{1}{2B} \| z^s - z^t \|_F^2 + w_t \sum_{l} \frac{1}{2} \| v^s_l - v^t_l \|^2
.. math:: A_{ij} = \frac{\| x_i - x_j \|^2}{\max_{kl} \| x_k - x_l \|^2}, \quad
    v_{l,i} = \frac{\| f_{l,i} - g_{l,i} \|^2}{\max_k \| f_{l,k} - g_{l,k} \|^2}

where x is one embedding of each image, z are logits, and f, g are averaged maps of one width at the
two ends of a part of the network. The maxima count as constants in the gradient.

Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship Graph",
    CVPR 2019, section 3; normalisation and reductions as in its authors' Caffe layers,
    https://github.com/yufanLIU/IRG.
Defaults: weights 1 and 0.005 on the input of the last linear layer, as the authors' file for the
    single graph; their file for the transformation has 0.005 for it and no edges. No layers are
    named for it here: they must have one width, and which do depends on the network (in
    "resnet20", "layer1.0" and "layer1.2").
Differs from the source: the vertex term is the paper's, on logits, and off, since neither file has
    it. Of the transformation only the vertices' part, as in the file. Where all rows are equal,
    nothing is divided. Layers of maps or tokens are averaged over their places.
"""

from __future__ import annotations

from typing import Self

from pydantic import NonNegativeFloat, model_validator
from torch import Tensor

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.gather import gathered
from limbeck.functional.precision import widened
from limbeck.functional.relations import (
    check_embeddings,
    over_maximum,
    pairwise_distances,
)
from limbeck.methods.adapters import AlignedPair, Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe

__all__ = ["IRG", "IRGConfig", "irg_loss", "irg_transformation_loss"]


class IRGConfig(MethodConfig):
    """Settings of :class:`IRG`.

    Attributes:
        student_layer: the student's embedding, by name or meaning.
        teacher_layer: the teacher's; its length may differ.
        student_parts: pairs of the student's layers of one width, where a part of the network
            begins and ends.
        teacher_parts: the same of the teacher's, as many.
        student_layout: how the student's layers lie, where their shape leaves it open.
        teacher_layout: the same of the teacher's.
        ce_weight: of the cross-entropy with the labels.
        edge_weight: of the graphs' edges.
        vertex_weight: of the logits' squared distance.
        transformation_weight: of the ways through the parts.
        gather: compare the images of all processes, where there are several.
    """

    student_layer: str = "penultimate"
    teacher_layer: str = "penultimate"
    student_parts: tuple[tuple[str, str], ...] = ()
    teacher_parts: tuple[tuple[str, str], ...] = ()
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    ce_weight: NonNegativeFloat = 1.0
    edge_weight: NonNegativeFloat = 0.005
    vertex_weight: NonNegativeFloat = 0.0
    transformation_weight: NonNegativeFloat = 0.005
    gather: bool = False

    @model_validator(mode="after")
    def _parts_come_in_pairs(self) -> Self:
        counts = len(self.student_parts), len(self.teacher_parts)
        if counts[0] != counts[1]:
            raise ValueError(
                "student_parts and teacher_parts must name equally many parts; got "
                f"{counts[0]} and {counts[1]}"
            )
        return self

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every student layer that is read, with the teacher's that it answers to."""
        pairs = [(self.student_layer, self.teacher_layer)]
        for ours, theirs in zip(self.student_parts, self.teacher_parts, strict=True):
            pairs += zip(ours, theirs, strict=True)
        return tuple(dict.fromkeys(pairs))


def irg_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Distance of the two graphs' edges; see the module for the formula.

    Invariant to translation, rotation and one scale for all rows. Needs ``O(B^2)`` memory.

    Args:
        student_embedding: ``(B, D)``.
        teacher_embedding: ``(B, D')``; receives no gradient.

    Returns:
        Scalar, float32 or wider, in [0, B / 2], the sum over pairs over twice the batch size; 0 for
        a batch of one.

    Raises:
        ShapeError: if an embedding is not 2-D, or the batch sizes differ.

    Source:
        Liu et al., CVPR 2019; the maximum and the reduction from their Caffe layers.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> irg_loss(student, 4 * student).item()
        0.0
    """
    check_embeddings(student_embedding, teacher_embedding)
    student, teacher = (
        over_maximum(pairwise_distances(e, e).square())
        for e in (student_embedding, teacher_embedding.detach())
    )
    return _euclidean(student, teacher)


def irg_transformation_loss(
    student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor
) -> Tensor:
    """Distance of how far each image moves in a part of either network, over the farthest.

    Args:
        student_first: ``(B, D)``, where the part begins.
        student_second: ``(B, D)``, where it ends.
        teacher_first: ``(B, D')``; receives no gradient.
        teacher_second: ``(B, D')``; receives no gradient.

    Returns:
        Scalar, float32 or wider, in [0, B / 2], half the sum over images.

    Raises:
        ShapeError: if an embedding is not 2-D, the batch sizes differ, or the two ends of a part
            differ in shape.

    Source:
        The authors' Caffe layers, which give the loss the vector as one row: it is not divided by
        the batch size.

    Example:
        >>> import torch
        >>> here, there = torch.zeros(2, 3), torch.ones(2, 3)
        >>> irg_transformation_loss(here, there, here, 5 * there).item()
        0.0
    """
    check_embeddings(student_first, teacher_first)
    for whose, first, second in (
        ("student", student_first, student_second),
        ("teacher", teacher_first, teacher_second),
    ):
        if first.shape != second.shape:
            raise ShapeError(
                f"the {whose}'s part must begin and end with equal shapes; got "
                f"{tuple(first.shape)} and {tuple(second.shape)}. Choose two layers of one width, "
                "within one stage for example"
            )
    student, teacher = (
        over_maximum((widened(second) - widened(first)).square().sum(dim=1))
        for first, second in (
            (student_first, student_second),
            (teacher_first.detach(), teacher_second.detach()),
        )
    )
    return (student - teacher).square().sum() / 2


def _euclidean(student: Tensor, teacher: Tensor) -> Tensor:
    """Caffe's loss: the sum of squares over twice the number of rows."""
    return (student - teacher).square().sum() / (2 * len(student))


class IRG(Method[IRGConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        alignments: of every two layers that are read together, as vectors.
    """

    takes_mixed = True

    def __init__(self, config: IRGConfig, *, alignments: dict[tuple[str, str], Alignment]) -> None:
        super().__init__(config)
        self.alignments = alignments

    @classmethod
    def needs(cls, config: IRGConfig) -> Needs:
        """One embedding of each network, and the ends of its parts."""
        ours, theirs = zip(*config.pairs(), strict=True)
        return Needs(
            student_layers=tuple(dict.fromkeys(ours)), teacher_layers=tuple(dict.fromkeys(theirs))
        )

    @classmethod
    def from_probe(cls, config: IRGConfig, probe: Probe) -> Self:
        """Find how the layers lie."""
        alignments = {
            (ours, theirs): align(
                probe.feature("student", ours),
                probe.feature("teacher", theirs),
                purpose="vector",
                student_layout=config.student_layout,
                teacher_layout=config.teacher_layout,
            )
            for ours, theirs in config.pairs()
        }
        return cls(config, alignments=alignments)

    def describe(self) -> tuple[str, ...]:
        """Each two layers that are read together."""
        return tuple(alignment.describe(*pair, None) for pair, alignment in self.alignments.items())

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, edges, vertices and transformations."""
        del progress
        config = self.config
        read = {
            pair: self._read(alignment(student.features[pair[0]], teacher.features[pair[1]]))
            for pair, alignment in self.alignments.items()
        }
        logits = self._read(AlignedPair(student.logits, teacher.logits.detach()))
        ce = self.label_loss(student.logits, batch)
        edge = irg_loss(*read[config.student_layer, config.teacher_layer])
        vertex = _euclidean(widened(logits.student), widened(logits.teacher))
        transformation = ce.new_zeros(())
        for ours, theirs in zip(config.student_parts, config.teacher_parts, strict=True):
            first, second = (read[pair] for pair in zip(ours, theirs, strict=True))
            transformation = transformation + irg_transformation_loss(
                first.student, second.student, first.teacher, second.teacher
            )
        total = config.edge_weight * edge + config.vertex_weight * vertex
        total = total + config.transformation_weight * transformation
        return LossTerms(
            total=config.ce_weight * ce + total,
            parts={"ce": ce, "edge": edge, "vertex": vertex, "transformation": transformation},
        )

    def _read(self, pair: AlignedPair) -> AlignedPair:
        if not self.config.gather:
            return pair
        return AlignedPair(gathered(pair.student), gathered(pair.teacher))
