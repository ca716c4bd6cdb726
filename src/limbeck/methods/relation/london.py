r"""LONDON: match the teacher's layers before the ReLU, and how far each of its parts can stretch.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{ofd} \, \frac{1}{B} \sum_{i=0}^{N-1}
    2^{-(N-1-i)} D(r_i(f^s_i), f^t_i) + w_{lip} \sum_{i=0}^{N-2} 2^{-(N-1-i)} \, \frac{1}{B}
    \sum_b \big( \sigma(G^s_{i,b}) - \sigma(G^t_{i,b}) \big)^2

where f are the maps at the stages' ends before the ReLU, r are trained 1x1 convolutions with
batch-norm, D is OFD's one-sided squared distance, summed over all entries, with margins from the
batch-norm before the teacher's ReLU, and sigma is the largest singular value of the matrix
(1 / HW) A B^T of two consecutive maps. That value is a property of the data at hand: it does not
bound the network's Lipschitz constant.

Source: Shang, Duan, Zong, Nie, Yan, "Lipschitz Continuity Guided Knowledge Distillation", ICCV
    2021, https://arxiv.org/abs/2108.12905, as in its authors' code; D from Heo et al., "A
    Comprehensive Overhaul of Feature Distillation", ICCV 2019, https://arxiv.org/abs/1904.01866.
Defaults: that code's setting c for CIFAR-100 (WRN-28-4 to WRN-16-2): weights 1, 1 / 1000 and
    0.25 / 200, ten steps of power iteration from a random start, differentiated through. Its
    settings a to f have 0.2 to 4 in place of 0.25; from 60 % of the epochs on, a has a fourth of
    its 0.8 and d twice its 1 (late_lipschitz_factor), the others what they had. For ImageNet it has
    weights 1, 1 / 10000 and 2000 / (10000 B), and five steps from ones.
Differs from the source: the teacher stays in eval mode, where that code puts it into training mode
    and lets its batch-norm statistics drift. As there, later parts weigh more, though a comment
    says the contrary, the student's matrix is taken from a map behind its connector and the next
    one before its own, and there is no term on the outputs. One random start for the batch, not one
    for each image, so that their order does not matter. A matrix of zeros has sigma 0 and no
    gradient, where that code has 0/0. The larger of two networks' maps is pooled to the other's
    size, where that code needs equal ones; where the numbers of stages differ, the last goes with
    the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.norms import BatchNorm2d
from limbeck.functional.overhaul import batch_norm_margins, overhaul_loss
from limbeck.functional.relations import transmitting_matrix, without_autocast
from limbeck.methods.adapters import AlignedPair, LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["LONDON", "LONDONConfig", "lipschitz_loss", "spectral_norms"]

_LATE = 0.6  # the share of the epochs after which the authors' settings a and d change a weight


class LONDONConfig(MethodConfig):
    """Settings of :class:`LONDON`.

    Attributes:
        student_layers: the student's maps, two at least, in the order of the forward pass;
            "pre_activation:stage*" is every stage's end.
        teacher_layers: the teacher's, as many; with a batch-norm before each, unless ofd_weight
            is 0.
        pairing: which stage goes with which: the last with the last and so on ("depth"), or those
            of one size ("resolution"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        ce_weight: of the cross-entropy with the labels.
        ofd_weight: of the maps' distance; 0 switches it off.
        lipschitz_weight: of the singular values' distance; 0 switches it off.
        late_lipschitz_factor: of lipschitz_weight, in the epochs from 60 % of their number on.
        iterations: steps of power iteration, or "exact" for a singular value decomposition.
        start: of the iteration, "random" in [0, 1) or "ones".
    """

    student_layers: tuple[str, ...] = ("pre_activation:stage*",)
    teacher_layers: tuple[str, ...] = ("pre_activation:stage*",)
    pairing: Pairing = "depth"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    ce_weight: NonNegativeFloat = 1.0
    ofd_weight: NonNegativeFloat = 1 / 1000
    lipschitz_weight: NonNegativeFloat = 0.25 / 200
    late_lipschitz_factor: NonNegativeFloat = 1.0
    iterations: PositiveInt | Literal["exact"] = 10
    start: Literal["random", "ones"] = "random"


def spectral_norms(
    first_feature: Tensor,
    second_feature: Tensor,
    *,
    iterations: int | Literal["exact"],
    start: Tensor | None = None,
) -> Tensor:
    r"""The largest singular value of each image's transmitting matrix between two layers.

    .. math:: \sigma = \sqrt{\| K v_{k-1} \|}, \quad K = G G^\top, \quad
        v_k = K v_{k-1} / \| K v_{k-1} \|, \quad G = \frac{1}{HW} A B^\top

    It says how far the second map moves when the first does, in this batch; it is no bound on the
    network's Lipschitz constant. Gradient flows through every step.

    Args:
        first_feature: ``(B, C, H, W)``.
        second_feature: ``(B, C', H', W')``; the larger of the two is pooled to the other's size.
        iterations: ``>= 1``, or "exact". From the second step on the value is a lower bound; after
            one it may be too large, since the start is not of length 1. The error shrinks by the
            fourth power of the ratio of the two largest singular values.
        start: ``(C,)``, v_0; None is ones. A start without a share in the leading direction finds
            another singular value.

    Returns:
        ``(B,)``, float32 or wider, ``>= 0``; 0, without gradient, for a matrix of zeros.

    Raises:
        ShapeError: if a feature is no map, or the batch sizes differ.
        SettingsError: if there is no iteration.

    Source:
        Shang et al., ICCV 2021, https://arxiv.org/abs/2108.12905, and its authors' code.

    Example:
        >>> first, second = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 2.0)
        >>> spectral_norms(first, second, iterations=5).item()
        6.0
    """
    if iterations != "exact" and iterations < 1:
        raise SettingsError(f"iterations must be 1 or more, or 'exact'; got {iterations}")
    matrix = transmitting_matrix(first_feature, second_feature)
    # Singular values scale with the matrix, so that dividing by a constant changes no gradient,
    # and the square of its square neither overflows nor vanishes.
    size = torch.linalg.matrix_norm(matrix.detach())[:, None, None]
    there = size > 0
    size = torch.where(there, size, 1.0)
    scaled = matrix / size
    with without_autocast(matrix):
        if iterations == "exact":
            largest = torch.linalg.svdvals(scaled)[:, :1, None]
        else:
            largest = _power_iteration(scaled, iterations, start)
    # Behind the svd and the root: for zeros their gradient is arbitrary, or infinite.
    return torch.where(there, largest * size, 0.0).flatten()


def _power_iteration(matrix: Tensor, iterations: int, start: Tensor | None) -> Tensor:
    """``(B, C, C')`` to ``(B, 1, 1)``."""
    vector = matrix.new_ones(matrix.shape[1]) if start is None else start.to(matrix)
    # A row: its product with a symmetric matrix is the column's, and reads memory in order.
    vector = vector.expand(len(matrix), 1, -1)
    length = matrix.new_ones(len(matrix), 1, 1)
    square = matrix @ matrix.mT
    for _ in range(iterations):
        product = vector @ square
        length = torch.linalg.vector_norm(product, dim=2, keepdim=True)
        # Zero where the start has no share in any singular vector.
        vector = product / torch.where(length > 0, length, 1.0)
    safe = torch.where(length > 0, length, 1.0)
    return torch.where(length > 0, safe.sqrt(), 0.0)


def lipschitz_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    iterations: int | Literal["exact"] = 10,
) -> Tensor:
    r"""Squared distance of the two networks' spectral norms, part by part.

    .. math:: \sum_i w_i \, \frac{1}{B} \sum_b (\sigma^s_{i,b} - \sigma^t_{i,b})^2

    Args:
        student_features: two or more maps ``(B, C, H, W)``, in the order of the forward pass.
        teacher_features: as many; shapes are free, but for the batch; receive no gradient.
        weights: of each pair of consecutive maps; None is 1 for all.
        iterations: as in :func:`spectral_norms`, from ones.

    Returns:
        Scalar, float32 or wider, ``>= 0``: the mean over images, the sum over pairs.

    Raises:
        ShapeError: if the numbers of maps or weights do not fit, a feature is no map, or the
            batch sizes differ.

    Source:
        Shang et al., ICCV 2021, https://arxiv.org/abs/2108.12905.

    Example:
        >>> maps = [torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)]
        >>> round(lipschitz_loss([2 * feature for feature in maps], maps).item(), 4)
        18.0
    """
    counts = len(student_features), len(teacher_features)
    num_parts = counts[0] - 1
    weights = [1.0] * num_parts if weights is None else weights
    if counts[0] != counts[1] or num_parts < 1 or len(weights) != num_parts:
        raise ShapeError(
            "two or more maps of each network are needed, equally many, and a weight for each "
            f"pair of consecutive ones; got {counts[0]} of the student, {counts[1]} of the "
            f"teacher, and {len(weights)} weights"
        )
    parts = [
        _norm_distance(student, teacher, iterations=iterations, start=None)
        for student, teacher in zip(
            pairwise(student_features), pairwise(teacher_features), strict=True
        )
    ]
    return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum()


def _norm_distance(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    iterations: int | Literal["exact"],
    start: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Mean over images of the squared difference, for one pair of consecutive maps of each."""
    starts = (None, None) if start is None else start
    if len(student[0]) != len(teacher[0]):
        raise ShapeError(
            f"student and teacher must see the same batch; got {len(student[0])} and "
            f"{len(teacher[0])} images. Run both networks on the same images"
        )
    ours = spectral_norms(*student, iterations=iterations, start=starts[0])
    with torch.no_grad():
        theirs = spectral_norms(*teacher, iterations=iterations, start=starts[1])
    return (ours - theirs).square().mean()


class LONDON(Method[LONDONConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        layers: the pairs that are compared, each brought to one size, two at least.
        margins: of each teacher layer's channels; empty where OFD is off.
    """

    takes_mixed = True

    def __init__(
        self, config: LONDONConfig, *, layers: LayerPairs, margins: Sequence[Tensor]
    ) -> None:
        super().__init__(config)
        self.layers = layers
        self.connectors = nn.ModuleList(_connector(*pair.channels) for pair in layers.pairs)
        self.margins = tuple(f"margin{place}" for place in range(len(margins)))
        for name, margin in zip(self.margins, margins, strict=True):
            self.register_buffer(name, margin)

    @classmethod
    def needs(cls, config: LONDONConfig) -> Needs:
        """The ends of the stages, and the teacher's batch-norms before them."""
        return Needs(
            student_layers=config.student_layers,
            teacher_layers=config.teacher_layers,
            teacher_batch_norms=config.ofd_weight > 0,
        )

    @classmethod
    def from_probe(cls, config: LONDONConfig, probe: Probe) -> Self:
        """Pair the layers, and find the margins.

        Raises:
            SettingsError: if there are fewer than two pairs.
            ModelError: if no batch-norm stands before a teacher's layer, unless OFD is off.
        """
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        ).resized("smaller")
        if len(layers.pairs) < 2:
            raise SettingsError(
                "LONDON compares what is between two layers; got one layer of each network. Name "
                "two at least in student_layers and teacher_layers"
            )
        norms = []
        if config.ofd_weight > 0:
            norms = [probe.batch_norm(pair.teacher) for pair in layers.pairs]
        margins = [batch_norm_margins(norm.weight, norm.bias) for norm in norms]
        return cls(config, layers=layers, margins=margins)

    def describe(self) -> tuple[str, ...]:
        """Each pair of layers, and the connector between them."""
        return self.layers.describe(self.connectors)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy, the maps' distance and the singular values'."""
        config = self.config
        pairs = [pair.bring(student, teacher) for pair in self.layers.pairs]
        connected = [
            AlignedPair(connector(pair.student), pair.teacher)
            for connector, pair in zip(self.connectors, pairs, strict=True)
        ]
        ce = self.label_loss(student.logits, batch)
        weights = [0.5 ** (len(pairs) - 1 - i) for i in range(len(pairs))]
        overhaul, lipschitz = ce.new_zeros(()), ce.new_zeros(())
        if self.margins:
            for weight, margin, pair in zip(weights, self.margins, connected, strict=True):
                distance = overhaul_loss(*pair, self.get_buffer(margin))
                overhaul = overhaul + weight * distance / len(batch)
        parts = zip(weights[:-1], connected[:-1], pairs[1:], strict=True)
        for i, (weight, first, second) in enumerate(parts):
            lipschitz = lipschitz + weight * _norm_distance(
                (first.student, second.student),
                (first.teacher, second.teacher),
                iterations=config.iterations,
                start=self._start(first, progress, part=i),
            )
        late = progress.epoch >= _LATE * progress.num_epochs
        weight = config.lipschitz_weight * (config.late_lipschitz_factor if late else 1.0)
        total = config.ofd_weight * overhaul + weight * lipschitz
        return LossTerms(
            total=config.ce_weight * ce + total,
            parts={"ce": ce, "ofd": overhaul, "lipschitz": lipschitz},
        )

    def _start(
        self, pair: AlignedPair, progress: Progress, *, part: int
    ) -> tuple[Tensor, Tensor] | None:
        if self.config.start == "ones" or self.config.iterations == "exact":
            return None
        student, teacher = (
            torch.rand(feature.shape[1], generator=progress.generator(f"{whose} start {part}"))
            for whose, feature in zip(("student", "teacher"), pair, strict=True)
        )
        return student.to(pair.student.device), teacher.to(pair.teacher.device)


def _connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(convolution, BatchNorm2d(teacher_channels))
