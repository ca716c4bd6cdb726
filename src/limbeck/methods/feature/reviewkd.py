r"""ReviewKD: each of the teacher's stages teaches the student's stage of its depth and all before.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{review} \min(1, e / e_0) \sum_l
    HCL(g_l(f^s_l, \ldots, f^s_L), f^t_l)

The student's stages, ending with the vector before the classifier, are gone through from the last
to the first. At each, a 1x1 convolution and batch-norm bring it to a common width; what came from
the deeper stages is enlarged and added, each of the two weighted at every place by a gate in (0, 1)
that sees both; a 3x3 convolution and batch-norm give the teacher's channels. HCL compares the whole
maps and their averages over 4x4, 2x2 and 1 places.

Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
    https://arxiv.org/abs/2104.09044, section 3; and its authors' code.
Defaults: the code's for resnet32x4 -> resnet8x4: weight 5 from epoch 20 on, growing linearly from 0
    in the first epoch, at most 512 channels. The code's weights for other pairs: WRN-40-2 ->
    WRN-16-2, WRN-40-1 and ShuffleNetV1 5; resnet32x4 -> ShuffleNetV1 5, ShuffleNetV2 8; resnet56 ->
    resnet20 0.6; resnet110 -> resnet32 1; on ImageNet, without warm-up and with the student's
    layers before their activations, ResNet50 -> MobileNetV1 8 with 256 channels, ResNet18 1.
Differs from the source: which stages there are, their channels and sizes are read from the two
    networks, where the code has a table for each student; the last goes with the last. The code
    leaves the teacher in train mode on CIFAR-100, so that its statistics move; here it never is.
    mdistiller's warm-up counts epochs from 1. A transformer's tokens are the map of their places,
    and a layer that ends in no activation is compared as it is.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.maps import check_feature_maps
from limbeck.functional.norms import BatchNorm2d
from limbeck.functional.precision import widened
from limbeck.methods.adapters import LayoutConfig
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.pairing import LayerPairs, Pairing, pair_layers

__all__ = ["AttentionFusion", "ReviewKD", "ReviewKDConfig", "hcl_loss"]

_LEVELS = (4, 2, 1)  # sides of the averaged maps


class ReviewKDConfig(MethodConfig):
    """Settings of :class:`ReviewKD`.

    Attributes:
        student_layers: layers of the student, by name or meaning, in the order of the forward
            pass; "stage*" is every stage.
        teacher_layers: layers of the teacher.
        pairing: which stage goes with which: the last with the last and so on ("depth"), or those
            of one size ("resolution"). Layers named one by one are paired as they are named.
        student_layout: how the student's layers lie, where their shapes leave it open.
        teacher_layout: the same of the teacher's.
        max_channels: of the common width, which is that of the student's last layer if smaller.
        warmup_epochs: until the full weight; 0 has it from the beginning.
        ce_weight: of the cross-entropy with the labels.
        review_weight: of the sum over layers, after the warm-up.
    """

    student_layers: tuple[str, ...] = ("stage*", "penultimate")
    teacher_layers: tuple[str, ...] = ("pre_activation:stage*", "penultimate")
    pairing: Pairing = "depth"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    max_channels: PositiveInt = 512
    warmup_epochs: NonNegativeInt = 20
    ce_weight: NonNegativeFloat = 1.0
    review_weight: NonNegativeFloat = 5.0


def hcl_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    r"""Mean squared difference of two maps at several resolutions: hierarchical context loss.

    .. math:: \frac{\sum_l w_l \, MSE(\phi_l(f^s), \phi_l(f^t))}{\sum_l w_l}

    The whole maps have weight 1; their averages over l x l places, for those l of 4, 2, 1 that are
    smaller than the map's height, have 1/2, 1/4, 1/8 in this order.

    Args:
        student_feature: ``(B, C, H, W)``.
        teacher_feature: the same shape; receives no gradient.

    Returns:
        Scalar, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if a feature is no map, or the shapes differ.

    Source:
        Chen et al. 2021, https://arxiv.org/abs/2104.09044, section 3.3.

    Example:
        >>> hcl_loss(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 3.0)).item()
        9.0
    """
    check_feature_maps(student_feature, teacher_feature, equal=True)
    student, teacher = widened(student_feature), widened(teacher_feature.detach())
    difference = student - teacher  # averaging is linear
    weight, weights = 1.0, 1.0
    total = difference.square().mean()
    for side in _LEVELS:
        if side < difference.shape[2]:
            weight /= 2
            weights += weight
            total = total + weight * F.adaptive_avg_pool2d(difference, side).square().mean()
    return total / weights


class AttentionFusion(nn.Module):
    """One stage of the student joined with what came from the deeper ones; see the module.

    Args:
        student_channels: of the student's map.
        channels: the common width.
        teacher_channels: of the teacher's map.
        deepest: whether nothing comes from deeper stages.
    """

    def __init__(
        self, student_channels: int, channels: int, teacher_channels: int, *, deepest: bool
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(student_channels, channels, kernel_size=1, bias=False), BatchNorm2d(channels)
        )
        self.leave = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, kernel_size=3, padding=1, bias=False),
            BatchNorm2d(teacher_channels),
        )
        self.gate = None if deepest else nn.Conv2d(2 * channels, 2, kernel_size=1)
        for convolution in (self.enter[0], self.leave[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(
        self, student_feature: Tensor, deeper: Tensor | None, size: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """To the teacher's shape, and what the next shallower stage is given.

        Args:
            student_feature: ``(B, C_s, H, W)``.
            deeper: ``(B, C, H', W')`` from the stage behind it; None for the deepest.
            size: (H, W) of the teacher's map.

        Returns:
            ``(B, C_t, *size)`` and ``(B, C, *size)``.
        """
        joined = self.enter(student_feature)
        if self.gate is not None and deeper is not None:
            deeper = _resized(deeper, joined.shape[2:])
            gates = self.gate(torch.cat([joined, deeper], dim=1)).sigmoid()
            joined = joined * gates[:, :1] + deeper * gates[:, 1:]
        joined = _resized(joined, size)
        return self.leave(joined), joined


def _resized(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    return feature if feature.shape[2:] == size else F.interpolate(feature, size, mode="nearest")


class ReviewKD(Method[ReviewKDConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        layers: the pairs that are compared, each layer at its own size.
        fusions: one for each pair.
    """

    takes_mixed = True

    def __init__(
        self, config: ReviewKDConfig, *, layers: LayerPairs, fusions: list[AttentionFusion]
    ) -> None:
        super().__init__(config)
        self.layers = layers
        self.fusions = nn.ModuleList(fusions)

    @classmethod
    def needs(cls, config: ReviewKDConfig) -> Needs:
        """The stages of both networks and the vectors before their classifiers."""
        return Needs(student_layers=config.student_layers, teacher_layers=config.teacher_layers)

    @classmethod
    def from_probe(cls, config: ReviewKDConfig, probe: Probe) -> Self:
        """Pair the stages, and make the fusion of each pair."""
        layers = pair_layers(
            probe,
            config.student_layers,
            config.teacher_layers,
            rule=config.pairing,
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        channels = min(config.max_channels, layers.pairs[-1].channels[0])
        fusions = [
            AttentionFusion(ours, channels, theirs, deepest=pair is layers.pairs[-1])
            for pair in layers.pairs
            for ours, theirs in [pair.channels]
        ]
        return cls(config, layers=layers, fusions=fusions)

    def describe(self) -> tuple[str, ...]:
        """The pairs with what stands between, and what is left out."""
        return self.layers.describe(self.fusions)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, and the review at its weight of this epoch."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        deeper, reviews = None, []
        for pair, fusion in zip(self.layers.pairs[::-1], reversed(self.fusions), strict=True):
            maps = pair.bring(student, teacher)
            imitation, deeper = fusion(maps.student, deeper, maps.teacher.shape[2:])
            reviews.append(hcl_loss(imitation, maps.teacher))
        review = torch.stack(reviews).sum()
        grown = min(1.0, progress.epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
        return LossTerms(
            total=config.ce_weight * ce + config.review_weight * grown * review,
            parts={"ce": ce, "review": review},
        )
